"""Library sizes of pseudo-bulk counts, and what the effects of all genes say of each one's."""

from __future__ import annotations

import numpy as np
from scipy import stats

TRIM_RATIO, TRIM_LEVEL = 0.3, 0.05  # shares of genes left out at either end: of log ratios, and of abundance
WIDTHS = np.concatenate(
    [[0.0], 2.0 ** np.arange(-5, 4)]
)  # standard deviations of effects, in natural logarithms
ROUNDS = 200  # rounds in which shares of the widths, or the common effect, are fitted
BIWEIGHT = 4.685  # standard errors from which on a gene has no weight in the common effect
FEW = 20  # genes that a common effect takes


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


def common(effect: np.ndarray, error: np.ndarray) -> float:
    """Return the effect that most genes have in common, by Tukey's biweight.

    Library sizes are off by it if many genes change in one direction.

    Parameters
    ----------
    effect, error
        Estimates and standard errors.
    """
    known = np.isfinite(effect) & np.isfinite(error) & (error > 0)
    if known.sum() < FEW:
        return 0.0
    b, spread = effect[known], error[known]
    centre = float(np.median(b))
    for _ in range(ROUNDS):
        weight = np.clip(1 - ((b - centre) / (BIWEIGHT * spread)) ** 2, 0, None) ** 2 / spread**2
        last, centre = centre, float(np.average(b, weights=weight + 1e-12 / spread**2))
        if abs(centre - last) < 1e-9:
            break
    return centre


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
