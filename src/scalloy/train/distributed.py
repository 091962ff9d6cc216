"""Helpers for training one model on several devices.

All devices must agree on the order of the cells, on where components are placed, on what is learned once
training has ended, and on when to stop. Only the noise that each draws for its own cells differs. Lightning
takes care of the gradients.
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
    """Seed this process for the epoch, and return the weights of its parts of the batches.

    The weights are ``None`` if the loader has none.
    """
    torch.manual_seed(seed_of(seed, trainer.current_epoch, trainer.global_rank))
    loader = trainer.train_dataloader
    return loader.weights() if loader is not None and hasattr(loader, "weights") else None


def whole(loader: Any) -> Any:
    """Return a loader of all cells rather than those of this process, if the loader supports it."""
    return loader.whole() if hasattr(loader, "whole") else loader


def once(trainer: pl.Trainer, module: VAEModule, change: Callable[[VAEModule], bool | None]) -> bool | None:
    """Change a module in the first process and copy its state to the others.

    Returns what ``change`` returned; if that is ``False``, nothing is copied.
    """
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
    """Yield the arguments for scvi-tools' trainer such that early stopping works with several devices.

    scvi-tools disables early stopping if the strategy has the name of a distributed one, so it is added here
    as a callback. The history is then written to ``folder`` as well, because spawned processes have no other
    way to hand it over.
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
