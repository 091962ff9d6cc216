"""Is one modality predicted from another? Cells x variables in, floats out."""

from __future__ import annotations

import numpy as np

from scalloy.metrics._given import numbers


def clr(log_counts: np.ndarray) -> np.ndarray:
    """Centred log-ratio of each cell: ``log1p`` of counts less their mean over the variables of the cell."""
    (log_counts,) = numbers(2, log_counts=log_counts)
    return log_counts - log_counts.mean(1, keepdims=True)


def variable_correlation(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson correlation over cells of each variable; NaN where the truth is constant, 0 the prediction."""
    p, t = (v.astype(float) for v in numbers(2, predicted=predicted, truth=truth))
    varies = (np.ptp(p, 0) > 0) & (np.ptp(t, 0) > 0)
    p, t = p - p.mean(0), t - t.mean(0)
    size = np.sqrt(np.square(p).sum(0) * np.square(t).sum(0))
    return np.where(
        varies, (p * t).sum(0) / np.where(varies, size, 1.0), np.where(np.ptp(t, 0) > 0, 0.0, np.nan)
    )


def rmse_z(predicted: np.ndarray, truth: np.ndarray, sd: np.ndarray) -> float:
    """Root of the mean squared error of each variable in units of its standard deviation, averaged."""
    predicted, truth = numbers(2, predicted=predicted, truth=truth)
    (sd,) = numbers(1, sd=sd)
    if len(sd) != truth.shape[1]:
        msg = f"`sd` has {len(sd)} values for {truth.shape[1]} variables. Pass one for each."
        raise ValueError(msg)
    return float((np.sqrt(np.square(predicted - truth).mean(0)) / sd).mean())


def within(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> float:
    """Share of the values that lie between the bounds, both included."""
    low, high, truth = numbers(getattr(truth, "ndim", 1) or 1, low=low, high=high, truth=truth)
    return float(((truth >= low) & (truth <= high)).mean())
