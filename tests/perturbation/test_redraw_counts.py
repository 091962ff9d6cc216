"""Counts that are thinned or added to: exact moments, what stays, and factors that are met at any depth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scalloy.perturbation.redraw_counts import kept_share, rates, redraw, thinned_or_added, with_depth

THETA = 2.0


def cells(n=4000, genes=30, seed=0, total=400.0, theta=THETA):
    """Negative binomial counts with known means."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(genes, 0.5))
    mean = total * share
    spread = rng.gamma(theta, 1 / theta, (n, genes)) if np.isfinite(theta) else 1.0
    return sp.csr_matrix(rng.poisson(np.broadcast_to(mean * spread, (n, genes))), dtype=np.float32), mean


def test_thinned_negative_binomials_stay_negative_binomial():
    """Mean and variance of NB(f mean, theta): the dispersion does not change."""
    x, mean = cells()
    before = rates(x)
    out = thinned_or_added(x, before, 0.3 * before, np.random.default_rng(1)).toarray()
    seen = mean > 2
    np.testing.assert_allclose(out.mean(0)[seen], 0.3 * mean[seen], rtol=0.08)
    expected = 0.3 * mean + (0.3 * mean) ** 2 / THETA
    np.testing.assert_allclose(out.var(0)[seen], expected[seen], rtol=0.25)
    assert (out <= x.toarray()).all()


def test_what_is_added_is_a_gamma_mixture_of_poissons():
    """Variance ``m + m^2 / 4`` between cells of one depth, beside the mean."""
    x = sp.csr_matrix(np.full((5000, 2), 10.0, dtype=np.float32))
    added = np.tile([0.5, 8.0], (5000, 1))
    more = (redraw(x, np.ones(2), added, np.random.default_rng(0)) - x).toarray()
    np.testing.assert_allclose(more.mean(0), added[0], rtol=0.02)
    np.testing.assert_allclose(more.var(0), added[0] + added[0] ** 2 / 4, rtol=0.08)


def test_what_is_added_has_its_mean_its_pattern_and_new_zeros_turn():
    x, _ = cells(2000)
    before, pattern = rates(x), np.ones(x.shape)
    pattern[:1000], pattern[1000:] = 0.5, 1.5
    after = before + 0.01
    out = thinned_or_added(x, before, after, np.random.default_rng(0), pattern)
    added = (out - x).toarray()
    assert (added >= 0).all()
    ell = np.asarray(x.sum(1)).ravel()
    weighted = ell * pattern[:, 0]
    for part in (slice(1000), slice(1000, None)):
        expected = 0.01 * weighted[part].mean() * ell.sum() / weighted.sum()
        np.testing.assert_allclose(added[part].mean(0), expected, rtol=0.15)
    assert (added[x.toarray() == 0] > 0).any()


def test_where_nothing_changes_counts_are_those_that_were_measured():
    x, _ = cells(50)
    same, rng = rates(x), np.random.default_rng(0)
    assert (thinned_or_added(x, same, same, rng) != x).nnz == 0
    after = same.copy()
    after[:10] *= np.linspace(0, 5, 10)
    out = thinned_or_added(x, same, after, rng)
    assert (out[:, 10:] != x[:, 10:]).nnz == 0  # of the other genes nothing is touched
    parts = x.copy()
    parts.data += 0.25  # nor are values rounded that are no counts
    assert (thinned_or_added(parts, same, same, rng) != parts).nnz == 0
    empty = sp.csr_matrix((3, 30), dtype=np.float32)
    assert thinned_or_added(empty, np.zeros(30), np.full(30, 0.1), rng).nnz == 0


@settings(max_examples=60, deadline=None)
@given(
    total=st.floats(20, 20_000),
    theta=st.sampled_from([0.3, 2.0, 20.0, np.inf]),
    factor=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 50.0)),
    n=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
def test_the_mean_changes_by_the_factor_that_was_asked(total, theta, factor, n, seed):
    """Within what a Poisson would vary, for any depth, dispersion and number of cells, and any pattern."""
    x, _ = cells(n, 12, seed, total, theta)
    before, rng = rates(x), np.random.default_rng(seed)
    factors = np.ones(12)
    factors[::2] = factor
    pattern = rng.gamma(2.0, 0.5, x.shape)
    out = thinned_or_added(x, before, factors * before, rng, pattern)
    asked = factors * np.asarray(x.sum(0), dtype=float).ravel()
    missed = np.asarray(out.sum(0), dtype=float).ravel() - asked
    assert (np.abs(missed) <= 6 * np.sqrt(asked) + 1e-6).all()
    assert (out[:, 1::2] != x[:, 1::2]).nnz == 0


def test_share_that_is_kept():
    before, after = np.array([0.2, 0.2, 0.0, 0.0, 0.1]), np.array([0.1, 0.3, 0.0, 0.1, 0.0])
    np.testing.assert_allclose(kept_share(before, after), [0.5, 1, 1, 1, 0])


def test_each_cell_may_have_a_share_of_its_own():
    x = sp.csr_matrix(np.full((2000, 2), 20.0, dtype=np.float32))
    keep = np.ones((2000, 2))
    keep[:1000, 0] = 0.25
    out = redraw(x, keep, np.zeros((2000, 2)), np.random.default_rng(0)).toarray()
    np.testing.assert_allclose(out[:1000, 0].mean(), 5, rtol=0.05)
    assert (out[1000:] == 20).all()
    assert (out[:, 1] == 20).all()


@pytest.mark.parametrize("depth", [100.0, 2000.0])
def test_another_depth(depth):
    x, mean = cells(3000)
    out = with_depth(x, depth, np.tile(mean / mean.sum(), (3000, 1)), np.random.default_rng(0))
    total = np.asarray(out.sum(1)).ravel()
    np.testing.assert_allclose(total.mean(), depth, rtol=0.02)
    many = mean > 5
    np.testing.assert_allclose(rates(out)[many], rates(x)[many], rtol=0.25)


def test_only_cells_that_lack_counts_are_added_to():
    x, mean = cells(1500)
    total = np.asarray(x.sum(1)).ravel()
    depth = np.where(np.arange(1500) % 3 == 0, 2 * total, total)
    out = with_depth(x, depth, np.tile(mean / mean.sum(), (1500, 1)), np.random.default_rng(0))
    found, lacked = np.asarray(out.sum(1)).ravel(), depth > total
    assert (np.abs(found - depth)[lacked] < 6 * np.sqrt(total[lacked])).all()
    assert (out[np.flatnonzero(~lacked)] != x[np.flatnonzero(~lacked)]).nnz == 0
