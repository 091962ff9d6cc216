"""Rates for a given mean logarithm: against exact sums, against draws, and where nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import special, stats

from scalloy.perturbation import fold_changes
from scalloy.perturbation.redraw_counts import SHAPE, rates, redraw, thinned_or_added

LOGS = {a: np.log1p(a * np.arange(2 * fold_changes.SUMMED + 1)) for a in (0.01, 1.0, 75.0)}


def cells(total, n=500, genes=40, seed=0):
    rng = np.random.default_rng(seed)
    mean = total * rng.gamma(8, 1 / 8, (n, 1)) * rng.dirichlet(np.full(genes, 0.5))
    return sp.csr_matrix(rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape)), dtype=np.float32)


def mean_log(x, ell, target):
    return np.log1p(target * x.toarray() / np.maximum(ell, 1)[:, None]).mean(0)


@pytest.mark.parametrize("a", list(LOGS))
@pytest.mark.parametrize("x", [0, 1, 7, 200])
@pytest.mark.parametrize("mean", [1e-3, 0.7, 6.0, 90.0])
def test_expected_logarithm_of_what_is_added_to(a, x, mean):
    """Against the sum over all counts: 0.01 is a percent of a rate."""
    k = np.arange(5000)
    exact = stats.nbinom.pmf(k, SHAPE, SHAPE / (SHAPE + mean)) @ np.log1p(a * (x + k))
    assert fold_changes._log_of_added(float(x), mean, a, LOGS[a], SHAPE) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("a", list(LOGS))
@pytest.mark.parametrize("x", [1, 3, 24, 25, 400])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.9, 1.0])
def test_expected_logarithm_of_what_is_thinned(a, x, p):
    k = np.arange(x + 1)
    exact = stats.binom.pmf(k, x, p) @ np.log1p(a * k)
    assert fold_changes._log_of_thinned(float(x), p, a, LOGS[a]) == pytest.approx(exact, abs=2e-3)


def test_digamma():
    x = np.geomspace(1e-3, 1e4, 50)
    np.testing.assert_allclose([fold_changes.digamma(v) for v in x], special.digamma(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("total", [100, 1000, 10_000])
@pytest.mark.parametrize("target", [1e4, None])
def test_no_change_is_exactly_no_change(total, target):
    """To the last bit, in shallow cells as in deep ones; and a small change is a small one."""
    x = cells(total)
    ones = np.ones(x.shape)
    before, after = fold_changes.rates_after(x, np.zeros(40), target or total, ones)
    np.testing.assert_array_equal(before, after)
    before, after = fold_changes.rates_after(x, np.full(40, 1e-4), target or total, ones)
    some = mean_log(x, np.asarray(x.sum(1)).ravel(), target or total) > 0.02
    assert np.abs(np.log(after[some] / before[some])).max() < 0.02
    assert (after >= before).all()


@pytest.mark.parametrize("total", [100, 1000, 10_000])
@pytest.mark.parametrize("target", [1e4, None])
def test_counts_have_the_mean_logarithm_that_was_asked(total, target):
    x, rng = cells(total), np.random.default_rng(1)
    target, ell = target or total, np.asarray(x.sum(1)).ravel()
    now = mean_log(x, ell, target)
    change = np.where(now > 0.02, rng.normal(0, 0.3, 40).clip(-0.9 * now, 1.0), 0.0)
    pattern = rng.gamma(4, 1 / 4, x.shape)
    before, after = fold_changes.rates_after(x, change, target, pattern)
    drawn = [thinned_or_added(x, before, after, np.random.default_rng(s), pattern) for s in range(20)]
    found = np.stack([mean_log(d, ell, target) for d in drawn])
    se = np.maximum(found.std(0, ddof=1) / np.sqrt(20), 1e-4)
    assert (np.abs(found.mean(0) - now - change) < 5 * se + 0.02 * np.abs(change)).all()


def test_what_cannot_be_reached_is_the_nearest_that_can():
    x = cells(1000)
    change = np.zeros(40)
    change[:2] = -100.0, 100.0
    before, after = fold_changes.rates_after(x, change, 1e4, np.ones(x.shape))
    assert after[0] == 0
    assert before[1] < after[1] <= before[1] + fold_changes.LARGEST_RATE
    np.testing.assert_array_equal(before[2:], after[2:])


def test_of_many_cells_some_are_looked_at():
    """The factor found from them holds for all: a gene changes relative to its own rate."""
    x = cells(1000, n=3 * fold_changes.MOST_CELLS)
    change = np.where(rates(x) > 0.003, 0.2, 0.0)
    before, after = fold_changes.rates_after(x, change, 1e4, np.ones(x.shape))
    np.testing.assert_allclose(before, rates(x))
    few = fold_changes.rates_after(x[:900], change, 1e4, np.ones((900, 40)))
    some = change > 0
    np.testing.assert_allclose(after[some] / before[some], few[1][some] / few[0][some], rtol=0.05)
    np.testing.assert_array_equal(after[~some], before[~some])


@pytest.mark.parametrize("shape", [1.0, 10.0, 50.0])
@pytest.mark.parametrize(("x", "mean", "a"), [(0, 0.05, 1.0), (0, 3.0, 0.5), (4, 12.0, 75.0), (1, 90.0, 1.0)])
def test_mean_logarithm_of_added_counts_for_other_shapes(x, mean, a, shape):
    k = np.arange(4000)
    exact = stats.nbinom.pmf(k, shape, shape / (shape + mean)) @ np.log1p(a * (x + k))
    logs = np.log1p(a * np.arange(2 * fold_changes.SUMMED + 1))
    assert fold_changes._log_of_added(float(x), mean, a, logs, shape) == pytest.approx(
        exact, abs=0.02 if shape > 1 else 0.07
    )


@pytest.mark.parametrize("total", [200, 2000])
def test_counts_have_the_rate_and_the_mean_logarithm_that_were_asked(total):
    """Of genes that rise: a shape is found from a rate and the mean logarithm that some shape gives."""
    x, rng = cells(total), np.random.default_rng(2)
    pattern = np.ones(x.shape)
    sample = fold_changes.Sample.of(x, total, pattern)
    rises = rates(x) > 20 / total / 40
    after = np.where(rises, rates(x) * rng.uniform(1.5, 4, 40), rates(x))
    shape = np.where(rises, rng.choice([1.5, 4.0, 12.0], 40), SHAPE)
    wanted = sample.mean_logs(after, shape)
    np.testing.assert_allclose(
        sample.mean_logs(rates(x), shape), mean_log(x, np.asarray(x.sum(1)).ravel(), total), rtol=1e-4
    )
    found = sample.shapes_after(after, wanted)
    np.testing.assert_allclose(sample.mean_logs(after, found), wanted, rtol=0.01)
    assert (found[~rises] == SHAPE).all()
    ell = np.asarray(x.sum(1)).ravel()
    added = ell[:, None] * np.maximum(after - rates(x), 0)
    drawn = [redraw(x, np.ones(40), added, np.random.default_rng(s), found) for s in range(20)]
    np.testing.assert_allclose(
        np.mean([rates(d) * d.sum() / x.sum() for d in drawn], axis=0), after, rtol=0.02
    )
    logs = np.mean([mean_log(d, ell, total) for d in drawn], axis=0)
    np.testing.assert_allclose(logs[rises], wanted[rises], rtol=0.02)


def test_shapes_that_cannot_be_reached_are_the_nearest():
    x = cells(1000)
    sample = fold_changes.Sample.of(x, 1e3, np.ones(x.shape))
    after = 2 * rates(x)
    some = rates(x) > 1e-3
    low, high = (sample.shapes_after(after, np.full(40, v))[some] for v in (0.0, 100.0))
    np.testing.assert_allclose(low, fold_changes.SHAPES[0], rtol=0.02)
    np.testing.assert_allclose(high, fold_changes.SHAPES[1], rtol=0.02)


def test_slopes_are_changes_of_mean_logarithms_with_logarithms_of_rates():
    x = cells(1000)
    sample = fold_changes.Sample.of(x, 1e3, np.ones(x.shape))
    after, shape = 2 * rates(x), np.full(40, SHAPE)
    step = sample.mean_logs(1.02 * after, shape) - sample.mean_logs(after, shape)
    some = rates(x) > 1e-3
    np.testing.assert_allclose(sample.slopes(after, shape)[some], step[some] / np.log(1.02), rtol=0.05)
