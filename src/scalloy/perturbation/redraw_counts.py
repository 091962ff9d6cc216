r"""Change the counts of cells by given factors: keep what a cell has, thin it, or add to it.

    f_g <= 1     x' ~ Binomial(x, f_g)
    f_g >  1     x' = x + Poisson(ell (r'_g - r_g) s_g v),     v ~ Gamma(4, 1/4), scaled to a mean of 1

``r`` and ``r' = f r`` are rates, a gene's share of the counts of a cell before and after; ``s`` says by how
much more or less than the others a cell rises (mean 1), and ``v`` spreads that. Thinning is exact: a Poisson
or negative binomial count stays one. So a cell keeps what is its own, zeros need not stay zero, and where
nothing changes the counts are those that were measured, to the last entry.

The mean over cells changes by ``f`` whatever the depth, since the amounts ``ell s v`` are scaled to add up:
what is left is the noise of a Poisson, and less, because draws are spread evenly over the cells
(:mod:`scalloy.perturbation.latin_hypercube`).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scalloy.perturbation import latin_hypercube

SHAPE = 4.0  # of the gamma distribution
ROWS = 1024  # cells of which dense values are held at once


def redraw(
    counts: sp.csr_matrix, keep: np.ndarray, added: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Thin each count, and add Poisson-gamma counts.

    Parameters
    ----------
    counts
        Cells x genes.
    keep
        Probability with which each single count is kept, by gene, or cells x genes.
    added
        Mean of what is added, cells x genes.
    rng
        Source of the draws.
    """
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    each = keep[counts.indices] if keep.ndim == 1 else keep[rows, counts.indices]
    kept = latin_hypercube.thinned(counts, each, rng)
    genes = np.flatnonzero((added > 0).any(0))
    spread = _spread(added[:, genes], rng)
    more = [sp.csr_matrix(latin_hypercube.poisson(spread[part], rng)) for part in _pieces(len(spread))]
    return _with(kept, more, genes=genes)


def _spread(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply each mean by a gamma variate, without changing the sum over cells."""
    spread = mean * rng.standard_gamma(SHAPE, mean.shape)
    total = spread.sum(0)
    return spread * np.divide(mean.sum(0), total, out=np.zeros_like(total), where=total > 0)


def thinned_or_added(
    counts: sp.csr_matrix,
    before: np.ndarray,
    after: np.ndarray,
    rng: np.random.Generator,
    pattern: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Change the rates of genes, alike in all cells; see the head of this file.

    Parameters
    ----------
    counts
        Cells x genes.
    before, after
        Rates by gene, as of :func:`rates`.
    rng
        Source of the draws.
    pattern
        ``s`` of each cell and gene; ``None`` is 1. It is scaled so that what is added has the right sum.
    """
    ell = np.asarray(counts.sum(axis=1))
    amount = ell * (1.0 if pattern is None else pattern)
    amount = amount * (ell.sum() / np.maximum(amount.sum(0), 1e-12))
    return redraw(counts, kept_share(before, after), amount * np.maximum(after - before, 0.0), rng)


def kept_share(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Probability with which a count is kept where a rate falls; 1 where it does not."""
    return np.where(after < before, after / np.maximum(before, 1e-300), 1.0)


def rates(counts: sp.csr_matrix) -> np.ndarray:
    """Share of each gene in all counts of the cells together."""
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    return total / max(float(total.sum()), 1e-300)


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
    """Slices of rows of which dense values are held at once."""
    return [slice(first, first + ROWS) for first in range(0, n, ROWS)]


def with_depth(
    counts: sp.csr_matrix, depth: float | np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Draw counts of the same cells as if each had been sequenced to another depth.

    Parameters
    ----------
    counts
        Cells x genes.
    depth
        Expected total, of all cells or of each.
    share
        Share of each gene in what is added to a cell that has fewer, cells x genes; rows may have any sum.
    rng
        Source of the draws.
    """
    total = np.asarray(counts.sum(axis=1)).ravel()
    keep = np.minimum(1, depth / np.maximum(total, 1e-12))
    kept = latin_hypercube.thinned(counts, np.repeat(keep, np.diff(counts.indptr)), rng)
    lacks = depth - total
    fewer, added = np.flatnonzero(lacks > 0), []
    for part in _pieces(len(fewer)):
        rows = fewer[part]
        mean = (lacks[rows] / np.maximum(share[rows].sum(1), 1e-12))[:, None] * share[rows]
        added.append(sp.csr_matrix(latin_hypercube.poisson(mean, rng)))
    return _with(kept, added, rows=fewer)
