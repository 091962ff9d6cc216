"""Is one modality predicted from another? Cells x variables in, floats out.

Frames are matched by the names of their cells and variables, arrays by position.
"""

from __future__ import annotations

import numpy as np

from scalloy.metrics._given import Table, Values, by_name, in_one_order, numbers


@by_name(log_counts="cells variables")
def clr(log_counts: Table) -> np.ndarray:
    """Centred log-ratio of each cell: ``log1p`` of counts less their mean over the variables of the cell."""
    (log_counts,) = numbers(2, log_counts=log_counts)
    return log_counts - log_counts.mean(1, keepdims=True)


@by_name(predicted="cells variables", truth="cells variables")
def variable_correlation(predicted: Table, truth: Table) -> np.ndarray:
    """Pearson correlation over cells of each variable; NaN where the truth is constant, 0 the prediction.

    Variables are in the order of ``predicted``.
    """
    p, t = (v.astype(float) for v in numbers(2, predicted=predicted, truth=truth))
    varies = (np.ptp(p, 0) > 0) & (np.ptp(t, 0) > 0)
    p, t = p - p.mean(0), t - t.mean(0)
    size = np.sqrt(np.square(p).sum(0) * np.square(t).sum(0))
    return np.where(
        varies, (p * t).sum(0) / np.where(varies, size, 1.0), np.where(np.ptp(t, 0) > 0, 0.0, np.nan)
    )


@by_name(predicted="cells variables", truth="cells variables", sd="variables")
def rmse_z(predicted: Table, truth: Table, sd: Values) -> float:
    """Root of the mean squared error of each variable in units of its standard deviation, averaged."""
    predicted, truth = numbers(2, predicted=predicted, truth=truth)
    (sd,) = numbers(1, sd=sd)
    if len(sd) != truth.shape[1]:
        msg = f"`sd` has {len(sd)} values for {truth.shape[1]} variables. Pass one for each."
        raise ValueError(msg)
    return float((np.sqrt(np.square(predicted - truth).mean(0)) / sd).mean())


def within(low: Values | Table, high: Values | Table, truth: Values | Table) -> float:
    """Share of the values that lie between the bounds, both included."""
    n_axes = getattr(truth, "ndim", 1) or 1
    axes = ("names",) if n_axes == 1 else ("cells", "variables")
    given = {"low": low, "high": high, "truth": truth}
    low, high, truth = numbers(n_axes, **in_one_order(given, dict.fromkeys(given, axes)))
    return float(((truth >= low) & (truth <= high)).mean())
