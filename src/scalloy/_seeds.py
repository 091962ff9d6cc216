"""Draws by a seed, which leave the global state of torch and numpy as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import numpy as np
import torch
from scvi import settings

LIGHTNINGS = "PL_GLOBAL_SEED"  # at which Lightning begins anew when it starts processes
_drawing: ContextVar[bool] = ContextVar("drawing", default=False)


def resolved(seed: int | None) -> int:
    """The seed; ``None`` is that of ``scvi.settings``, and 0 where it has none."""
    if seed is None:
        seed = settings.seed
    return 0 if seed is None else int(seed)


@contextmanager
def seeded(seed: int | None, otherwise: int = 0) -> Iterator[None]:
    """All draws of torch and numpy in here begin at ``seed``; afterwards theirs go on as if nothing had been.

    ``None`` goes on with the draws of a function that is itself seeded, if there is one, or else begins at
    ``otherwise``.
    """
    if seed is None and _drawing.get():
        yield
        return
    seed = otherwise if seed is None else seed
    token, before = _drawing.set(True), np.random.get_state()  # noqa: NPY002 (scvi-tools draws from it)
    given = os.environ.pop(LIGHTNINGS, None)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
        _drawing.reset(token)
        if given is not None:
            os.environ[LIGHTNINGS] = given


def repeatable(init: Callable[..., None]) -> Callable[..., None]:
    """Of the constructor of a model: weights begin by its ``seed``."""

    @wraps(init)
    def made(self: Any, *args: Any, seed: int | None = None, **kwargs: Any) -> None:
        self.seed = resolved(seed)
        with seeded(self.seed):
            init(self, *args, seed=self.seed, **kwargs)

    return made
