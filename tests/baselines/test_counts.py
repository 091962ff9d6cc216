"""Counts that are thinned or added to: exact moments, what stays, and means that are met."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize

from scalloy.baselines.counts import (
    composition,
    fractions,
    fractions_of,
    log_mean,
    redrawn,
    thinned_or_added,
    with_depth,
)

THETA = 2.0


def cells(n=4000, genes=30, seed=0, total=400.0):
    """Negative binomial counts with known means."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(genes, 0.5))
    mean = total * share
    return sp.csr_matrix(rng.poisson(rng.gamma(THETA, mean / THETA, (n, genes))), dtype=np.float32), mean


def test_thinned_negative_binomials_stay_negative_binomial():
    """Mean and variance of NB(f mean, theta): the dispersion does not change."""
    x, mean = cells()
    before = fractions(x)
    out = thinned_or_added(x, before, 0.3 * before, np.random.default_rng(1)).toarray()
    seen = mean > 2
    np.testing.assert_allclose(out.mean(0)[seen], 0.3 * mean[seen], rtol=0.08)
    expected = 0.3 * mean + (0.3 * mean) ** 2 / THETA
    np.testing.assert_allclose(out.var(0)[seen], expected[seen], rtol=0.25)
    assert (out <= x.toarray()).all()


def test_what_is_added_has_its_mean_its_pattern_and_new_zeros_turn():
    x, _ = cells(2000)
    before, pattern = fractions(x), np.ones(x.shape)
    pattern[:1000], pattern[1000:] = 0.5, 1.5
    after = before + 0.01
    out = thinned_or_added(x, before, after, np.random.default_rng(0), pattern)
    added = (out - x).toarray()
    assert (added >= 0).all()
    ell = np.asarray(x.sum(1)).ravel()
    for part, by in ((slice(1000), 0.5), (slice(1000, None), 1.5)):
        expected = 0.01 * by * ell[part].mean()
        np.testing.assert_allclose(added[part].mean(0), expected, rtol=0.15)
    assert (added[x.toarray() == 0] > 0).any()


def test_where_nothing_changes_counts_are_those_that_were_measured():
    x, _ = cells(50)
    same = fractions(x)
    assert (thinned_or_added(x, same, same, np.random.default_rng(0)) != x).nnz == 0
    ell = np.asarray(x.sum(1)).ravel()
    kept = redrawn(x, same, ell, np.random.default_rng(0), np.ones(x.shape))
    assert (kept != x).nnz == 0
    empty = sp.csr_matrix((3, 30), dtype=np.float32)
    assert thinned_or_added(empty, np.zeros(30), np.full(30, 0.1), np.random.default_rng(0)).nnz == 0


@pytest.mark.parametrize("depth", [100.0, 2000.0])
def test_another_depth(depth):
    x, mean = cells(3000)
    out = with_depth(x, depth, np.tile(mean / mean.sum(), (3000, 1)), np.random.default_rng(0))
    total = np.asarray(out.sum(1)).ravel()
    np.testing.assert_allclose(total.mean(), depth, rtol=0.02)
    many = mean > 5
    np.testing.assert_allclose(fractions(out)[many], fractions(x)[many], rtol=0.25)


def test_only_cells_that_lack_counts_are_added_to():
    x, mean = cells(1500)
    total = np.asarray(x.sum(1)).ravel()
    depth = np.where(np.arange(1500) % 3 == 0, 2 * total, total)
    out = with_depth(x, depth, np.tile(mean / mean.sum(), (1500, 1)), np.random.default_rng(0))
    found, lacked = np.asarray(out.sum(1)).ravel(), depth > total
    assert (np.abs(found - depth)[lacked] < 6 * np.sqrt(total[lacked])).all()
    assert (out[np.flatnonzero(~lacked)] != x[np.flatnonzero(~lacked)]).nnz == 0


def test_wanted_means_are_met():
    x, _ = cells(600)
    other, _ = cells(600, seed=3)  # means that a set of cells really has
    wanted = log_mean(other, 1e4)
    ell = np.asarray(x.sum(1)).ravel()
    after = fractions_of(wanted, x, ell, 1e4, 0, np.ones(x.shape))
    draws = [redrawn(x, after, ell, np.random.default_rng(s), np.ones(x.shape)) for s in range(3)]
    miss = np.mean([log_mean(d, 1e4) for d in draws], axis=0) - wanted
    start = log_mean(x, 1e4) - wanted
    assert np.square(miss).sum() < 0.02 * np.square(start).sum()
    total = np.mean([d.sum(1).mean() for d in draws])
    np.testing.assert_allclose(total, ell.mean(), rtol=0.02)


def test_composition_is_the_nearest_one():
    """Against a numerical minimum of the squared change of logarithms."""
    rng = np.random.default_rng(0)
    for total in (0.7, 1.0, 1.2):
        shares = total * rng.dirichlet([4, 2, 1, 1, 0.5])
        found = composition(shares)
        np.testing.assert_allclose(found.sum(), 1)
        sums = {"type": "eq", "fun": lambda d, s=shares: (s * np.exp(d)).sum() - 1}
        best = minimize(lambda d: np.square(d).sum(), np.full(5, np.log(1 / total)), constraints=sums)
        change = np.square(np.log(found / shares)).sum()
        assert change <= 1.1 * best.fun + 1e-9
        assert change <= 5 * np.log(1 / total) ** 2 + 1e-9  # than to scale all alike
    np.testing.assert_array_equal(composition(np.zeros(3)), 0)
