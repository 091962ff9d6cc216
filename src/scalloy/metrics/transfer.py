"""How good is a prediction under another condition? Means of log-normalised expression in, floats out.

``control`` and ``truth`` are of the cells whose change was predicted, ``predicted`` stands in for ``truth``.
"""

from __future__ import annotations

import numpy as np


def skill(predicted: np.ndarray, truth: np.ndarray, control: np.ndarray) -> float:
    """1 - squared error / squared error of no change: 0 is no change, 1 is perfect."""
    return float(1 - np.square(predicted - truth).sum() / np.square(truth - control).sum())


def pearson_delta(predicted: np.ndarray, truth: np.ndarray, control: np.ndarray) -> float:
    """Correlation over genes of the predicted change with the true one; 0 for no change."""
    return _correlation(predicted - control, truth - control)


def resid_pearson_delta(
    predicted: np.ndarray, truth: np.ndarray, control: np.ndarray, mean_shift: np.ndarray
) -> float:
    """The same of what is left once the mean shift of the other groups is taken away from both."""
    return _correlation(predicted - control - mean_shift, truth - control - mean_shift)


def r2_mean(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Squared correlation of means over genes (scGen's; no change scores high on it)."""
    return _correlation(predicted, truth) ** 2


def coverage(predicted: np.ndarray, truth: np.ndarray, sd: np.ndarray, level: float = 0.9) -> float:
    """Share of genes whose truth lies within the central interval of ``N(predicted, sd)``.

    Parameters
    ----------
    predicted, truth, sd
        By gene.
    level
        Which the share should come to.
    """
    from scipy.stats import norm

    return float((np.abs(predicted - truth) <= norm.ppf(0.5 + level / 2) * sd).mean())


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float(a @ b) / size if size > 1e-12 else 0.0
