"""Metrics of a prediction under another condition, from log-normalised expression.

Metrics of means take one value per gene: ``control`` and ``truth`` are the means of the cells whose change
was predicted, before and after it, and ``predicted`` is the prediction of ``truth``. Metrics of single cells
take cells x genes. Series and frames are matched by the names of their genes, arrays and lists by position.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control, norm, rankdata
from sklearn.metrics import average_precision_score, r2_score

from scalloy._by_name import Table, Values, by_name
from scalloy.metrics._given import numbers

NOTHING = 1e-6  # difference in log-normalised expression below which values count as equal

# means ---------------------------------------------------------------------------------------


@by_name(predicted="genes", truth="genes", control="genes")
def skill(predicted: Values, truth: Values, control: Values) -> float:
    """Skill, ``1 - squared error / squared error of no change``: 0 for no change, 1 for perfection.

    It is not a number if nothing changes in truth.

    Examples
    --------
    >>> sa.metrics.skill(predicted=np.array([1, 2]), truth=np.array([1, 3]), control=np.array([1, 1]))
    0.75
    """
    predicted, truth, control = numbers(1, predicted=predicted, truth=truth, control=control)
    changed = float(np.square(truth - control).sum())
    return 1 - float(np.square(predicted - truth).sum()) / changed if changed else float("nan")


@by_name(predicted="genes", truth="genes", control="genes")
def pearson_delta(predicted: Values, truth: Values, control: Values) -> float:
    """Correlation over genes of the predicted with the true change; 0 if no change is predicted.

    Examples
    --------
    >>> control, truth = np.array([1, 1, 1]), np.array([1, 3, 5])
    >>> round(sa.metrics.pearson_delta(np.array([1, 2, 3]), truth, control), 2)  # half of each change
    1.0
    >>> sa.metrics.pearson_delta(control, truth, control)
    0.0
    """
    predicted, truth, control = numbers(1, predicted=predicted, truth=truth, control=control)
    return _correlation(predicted - control, truth - control)


@by_name(predicted="genes", truth="genes", control="genes", mean_shift="genes")
def resid_pearson_delta(predicted: Values, truth: Values, control: Values, mean_shift: Values) -> float:
    """Correlation of predicted and true change once the mean shift of the other groups is subtracted.

    Examples
    --------
    >>> control, mean_shift, truth = np.zeros(3), np.ones(3), np.array([1, 2, 3])
    >>> sa.metrics.resid_pearson_delta(control + mean_shift, truth, control, mean_shift)
    0.0
    """
    given = {"predicted": predicted, "truth": truth, "control": control, "mean_shift": mean_shift}
    predicted, truth, control, mean_shift = numbers(1, **given)
    return _correlation(predicted - control - mean_shift, truth - control - mean_shift)


@by_name(predicted="genes", truth="genes")
def r2_mean(predicted: Values, truth: Values) -> float:
    """Squared correlation of means over genes, as in scGen; even no change scores high on it.

    Examples
    --------
    >>> control, truth = np.array([1.0, 2.0, 4.0]), np.array([1.1, 2.0, 3.8])
    >>> round(sa.metrics.r2_mean(control, truth), 2)  # of no change
    1.0
    >>> sa.metrics.skill(control, truth, control)
    0.0
    """
    predicted, truth = numbers(1, predicted=predicted, truth=truth)
    return _correlation(predicted, truth) ** 2


@by_name(predicted="genes", truth="genes")
def r2_determination(predicted: Values, truth: Values) -> float:
    """Coefficient of determination of means over genes, as in CPA; it may be negative.

    Examples
    --------
    >>> truth = np.array([1, 2, 3])
    >>> sa.metrics.r2_determination(np.array([2, 2, 2]), truth)
    0.0
    >>> sa.metrics.r2_determination(np.array([3, 2, 1]), truth)
    -3.0
    """
    predicted, truth = numbers(1, predicted=predicted, truth=truth)
    return float(r2_score(truth, predicted))


@by_name(predicted="genes", truth="genes", sd="genes")
def coverage(predicted: Values, truth: Values, sd: Values, level: float = 0.9) -> float:
    """Share of genes whose true mean lies within the central interval of ``N(predicted, sd)``.

    Parameters
    ----------
    predicted, truth, sd
        Predicted mean, true mean, and standard deviation of the prediction, by gene.
    level
        Probability of the interval; a well-calibrated ``sd`` gives a share near it.

    Examples
    --------
    >>> predicted, truth = np.array([1.0, 2.0]), np.array([1.5, 9.0])
    >>> sa.metrics.coverage(predicted, truth, sd=np.ones(2))
    0.5
    """
    predicted, truth, sd = numbers(1, predicted=predicted, truth=truth, sd=sd)
    if sd.min() < 0 or not 0 < level < 1:
        msg = f"`sd` goes down to {sd.min():.3g}, and `level={level}`. Pass `sd` from 0, and 0 < `level` < 1."
        raise ValueError(msg)
    return float((np.abs(predicted - truth) <= norm.ppf(0.5 + level / 2) * sd).mean())


# single cells --------------------------------------------------------------------------------


@by_name(predicted="_ genes", truth="_ genes")
def r2_variance(predicted: Table, truth: Table) -> float:
    """Squared correlation over genes of the variances across cells.

    Examples
    --------
    >>> predicted = np.array([[0, 0, 0], [1, 2, 3]])  # cells x genes
    >>> round(sa.metrics.r2_variance(predicted, predicted + 5), 2)
    1.0
    """
    predicted, truth = numbers(2, fit="columns", predicted=predicted, truth=truth)
    return _correlation(predicted.var(0), truth.var(0)) ** 2


@by_name(predicted="_ genes", truth="_ genes")
def energy_distance(predicted: Table, truth: Table, *, squared: bool = True, unbiased: bool = True) -> float:
    """Energy distance ``2 E d(p, t) - E d(p, p') - E d(t, t')`` between predicted and true cells.

    It is best computed in about 50 principal components.

    Parameters
    ----------
    predicted, truth
        Predicted and true cells, cells x dimensions.
    squared
        Whether d is the squared Euclidean distance; otherwise it is the distance itself.
    unbiased
        Whether to leave out the pairs of a cell with itself (pertpy keeps them).

    Examples
    --------
    >>> predicted, truth = np.zeros((2, 1)), np.full((2, 1), 3.0)
    >>> sa.metrics.energy_distance(predicted, truth)
    18.0
    >>> sa.metrics.energy_distance(predicted, truth, squared=False)
    6.0
    """
    predicted, truth = numbers(2, fit="columns", least=2, predicted=predicted, truth=truth)
    kind = "sqeuclidean" if squared else "euclidean"
    between = cdist(predicted, truth, kind).mean()
    within = [cdist(x, x, kind).sum() / (len(x) * (len(x) - unbiased)) for x in (predicted, truth)]
    return float(2 * between - sum(within))


@by_name(predicted="_ genes", truth="_ genes")
def mmd(predicted: Table, truth: Table) -> float:
    """Unbiased squared maximum mean discrepancy, with five kernels around the truth's median distance.

    Examples
    --------
    >>> truth = np.random.default_rng(0).normal(size=(50, 2))
    >>> sa.metrics.mmd(truth + 1, truth) < sa.metrics.mmd(truth + 3, truth)
    True
    """
    import torch

    from scalloy.blocks.divergences import median_scales, mmd2

    given = numbers(2, fit="columns", least=2, predicted=predicted, truth=truth)
    x, y = (torch.as_tensor(np.ascontiguousarray(v, dtype=float)) for v in given)
    return float(mmd2(x, y, median_scales(y)))


@by_name(cells="_ genes", others="_ genes")
def wilcoxon(cells: Table, others: Table) -> np.ndarray:
    """Standardised Wilcoxon rank sum of each gene, corrected for ties, in the order of ``cells``.

    It is above 0 where ``cells`` express more than ``others``.

    Examples
    --------
    >>> cells, others = np.array([[5, 1], [6, 1]]), np.array([[1, 1], [2, 1]])
    >>> sa.metrics.wilcoxon(cells, others).round(2).tolist()
    [1.55, 0.0]
    """
    cells, others = numbers(2, fit="columns", cells=cells, others=others)
    n, m = len(cells), len(others)
    ranks = rankdata(np.concatenate([cells, others]), axis=0)
    total = ranks[:n].sum(0)
    variance = n * m / (n + m - 1) * (np.square(ranks).mean(0) - ((n + m + 1) / 2) ** 2)
    return (total - n * (n + m + 1) / 2) / np.sqrt(np.maximum(variance, 1e-12))


@by_name(cells="_ genes", others="_ genes")
def welch(cells: Table, others: Table) -> np.ndarray:
    """Welch's t statistic of each gene, in the order of ``cells``; 0 for a gene that varies in neither.

    It is above 0 where ``cells`` express more than ``others``. The variance of a single cell counts as 0.

    Examples
    --------
    >>> cells, others = np.array([[5, 1], [7, 1]]), np.array([[1, 1], [3, 1]])
    >>> sa.metrics.welch(cells, others).round(2).tolist()
    [2.83, 0.0]
    """
    cells, others = numbers(2, fit="columns", cells=cells, others=others)
    squared = sum(x.var(0) / max(len(x) - 1, 1) for x in (cells, others))
    noise, change = np.sqrt(squared), cells.mean(0) - others.mean(0)
    return np.divide(change, noise, out=np.zeros(len(noise)), where=noise > 0)


@by_name(predicted="_ genes", truth="_ genes", control="_ genes")
def de_overlap(predicted: Table, truth: Table, control: Table, k: int = 100) -> float:
    """Share of the ``k`` most changed genes that predicted and true cells have in common.

    Genes are ranked by the size of :func:`wilcoxon` against the control cells, in either direction. If there
    are fewer than ``k`` genes, all of them are taken, and the share is 1.

    Examples
    --------
    >>> control = np.array([[0, 1], [0, 2], [0, 3]])  # cells x genes
    >>> truth = control + [5, 0]  # the first gene changes
    >>> sa.metrics.de_overlap(control + [1, 0], truth, control, k=1)
    1.0
    >>> sa.metrics.de_overlap(control + [0, 5], truth, control, k=1)
    0.0
    """
    top = [set(np.argsort(-np.abs(wilcoxon(x, control)))[:k]) for x in (predicted, truth)]
    return len(top[0] & top[1]) / len(top[1])


@by_name(predicted="_ genes", truth="_ genes", control="_ genes")
def weighted_r2(predicted: Table, truth: Table, control: Table) -> float:
    """R2 of the change of means, in which genes count as much as they truly change.

    The weight of a gene is the squared size of :func:`welch` between true and control cells, after the
    sizes were brought to between 0 and 1 (Mejia et al., arXiv 2506.22641). So many genes that do not change
    cannot hide those that do. No change has 0 at most. It is not a number if no gene changes, or all by the
    same amount.

    Parameters
    ----------
    predicted, truth, control
        Predicted, true and control cells, cells x genes.

    Examples
    --------
    >>> control = np.array([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0]] * 4)  # cells x genes
    >>> truth = control + [5, 1, 0]
    >>> sa.metrics.weighted_r2(control + [5, 1, 0], truth, control)
    1.0
    >>> sa.metrics.weighted_r2(control, truth, control) < 0
    True
    """
    predicted, truth, control = numbers(
        2, fit="columns", least=2, predicted=predicted, truth=truth, control=control
    )
    change, size = truth.mean(0) - control.mean(0), np.abs(welch(truth, control))
    size = size - size.min()
    if not size.max() > 0:
        return float("nan")
    weight = np.square(size / size.max())
    weight /= weight.sum()
    spread = weight @ np.square(change - weight @ change)
    missed = weight @ np.square(predicted.mean(0) - truth.mean(0))
    return float(1 - missed / spread) if spread > NOTHING else float("nan")


@by_name(predicted="_ genes", truth="_ genes", control="_ genes")
def de_auprc(predicted: Table, truth: Table, control: Table, fdr: float = 0.05) -> float:
    """Area under the precision-recall curve for finding the genes that truly change.

    It is NaN if no gene does.

    Parameters
    ----------
    predicted, truth, control
        Predicted, true and control cells, cells x genes.
    fdr
        False discovery rate below which a gene counts as truly changed.

    Examples
    --------
    >>> control = np.array([[0, 2], [1, 1]] * 4)  # cells x genes
    >>> truth = control + [5, 0]  # the first gene changes
    >>> sa.metrics.de_auprc(control + [1, 0], truth, control)
    1.0
    """
    p = 2 * norm.sf(np.abs(wilcoxon(truth, control)))
    changed = false_discovery_control(p) < fdr
    score = np.abs(wilcoxon(predicted, control))
    return float(average_precision_score(changed, score)) if changed.any() else float("nan")


# what can be reached ---------------------------------------------------------------------------


@by_name(truth="_ genes", control="_ genes")
def ceilings(truth: Table, control: Table, *, seed: int = 0) -> dict[str, float]:
    """Scores that a noise-free prediction would reach, given that the truth is measured on a sample of cells.

    The correlation between the changes in two disjoint halves of the cells, extrapolated to all cells by the
    Spearman-Brown formula, is the reliability of the measured change. Its square root is the correlation of
    the noise-free change with the measured one. For ``r2_mean`` and the metrics of single cells, the ceiling
    is the score of one half against the other.

    Parameters
    ----------
    truth, control
        True and control cells, cells x genes.
    seed
        Random seed of the split into halves.

    Examples
    --------
    >>> control, truth = np.zeros((4, 2)), np.array([[1, 2], [1, 4], [1, 2], [1, 4]])
    >>> round(sa.metrics.ceilings(truth, control)["skill"], 2)  # below 1, as the second gene is noisy
    0.97
    """
    truth, control = numbers(2, fit="columns", least=4, truth=truth, control=control)
    rng = np.random.default_rng(seed)
    (t_1, t_2), (c_1, c_2) = (
        np.array_split(x[rng.permutation(len(x))], 2) for x in (np.asarray(truth), np.asarray(control))
    )
    half = _correlation(t_1.mean(0) - c_1.mean(0), t_2.mean(0) - c_2.mean(0))
    noise = (truth.var(0, ddof=1) / len(truth)).sum()
    return {
        "skill": float(1 - noise / np.square(truth.mean(0) - control.mean(0)).sum()),
        "pearson_delta": float(np.sqrt(max(0.0, spearman_brown(half)))),
        "r2_mean": r2_mean(t_1.mean(0), t_2.mean(0)),
        "r2_variance": r2_variance(t_1, t_2),
        "de_overlap": de_overlap(t_1, t_2, control),
        "de_auprc": de_auprc(t_1, t_2, control),
        "weighted_r2": weighted_r2(t_1, t_2, control),
    }


def spearman_brown(half: float) -> float:
    """Reliability of a whole, from the correlation of its halves.

    Examples
    --------
    >>> round(sa.metrics.spearman_brown(0.5), 2)
    0.67
    """
    return 2 * half / (1 + half) if half > -1 else float("-inf")


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; 0 if one of the two does not vary beyond single precision."""
    a, b = (np.asarray(v, dtype=float) - np.mean(v, dtype=float) for v in (a, b))
    if min(np.abs(a).max(), np.abs(b).max()) < NOTHING:
        return 0.0
    return float(a @ b / np.sqrt(np.square(a).sum() * np.square(b).sum()))
