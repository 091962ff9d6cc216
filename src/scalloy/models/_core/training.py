"""Training of all models, with scvi-tools' call and defaults that suit sparse data on a CPU or a GPU.

:func:`train` is a method of every model.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import scvi
import torch
from scvi.model.base import UnsupervisedTrainingMixin
from scvi.train._logger import SimpleLogger

from scalloy._arguments import few, positive
from scalloy._seeds import seeded
from scalloy._threads import keep_to_cores
from scalloy.data import fingerprint
from scalloy.data.split import split
from scalloy.models._core import files
from scalloy.train import distributed
from scalloy.train.checkpoints import Checkpoints, Interrupts, best_of_callbacks
from scalloy.train.malloc import buffers_stay_mapped
from scalloy.train.plan import NonFiniteLoss

logger = logging.getLogger("scalloy")
BYTES = 64  # bytes of GPU memory that a step needs for each entry (cell x gene) of its batch


def train(
    model: Any,
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
    """Train the model, with scvi-tools' call.

    Parameters
    ----------
    max_epochs
        Maximum number of epochs; ``None`` chooses by the number of cells.
    accelerator, devices
        Hardware to train on, with Lightning's names; ``devices=2, strategy="ddp"`` trains on two devices.
    train_size, validation_size
        Fractions of the cells for training and validation (default 0.9 and the rest). The remaining cells
        are a test set.
    shuffle_set_split
        Whether to split the cells at random.
    load_sparse_tensor
        No effect, since batches are always sparse; kept for scvi-tools' call.
    batch_size
        Number of cells per step on each device. ``None`` chooses by the number of cells, and on a GPU by its
        memory, for all devices together.
    early_stopping
        Whether to stop when ``validation_loss`` no longer falls. The best weights are restored in any case.
    plan_kwargs
        Arguments of :class:`~scalloy.train.plan.TermsPlan`: ``lr``, ``kl_warmup``, ``weights``, ...
    checkpoint_dir
        Folder in which to keep a checkpoint, so that an interrupted run can be continued.
    checkpoint_every
        Number of epochs from one checkpoint to the next.
    resume
        Whether to continue from the checkpoint in ``checkpoint_dir``, if there is one. With the same data and
        arguments, the result is that of an uninterrupted run.
    **kwargs
        Further arguments of scvi-tools: ``datasplitter_kwargs``, ``datamodule`` and those of its ``Trainer``.

    Examples
    --------
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    """
    if not any(p.requires_grad for p in model.module.parameters()):
        logger.warning("Nothing to train: the query has no batch or covariate that the reference lacks.")
        return
    n, chosen_size = model.reader.manager().adata.n_obs, batch_size
    if batch_size is None:
        one = kwargs.get("strategy", "auto") == "auto" and one_gpu(accelerator, devices)
        batch_size = default_batch_size(n, largest_batch(model.adata.n_vars) if one else 512)
    if max_epochs is None:
        max_epochs = default_epochs(n, batch_size, model._default_steps)
    positive(batch_size=batch_size, max_epochs=max_epochs)
    chosen = (kwargs.get("datasplitter_kwargs") or {}).get("external_indexing")
    parts = chosen or split(n, train_size, validation_size)
    validates = len(parts[1]) > 0 and getattr(kwargs.get("datamodule"), "n_val", 1) > 0
    if validates:
        kwargs.setdefault("check_val_every_n_epoch", 1)
    kwargs.setdefault("early_stopping_monitor", "validation_loss")
    kwargs.setdefault("early_stopping_patience", max(10, max_epochs // 5))
    kwargs.setdefault("log_every_n_steps", 10**9)
    keep_to_cores()
    model.reader.forget_table()  # training makes a table of its own; they need not both be in memory
    model.module.train()  # an earlier training left it in evaluation mode
    if kwargs.get("datamodule") is None:
        own = {"seed": model.seed, "divide": chosen_size is None}
        kwargs["datasplitter_kwargs"] = {**own, **(kwargs.get("datasplitter_kwargs") or {})}
    interrupts, plan = Interrupts(), _plan(model, plan_kwargs)
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), interrupts]
    data = fingerprint.of_data(model.adata_manager)
    arguments: dict[str, Any] = {"max_epochs": max_epochs, "batch_size": batch_size, "plan_kwargs": plan}
    arguments |= {"train_size": train_size, "validation_size": validation_size}
    arguments |= {"shuffle_set_split": shuffle_set_split}
    if checkpoint_dir is not None or resume:
        run = {**arguments, "model": type(model).__name__, "settings": model.init_params_["non_kwargs"]}
        run["data"] = data
        kwargs["callbacks"].append(checkpoints(checkpoint_dir, checkpoint_every, resume=resume, run=run))
    arguments |= {"accelerator": accelerator, "devices": devices}
    stops = early_stopping and validates
    with (
        _kept_usable(model, interrupts),
        buffers_stay_mapped(),
        warnings.catch_warnings(),
        TemporaryDirectory() as folder,
        distributed.allowed(kwargs, early_stopping=stops, folder=folder) as run,
        best_of_callbacks(kwargs["callbacks"], partial(files.take_weights, model)),
    ):
        for message in (".*smaller than the logging interval.*", ".*LeafSpec.*deprecated.*"):
            warnings.filterwarnings("ignore", message=message)
        UnsupervisedTrainingMixin.train(model, **arguments, **with_history(run))
    model._data = data


@contextmanager
def _kept_usable(model: Any, interrupts: Interrupts) -> Iterator[None]:
    """Train with the seed of the model, and leave a usable model and a clear error if training ends early."""
    was_trained, history = model.is_trained_, model.history_ or {}
    epochs = max((len(column) for column in history.values()), default=0)
    model.is_trained_ = bool(was_trained and history)  # otherwise scvi-tools drops the history of a query
    try:
        with seeded(model.seed + epochs):
            yield
    except NonFiniteLoss as error:
        raise _named(model, error) from None
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        interrupts.give_back()
        model.is_trained_ = model.is_trained_ or was_trained
        model.module.eval()


def _named(model: Any, error: NonFiniteLoss) -> NonFiniteLoss:
    """Return the same error with the names of cells and genes."""
    named = NonFiniteLoss(str(error))
    named.rows, named.genes = error.rows, error.genes
    if error.rows:
        cells, genes = model.adata.obs_names[error.rows], np.asarray(model.get_var_names())[error.genes]
        where = f"It broke in {len(cells)} cell(s): {few(cells, 5)}, gene(s): {few(genes, 5)}."
        named.args = (f"{error} {where}",)
    return named


def _plan(model: Any, given: dict | None) -> dict[str, Any]:
    """Return the plan arguments of the model, updated by those of the user; weights are merged by term."""
    merged = {**model._plan_defaults, **(given or {})}
    weights = {**model._plan_defaults.get("weights", {}), **(given or {}).get("weights", {})}
    return {**merged, "weights": weights}


def with_history(run: dict[str, Any]) -> dict[str, Any]:
    """Put scvi-tools' own logger, which alone keeps the history of the model, before those of the user.

    Parameters
    ----------
    run
        Arguments of scvi-tools' training, among them ``logger`` and ``log_save_dir`` of the user.
    """
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
    """Return the batch size, a power of two from 64 to ``largest``, with about 40 steps per epoch.

    Parameters
    ----------
    n_obs
        Number of cells.
    largest
        Largest batch size.
    """
    return int(2 ** np.clip(np.floor(np.log2(max(n_obs, 2) / 40)), 6, np.log2(largest)))


def one_gpu(accelerator: str, devices: int | list[int] | str) -> bool:
    """Return whether training will use exactly one GPU.

    No GPU is initialised to find out, since processes that are forked later could not use it then.

    Parameters
    ----------
    accelerator, devices
        Hardware, as in :func:`train`.
    """
    if accelerator not in {"auto", "gpu", "cuda"} or not torch.cuda.is_available():
        return False
    chosen = len(devices) == 1 if isinstance(devices, list) else devices in (1, "1")
    return chosen or torch.cuda.device_count() == 1


def largest_batch(n_vars: int) -> int:
    """Return the largest batch size, a power of two from 64 to 4,096, that surely fits into the GPU's memory.

    On a CPU, more than 512 cells per batch gain nothing.

    Parameters
    ----------
    n_vars
        Number of genes.
    """
    free, _ = torch.cuda.mem_get_info()
    return int(2 ** np.clip(np.floor(np.log2(0.3 * free / (n_vars * BYTES))), 6, 12))


def default_epochs(n_obs: int, batch_size: int, steps: int = 2500) -> int:
    """Return the number of epochs, from 20 to 200, that make about ``steps`` training steps.

    Parameters
    ----------
    n_obs
        Number of cells.
    batch_size
        Number of cells per step.
    steps
        Number of steps.
    """
    return int(np.clip(np.ceil(steps / max(1.0, 0.9 * n_obs / batch_size)), 20, 200))


def checkpoints(folder: str | Path | None, every: int, *, resume: bool, run: dict[str, Any]) -> Checkpoints:
    """Return the callback that keeps checkpoints.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    every
        Number of epochs from one checkpoint to the next.
    resume
        Whether to continue from the checkpoint in the folder.
    run
        Everything that the result depends on.
    """
    if folder is None:
        msg = "`resume=True` needs the folder of the checkpoint: pass `checkpoint_dir=` as in that run."
        raise ValueError(msg)
    positive(checkpoint_every=every)
    return Checkpoints(Path(folder), every, resume=resume, run=run)
