r"""Rates of all genes together: they are shares of a cell's counts, and shares add up to one.

A prediction is made gene by gene, so nothing holds its rates ``r'`` together. Their sum ``S`` differs from
one for two reasons: means of logarithms do not determine the rates exactly, which is worth a few per cent
even for the true change; and the change of all genes is predicted too low or too high by a common factor.
With an error of the first kind of size ``tau`` in ``log S``, and one of the second kind whose size is
estimated by ``log S`` itself, the share ``(log S)^2 / ((log S)^2 + tau^2)`` of ``log S`` is due to the common
factor (empirical Bayes), and the predicted expression of all genes is corrected by it. Where nothing changes,
``S`` is one and nothing is corrected.
"""

from __future__ import annotations

import numpy as np

TAU = 0.05  # error of log S for a change that is predicted correctly


def common_factor(before: np.ndarray, after: np.ndarray) -> float:
    """Return the factor by which predicted expression is too low or too high in all genes alike.

    Parameters
    ----------
    before, after
        Rate of each gene before and after the change.
    """
    if not (before.sum() > 0 and after.sum() > 0):
        return 1.0
    log_sum = float(np.log(after.sum() / before.sum()))
    return float(np.exp(-log_sum * log_sum**2 / (log_sum**2 + TAU**2)))
