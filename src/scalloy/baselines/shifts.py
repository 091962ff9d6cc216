"""How a group of cells would change, from how other groups did: arrays in, array out.

Rows are groups, columns genes; ``control`` and ``shift`` are means of log-normalised expression and their
change under the condition.
"""

from __future__ import annotations

import numpy as np


def mean_shift(control: np.ndarray, shift: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Mean change of the other groups, whatever the group.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    """
    return shift.mean(0) + 0 * to


def kernel_ridge(control: np.ndarray, shift: np.ndarray, to: np.ndarray, *, ridge: float = 0.1) -> np.ndarray:
    """Mean change plus what groups of similar controls deviate from it.

    It is ``mean(D) + k' (K + ridge I)^-1 (D - mean(D))`` with ``K_ij = exp(-||c_i - c_j||^2 / m)``, ``k`` the
    same towards the group to predict, and ``m`` the median squared distance between two groups.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    ridge
        On the diagonal of the kernel.
    """
    mean, scale = shift.mean(0), typical_distance(control)
    if scale == 0:
        return mean
    between = np.exp(-squared_distances(control, control) / scale)
    towards = np.exp(-squared_distances(to[None], control)[0] / scale)
    return mean + towards @ np.linalg.solve(between + ridge * np.eye(len(control)), shift - mean)


def missed_when_left_out(control: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Root mean square by gene of what :func:`kernel_ridge` misses of each group, left out in turn."""
    missed = [
        kernel_ridge(np.delete(control, i, 0), np.delete(shift, i, 0), control[i]) - shift[i]
        for i in range(len(control))
    ]
    return np.sqrt(np.square(missed).mean(0))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between all rows of two arrays."""
    return np.square(a[:, None] - b[None]).sum(-1)


def typical_distance(control: np.ndarray) -> float:
    """Median squared distance between two groups; 0 where there are no two."""
    pairs = squared_distances(control, control)[np.triu_indices(len(control), 1)]
    return float(np.median(pairs)) if len(pairs) else 0.0
