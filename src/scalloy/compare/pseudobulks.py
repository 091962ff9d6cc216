"""Library sizes of pseudo-bulk counts, and effects of genes that are drawn towards zero."""

from __future__ import annotations

import numpy as np
from scipy import stats

TRIM_RATIO, TRIM_LEVEL = 0.3, 0.05  # shares of genes left out at either end: of log ratios, and of abundance
WIDTHS = np.concatenate(
    [[0.0], 2.0 ** np.arange(-5, 4)]
)  # standard deviations of effects, in natural logarithms
ROUNDS = 200  # rounds in which shares of the widths are fitted


def library_sizes(counts: np.ndarray) -> np.ndarray:
    """Return the effective library size of each sample by trimmed means of log ratios.

    Parameters
    ----------
    counts
        Counts, ``(genes, samples)``.

    References
    ----------
    Robinson, Oshlack (2010). A scaling normalization method for differential expression analysis of RNA-seq
    data. Genome Biology 11.
    """
    total = counts.sum(0)
    share = counts / np.maximum(total, 1e-12)
    middle, factor = share.mean(1), np.zeros(counts.shape[1])
    for i in range(counts.shape[1]):
        both = (counts[:, i] > 0) & (middle > 0)
        if both.sum() < 10:
            continue
        ratio, level = np.log(share[both, i] / middle[both]), np.log(share[both, i] * middle[both]) / 2
        weight = 1 / (1 / counts[both, i] - 1 / total[i] + 1e-12)
        kept = _central(ratio, TRIM_RATIO) & _central(level, TRIM_LEVEL)
        if kept.any():
            factor[i] = np.average(ratio[kept], weights=weight[kept])
    return np.maximum(total, 1e-12) * np.exp(factor - factor.mean())


def _central(values: np.ndarray, trimmed: float) -> np.ndarray:
    """Mark the values that are neither among the lowest nor among the highest."""
    rank = stats.rankdata(values, method="ordinal")
    n = int(trimmed * len(values))
    return (rank > n) & (rank <= len(values) - n)


def shrunken(effect: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the expected effect of each gene, given those of all genes.

    Effects come from a mixture of normal distributions around zero, whose shares are fitted to all of them.

    Parameters
    ----------
    effect, error
        Estimates and standard errors.

    References
    ----------
    Stephens (2017). False discovery rates: a new deal. Biostatistics 18.
    """
    known = np.isfinite(effect) & np.isfinite(error) & (error > 0)
    mean = np.full(len(effect), np.nan)
    if not known.any():
        return mean
    b, variance = effect[known, None], error[known, None] ** 2
    density = stats.norm.logpdf(b, 0, np.sqrt(variance + WIDTHS**2))
    density = np.exp(density - density.max(1, keepdims=True))
    share = np.full(len(WIDTHS), 1 / len(WIDTHS))
    for _ in range(ROUNDS):
        of = density * share
        of /= of.sum(1, keepdims=True)
        share = of.sum(0)
        share[0] += 1.0  # a weak pull towards no effect, for a handful of genes
        share /= share.sum()
    mean[known] = (of * b * WIDTHS**2 / (variance + WIDTHS**2)).sum(1)
    return mean
