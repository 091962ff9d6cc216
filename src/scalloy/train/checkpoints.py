"""Checkpoints of a training run, and a clean end of training on Ctrl-C.

A checkpoint is written at the beginning of an epoch and holds everything that the rest of training depends
on: the weights, the best weights so far, the state of the optimizer, of early stopping and of the random
number generators, and the history. Resuming from it gives the same model as an uninterrupted run. Like a
saved model, a checkpoint consists of safetensors and JSON and is put in place in a single step.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from scvi.train import SaveCheckpoint

from scalloy.files import atomic_write, plain_json, reading
from scalloy.files.staging import remove_parts

if TYPE_CHECKING:
    from lightning.pytorch.loops.progress import _ProcessedTracker

logger = logging.getLogger("scalloy")

ABOUT, STATE, FORMAT = "checkpoint.json", re.compile(r"state-[0-9a-f]{16}\.safetensors"), 1
STOPPING = ("wait_count", "stopped_epoch", "best_score")
Tensors = dict[str, torch.Tensor]


class Checkpoints(pl.Callback):
    """Callback that writes a checkpoint every few epochs and resumes from the last one.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    every
        Number of epochs from one checkpoint to the next.
    resume
        Whether to resume from the checkpoint in ``folder``, if there is one.
    run
        Everything that the result depends on, in plain types. A checkpoint of a different run is refused.
    """

    def __init__(self, folder: Path, every: int, *, resume: bool, run: dict[str, Any]) -> None:
        self.folder, self.every, self.run = folder, every, plain_json.loads(plain_json.dumps(run))
        self.about: dict[str, Any] | None = None
        self.state: Tensors = {}
        if (folder / ABOUT).is_file():
            if not resume:
                msg = (
                    f"`{folder}` holds the checkpoint of an earlier run. Pass `resume=True` to go on, or "
                    "another `checkpoint_dir`."
                )
                raise FileExistsError(msg)
            self._read()
        with atomic_write.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)

    def _read(self) -> None:
        """Read the checkpoint, and refuse one of a different run."""
        with reading.refused(self.folder, "checkpoint of scalloy"):
            self.about = plain_json.loads((self.folder / ABOUT).read_bytes())
            if self.about["format"] != FORMAT:
                msg = f"its format {self.about['format']} is not known"
                raise ValueError(msg)
            self.state = from_bytes(reading.digested(self.folder, self.about["state"], STATE).read_bytes())
        differ = [k for k in self.run if self.run[k] != self.about["run"].get(k)]
        if differ:
            msg = (
                f"`{self.folder}` holds a checkpoint of another run: {', '.join(differ)} differ. Train with "
                "the same model, data and arguments, or pass another `checkpoint_dir`."
            )
            raise ValueError(msg)

    # resuming -----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        if self.about is None:
            return
        about, groups = self.about, reading.grouped(self.state)
        plan.module.load_state_dict(groups["weights"])
        plan.restore(about["best"], groups.get("best"))
        (optimizer,) = trainer.optimizers
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in groups.get("optimizer", {}).items():
            row, _, name = key.partition(".")
            kept.setdefault(int(row), {})[name] = value
        optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
        for callback, was in zip(_stopping(trainer), about["stopping"], strict=True):
            callback.wait_count, callback.stopped_epoch = was["wait_count"], was["stopped_epoch"]
            callback.best_score = torch.tensor(was["best_score"])
        experiment = getattr(trainer.logger, "experiment", None) if trainer.is_global_zero else None
        if experiment is not None and hasattr(experiment, "data"):
            experiment.data.update(about["history"])
        _stand_at(trainer, about["epoch"], about["step"])
        logger.info("Resuming at epoch %d from %s.", about["epoch"], self.folder)

    def on_train_epoch_start(self, trainer: pl.Trainer, plan: Any) -> None:
        if self.about is not None:
            random = reading.grouped(self.state)["random"]
            torch.set_rng_state(random["torch"])  # several devices draw a new seed in each epoch instead
            if "cuda" in random and torch.cuda.is_available():
                torch.cuda.set_rng_state(random["cuda"])
            self.about, self.state = None, {}
        elif trainer.current_epoch > 0 and trainer.current_epoch % self.every == 0 and trainer.is_global_zero:
            self._write(trainer, plan)

    # writing ------------------------------------------------------------------------------------

    def _write(self, trainer: pl.Trainer, plan: Any) -> None:
        loss, best = plan.best
        tensors = {f"weights/{k}": v for k, v in plan.module.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in best.items()}
        for row, state in trainer.optimizers[0].state_dict()["state"].items():
            tensors |= {f"optimizer/{row}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors["random/torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        state = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        about = {
            "format": FORMAT,
            "run": self.run,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "best": loss,
            "stopping": [{k: float(getattr(c, k)) for k in STOPPING} for c in _stopping(trainer)],
            "history": getattr(trainer.logger, "history", {}),
        }
        contents: dict[str, tuple[str, atomic_write.Content]] = {"state": (".safetensors", state)}
        with atomic_write.explained(self.folder):
            atomic_write.put_named(
                self.folder, ABOUT, contents, lambda files: plain_json.dumps({**about, **files}), STATE
            )


def _stopping(trainer: pl.Trainer) -> list[EarlyStopping]:
    """Return the callbacks that may stop training early."""
    return [c for c in trainer.early_stopping_callbacks if isinstance(c, EarlyStopping)]


def _stand_at(trainer: pl.Trainer, epoch: int, step: int) -> None:
    """Set the epoch and the step in each of the places where Lightning counts them."""
    loop = trainer.fit_loop
    for part in (loop.epoch_progress.current, loop.epoch_progress.total):
        progress = cast("_ProcessedTracker", part)  # which Lightning makes, and declares as its base class
        progress.ready = progress.started = progress.processed = progress.completed = epoch
    steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop.epoch_loop._batches_that_stepped = step


@contextlib.contextmanager
def best_of_callbacks(callbacks: Iterable[Any], load: Callable[[Path], None]) -> Iterator[None]:
    """Load the best model of scvi-tools' ``SaveCheckpoint`` callbacks once training has ended.

    The callback itself would look for files in scvi-tools' own format. Its check for a loss that is not
    finite (``check_nan_gradients``) is switched off too, because the plan has its own.

    Parameters
    ----------
    callbacks
        Callbacks of the training run.
    load
        Function that loads the weights of a saved model, given its folder.
    """
    saving = [c for c in callbacks if isinstance(c, SaveCheckpoint)]
    asked = [(c, c.load_best_on_end, c.check_nan_gradients) for c in saving]
    for callback in saving:
        callback.load_best_on_end = callback.check_nan_gradients = False
    try:
        yield
    finally:
        for callback, *flags in asked:
            callback.load_best_on_end, callback.check_nan_gradients = flags
    for callback, loads, _ in asked:
        if loads and callback.best_model_path:
            load(Path(callback.best_model_path))


class Interrupts(pl.Callback):
    """Callback that ends training on Ctrl-C with the best weights so far; a second Ctrl-C aborts it.

    A single device stops after the current step. Several devices all stop after the current epoch, whichever
    of them received the signal.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: Any = None

    def on_fit_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals

        def stop(*_: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            trainer.should_stop = trainer.world_size == 1
            logger.warning("Stopping with the best weights so far. Press Ctrl-C again to abort.")

        self.before = signal.signal(signal.SIGINT, stop)

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer.should_stop = True

    def give_back(self) -> None:
        """Restore the signal handler that was there before."""
        if self.before is not None:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, self.before)
            self.before = None
