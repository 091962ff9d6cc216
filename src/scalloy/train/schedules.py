"""Schedules as functions of training progress, the fraction of all steps that have been taken."""

from __future__ import annotations

import math


def ramp(progress: float, fraction: float, start: float = 0.0) -> float:
    """Rise linearly from ``start`` to 1 over the first ``fraction`` of training, then stay at 1."""
    if fraction <= 0 or progress >= fraction:
        return 1.0
    return start + (1.0 - start) * progress / fraction


def cosine(progress: float, warmup: float = 0.02, floor: float = 0.02) -> float:
    """Rise linearly over ``warmup``, then fall by half a cosine to ``floor`` (Loshchilov & Hutter 2017)."""
    if progress < warmup:
        return (progress + 1e-2 * warmup) / (warmup * 1.01)
    remaining = (min(progress, 1.0) - warmup) / (1.0 - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * remaining))


SCHEDULES = {"cosine": cosine, "constant": lambda progress: 1.0}
