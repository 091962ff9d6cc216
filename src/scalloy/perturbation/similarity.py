"""Similarity of groups of cells by the mean expression of their controls; rows are groups."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist


def closeness(control: np.ndarray, to: np.ndarray, sharpness: float = 3.0) -> np.ndarray:
    """Return weights of groups that decrease with the distance of their control to ``to`` and sum to one."""
    distance = squared_distances(to[None], control)[0]
    weight = -sharpness * distance / max(float(np.median(distance)), 1e-12)
    weight = np.exp(weight - weight.max())
    return weight / weight.sum()


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances between all rows of two arrays."""
    return cdist(a, b, "sqeuclidean")


def typical_distance(control: np.ndarray) -> float:
    """Return the median squared distance between two groups, or 0 if there are fewer than two."""
    pairs = squared_distances(control, control)[np.triu_indices(len(control), 1)]
    return float(np.median(pairs)) if len(pairs) else 0.0
