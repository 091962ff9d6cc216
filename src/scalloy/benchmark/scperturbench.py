"""Metrics of scPerturBench for groups never seen under a condition (Wei et al., Nature Methods 2025).

    column                metric of scPerturBench                              better
    mse                   MSE, of means                                        lower
    pearson_delta         PCC-delta, correlation of the changes of means       higher, no change has 0
    energy                E-distance, of whole cells                           lower
    sym_kldiv             KL divergence of Gaussians both ways, log2(1 + KL)   lower
    mse_top100 and so on  these four on the 100 genes that truly change most   as above
    wasserstein_top100    Wasserstein distance of whole cells on these genes   lower, the truth is above 0
    common_de             common DEGs: share of these genes among the 100      higher, no change has 0
                          that change most in the prediction

Values are means over conditions. Genes change most by the size of Welch's t against the controls. Distances
are those of pertpy 0.11 with ott-jax 0.4, as in the published results; for those of whole cells, at most
2,000 of each side are taken. How to read them:

- ``sym_kldiv`` is ruled by genes with counts on one side only. Each adds up to 1e16 to the sum over genes, so
  that the logarithm is about 40 if there are any, whatever the prediction.
- ``wasserstein_top100`` has an entropy term with 5 % of the mean cost. It is above 0 for the real cells
  themselves, and rewards predictions with too little variance.
- scPerturBench scales cells to 10,000 counts of all genes and then keeps 5,000 variable ones; here cells have
  10,000 counts of the genes that are predicted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from sklearn.metrics.pairwise import euclidean_distances

from scalloy import metrics
from scalloy.benchmark.judging import Compared, averaged, by_condition, half_against_half

TOP, MOST_CELLS = 100, 2000
LEAST_SD = 1e-8  # is added to standard deviations
BLUR, CLOSE, STEPS = 0.05, 1e-4, 2000  # of the optimal transport
CHANGED = 1e-6  # size of t from which a gene has changed by more than rounding
COLUMNS = (
    *("mse", "pearson_delta", "energy", "sym_kldiv"),
    *("mse_top100", "pearson_delta_top100", "energy_top100", "sym_kldiv_top100"),
    *("wasserstein_top100", "common_de"),
)


def judged(
    predicted: AnnData, real: AnnData, *, condition_key: str, control: str, **_: Any
) -> dict[str, float]:
    """Return the metrics of predicted cells; a metric that cannot be computed is not a number.

    Parameters
    ----------
    predicted
        Predicted cells under one or more conditions, with counts in ``.layers["counts"]``.
    real
        Counts of real cells under the same conditions and under the control.
    condition_key
        Column of ``.obs`` with the condition, in both objects.
    control
        Name of the control condition.
    **_
        Further arguments that other judges take, which are ignored.
    """
    cells = by_condition(predicted, real, condition_key=condition_key, control=control)
    return averaged([_scores(c) for c in cells.values()], COLUMNS)


references = partial(half_against_half, judged)  # one row: one half of the real cells against the other


def _scores(cells: Compared) -> dict[str, float]:
    """Return the metrics of one condition."""
    few = Compared(*(_some(x) for x in cells))
    means, top, found = cells.means(), cells.most_changed()[:TOP], {}
    for name, genes in {"": np.arange(cells.truth.shape[1]), "_top100": top}.items():
        predicted, truth, control = (x[genes] for x in means)
        found[f"mse{name}"] = float(np.square(predicted - truth).mean())
        found[f"pearson_delta{name}"] = metrics.pearson_delta(predicted, truth, control)
        made, real = few.predicted[:, genes], few.truth[:, genes]
        found[f"energy{name}"] = energy(made, real)
        found[f"sym_kldiv{name}"] = float(np.log2(1 + symmetric_kl(made, real)))
    found["wasserstein_top100"] = wasserstein(few.predicted[:, top], few.truth[:, top])
    return {**found, "common_de": common_de(cells)}


def _some(x: np.ndarray) -> np.ndarray:
    """Return at most 2,000 of the cells."""
    return x if len(x) <= MOST_CELLS else x[np.random.default_rng(0).permutation(len(x))[:MOST_CELLS]]


def energy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the energy distance of Euclidean distances, in which pairs of a cell with itself count.

    It equals ``metrics.energy_distance(..., squared=False, unbiased=False)``, and is faster for many genes.
    """
    within = sum(euclidean_distances(x).mean() for x in (predicted, truth))
    return float(2 * euclidean_distances(predicted, truth).mean() - within)


def symmetric_kl(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the KL divergences of Gaussians in both directions added up, averaged over genes."""
    sd, sd_true = (x.std(0) + LEAST_SD for x in (predicted, truth))
    apart = np.square(predicted.mean(0) - truth.mean(0))
    both = (sd**2 + apart) / (2 * sd_true**2) + (sd_true**2 + apart) / (2 * sd**2) - 1
    return float(both.mean())


def wasserstein(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the cost of entropic optimal transport between cells, with squared Euclidean distances.

    The cost holds the entropy term: it is the minimum over plans ``P`` of
    ``sum(P * distances) + blur * KL(P, product of margins)``, found by Sinkhorn's iterations.
    """
    cost = euclidean_distances(predicted, truth, squared=True)
    blur = BLUR * cost.mean()
    if not blur:
        return 0.0
    rows = cost.min(1, keepdims=True)
    columns = (cost - rows).min(0, keepdims=True)
    kernel = np.exp((rows + columns - cost) / blur)  # each row and each column has a 1, so no sum is 0
    u, v = np.ones(len(predicted)), np.ones(len(truth))
    for _ in range(STEPS):
        reached = kernel @ v / len(v)
        if np.abs(u * reached - 1).mean() < CLOSE:
            break
        u = 1 / reached
        v = len(u) / (u @ kernel)
    return float(rows.mean() + columns.mean() + blur * (np.log(u).mean() + np.log(v).mean()))


def common_de(cells: Compared) -> float:
    """Return the share of the genes that truly change most which are also predicted to change most."""
    seen = [np.abs(metrics.welch(x, cells.control)) for x in (cells.truth, cells.predicted)]
    true, predicted = ({int(g) for g in np.argsort(-t, kind="stable")[:TOP] if t[g] > CHANGED} for t in seen)
    return len(true & predicted) / len(true) if true else float("nan")
