r"""Counts of the same cells with other means: what a cell has is kept, thinned or added to.

    f'_g <= f_g     x' ~ Binomial(x, f'_g / f_g)
    f'_g >  f_g     x' = x + Poisson(ell (f'_g - f_g) s_g v),     v ~ Gamma(4, 1/4)

``f`` and ``f'`` are mean fractions of the cells' counts before and after, ``s`` says of a cell by how much
more or less than the others it rises (mean 1), ``v`` spreads that. Thinning is exact: a Poisson or negative
binomial count stays one. So a cell keeps what is its own, zeros need not stay zero, and where nothing changes
the counts are those that were measured. Draws are spread evenly over the cells
(:mod:`scalloy.baselines.stratified`), so that their mean is close to the one that is wanted.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.optimize import brentq

from scalloy.baselines import stratified

SHAPE = 4.0  # of the gamma distribution
ROWS, SOME, STEPS = 1024, 1000, 8
FLOOR, LARGEST = 1e-5, 3.0  # share of a cell's counts below which means are not followed, factor of a step


def thinned_or_added(
    counts: sp.csr_matrix,
    before: np.ndarray,
    after: np.ndarray,
    rng: np.random.Generator,
    pattern: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Counts of the cells with mean fractions ``after`` instead of ``before``; see the head of this file.

    Parameters
    ----------
    counts
        Cells x genes.
    before, after
        By gene, shares of the counts of a cell.
    rng
        Of the draws.
    pattern
        ``s`` of each cell and gene; ``None`` is 1.
    """
    keep = np.where(before > 0, np.minimum(1, after / np.maximum(before, 1e-12)), 1.0)
    kept = stratified.thinned(counts, keep[counts.indices], rng)
    rises = np.flatnonzero(after > before)
    ell, more = np.asarray(counts.sum(axis=1)), (after - before)[rises]
    added = []
    for part in _pieces(counts.shape[0]):
        rate = ell[part] * more * (1.0 if pattern is None else pattern[part][:, rises])
        added.append(sp.csr_matrix(stratified.gamma_poisson(rate, SHAPE, rng)))
    return _with(kept, added, genes=rises)


def _with(
    kept: sp.csr_matrix,
    added: list[sp.csr_matrix],
    rows: np.ndarray | None = None,
    genes: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Counts and what is added to them, piece below piece, in some rows or to some genes."""
    if not added:
        return sp.csr_matrix(kept, dtype=np.float32)
    more = sp.vstack(added, format="coo")
    row = more.row if rows is None else rows[more.row]
    col = more.col if genes is None else genes[more.col]
    return sp.csr_matrix(kept + sp.csr_matrix((more.data, (row, col)), kept.shape), dtype=np.float32)


def _pieces(n: int) -> list[slice]:
    """Rows of which dense values are held at once."""
    return [slice(first, first + ROWS) for first in range(0, n, ROWS)]


def fractions(counts: sp.csr_matrix) -> np.ndarray:
    """Mean over cells of the share of each gene."""
    return np.asarray(_scaled(counts, 1.0).mean(axis=0)).ravel()


def log_mean(counts: sp.csr_matrix, target_sum: float) -> np.ndarray:
    """Mean over cells of ``log1p`` of counts scaled to a total."""
    return np.asarray(np.log1p(_scaled(counts, target_sum)).mean(axis=0)).ravel()


def _scaled(counts: sp.csr_matrix, total: float) -> sp.csr_matrix:
    own = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1e-12)
    return sp.csr_matrix(sp.diags_array(total / own) @ counts)


def with_depth(
    counts: sp.csr_matrix, depth: float | np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Counts of the same cells, had each been sequenced to another depth.

    Parameters
    ----------
    counts
        Cells x genes.
    depth
        Expected total, of all cells or of each.
    share
        Of each gene in what is added to a cell that has fewer, cells x genes; rows need not add up to 1.
    rng
        Of the draws.
    """
    total = np.asarray(counts.sum(axis=1)).ravel()
    keep = np.minimum(1, depth / np.maximum(total, 1e-12))
    kept = stratified.thinned(counts, np.repeat(keep, np.diff(counts.indptr)), rng)
    lacks = depth - total
    fewer, added = np.flatnonzero(lacks > 0), []
    for part in _pieces(len(fewer)):
        rows = fewer[part]
        mean = (lacks[rows] / np.maximum(share[rows].sum(1), 1e-12))[:, None] * share[rows]
        added.append(sp.csr_matrix(stratified.poisson(mean, rng)))
    return _with(kept, added, rows=fewer)


def redrawn(
    counts: sp.csr_matrix, after: np.ndarray, depth: np.ndarray, rng: np.random.Generator, pattern: np.ndarray
) -> sp.csr_matrix:
    """Counts of the same cells with other mean fractions and an expected total of each.

    Parameters
    ----------
    counts, after, rng, pattern
        As in :func:`thinned_or_added`.
    depth
        Of each cell.
    """
    drawn = thinned_or_added(counts, fractions(counts), after, rng, pattern)
    return with_depth(drawn, depth, pattern * after, rng)


def fractions_of(
    wanted: np.ndarray,
    counts: sp.csr_matrix,
    depth: np.ndarray,
    target_sum: float,
    seed: int,
    pattern: np.ndarray,
) -> np.ndarray:
    """Mean fractions with which the mean of the log-normalised counts is the one that is wanted.

    The logarithm of a mean is not the mean of logarithms, and how far it is off depends on what the cells
    have already: so they are drawn, and the fractions changed until the mean is right (in ever smaller steps,
    since draws are noisy).

    Parameters
    ----------
    wanted
        Mean of ``log1p`` of counts scaled to ``target_sum``, by gene.
    counts, depth, pattern
        As in :func:`redrawn`.
    target_sum
        Total.
    seed
        Of the draws.
    """
    rng = np.random.default_rng(seed)
    some = rng.permutation(counts.shape[0])[:SOME]
    cells, depth, own = counts[some], depth[some], pattern[some]
    own = own / np.maximum(own.mean(0), 1e-12)
    goal = np.expm1(wanted) / target_sum
    after = composition(goal)
    for step in range(STEPS):
        drawn = log_mean(redrawn(cells, after, depth, rng, own), target_sum)
        ratio = (goal + FLOOR) / (np.expm1(drawn) / target_sum + FLOOR)
        after = composition(after * ratio.clip(1 / LARGEST, LARGEST) ** (2 / (2 + step)))
    return after


def composition(shares: np.ndarray) -> np.ndarray:
    """Shares that add up to 1, with the least squared change of their logarithms, to first order.

    What is wanted of each gene may not go together. A gene that makes up much of a cell can take up what is
    missing at little cost; scaling all alike would move every gene.
    """
    largest = float(shares.max())
    if largest <= 0:
        return shares

    def excess(rate: float) -> float:
        return float((shares * np.exp(rate * shares)).sum()) - 1

    if excess(0.0) < 0:
        low, high = 0.0, max(0.0, -np.log(largest) / largest)
    else:
        low, high = -1.0 / largest, 0.0
        while excess(low) > 0:
            low *= 2
    return shares * np.exp(brentq(excess, low, high) * shares)
