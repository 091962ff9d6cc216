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
exactly as it is.

The first terms of ``E log1p(a (x + D))`` are summed; in the remaining tail ``x + D`` is approximated by a
gamma distribution with the mean and variance of the tail (as in :mod:`scalloy.blocks.expected_log1p`).
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
from numba import njit

from scalloy.perturbation.redraw_counts import SHAPE, rates

MOST_CELLS = 1000  # maximum number of cells from which rates are found
SUMMED, NEGLIGIBLE = 24, 1e-7  # maximum terms of a sum, and tail probability that is neglected
WIDE = 30.0  # variance of thinned counts above which a second-order expansion is used
STEPS, PRECISION = 60, 1e-4  # maximum steps of a search, and relative error of a change at which it stops
SAME = 1e-9  # change of a mean logarithm that counts as zero
LARGEST_RATE = 1.0  # largest rate that is added: a gene cannot exceed all counts of a cell


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
    some = np.random.default_rng(seed).permutation(counts.shape[0])[:MOST_CELLS]
    cells = counts[some].tocsc()
    before = rates(cells)
    ell = np.asarray(cells.sum(axis=1), dtype=np.float64).ravel()
    scale = target_sum / np.maximum(ell, 1e-12)
    weight = pattern[some] * ell[:, None]
    weight *= ell.sum() / np.maximum(weight.sum(0), 1e-300)
    logs = np.log1p(scale[:, None] * np.arange(2 * SUMMED + 1))
    parts = (cells.indptr, cells.indices, cells.data.astype(np.float64), scale, logs)
    after = before.copy()
    _solve(*parts, np.ascontiguousarray(weight.T), change.astype(np.float64), before, after)
    every = rates(counts)
    factor = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    return every, np.where(before > 0, every * factor, every + after)


@njit
def _solve(
    begin: np.ndarray,
    row: np.ndarray,
    count: np.ndarray,
    scale: np.ndarray,
    logs: np.ndarray,
    weight: np.ndarray,
    change: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> None:
    """Fill in ``after`` gene by gene."""
    n = len(scale)
    x = np.zeros(n)
    for g in range(len(before)):
        if abs(change[g]) <= SAME or n == 0:
            continue
        rows, counts = row[begin[g] : begin[g + 1]], count[begin[g] : begin[g + 1]]
        now = 0.0
        for i in range(len(rows)):
            now += _log(scale[rows[i]], counts[i], logs[rows[i]])
        rise = change[g] * n
        if rise < 0:
            falls_to = now + rise
            after[g] = 0.0 if falls_to <= 0 else before[g] * _kept(rows, counts, scale, logs, falls_to)
            continue
        x[:] = 0.0
        for i in range(len(rows)):
            x[rows[i]] = counts[i]
        after[g] = before[g] + _added(x, weight[g], scale, logs, now, rise)


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
    f_high = _sum_of_added(high, x, weight, scale, logs) - now - rise
    while f_high < 0 and high < LARGEST_RATE:
        low, f_low = high, f_high
        high = min(3 * high, LARGEST_RATE)
        f_high = _sum_of_added(high, x, weight, scale, logs) - now - rise
    if f_high < 0:
        return high
    middle = high
    for _ in range(STEPS):
        middle = high - f_high * (high - low) / (f_high - f_low)
        f = _sum_of_added(middle, x, weight, scale, logs) - now - rise
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
    rate: float, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, logs: np.ndarray
) -> float:
    total = 0.0
    for i in range(len(x)):
        total += _log_of_added(x[i], rate * weight[i], scale[i], logs[i])
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
def _log_of_added(x: float, mean: float, a: float, logs: np.ndarray) -> float:
    """Compute ``E log1p(a (x + D))`` for a negative binomial ``D``."""
    if mean <= 0:
        return _log(a, x, logs)
    chance, ratio = (SHAPE / (SHAPE + mean)) ** SHAPE, mean / (SHAPE + mean)
    left, first, second = 1.0, mean, mean + mean * mean * (1 + 1 / SHAPE)
    total = 0.0
    for k in range(SUMMED + 1):
        total += chance * _log(a, x + k, logs)
        left -= chance
        first -= k * chance
        second -= k * k * chance
        if left < NEGLIGIBLE:
            return total
        chance *= (SHAPE + k) / (k + 1) * ratio
    beyond = max(first / left, SUMMED + 1.0)
    variance = max(second / left - beyond * beyond, 1e-3)
    level = x + beyond + 1 / a
    shape = level * level / variance
    return total + left * (math.log(a * level) + _digamma(shape) - math.log(shape))


@njit
def _digamma(x: float) -> float:
    """Compute the digamma function by recursion and its asymptotic series."""
    total = 0.0
    while x < 6:
        total -= 1 / x
        x += 1
    square = 1 / (x * x)
    return total + math.log(x) - 0.5 / x - square * (1 / 12 - square * (1 / 120 - square / 252))
