"""Draws of counts for many cells at once by Latin hypercube sampling.

Each single count has the correct distribution. But the uniform numbers from which the n cells of a gene are
drawn form a Latin hypercube (McKay, Beckman & Conover, Technometrics 1979): there is one in each n-th of the
unit interval. So the mean over cells has much less noise than with independent draws.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numba import njit

LARGE = 500  # larger counts or means are drawn independently: too large for the sums below
NONE_LEFT = 1e-16  # probability of a count above the mean at which a sum stops


def of_cells(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw uniform numbers, cells x genes, with one in each n-th of the unit interval for every gene."""
    n, n_genes = shape
    strata = rng.permuted(np.tile(np.arange(n, dtype=np.float32), (n_genes, 1)), axis=1).T
    return (strata + rng.random(shape)) / max(n, 1)


def of_entries(x: sp.csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Draw uniform numbers for the stored entries of a sparse matrix, stratified within each column."""
    order = np.lexsort((rng.random(x.nnz), x.indices))
    size = np.bincount(x.indices, minlength=x.shape[1])
    begin = np.cumsum(size) - size
    column = x.indices[order]
    u = np.empty(x.nnz)
    u[order] = (np.arange(x.nnz) - begin[column] + rng.random(x.nnz)) / size[column]
    return u


def thinned(x: sp.csr_matrix, keep: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw ``Binomial(x, keep)`` for each entry.

    Parameters
    ----------
    x
        Counts, cells x genes.
    keep
        Probability with which each single count of an entry is kept, by stored entry.
    rng
        Random number generator.
    """
    kept = x.astype(np.float64)
    n, some = np.rint(x.data).astype(np.int64), keep < 1  # entries kept with certainty are not touched
    kept.data[some] = _binomial(of_entries(x, rng)[some], n[some], keep[some])
    if (many := some & (n > LARGE)).any():
        kept.data[many] = rng.binomial(n[many], keep[many])
    return kept


def poisson(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw ``Poisson(mean)``, cells x genes.

    Parameters
    ----------
    mean
        Mean of each cell and gene.
    rng
        Random number generator.
    """
    mean = np.asarray(mean, dtype=np.float64)
    drawn = _poisson(of_cells(mean.shape, rng), mean)
    if (large := mean > LARGE).any():
        drawn[large] = rng.poisson(mean[large])
    return drawn


@njit
def _binomial(u: np.ndarray, n: np.ndarray, p: np.ndarray) -> np.ndarray:
    out = np.zeros(len(u), dtype=np.int64)
    for i in range(len(u)):
        if p[i] >= 1 or p[i] <= 0 or n[i] > LARGE:
            out[i] = n[i] if p[i] > 0 else 0
            continue
        flip = p[i] > 0.5
        odds = (1 - p[i]) / p[i] if flip else p[i] / (1 - p[i])
        chance = (p[i] if flip else 1 - p[i]) ** n[i]
        total, k = chance, 0
        while u[i] > total and k < n[i]:
            chance *= (n[i] - k) / (k + 1) * odds
            total += chance
            k += 1
        out[i] = n[i] - k if flip else k
    return out


@njit
def _poisson(u: np.ndarray, mean: np.ndarray) -> np.ndarray:
    out = np.zeros(u.shape)
    for i in range(u.shape[0]):
        for g in range(u.shape[1]):
            m = mean[i, g]
            if m <= 0 or m > LARGE:
                continue
            chance = np.exp(-m)
            total, k = chance, 0
            while u[i, g] > total and (k < m or chance > NONE_LEFT):
                chance *= m / (k + 1)
                total += chance
                k += 1
            out[i, g] = k
    return out
