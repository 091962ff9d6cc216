r"""Moments of groups of cells, and their combination over donors.

The moments of several donors are averaged with weights, ``w_d`` (sum 1) for the cells of donor d, ``n_d`` of
them:

    mean     sum_d w_d m_d                        variance   sum_d w_d v_d  (+ between donors, if pooled)
    size     1 / sum_d (w_d^2 / n_d)              rate       sum_d a_d Y_d / sum_d a_d N_d,   a_d = w_d / n_d

``Y_d`` are summed counts, and ``N_d`` is their total. With the same weights before and after a change, a
difference between the two is no difference between donors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scalloy.perturbation.pseudobulk import Pseudobulk, dispersions

Piece = tuple[np.ndarray, np.ndarray | None]
Key = tuple[str, ...]


@dataclass(frozen=True)
class Moments:
    """Mean and variance over the cells of a group under a condition, by gene.

    ``bulk`` has the summed counts of these cells; it is `None` if the data are not counts.
    """

    mean: np.ndarray
    variance: np.ndarray
    n: float
    bulk: Pseudobulk | None = None


@dataclass
class Sums:
    """Sums over the cells of each pair of group and condition, for :func:`moments_of`.

    Cells of a pair go into two halves by turns.
    """

    codes: np.ndarray
    n: int
    half: np.ndarray = field(init=False)
    values: Any = 0  # log-normalised expression and its square
    counts: Any = 0  # counts of either half
    squares: Any = 0  # squared counts
    products: Any = 0  # counts times the total of the cell
    totals: Any = 0  # total counts of either half
    square_totals: Any = 0
    are_counts: bool = True

    def __post_init__(self) -> None:
        self.half = pd.Series(self.codes).groupby(self.codes).cumcount().to_numpy() % 2

    def add(self, begin: int, x: np.ndarray, raw: np.ndarray | None) -> None:
        """Add the cells from ``begin`` on: their expression and their counts, if there are any."""
        rows = slice(begin, begin + len(x))
        codes, half = self.codes[rows], self.half[rows]

        def summed(values: np.ndarray, keys: np.ndarray, n: int) -> np.ndarray:
            return sp.csr_matrix((np.ones(len(keys)), (keys, range(len(keys)))), (n, len(keys))) @ values

        self.values = self.values + np.stack([summed(v, codes, self.n) for v in (x, np.square(x))])
        self.are_counts = raw is not None
        if raw is None:
            return
        raw = raw.astype(np.float64)
        ell = raw.sum(1, keepdims=True)
        halves = summed(np.hstack([raw, ell]), 2 * codes + half, 2 * self.n).reshape(self.n, 2, -1)
        self.counts, self.totals = self.counts + halves[..., :-1], self.totals + halves[..., -1]
        self.squares = self.squares + summed(np.square(raw), codes, self.n)
        self.products = self.products + summed(raw * ell, codes, self.n)
        self.square_totals = self.square_totals + summed(np.square(ell), codes, self.n)[:, 0]

    def bulk(self, i: int) -> Pseudobulk | None:
        """Return the summed counts of a pair."""
        if not self.are_counts:
            return None
        one, other = self.counts[i] / np.maximum(self.totals[i], 1e-12)[:, None]
        total = float(self.totals[i].sum())
        counts, square_total = self.counts[i].sum(0), float(self.square_totals[i])
        rate = counts / max(total, 1e-12)
        deviations = self.squares[i] - 2 * rate * self.products[i] + np.square(rate) * square_total
        lost = min(square_total / max(total, 1e-12) ** 2, 0.5)
        spread = np.maximum(deviations, 0.0) / (1 - lost)
        return Pseudobulk(counts, total, square_total, (one, other), spread)


def moments_of(
    columns: Sequence[Sequence[str] | np.ndarray], pieces: Iterable[Piece]
) -> tuple[dict[Key, Moments], np.ndarray | None]:
    """Compute the moments of each combination of values, and the dispersion of each gene, piece by piece.

    Parameters
    ----------
    columns
        Columns with a value for each cell, such as its group and its condition.
    pieces
        Expression and raw counts of successive cells; counts are ``None`` if the data are not counts, and
        there is no dispersion then.
    """
    codes, keys = pd.MultiIndex.from_arrays(list(columns)).factorize()
    n, begin, sums = np.bincount(codes), 0, Sums(codes, len(keys))
    for x, raw in pieces:
        sums.add(begin, x, raw)
        begin += len(x)
    mean, square = sums.values / n[:, None]
    variance = (square - np.square(mean)).clip(0)
    bulks = [sums.bulk(i) for i in range(len(keys))]
    known = [v for v in bulks if v is not None]
    dispersion = dispersions(known, sums.squares, sums.products) if known else None
    each = [Moments(mean[i], variance[i], int(n[i]), bulks[i]) for i in range(len(keys))]
    return dict(zip(map(tuple, keys), each, strict=True)), dispersion


def averaged(each: Sequence[Moments], weight: np.ndarray) -> Moments:
    """Return the moments of several donors' cells, averaged with one weight per donor.

    The variance is that within donors.

    Parameters
    ----------
    each
        Moments of the cells of each donor.
    weight
        Weight of each donor; only ratios matter.
    """
    if len(each) == 1:
        return each[0]
    w = np.asarray(weight, dtype=np.float64) / np.sum(weight)
    n = np.array([m.n for m in each])
    mean = np.average([m.mean for m in each], axis=0, weights=w)
    variance = np.average([m.variance for m in each], axis=0, weights=w)
    size = 1 / np.sum(np.square(w) / n)
    return Moments(mean, variance, float(size), _averaged_bulk([m.bulk for m in each], w / n))


def pooled(each: Sequence[Moments]) -> Moments:
    """Return the moments of all cells of several donors; the variance includes that between donors."""
    n = np.array([m.n for m in each])
    made = averaged(each, n)
    between = np.average([np.square(m.mean - made.mean) for m in each], axis=0, weights=n)
    return replace(made, variance=made.variance + between)


def _averaged_bulk(each: Sequence[Pseudobulk | None], per_cell: np.ndarray) -> Pseudobulk | None:
    """Return pseudo-bulk counts with the rate, and the variance of the rate, of a weighted sum of counts.

    For the variance, all donors are taken to have the averaged rate.

    Parameters
    ----------
    each
        Summed counts of each donor.
    per_cell
        Weight of each cell of a donor.
    """
    bulks = [b for b in each if b is not None]
    if len(bulks) < len(each):
        return None
    total = np.array([b.total for b in bulks])
    amount = float(per_cell @ total)
    effective = amount**2 / max(float(np.square(per_cell) @ total), 1e-300)
    rate = per_cell @ np.stack([b.counts for b in bulks]) / max(amount, 1e-300)
    squares = float(np.square(per_cell) @ np.array([b.square_total for b in bulks]))
    share = per_cell * total / max(amount, 1e-300)
    halves = [b.halves or (b.rate, b.rate) for b in bulks]
    one, other = (share @ np.stack(half) for half in zip(*halves, strict=True))
    squares *= (effective / max(amount, 1e-300)) ** 2
    spreads, spread = [b.spread for b in bulks if b.spread is not None], None
    if len(spreads) == len(bulks):
        spread = np.square(per_cell) @ np.stack(spreads) * (effective / max(amount, 1e-300)) ** 2
    return Pseudobulk(rate * effective, effective, squares, (one, other), spread)
