"""Draws that simulations share: sparse effects, means and negative binomial counts."""

from __future__ import annotations

import numpy as np


def sparse_effects(
    rng: np.random.Generator, n_vars: int, rows: int, share: float, scale: float
) -> np.ndarray:
    """Return normal effects on a random share of the genes, rows x genes, and 0 on the others."""
    return rng.normal(0, scale, (rows, n_vars)) * (rng.random((rows, n_vars)) < share)


def means(eta: np.ndarray, ell: np.ndarray) -> np.ndarray:
    """Return the means ``ell softmax(eta)`` of the counts of each cell."""
    share = np.exp(eta - eta.max(axis=1, keepdims=True))
    return ell * share / share.sum(axis=1, keepdims=True)


def counts(rng: np.random.Generator, mean: np.ndarray, theta: float) -> np.ndarray:
    """Draw negative binomial counts, of which each cell has at least one."""
    drawn = rng.poisson(rng.gamma(theta, mean / theta))
    drawn[drawn.sum(axis=1) == 0, 0] = 1
    return drawn
