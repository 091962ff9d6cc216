r"""Conversion of changes in mean log-expression to changes in the rates of genes.

A prediction says by how much the mean of ``log1p`` of a gene's scaled counts changes, but counts are changed
through rates. The logarithm of a mean is not the mean of logarithms, and the difference between them depends
on the counts that the cells have already. However, the distribution of the changed counts is known for any
rate (:mod:`scalloy.perturbation.redraw_counts`), and so is their mean logarithm, gene by gene,

    M(r') = mean_i E log1p(a_i x'_i)        a_i = target / ell_i

    r' <= r    x' ~ Binomial(x_i, r' / r)
    r' >  r    x' = x_i + D,    D negative binomial with mean (r' - r) ell_i s_i and shape 4

``M`` increases with ``r'`` and equals the observed mean at ``r' = r``. So each mean logarithm corresponds to
one rate, which is found by root finding without drawing any counts, and a change of zero leaves the rate
exactly as it is (:func:`rates_after`).

If both the rate and the mean logarithm after a change are known, they say how the added counts are spread:
the fewer cells have them, the lower is the mean logarithm at the same rate. So the shape of ``D`` is found
such that both fit (:meth:`Sample.shapes_after`), within limits. :meth:`Sample.mean_logs` gives the mean
logarithm that results.

The first terms of ``E log1p(a (x + D))`` are summed; in the remaining tail ``x + D`` is approximated by a
gamma distribution with the mean and variance of the tail (as in :mod:`scalloy.blocks.expected_log1p`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit

from scalloy.kernels.digamma import digamma
from scalloy.perturbation.redraw_counts import SHAPE, rates

MOST_CELLS = 1000  # maximum number of cells from which rates are found
SUMMED, NEGLIGIBLE = 24, 1e-7  # maximum terms of a sum, and tail probability that is neglected
WIDE = 30.0  # variance of thinned counts above which a second-order expansion is used
STEPS, PRECISION = 60, 1e-4  # maximum steps of a search, and relative error of a change at which it stops
SAME = 1e-9  # change of a mean logarithm that counts as zero
LARGEST_RATE = 1.0  # largest rate that is added: a gene cannot exceed all counts of a cell
SHAPES = 1.0, 50.0  # smallest and largest shape: in few cells, and in all cells almost alike
NEARBY = 1.05  # factor of a rate for the slope of mean logarithms
CLOSE = 0.01  # relative error of a change of the mean logarithm at which the search for a shape stops


class Cells(NamedTuple):
    """Nonzero counts by gene, scale and logarithms of small counts by cell, and weights of increases."""

    begin: np.ndarray
    row: np.ndarray
    value: np.ndarray
    scale: np.ndarray
    logs: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Sample:
    """Cells from which rates are found, with the rates ``before`` in them and in ``every`` cell."""

    cells: Cells
    before: np.ndarray
    every: np.ndarray

    @classmethod
    def of(cls, counts: sp.csr_matrix, target_sum: float, pattern: np.ndarray, seed: int = 0) -> Sample:
        """Take some of the cells.

        Parameters
        ----------
        counts
            Counts, cells x genes.
        target_sum
            Total count to which each cell is scaled before the logarithm.
        pattern
            Relative size of the increase in each cell, cells x genes; only ratios between cells matter.
        seed
            Random seed for the choice of cells, if there are too many.
        """
        some = np.random.default_rng(seed).permutation(counts.shape[0])[:MOST_CELLS]
        cells = counts[some].tocsc()
        ell = np.asarray(cells.sum(axis=1), dtype=np.float64).ravel()
        scale = target_sum / np.maximum(ell, 1e-12)
        weight = pattern[some] * ell[:, None]
        weight *= ell.sum() / np.maximum(weight.sum(0), 1e-300)
        value, weight = cells.data.astype(np.float64), np.ascontiguousarray(weight.T)
        known = Cells(cells.indptr, cells.indices, value, scale, _small_logs(scale), weight)
        return cls(known, rates(cells), rates(counts))

    def rescaled(self, factor: float) -> Sample:
        """Return the same cells, scaled to a total that is larger by a factor."""
        if factor == 1:
            return self
        scale = self.cells.scale * factor
        return replace(self, cells=self.cells._replace(scale=scale, logs=_small_logs(scale)))

    def rates_after(self, change: np.ndarray) -> np.ndarray:
        """Return the rate of each gene after a change of its mean log-normalised expression."""
        after = self.before.copy()
        _solve(self.cells, change.astype(np.float64), self.before, after)
        factor = np.divide(after, self.before, out=np.ones_like(after), where=self.before > 0)
        return np.where(self.before > 0, self.every * factor, self.every + after)

    def _in_sample(self, after: np.ndarray) -> np.ndarray:
        """Return the rates in the sample that correspond to rates in all cells."""
        factor = np.divide(after, self.every, out=np.ones_like(after), where=self.every > 0)
        return np.where(self.before > 0, self.before * factor, np.maximum(after - self.every, 0))

    def mean_logs(self, after: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """Return the mean log-normalised expression at these rates and shapes, by gene."""
        return _mean_logs(self.cells, self.before, self._in_sample(after), shape)

    def slopes(self, after: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """Return by how much mean log-expression changes with the logarithm of the rate, by gene."""
        rate = np.maximum(after, self.every)  # adds counts also where the rate falls
        return (self.mean_logs(NEARBY * rate, shape) - self.mean_logs(rate, shape)) / math.log(NEARBY)

    def shapes_after(self, after: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Return the shape of the added counts of each gene, given its rate and mean log-expression after."""
        shape = np.full(len(after), SHAPE)
        _solve_shapes(self.cells, self.before, self._in_sample(after), wanted, shape)
        return shape


