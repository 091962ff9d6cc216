"""Digamma function for compiled loops."""

from __future__ import annotations

import math

from numba import njit


@njit
def digamma(x: float) -> float:
    """Compute the digamma function by recursion and its asymptotic series."""
    total = 0.0
    while x < 6:
        total -= 1 / x
        x += 1
    square = 1 / (x * x)
    return total + math.log(x) - 0.5 / x - square * (1 / 12 - square * (1 / 120 - square / 252))
