"""How well do clusters and probabilities of labels agree with known types? Arrays in, floats out.

ARI, NMI and macro-F1 are scikit-learn's; here is what it lacks.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment


def matched(truth: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Type of each cell by the best one-to-one assignment of clusters; ``None`` in clusters left over."""
    table = pd.crosstab(np.asarray(truth), np.asarray(clusters))
    rows, columns = linear_sum_assignment(-table.to_numpy())
    name = dict(zip(table.columns[columns], table.index[rows], strict=True))
    return np.array([name.get(c) for c in np.asarray(clusters)], dtype=object)


def hungarian_accuracy(truth: np.ndarray, clusters: np.ndarray) -> float:
    """Share of cells whose type is that of their cluster by :func:`matched`."""
    return float((matched(truth, clusters) == np.asarray(truth)).mean())


def purity(truth: np.ndarray, clusters: np.ndarray) -> float:
    """Share of cells in the majority of their cluster; rises with the number of clusters."""
    table = pd.crosstab(np.asarray(truth), np.asarray(clusters)).to_numpy()
    return float(table.max(0).sum() / table.sum())


def expected_calibration_error(correct: np.ndarray, confidence: np.ndarray, n_bins: int = 15) -> float:
    """Mean distance of accuracy from confidence in bins of equal width (Guo et al., ICML 2017).

    Parameters
    ----------
    correct
        Whether each prediction was right.
    confidence
        Probability that was given to it.
    n_bins
        Between 0 and 1.
    """
    of = np.clip((np.asarray(confidence) * n_bins).astype(int), 0, n_bins - 1)
    frame = pd.DataFrame({"right": np.asarray(correct, dtype=float), "sure": confidence, "bin": of})
    means = frame.groupby("bin").agg({"right": "mean", "sure": "mean", "bin": "size"})
    return float(((means["right"] - means["sure"]).abs() * means["bin"]).sum() / len(frame))
