r"""Pseudo-bulk counts of groups of cells, and the noise of their rates.

    Y_g                     counts of gene g, summed over the cells of a group
    N = sum_i ell_i         all their counts
    r_g = Y_g / N           rate
    l_g = log1p(S r_g)      level, S = 50,000

Counts are negative binomial with a dispersion ``phi_g`` that all groups share, so

    Var r_g  =  r_g / N  +  phi_g r_g^2 sum_i ell_i^2 / N^2
    Var l_g  =  (S / (1 + S r_g))^2 Var r_g

Levels are close to logarithms of rates, so their differences are log fold changes, except for genes with
hardly any counts, whose logarithm would be mostly noise. Unlike means of logarithms over cells, they do not
depend on how deeply single cells were sequenced.

The dispersion of a gene is estimated from the squared deviations of its counts in all cells, which are
divided by 1 - sum_i ell_i^2 / N^2 in each group, since they are from the group's own rate. The estimate is
uncertain for genes with few counts, so it is shrunk to the mean over genes as far as its standard error asks
(normal model, empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SCALE = 5e4  # total count to which rates are scaled before the logarithm
PSEUDO = 0.5  # counts that are added to a gene before its variance is computed, so that it is not zero
SUMMED = (
    100  # number of counts over which probabilities are summed; means of a quarter of it and more are many
)
CELLS = 30.0  # number of cells that the negative binomial variance of a sum is worth
WELL_KNOWN = 0.9  # quantile of the weights of genes at which they are capped


@dataclass(frozen=True)
class Pseudobulk:
    """Summed counts of a group of cells.

    ``counts`` are sums by gene, ``total`` and ``square_total`` the sums over cells of total counts and of
    their squares. ``halves`` are the rates in two halves of the cells, or `None` if they are not needed, and
    ``spread`` is the variance of ``counts`` as the cells show it, or `None` if it is not known.
    """

    counts: np.ndarray
    total: float
    square_total: float
    halves: tuple[np.ndarray, np.ndarray] | None = None
    spread: np.ndarray | None = None

    @property
    def rate(self) -> np.ndarray:
        """Share of each gene in all counts."""
        return self.counts / max(self.total, 1e-12)

    def level_variance(self, dispersion: np.ndarray) -> np.ndarray:
        """Return the sampling variance of the level of each gene.

        Parameters
        ----------
        dispersion
            Negative binomial dispersion by gene.
        """
        total = max(self.total, 1e-12)
        rate = (self.counts + PSEUDO) / total
        variance = rate / total + dispersion * np.square(rate) * self.square_total / total**2
        return variance * np.square(SCALE / (1 + SCALE * rate))

    def variance_of_few(self, dispersion: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """Return the sampling variance of the level of each gene, which is exact for small counts, too.

        Counts are taken to be negative binomial. Their expected number is the mean of the observed one and
        the usual one, so that a gene without counts here is not taken to be without noise. If a few cells
        have very many counts, the variance that the cells show is larger. It then counts as much as the
        number of cells, against :data:`CELLS` cells for the negative binomial one.

        Parameters
        ----------
        dispersion
            Negative binomial dispersion by gene.
        usual
            Usual rate of each gene.
        """
        total = max(self.total, 1e-12)
        mean = np.maximum((self.counts + usual * total) / 2, 1e-6)
        spread = dispersion * self.square_total / total**2
        slope = SCALE / (total + SCALE * mean)
        out = (mean + spread * np.square(mean)) * np.square(slope)
        few = mean < SUMMED / 4
        k = np.arange(SUMMED)[:, None]
        size = 1 / np.maximum(spread[few], 1e-6)
        chance = stats.nbinom.pmf(k, size, size / (size + mean[few]))
        value = np.log1p(SCALE / total * k)
        first = (chance * value).sum(0)
        out[few] = np.maximum((chance * np.square(value)).sum(0) - np.square(first), 0.0)
        if self.spread is None:
            return out
        cells = total**2 / max(self.square_total, 1e-12)
        shown = self.spread * np.square(slope)
        return np.maximum(out, (cells * shown + CELLS * out) / (cells + CELLS))


def level(rate: np.ndarray) -> np.ndarray:
    """Return the level of a rate."""
    return np.log1p(SCALE * rate)


def rate_at(levels: np.ndarray) -> np.ndarray:
    """Return the rate of a level; levels below zero count as zero."""
    return np.expm1(np.maximum(levels, 0.0)) / SCALE


def log_per_level(rate: np.ndarray) -> np.ndarray:
    """Return the change of the logarithm of a rate for a small change of its level."""
    scaled = SCALE * np.maximum(rate, PSEUDO / SCALE)
    return (1 + scaled) / scaled


def dispersions(
    groups: Sequence[Pseudobulk], squares: Sequence[np.ndarray], products: Sequence[np.ndarray]
) -> np.ndarray:
    """Estimate the dispersion of each gene from groups of cells.

    Parameters
    ----------
    groups
        Summed counts of each group.
    squares
        Sums over the cells of each group of squared counts, by gene.
    products
        Sums over the cells of each group of counts times the total of the cell, by gene.
    """
    observed, poisson, curved = (np.zeros_like(squares[0], dtype=np.float64) for _ in range(3))
    for group, square, product in zip(groups, squares, products, strict=True):
        expected = np.square(group.rate) * group.square_total
        lost = min(group.square_total / max(group.total, 1e-12) ** 2, 0.5)  # to the rate, which was fitted
        observed = observed + (square - 2 * group.rate * product + expected) / (1 - lost)
        poisson, curved = poisson + group.counts, curved + expected
    curved = np.maximum(curved, 1e-12)
    found = (observed - poisson) / curved
    error = np.sqrt(2 * curved + poisson) / curved
    some = np.broadcast_to(poisson > 0, found.shape)
    if not some.any():
        return np.zeros_like(found)
    weight = 1 / np.square(error[some])
    weight = np.minimum(weight, np.quantile(weight, WELL_KNOWN))
    mean = max(0.0, float(np.average(found[some], weights=weight)))
    spread = np.average(np.square(found[some] - mean) - np.square(error[some]), weights=weight)
    trust = max(float(spread), 1e-6) / (max(float(spread), 1e-6) + np.square(error))
    return np.where(some, mean + trust * (found - mean), mean).clip(0)
