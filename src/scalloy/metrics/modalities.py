"""Metrics of a modality that was predicted from another one, given as cells x variables.

Frames are matched by the names of their cells and variables, arrays and lists by position.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from scalloy._by_name import Table, Values, by_name, in_one_order
from scalloy.data.arrays import as_array
from scalloy.metrics._given import numbers


@by_name(log_counts="cells variables")
def clr(log_counts: Table) -> np.ndarray:
    """Centred log-ratio: ``log1p`` of counts minus the mean over the variables of the same cell.

    Examples
    --------
    >>> sa.metrics.clr(np.array([[1.0, 2.0, 3.0]])).tolist()
    [[-1.0, 0.0, 1.0]]
    """
    (log_counts,) = numbers(2, log_counts=log_counts)
    return log_counts - log_counts.mean(1, keepdims=True)


@by_name(predicted="cells variables", truth="cells variables")
def variable_correlation(predicted: Table, truth: Table) -> np.ndarray:
    """Pearson correlation of each variable over cells, in the order of ``predicted``.

    It is NaN where the truth is constant, and 0 where only the prediction is.

    Examples
    --------
    >>> predicted = np.array([[1, 0], [2, 0], [3, 0]])  # cells x variables
    >>> truth = np.array([[2, 1], [4, 5], [6, 2]])
    >>> sa.metrics.variable_correlation(predicted, truth).round(2).tolist()
    [1.0, 0.0]
    """
    p, t = (v.astype(float) for v in numbers(2, predicted=predicted, truth=truth))
    varies = (np.ptp(p, 0) > 0) & (np.ptp(t, 0) > 0)
    p, t = p - p.mean(0), t - t.mean(0)
    size = np.sqrt(np.square(p).sum(0) * np.square(t).sum(0))
    return np.where(
        varies, (p * t).sum(0) / np.where(varies, size, 1.0), np.where(np.ptp(t, 0) > 0, 0.0, np.nan)
    )


@by_name(predicted="cells variables", truth="cells variables")
def variable_auroc(predicted: Table, truth: Table) -> np.ndarray:
    """Area under the ROC curve of each variable over cells, such as of peaks that are open or closed.

    It is the probability that of two cells, one with and one without the variable, the first is predicted to
    be more likely to have it; ties count half. It is NaN where all cells have the variable, or none.

    Parameters
    ----------
    predicted
        Any score that is higher where the variable is more likely, cells x variables.
    truth
        What was found; values above 0 count as having the variable.

    Examples
    --------
    >>> predicted = np.array([[0.1, 3], [0.4, 1], [0.9, 2]])  # cells x variables
    >>> truth = np.array([[0, 1], [0, 0], [2, 0]])
    >>> sa.metrics.variable_auroc(predicted, truth).tolist()
    [1.0, 1.0]
    """
    predicted, truth = numbers(2, predicted=predicted, truth=truth)
    has = truth > 0
    n_with = has.sum(0)
    pairs = n_with * (len(has) - n_with)
    above = (rankdata(predicted, axis=0) * has).sum(0) - n_with * (n_with + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


@by_name(predicted="cells variables", truth="cells variables", sd="variables")
def rmse_z(predicted: Table, truth: Table, sd: Values) -> float:
    """Mean over variables of the root mean squared error in units of the variable's standard deviation.

    Examples
    --------
    >>> predicted, truth = np.array([[1, 10]]), np.array([[2, 30]])
    >>> sa.metrics.rmse_z(predicted, truth, sd=np.array([1, 10]))
    1.5
    """
    predicted, truth = numbers(2, predicted=predicted, truth=truth)
    (sd,) = numbers(1, sd=sd)
    if len(sd) != truth.shape[1]:
        msg = f"`sd` has {len(sd)} values for {truth.shape[1]} variables. Pass one for each."
        raise ValueError(msg)
    if sd.min() <= 0:
        msg = f"`sd` is the unit of the errors, but goes down to {sd.min():.3g}. Leave such variables out."
        raise ValueError(msg)
    return float((np.sqrt(np.square(predicted - truth).mean(0)) / sd).mean())


def within(low: Values | Table, high: Values | Table, truth: Values | Table) -> float:
    """Share of the true values that lie between the bounds, both included.

    Examples
    --------
    >>> sa.metrics.within(low=np.array([0, 0]), high=np.array([2, 2]), truth=np.array([1, 5]))
    0.5
    """
    n_axes = getattr(truth, "ndim", as_array(truth).ndim) or 1
    axes = ("names",) if n_axes == 1 else ("cells", "variables")
    given = {"low": low, "high": high, "truth": truth}
    low, high, truth = numbers(n_axes, **in_one_order(given, dict.fromkeys(given, axes)))
    return float(((truth >= low) & (truth <= high)).mean())