def _small_logs(scale: np.ndarray) -> np.ndarray:
    """Return the logarithms of small whole counts of each cell, once scaled."""
    return np.log1p(scale[:, None] * np.arange(2 * SUMMED + 1))


def rates_after(
    counts: sp.csr_matrix, change: np.ndarray, target_sum: float, pattern: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rate of each gene before and after a change of its mean log-normalised expression.

    Parameters
    ----------
    counts
        Counts, cells x genes.
    change
        Change of the mean of ``log1p`` of counts scaled to ``target_sum``, by gene.
    target_sum
        Total count to which each cell is scaled before the logarithm.
    pattern
        Relative size of the increase in each cell, cells x genes; only ratios between cells matter.
    seed
        Random seed for the choice of cells, if there are too many.
    """
    sample = Sample.of(counts, target_sum, pattern, seed)
    return sample.every, sample.rates_after(change)


@njit
def _gene(cells: Cells, g: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and counts of the nonzeros of a gene, and write its counts in all cells into ``x``."""
    part = slice(cells.begin[g], cells.begin[g + 1])
    rows, counts = cells.row[part], cells.value[part]
    x[:] = 0.0
    for i in range(len(rows)):
        x[rows[i]] = counts[i]
    return rows, counts


@njit
def _sum_of_logs(cells: Cells, rows: np.ndarray, counts: np.ndarray) -> float:
    total = 0.0
    for i in range(len(rows)):
        total += _log(cells.scale[rows[i]], counts[i], cells.logs[rows[i]])
    return total


@njit
def _mean_logs(
    cells: Cells,
    before: np.ndarray,
    after: np.ndarray,
    shape: np.ndarray,
) -> np.ndarray:
    """Compute the mean logarithm of each gene after a change of its rate."""
    scale, logs = cells.scale, cells.logs
    x, out = np.zeros(len(scale)), np.zeros(len(before))
    for g in range(len(before)):
        rows, counts = _gene(cells, g, x)
        total = 0.0
        if after[g] <= before[g]:
            keep = after[g] / before[g] if before[g] > 0 else 1.0
            for i in range(len(rows)):
                total += _log_of_thinned(counts[i], keep, scale[rows[i]], logs[rows[i]])
        else:
            total = _sum_of_added(after[g] - before[g], x, cells.weight[g], scale, logs, shape[g])
        out[g] = total / max(len(scale), 1)
    return out


@njit
def _solve_shapes(
    cells: Cells,
    before: np.ndarray,
    after: np.ndarray,
    wanted: np.ndarray,
    shape: np.ndarray,
) -> None:
    """Fill in ``shape`` for genes that rise, by bisection of its logarithm."""
    n = len(cells.scale)
    x = np.zeros(n)
    for g in range(len(before)):
        rate = after[g] - before[g]
        if rate <= SAME * before[g] or n == 0:
            continue
        rows, counts = _gene(cells, g, x)
        now = _sum_of_logs(cells, rows, counts)
        rise = wanted[g] * n - now
        low, high = math.log(SHAPES[0]), math.log(SHAPES[1])
        middle = math.log(shape[g])
        for _ in range(STEPS):
            found = _sum_of_added(rate, x, cells.weight[g], cells.scale, cells.logs, math.exp(middle)) - now
            if abs(found - rise) < CLOSE * abs(rise) or high - low < CLOSE:
                break
            if found < rise:
                low = middle
            else:
                high = middle
            middle = (low + high) / 2
        shape[g] = math.exp(middle)


@njit
def _solve(
    cells: Cells,
    change: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> None:
    """Fill in ``after`` gene by gene."""
    scale, logs = cells.scale, cells.logs
    n = len(scale)
    x = np.zeros(n)
    for g in range(len(before)):
        if abs(change[g]) <= SAME or n == 0:
            continue
        rows, counts = _gene(cells, g, x)
        now = _sum_of_logs(cells, rows, counts)
        rise = change[g] * n
        if rise < 0:
            falls_to = now + rise
            after[g] = 0.0 if falls_to <= 0 else before[g] * _kept(rows, counts, scale, logs, falls_to)
        else:
            after[g] = before[g] + _added(x, cells.weight[g], scale, logs, now, rise)


@njit
def _kept(rows: np.ndarray, counts: np.ndarray, scale: np.ndarray, logs: np.ndarray, wanted: float) -> float:
    """Find by bisection the share of the counts to keep, so that the logarithms add up to ``wanted``."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle, total = (low + high) / 2, 0.0
        for i in range(len(rows)):
            total += _log_of_thinned(counts[i], middle, scale[rows[i]], logs[rows[i]])
        if total < wanted:
            low = middle
        else:
            high = middle
        if high - low < PRECISION * (1 - high) or high - low < PRECISION * low * PRECISION:
            break
    return (low + high) / 2


@njit
def _added(
    x: np.ndarray, weight: np.ndarray, scale: np.ndarray, logs: np.ndarray, now: float, rise: float
) -> float:
    """Find the rate to add so that the sum of logarithms rises by ``rise`` from ``now`` (Illinois method)."""
    slope = 0.0  # steepest at the start, so rise / slope is a lower bound
    for i in range(len(x)):
        slope += weight[i] * (_log(scale[i], x[i] + 1, logs[i]) - _log(scale[i], x[i], logs[i]))
    low, f_low, side = 0.0, -rise, 0
    high = min(1.5 * rise / max(slope, 1e-300), LARGEST_RATE)
    f_high = _sum_of_added(high, x, weight, scale, logs, SHAPE) - now - rise
    while f_high < 0 and high < LARGEST_RATE:
        low, f_low = high, f_high
        high = min(3 * high, LARGEST_RATE)
        f_high = _sum_of_added(high, x, weight, scale, logs, SHAPE) - now - rise
    if f_high < 0:
        return high
    middle = high
    for _ in range(STEPS):
        middle = high - f_high * (high - low) / (f_high - f_low)
        f = _sum_of_added(middle, x, weight, scale, logs, SHAPE) - now - rise
        if abs(f) < PRECISION * rise:
            break
        if f < 0:
            low, f_low = middle, f
            f_high = f_high / 2 if side < 0 else f_high
            side = -1
        else:
            high, f_high = middle, f
            f_low = f_low / 2 if side > 0 else f_low
            side = 1
    return middle


@njit
def _sum_of_added(
    rate: float, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, logs: np.ndarray, shape: float
) -> float:
    total = 0.0
    for i in range(len(x)):
        total += _log_of_added(x[i], rate * weight[i], scale[i], logs[i], shape)
    return total


@njit
def _log(a: float, x: float, logs: np.ndarray) -> float:
    """Compute ``log1p(a x)``, from the table ``logs`` if ``x`` is a small whole number."""
    k = int(x)
    return logs[k] if k < len(logs) and k == x else math.log1p(a * x)


@njit
def _log_of_thinned(x: float, p: float, a: float, logs: np.ndarray) -> float:
    """Compute ``E log1p(a Binomial(x, p))``, to second order if the variance is large."""
    n, mean, variance = round(x), x * p, x * p * (1 - p)
    if variance > WIDE:
        return math.log1p(a * mean) - a * a * variance / (2 * (1 + a * mean) ** 2)
    flip = p > 0.5
    rare = 1 - p if flip else p
    if rare <= 0:
        return _log(a, x, logs) if flip else 0.0
    chance, total, left = (1 - rare) ** n, 0.0, 1.0
    for k in range(n + 1):
        total += chance * _log(a, float(n - k if flip else k), logs)
        left -= chance
        if left < NEGLIGIBLE:
            break
        chance *= (n - k) / (k + 1) * (rare / (1 - rare))
    return total


@njit
def _log_of_added(x: float, mean: float, a: float, logs: np.ndarray, size: float) -> float:
    """Compute ``E log1p(a (x + D))`` for a negative binomial ``D`` of shape ``size``."""
    if mean <= 0:
        return _log(a, x, logs)
    chance, ratio = (size / (size + mean)) ** size, mean / (size + mean)
    left, first, second = 1.0, mean, mean + mean * mean * (1 + 1 / size)
    total = 0.0
    for k in range(SUMMED + 1):
        total += chance * _log(a, x + k, logs)
        left -= chance
        first -= k * chance
        second -= k * k * chance
        if left < NEGLIGIBLE:
            return total
        chance *= (size + k) / (k + 1) * ratio
    beyond = max(first / left, SUMMED + 1.0)
    variance = max(second / left - beyond * beyond, 1e-3)
    level = x + beyond + 1 / a
    shape = level * level / variance
    return total + left * (math.log(a * level) + digamma(shape) - math.log(shape))
