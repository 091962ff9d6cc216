"""How the users' classes are trained: scvi-tools' call, with defaults that suit the fast path.

A mixin of :class:`scalloy.models._base.ScalloyModel`, which has the model's module and cells.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import scvi
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import UnsupervisedTrainingMixin
from scvi.train._logger import SimpleLogger

from scalloy._seeds import seeded
from scalloy.data import fingerprint
from scalloy.data.checks import few
from scalloy.data.loader import Cells, CellSplitter
from scalloy.data.splits import split
from scalloy.models import _files, _options
from scalloy.train import together
from scalloy.train.checkpoints import Checkpoints, Interrupts, best_of_callbacks
from scalloy.train.memory import buffers_stay_mapped
from scalloy.train.plan import NonFiniteLoss, TermsPlan
from scalloy.vae.base import VAEModule

logger = logging.getLogger("scalloy")
BYTES = 64  # of a GPU's memory that a step takes for each entry of its batch


class Training(UnsupervisedTrainingMixin):
    """``train`` and its defaults."""

    _training_plan_cls = TermsPlan
    _data_splitter_cls = CellSplitter
    _default_steps = 2500
    _plan_defaults: dict[str, Any] = {}  # noqa: RUF012

    module: VAEModule
    seed: int
    history_: dict[str, Any] | None
    is_trained_: bool
    init_params_: dict[str, Any]
    adata: AnnData
    get_var_names: Callable[[], Any]
    adata_manager: AnnDataManager
    _cells: Cells | None
    _manager_of: Callable[[AnnData | None], AnnDataManager]

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = None,
        early_stopping: bool = True,
        plan_kwargs: dict | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        **kwargs: Any,
    ) -> None:
        """Train the model; scvi-tools' call, with defaults that suit the fast path.

        Parameters
        ----------
        max_epochs
            Most passes over the data; ``None`` chooses by the number of cells.
        accelerator, devices
            As in Lightning; ``devices=2, strategy="ddp"`` takes two.
        train_size, validation_size
            Fractions of the cells; 0.9 and the rest unless given. What remains is a test set.
        shuffle_set_split
            Whether the split is random.
        load_sparse_tensor
            Without effect, batches are sparse in any case (kept for scvi-tools' call).
        batch_size
            Cells per step on each device; ``None`` chooses by their number, and on a GPU by its memory,
            for all devices together.
        early_stopping
            Stop when ``validation_loss`` no longer falls. The best weights are restored either way.
        plan_kwargs
            For :class:`~scalloy.train.plan.TermsPlan`: ``lr``, ``kl_warmup``, ``weights``, ...
        checkpoint_dir
            Folder in which to keep a checkpoint, so that a run that dies is not lost.
        checkpoint_every
            Epochs from one checkpoint to the next.
        resume
            Go on from the checkpoint in ``checkpoint_dir``, if there is one: with the same data and arguments
            the result is that of a run without a break.
        **kwargs
            As in scvi-tools: ``datasplitter_kwargs``, ``datamodule``, and arguments of its ``Trainer``.
        """
        if not any(p.requires_grad for p in self.module.parameters()):
            logger.warning("Nothing to train: the query has no batch or covariate that the reference lacks.")
            return
        n, chosen_size = self._manager_of(None).adata.n_obs, batch_size
        if batch_size is None:
            one = kwargs.get("strategy", "auto") == "auto" and one_gpu(accelerator, devices)
            batch_size = default_batch_size(n, largest_batch(self.adata.n_vars) if one else 512)
        if max_epochs is None:
            max_epochs = default_epochs(n, batch_size, self._default_steps)
        _options.positive(batch_size=batch_size, max_epochs=max_epochs)
        chosen = (kwargs.get("datasplitter_kwargs") or {}).get("external_indexing")
        parts = chosen or split(n, train_size, validation_size)
        validates = len(parts[1]) > 0 and getattr(kwargs.get("datamodule"), "n_val", 1) > 0
        if validates:
            kwargs.setdefault("check_val_every_n_epoch", 1)
        kwargs.setdefault("early_stopping_monitor", "validation_loss")
        kwargs.setdefault("early_stopping_patience", max(10, max_epochs // 5))
        kwargs.setdefault("log_every_n_steps", 10**9)
        self._cells = None  # training has its own
        self.module.train()  # an earlier training has left it in the mode of evaluation
        if kwargs.get("datamodule") is None:
            own = {"seed": self.seed, "divide": chosen_size is None}
            kwargs["datasplitter_kwargs"] = {**own, **(kwargs.get("datasplitter_kwargs") or {})}
        interrupts, plan = Interrupts(), self._plan(plan_kwargs)
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), interrupts]
        data = fingerprint.of_data(self.adata_manager)
        arguments: dict[str, Any] = {"max_epochs": max_epochs, "batch_size": batch_size, "plan_kwargs": plan}
        arguments |= {"train_size": train_size, "validation_size": validation_size}
        arguments |= {"shuffle_set_split": shuffle_set_split}
        if checkpoint_dir is not None or resume:
            run = {**arguments, "model": type(self).__name__, "settings": self.init_params_["non_kwargs"]}
            run["data"] = data
            kwargs["callbacks"].append(checkpoints(checkpoint_dir, checkpoint_every, resume=resume, run=run))
        arguments |= {"accelerator": accelerator, "devices": devices}
        stops = early_stopping and validates
        with (
            self._kept_usable(interrupts),
            buffers_stay_mapped(),
            warnings.catch_warnings(),
            TemporaryDirectory() as folder,
            together.allowed(kwargs, early_stopping=stops, folder=folder) as run,
            best_of_callbacks(kwargs["callbacks"], partial(_files.take_weights, self)),
        ):
            for message in (".*smaller than the logging interval.*", ".*LeafSpec.*deprecated.*"):
                warnings.filterwarnings("ignore", message=message)
            super().train(**arguments, **with_history(run))
        self._data = data

    @contextmanager
    def _kept_usable(self, interrupts: Interrupts) -> Iterator[None]:
        """Draws by the seed; what ends training early leaves a model, and says so in the user's terms."""
        was_trained, history = self.is_trained_, self.history_ or {}
        epochs = max((len(column) for column in history.values()), default=0)
        self.is_trained_ = bool(was_trained and history)  # or scvi-tools would drop the history of a query
        try:
            with seeded(self.seed + epochs):
                yield
        except NonFiniteLoss as error:
            raise self._named(error) from None
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        finally:
            interrupts.give_back()
            self.is_trained_ = self.is_trained_ or was_trained
            self.module.eval()

    def _named(self, error: NonFiniteLoss) -> NonFiniteLoss:
        """The same error with the names of cells and genes."""
        named = NonFiniteLoss(str(error))
        named.rows, named.genes = error.rows, error.genes
        if error.rows:
            cells, genes = self.adata.obs_names[error.rows], np.asarray(self.get_var_names())[error.genes]
            where = f"It broke in {len(cells)} cell(s): {few(cells, 5)}, gene(s): {few(genes, 5)}."
            named.args = (f"{error} {where}",)
        return named

    def _plan(self, given: dict | None) -> dict[str, Any]:
        """The model's own plan with what the user gives on top; weights are merged term by term."""
        merged = {**self._plan_defaults, **(given or {})}
        weights = {**self._plan_defaults.get("weights", {}), **(given or {}).get("weights", {})}
        return {**merged, "weights": weights}


def with_history(run: dict[str, Any]) -> dict[str, Any]:
    """Put scvi-tools' own logger, which alone keeps the history of the model, before those of the user."""
    given, folder = run.get("logger"), run.get("log_save_dir")
    if given is None:
        return run
    if given is True:
        from lightning.pytorch.loggers import CSVLogger

        given = CSVLogger(scvi.settings.logging_dir)
    others = list(given) if isinstance(given, list | tuple) else [given] if given else []
    own = [logger for logger in others if isinstance(logger, SimpleLogger)]
    own = own or [SimpleLogger(save_dir=folder, save_log_on_disk=bool(folder))]
    return {**run, "logger": [*own, *(logger for logger in others if logger not in own)]}


def default_batch_size(n_obs: int, largest: int = 512) -> int:
    """Power of two with about 40 steps per epoch, from 64 to the largest."""
    return int(2 ** np.clip(np.floor(np.log2(max(n_obs, 2) / 40)), 6, np.log2(largest)))


def one_gpu(accelerator: str, devices: int | list[int] | str) -> bool:
    """Whether training is on one GPU; found out without touching it, for processes to come could not then."""
    if accelerator not in {"auto", "gpu", "cuda"} or not torch.cuda.is_available():
        return False
    chosen = len(devices) == 1 if isinstance(devices, list) else devices in (1, "1")
    return chosen or torch.cuda.device_count() == 1


def largest_batch(n_vars: int) -> int:
    """Power of two up to 4,096 that the GPU surely holds; a CPU gains nothing from more than 512."""
    free, _ = torch.cuda.mem_get_info()
    return int(2 ** np.clip(np.floor(np.log2(0.3 * free / (n_vars * BYTES))), 6, 12))


def default_epochs(n_obs: int, batch_size: int, steps: int = 2500) -> int:
    """Epochs that make about so many steps, from 20 to 200."""
    return int(np.clip(np.ceil(steps / max(1.0, 0.9 * n_obs / batch_size)), 20, 200))


def checkpoints(folder: str | Path | None, every: int, *, resume: bool, run: dict[str, Any]) -> Checkpoints:
    """The callback that keeps checkpoints."""
    if folder is None:
        msg = "`resume=True` needs the folder of the checkpoint: pass `checkpoint_dir=` as in that run."
        raise ValueError(msg)
    _options.positive(checkpoint_every=every)
    return Checkpoints(Path(folder), every, resume=resume, run=run)
