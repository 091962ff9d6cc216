r"""Changing the counts of cells by given factors: keeping, thinning or adding counts.

    f_g <= 1     x' ~ Binomial(x, f_g)
    f_g >  1     x' = x + Poisson(ell (r'_g - r_g) s_g v),     v ~ Gamma(k_g, 1/k_g), scaled to a mean of 1

The rates ``r`` and ``r' = f r`` are a gene's share of the counts of a cell before and after. ``s`` is the
size of the increase in a cell relative to other cells (mean 1), and ``v`` adds random variation: the smaller
its shape ``k`` (4 if nothing is known), the fewer cells have most of the increase. Thinning is exact: Poisson
or negative binomial counts remain Poisson or negative binomial. So a cell keeps its own character, zeros can
become positive, and genes that do not change keep exactly the measured counts.

The mean over cells changes by the factor ``f`` whatever the depth, since the amounts ``ell s v`` are scaled
to the right sum. What remains is less than Poisson noise, because draws are spread evenly over the cells
(:mod:`scalloy.perturbation.latin_hypercube`).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scalloy.perturbation import latin_hypercube

SHAPE = 4.0  # shape of the gamma distribution, if nothing is known of it
ROWS = 1024  # number of cells whose dense values are in memory at once


def redraw(
    counts: sp.csr_matrix,
    keep: np.ndarray,
    added: np.ndarray,
    rng: np.random.Generator,
    shape: np.ndarray | None = None,
    genes: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Thin the counts, and add gamma-Poisson counts.

    Parameters
    ----------
    counts
        Counts, cells x genes.
    keep
        Probability with which each single count is kept, by gene or cells x genes.
    added
        Mean of the added counts, cells x genes.
    rng
        Random number generator.
    shape
        Shape ``k`` of the gamma distribution by gene; ``None`` is :data:`SHAPE` for all.
    genes
        Positions of the genes in the columns of ``added``; ``None`` is all genes.
    """
    each = keep[counts.indices] if keep.ndim == 1 else _of_entries(keep, counts)
    kept = latin_hypercube.thinned(counts, each, rng)
    if genes is None:
        genes = np.flatnonzero((added > 0).any(0))
        added = added[:, genes]
    spread = _spread(added, SHAPE if shape is None else shape[genes], rng)
    more = [sp.csr_matrix(latin_hypercube.poisson(spread[part], rng)) for part in _pieces(len(spread))]
    return _with(kept, more, genes=genes)


def _of_entries(values: np.ndarray, counts: sp.csr_matrix) -> np.ndarray:
    """Return the values at the stored entries of the counts."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    return values[rows, counts.indices]


def _spread(mean: np.ndarray, shape: float | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply each mean by a gamma variate without changing the sum over cells."""
    spread = mean * rng.standard_gamma(shape, mean.shape)
    total = spread.sum(0)
    return spread * np.divide(mean.sum(0), total, out=np.zeros_like(total), where=total > 0)


def thinned_or_added(
    counts: sp.csr_matrix,
    before: np.ndarray,
    after: np.ndarray,
    rng: np.random.Generator,
    pattern: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Thin or add counts so that the rates of genes change from ``before`` to ``after``.

    Parameters
    ----------
    counts
        Counts, cells x genes.
    before, after
        Rates by gene before and after, as returned by :func:`rates`.
    rng
        Random number generator.
    pattern
        Relative size of the increase in each cell and gene (``s`` in the equations of this module), scaled so
        that the added counts have the right sum; ``None`` is 1 everywhere.
    """
    ell = np.asarray(counts.sum(axis=1))
    amount = ell * (1.0 if pattern is None else pattern)
    amount = amount * (ell.sum() / np.maximum(amount.sum(0), 1e-12))
    return redraw(counts, kept_share(before, after), amount * np.maximum(after - before, 0.0), rng)


def kept_share(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the probability of keeping a count: ``after / before`` if the rate falls, otherwise 1."""
    return np.divide(after, before, out=np.ones_like(after), where=after < before)


def rates(counts: sp.csr_matrix) -> np.ndarray:
    """Return the share of each gene in the total count of all cells."""
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    return total / max(float(total.sum()), 1e-300)


def _with(
    kept: sp.csr_matrix,
    added: list[sp.csr_matrix],
    rows: np.ndarray | None = None,
    genes: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Add pieces of drawn counts to the kept ones; ``rows`` and ``genes`` say where they belong."""
    if not added:
        return sp.csr_matrix(kept, dtype=np.float32)
    more = sp.vstack(added, format="coo")
    row = more.row if rows is None else rows[more.row]
    col = more.col if genes is None else genes[more.col]
    return sp.csr_matrix(kept + sp.csr_matrix((more.data, (row, col)), kept.shape), dtype=np.float32)


def _pieces(n: int) -> list[slice]:
    """Return slices of at most :data:`ROWS` rows that cover ``n`` rows."""
    return [slice(first, first + ROWS) for first in range(0, n, ROWS)]


def with_depth(
    counts: sp.csr_matrix, depth: float | np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Draw counts of the same cells as if each had been sequenced to another depth.

    Parameters
    ----------
    counts
        Counts, cells x genes.
    depth
        Expected total count, one for all cells or one per cell.
    share
        Relative share of each gene in the counts that are added to cells below ``depth``, cells x genes; rows
        are normalised.
    rng
        Random number generator.
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
