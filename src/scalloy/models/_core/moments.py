"""Moments of the data, at which the parameters of likelihoods start."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from scalloy.data.disk import DiskRows


def moments(x: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of each variable, over the cells in which it is not NaN."""
    if isinstance(x, DiskRows):
        mean, square = x.summary["sums"] / x.shape[0]
    elif sp.issparse(x):
        mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
        square = np.bincount(x.indices, x.data.astype(np.float64) ** 2, x.shape[1]) / x.shape[0]
    else:
        there = ~np.isnan(x)
        n, known = np.maximum(there.sum(0), 1), np.where(there, x, 0.0)
        mean, square = known.sum(0, dtype=np.float64) / n, np.square(known, dtype=np.float64).sum(0) / n
    variance = np.maximum(square - mean**2, 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(variance).float()
