"""Seeded random draws that leave the global random state of torch and numpy unchanged.

That state belongs to the whole process. While one thread makes seeded draws, other threads that want to do so
wait, so each gets the numbers that it would get if it ran alone.
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

LIGHTNINGS = "PL_GLOBAL_SEED"  # environment variable from which Lightning seeds the processes that it starts


class _Here(threading.local):
    """Thread-local flag: whether this thread is making seeded draws."""

    drawing = False


_here = _Here()
_alone = threading.RLock()  # held by the thread that makes seeded draws
_holder: int | None = None  # identifier of that thread, needed only to log that another one waits


def _begin_anew() -> None:
    """Replace the lock in a forked process, where the thread that held it may not exist."""
    global _alone, _holder
    _alone, _holder = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def resolved(seed: int | None) -> int:
    """Return the seed; for ``None`` that of ``scvi.settings``, or 0 if it has none."""
    if seed is None:
        seed = settings.seed
    return 0 if seed is None else int(seed)


@contextmanager
def seeded(seed: int | None, otherwise: int = 0) -> Iterator[None]:
    """Seed torch and numpy within the block, and restore their global random state afterwards.

    With ``None``, draws continue those of an enclosing seeded block of this thread, if there is one, and
    otherwise start from ``otherwise``. Only one thread at a time can be inside; it may enter repeatedly.
    """
    if seed is None and _here.drawing:
        yield
        return
    seed = otherwise if seed is None else seed
    if _holder not in (None, threading.get_ident()):
        logger.info("Another thread is making seeded draws, as in training: waiting until it has finished.")
    with _alone, _held(), _swapped(seed):
        yield


@contextmanager
def _held() -> Iterator[None]:
    """Mark this thread as the one that makes seeded draws."""
    global _holder
    before, _holder = (_here.drawing, _holder), threading.get_ident()
    _here.drawing = True
    try:
        yield
    finally:
        _here.drawing, _holder = before


@contextmanager
def _swapped(seed: int) -> Iterator[None]:
    """Set the global random states from the seed, and restore them afterwards."""
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
    """Decorate a constructor so that the initial weights of the model depend on its ``seed`` alone.

    Examples
    --------
    >>> class Model:
    ...     @sa.models.repeatable
    ...     def __init__(self, *, seed=None):
    ...         self.weights = np.random.normal(size=3)
    >>> Model(seed=1).weights.tolist() == Model(seed=1).weights.tolist()
    True
    """

    @wraps(init)
    def made(self: Any, *args: Any, seed: int | None = None, **kwargs: Any) -> None:
        self.seed = resolved(seed)
        with seeded(self.seed):
            init(self, *args, seed=self.seed, **kwargs)

    return made
