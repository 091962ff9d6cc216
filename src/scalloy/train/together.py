"""What several devices that train one model must do alike, and what each for itself.

Alike: the order of the cells, where components are placed, what is learned once training has ended, and when
to stop. Each for itself: the noise of its own cells. Gradients are Lightning's concern.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from scvi.model._utils import use_distributed_sampler
from scvi.train import LoudEarlyStopping

from scalloy.data.shards import seed_of
from scalloy.vae.base import VAEModule

SHARED_WEIGHTS = ("fsdp", "fsdp_cpu_offload", "deepspeed", "model_parallel")
STOPPING = ("monitor", "min_delta", "patience", "mode", "warmup_epochs")


def begin_epoch(trainer: pl.Trainer, seed: int) -> np.ndarray | None:
    """Draw noise of one's own; weights of the own parts of the batches, where the loader knows them."""
    torch.manual_seed(seed_of(seed, trainer.current_epoch, trainer.global_rank))
    loader = trainer.train_dataloader
    return loader.weights() if hasattr(loader, "weights") else None


def whole(loader: Any) -> Any:
    """All cells and not only those of this process, where the loader can."""
    return loader.whole() if hasattr(loader, "whole") else loader


def once(trainer: pl.Trainer, module: VAEModule, change: Callable[[VAEModule], bool | None]) -> bool | None:
    """Change a module in the first process, and give the others what has become of it, unless ``False``."""
    if trainer.world_size == 1:
        return change(module)
    found, state = None, None
    if trainer.is_global_zero and (found := change(module)) is not False:
        state = {k: v.cpu() for k, v in module.state_dict().items()}
    found, state = trainer.strategy.broadcast((found, state))
    if state is not None:
        module.load_state_dict(state)
    return found


@contextmanager
def allowed(run: dict[str, Any], *, early_stopping: bool, folder: str) -> Iterator[dict[str, Any]]:
    """Arguments of ``train`` for scvi-tools' trainer, which gives up early stopping with several devices.

    It does so by the name of the strategy. Then the history is on a disk as well, since processes that are
    spawned have no other way to hand it over.
    """
    if (strategy := run.get("strategy")) in SHARED_WEIGHTS:
        msg = (
            f"`strategy={strategy!r}` shares the weights of one model among devices; these models are small, "
            "and each device has all of it. Pass `strategy='ddp'`, or 'ddp_notebook' in a notebook."
        )
        raise ValueError(msg)
    if not use_distributed_sampler(strategy):
        yield {**run, "early_stopping": early_stopping}
        return
    run = {"log_save_dir": folder, **run}
    given = {k: run.pop(f"early_stopping_{k}") for k in STOPPING if f"early_stopping_{k}" in run}
    if early_stopping:
        with_defaults = {"min_delta": 0.0, "mode": "min", "warmup_epochs": 0, **given}
        run["callbacks"] = [*run["callbacks"], LoudEarlyStopping(**with_defaults)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="early_stopping was automatically disabled")
        yield {**run, "early_stopping": False}
