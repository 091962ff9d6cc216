"""Metrics of clusters, latent spaces and label probabilities against what is known of the cells.

ARI, NMI and macro-F1 are in scikit-learn; these are the ones that it lacks. Series and frames are matched by
the names of their cells, arrays and lists by position.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from scalloy._by_name import Table, Values, by_name
from scalloy.metrics._given import labels as names
from scalloy.metrics._given import numbers

FOLDS = 5


@by_name(truth="cells", clusters="cells")
def matched(truth: Values, clusters: Values) -> np.ndarray:
    """Return the type of each cell by the best one-to-one assignment of clusters to types.

    Cells of clusters that are left over get ``None``.

    Examples
    --------
    >>> sa.metrics.matched(["a", "a", "a", "b"], [0, 0, 1, 2]).tolist()
    ['a', 'a', None, 'b']
    """
    truth, clusters = names(truth=truth, clusters=clusters)
    table = pd.crosstab(truth, clusters)
    rows, columns = linear_sum_assignment(-table.to_numpy())
    name = dict(zip(table.columns[columns], table.index[rows], strict=True))
    return np.array([name.get(c) for c in np.asarray(clusters)], dtype=object)


@by_name(truth="cells", clusters="cells")
def hungarian_accuracy(truth: Values, clusters: Values) -> float:
    """Share of cells whose type is the one that :func:`matched` assigns to their cluster.

    Examples
    --------
    >>> sa.metrics.hungarian_accuracy(["a", "a", "b", "b"], [0, 0, 0, 1])
    0.75
    """
    return float((matched(truth, clusters) == np.asarray(truth)).mean())


@by_name(truth="cells", clusters="cells")
def purity(truth: Values, clusters: Values) -> float:
    """Share of cells that have the majority type of their cluster; rises with the number of clusters.

    Examples
    --------
    >>> sa.metrics.purity(["a", "a", "b"], [0, 0, 1])
    1.0
    """
    truth, clusters = names(truth=truth, clusters=clusters)
    table = pd.crosstab(truth, clusters).to_numpy()
    return float(table.max(0).sum() / table.sum())


@by_name(labels="cells", clusters="cells")
def majority(labels: Values, clusters: Values) -> pd.DataFrame:
    """Most frequent label of each cluster, with its share; several clusters may have the same label.

    Parameters
    ----------
    labels, clusters
        Label and cluster of each cell.

    Returns
    -------
    pd.DataFrame
        One row for each cluster that has cells: the ``label`` that most of its cells have (the first one in
        order if several have as many), their share (``purity``) and the number of ``cells``.

    Examples
    --------
    >>> sa.metrics.majority(["a", "a", "b", "b", "b"], [0, 0, 0, 1, 2]).round(2)
            label  purity  cells
    cluster
    0           a    0.67      3
    1           b    1.00      1
    2           b    1.00      1
    """
    labels, clusters = names(labels=labels, clusters=clusters)
    table = pd.crosstab(pd.Series(clusters, name="cluster"), np.asarray(labels))
    cells = table.sum(axis=1)
    purity = (table.max(axis=1) / cells).astype(float)
    return pd.DataFrame({"label": table.idxmax(axis=1), "purity": purity, "cells": cells})


@by_name(z="cells _", labels="cells")
def knn_accuracy(z: Table, labels: Values, k: int = 15) -> float:
    """Accuracy of a nearest-neighbour classifier in a latent space, in five-fold cross-validation.

    Parameters
    ----------
    z
        Latent space, cells x latents.
    labels
        Label of each cell.
    k
        Number of neighbours.

    Examples
    --------
    >>> z = np.array([[0.0]] * 5 + [[9.0]] * 5)
    >>> sa.metrics.knn_accuracy(z, ["a"] * 5 + ["b"] * 5, k=3)
    1.0
    """
    (z,), (labels,) = numbers(2, z=z), names(labels=labels)
    if len(z) != len(labels) or pd.Series(labels.astype(str)).value_counts().max() < FOLDS:
        msg = (
            f"`z` has {len(z)} cells and `labels` {len(labels)}; the most frequent label needs at least "
            f"{FOLDS} cells. Pass a label for each cell, and more cells."
        )
        raise ValueError(msg)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        k = min(k, 4 * len(z) // 5)
        codes = pd.factorize(labels.astype(str))[0]  # scikit-learn takes numbers, whatever the labels are
        return float(cross_val_score(KNeighborsClassifier(k), z, codes, cv=folds).mean())


@by_name(z="cells _")
def hoyer(z: Table) -> float:
    """Sparsity of the latent code, averaged over cells (Hoyer's measure).

    A cell has 0 if all its latents are equally large, and 1 if only one of them is not zero. Latents are
    divided by their standard deviation first (Mathieu et al., ICML 2019); those that do not vary count as
    zero. The result is NaN if there is only one latent, or if none varies.

    Examples
    --------
    >>> sa.metrics.hoyer(np.eye(3))  # one latent for each cell
    1.0
    >>> sa.metrics.hoyer(np.array([[1, 1], [2, 2], [-1, -1]]))
    0.0
    """
    (z,) = numbers(2, z=z)
    z = z.astype(float)
    sd = z.std(0)
    z = np.where(sd > 1e-8, z / np.maximum(sd, 1e-8), 0.0)
    size, root = np.sqrt(np.square(z).sum(1)), np.sqrt(z.shape[1])
    some = size > 0
    if z.shape[1] == 1 or not some.any():
        return float("nan")
    return float(((root - np.abs(z[some]).sum(1) / size[some]) / (root - 1)).mean())


@by_name(z="cells _", labels="cells")
def bio_conservation(z: Table, labels: Values) -> float:
    """Mean of six scores of scib-metrics for how well a latent space preserves known types.

    The scores are NMI and ARI of k-means, NMI and ARI of Leiden clusters at the best resolution, the
    silhouette of types, and cLISI (Luecken et al., Nature Methods 2022), each in [0, 1]. The score of
    isolated labels is left out because it needs batches. Requires the extra ``bench``.

    Examples
    --------
    >>> z = model.get_latent_representation()
    >>> score = sa.metrics.bio_conservation(z, adata.obs["cluster"])  # doctest: +SKIP
    """
    try:
        import scib_metrics
        from scib_metrics.nearest_neighbors import pynndescent
    except ImportError as error:
        msg = "`bio_conservation` needs scib-metrics: pip install 'scalloy[bench]'."
        raise ImportError(msg) from error
    z, codes = np.asarray(z, dtype=np.float32), np.unique(labels, return_inverse=True)[1]
    near = pynndescent(z, n_neighbors=min(90, len(z) - 1), random_state=0)
    means = scib_metrics.nmi_ari_cluster_labels_kmeans(z, codes)
    graph = scib_metrics.nmi_ari_cluster_labels_leiden(near.subset_neighbors(min(15, len(z) - 1)), codes)
    values = [*means.values(), *graph.values(), scib_metrics.silhouette_label(z, codes)]
    return float(np.mean([*values, scib_metrics.clisi_knn(near, codes)]))


@by_name(truth="cells _", code="cells _")
def matched_correlation(truth: Table, code: Table) -> np.ndarray:
    """Absolute correlation of each true factor with the latent that the best assignment gives it.

    Parameters
    ----------
    truth, code
        True factors, cells x factors, and latent code, cells x latents; at least as many latents as factors.

    Examples
    --------
    >>> truth = np.array([[0, 1], [1, 0], [2, 1], [3, 0]])
    >>> code = -2 * truth[:, ::-1]  # neither order, sign nor scale matters
    >>> sa.metrics.matched_correlation(truth, code).round(2).tolist()
    [1.0, 1.0]
    """
    r = _correlations(truth, code)
    return r[np.arange(len(r)), best_match(truth, code)]


@by_name(truth="cells _", code="cells _")
def best_match(truth: Table, code: Table) -> np.ndarray:
    """Number of the latent that is assigned to each true factor in :func:`matched_correlation`.

    Examples
    --------
    >>> truth = np.array([[0, 1], [1, 0], [2, 1], [3, 0]])
    >>> sa.metrics.best_match(truth, truth[:, ::-1]).tolist()
    [1, 0]
    """
    return linear_sum_assignment(-_correlations(truth, code))[1]


def _correlations(truth: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Absolute correlations of all factors with all latents."""
    given = numbers(2, fit="rows", least=2, truth=truth, code=code)
    if given[0].shape[1] > given[1].shape[1]:
        msg = (
            f"`truth` has {given[0].shape[1]} factors, but `code` only {given[1].shape[1]} latents. Pass at "
            "least as many latents as factors."
        )
        raise ValueError(msg)
    t, z = (v.astype(float) - np.mean(v, axis=0) for v in given)
    t, z = (v / np.maximum(np.sqrt(np.square(v).sum(0)), 1e-12) for v in (t, z))
    return np.abs(t.T @ z)


@by_name(correct="cells", confidence="cells")
def expected_calibration_error(correct: Values, confidence: Values, n_bins: int = 15) -> float:
    """Mean distance between accuracy and confidence over bins of equal width (Guo et al., ICML 2017).

    Bins are weighted by their number of cells.

    Parameters
    ----------
    correct
        Whether each prediction was right.
    confidence
        Predicted probability of each prediction.
    n_bins
        Number of bins between 0 and 1.

    Examples
    --------
    >>> correct = np.array([True, True, False, False])
    >>> round(sa.metrics.expected_calibration_error(correct, np.full(4, 0.9)), 2)
    0.4
    """
    correct, confidence = numbers(1, correct=correct, confidence=confidence)
    if not 0 <= confidence.min() <= confidence.max() <= 1:
        msg = (
            f"`confidence` holds probabilities, but goes from {confidence.min():.3g} to "
            f"{confidence.max():.3g}. Pass values from 0 to 1."
        )
        raise ValueError(msg)
    of = np.clip((confidence * n_bins).astype(int), 0, n_bins - 1)
    frame = pd.DataFrame({"right": np.asarray(correct, dtype=float), "sure": confidence, "bin": of})
    means = frame.groupby("bin").agg({"right": "mean", "sure": "mean", "bin": "size"})
    return float(((means["right"] - means["sure"]).abs() * means["bin"]).sum() / len(frame))
