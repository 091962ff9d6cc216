"""Draws by a seed, which leave the global state of torch and numpy as it was.

That state belongs to the whole process. So while one thread draws by a seed, other threads that want to do so
wait: each gets the numbers that it would have got alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from scvi import settings

logger = logging.getLogger("scalloy")

LIGHTNINGS = "PL_GLOBAL_SEED"  # at which Lightning begins anew when it starts processes


class _Here(threading.local):
    """State of one thread: whether it draws by a seed."""

    drawing = False


_here = _Here()
_alone = threading.RLock()  # held by the thread that draws by a seed
_holder: int | None = None  # its identifier, only to say that another one waits


def _begin_anew() -> None:
    """Replace the lock in a forked process, where the thread that holds it may not exist."""
    global _alone, _holder
    _alone, _holder = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def resolved(seed: int | None) -> int:
    """The seed; ``None`` is that of ``scvi.settings``, and 0 where it has none."""
    if seed is None:
        seed = settings.seed
    return 0 if seed is None else int(seed)


@contextmanager
def seeded(seed: int | None, otherwise: int = 0) -> Iterator[None]:
    """All draws of torch and numpy in here begin at ``seed``; afterwards theirs go on as if nothing had been.

    ``None`` goes on with the draws of a function that is itself seeded, if there is one in this thread, or
    else begins at ``otherwise``. One thread at a time is in here; it may enter several times.
    """
    if seed is None and _here.drawing:
        yield
        return
    seed = otherwise if seed is None else seed
    if _holder not in (None, threading.get_ident()):
        logger.info("Another thread draws by a seed, as in training: waiting until it has finished.")
    with _alone, _held(), _swapped(seed):
        yield


@contextmanager
def _held() -> Iterator[None]:
    """Mark this thread as the one that draws."""
    global _holder
    before, _holder = (_here.drawing, _holder), threading.get_ident()
    _here.drawing = True
    try:
        yield
    finally:
        _here.drawing, _holder = before


@contextmanager
def _swapped(seed: int) -> Iterator[None]:
    """Global states that begin at the seed, and what they were afterwards."""
    before = np.random.get_state()  # noqa: NPY002 (scvi-tools draws from it)
    given = os.environ.pop(LIGHTNINGS, None)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
        if given is not None:
            os.environ[LIGHTNINGS] = given


def repeatable(init: Callable[..., None]) -> Callable[..., None]:
    """Make the weights of a new model depend on its ``seed`` alone; decorates the constructor."""

    @wraps(init)
    def made(self: Any, *args: Any, seed: int | None = None, **kwargs: Any) -> None:
        self.seed = resolved(seed)
        with seeded(self.seed):
            init(self, *args, seed=self.seed, **kwargs)

    return made
