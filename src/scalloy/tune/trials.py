"""Helpers of a search that start Ray, report epochs to it, end bad trials and show the progress."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

JUDGE, EARLY = "marginal_ll", "elbo_validation"
PROGRESS, END = (
    "progress",
    1000,
)  # share of a trial's own epochs that is done, and its value at the last of them


def ray_tune() -> Any:
    """Import Ray Tune, or say what to install."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")  # seconds between saves of the search
    try:
        from ray import tune
    except ImportError as error:
        msg = "`sa.search` runs on Ray Tune: pip install 'scalloy[search]'."
        raise ImportError(msg) from error
    return tune


class Reports(Callback):
    """Callback that reports the epoch and the validation loss of a trial to Ray."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        from ray import tune

        if EARLY in trainer.callback_metrics and not trainer.sanity_checking:
            epoch = trainer.current_epoch + 1
            done = {"epoch": epoch, "epochs": epoch, PROGRESS: END * epoch // trainer.max_epochs}
            tune.report({EARLY: float(trainer.callback_metrics[EARLY]), **done})


def scheduler() -> Any:
    """Return the scheduler that ends trials which have fallen behind after a third of their epochs."""
    from ray.tune.schedulers import ASHAScheduler

    grace = END // 3 + 1  # when mixtures have been placed; the next check, thrice as late, is past the end
    return ASHAScheduler(
        time_attr=PROGRESS, metric=EARLY, mode="min", max_t=10 * END, grace_period=grace, reduction_factor=3
    )


def bar(tune: Any) -> type:
    """Return the class of a progress bar over trials, a callback of Ray that can be pickled."""

    class Bar(tune.Callback):
        def __init__(self, total: int) -> None:
            self.total, self.bar = total, None

        def __getstate__(self) -> dict[str, Any]:
            return {"total": self.total, "bar": None}

        def setup(self, **_: Any) -> None:
            from tqdm.auto import tqdm

            self.bar, self.best = tqdm(total=self.total, desc="trials"), -np.inf

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
            self.best = max(self.best, trial.last_result.get(JUDGE, -np.inf))
            self.bar.set_postfix(best=round(self.best, 2))
            self.bar.update()

        def on_experiment_end(self, trials: list, **_: Any) -> None:
            self.bar.close()

    return Bar


@contextmanager
def running(address: str | None) -> Iterator[None]:
    """Use Ray if it is running already, or start it for the duration of the block."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    where = address or os.environ.get("RAY_ADDRESS", "local")  # not any cluster that happens to run here
    ray.init(address=where, **quiet, **({"include_dashboard": False} if where == "local" else {}))
    try:
        yield
    finally:
        ray.shutdown()
