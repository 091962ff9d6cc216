"""Regressions of counts: against likelihoods maximised by other means, closed forms and simulations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from scalloy.compare.count_families import BetaBinomial, NegativeBinomial
from scalloy.compare.count_models import f_test, fit, scores, shared_dispersion, spread, squeeze
from scalloy.compare.discoveries import adjusted
from scalloy.compare.pseudobulks import library_sizes, shrunken

N = 9
X = np.column_stack([np.ones(N), np.arange(N) % 2, np.linspace(-1, 1, N) ** 2])
OFFSET = np.linspace(-0.5, 0.5, N)


def nb_counts(rng, mean, dispersion):
    return rng.poisson(rng.gamma(1 / dispersion, dispersion * mean)).astype(float)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def nb_loglik(beta, y, phi):
    mu = np.exp(OFFSET + X @ beta)
    return stats.nbinom.logpmf(y, 1 / phi, 1 / (1 + phi * mu)).sum()


def binomial_loglik(beta, y, total, rho):
    p = 1 / (1 + np.exp(-X @ beta))
    return ((y * np.log(p) + (total - y) * np.log1p(-p)) / (1 + (total - 1) * rho)).sum()


def information(weight):
    return np.linalg.slogdet(X.T * weight @ X)[1]


@pytest.mark.parametrize("firth", [False, True])
@pytest.mark.parametrize("phi", [1e-5, 0.2, 1.5])
def test_negative_binomial_maximises_its_likelihood(rng, phi, firth):
    y = nb_counts(rng, np.exp(OFFSET + X @ [2.0, 1.0, -0.5]) * np.ones((4, 1)), phi)
    found = fit(NegativeBinomial(OFFSET, np.full((4, 1), phi)), y, X, firth=firth)

    def loss(beta, row):
        mu = np.exp(OFFSET + X @ beta)
        penalty = information(mu / (1 + phi * mu)) / 2 if firth else 0.0
        return -nb_loglik(beta, row, phi) - penalty

    for row, coef in zip(y, found.coef):
        best = optimize.minimize(loss, [1.0, 0, 0], args=(row,), method="BFGS", options={"gtol": 1e-8}).x
        np.testing.assert_allclose(coef, best, atol=2e-4)


@pytest.mark.parametrize("firth", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_beta_binomial_maximises_its_quasi_likelihood(rng, rho, firth):
    total = rng.integers(50, 200, (4, N)).astype(float)
    y = rng.binomial(total.astype(int), 1 / (1 + np.exp(-X @ [-1.0, 0.8, 0.5]))).astype(float)
    found = fit(BetaBinomial(total, np.full((4, 1), rho)), y, X, firth=firth)

    def loss(beta, row, n):
        p = 1 / (1 + np.exp(-X @ beta))
        penalty = information(n * p * (1 - p) / (1 + (n - 1) * rho)) / 2 if firth else 0.0
        return -binomial_loglik(beta, row, n, rho) - penalty

    for row, n, coef in zip(y, total, found.coef):
        best = optimize.minimize(loss, np.zeros(3), args=(row, n), method="BFGS", options={"gtol": 1e-8}).x
        np.testing.assert_allclose(coef, best, atol=2e-4)


def test_deviance_is_twice_the_distance_to_the_best_likelihood(rng):
    phi, y = 0.3, nb_counts(rng, np.full((5, N), 4.0), 0.3)
    found = fit(NegativeBinomial(OFFSET, np.full((5, 1), phi)), y, X)
    for row, coef, deviance in zip(y, found.coef, found.deviance):
        best = stats.nbinom.logpmf(row, 1 / phi, 1 / (1 + phi * row)).sum()
        assert deviance == pytest.approx(2 * (best - nb_loglik(coef, row, phi)), rel=1e-6)
    total = np.full((5, N), 40.0)
    y = rng.binomial(40, 0.3, (5, N)).astype(float)
    found = fit(BetaBinomial(total, np.full((5, 1), 0.02)), y, X)
    for row, coef, deviance in zip(y, found.coef, found.deviance):
        p = row / 40
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.nansum(row * np.log(p) + (40 - row) * np.log1p(-p)) / (1 + 39 * 0.02)
        assert deviance == pytest.approx(2 * (best - binomial_loglik(coef, row, total[0], 0.02)), rel=1e-6)


def test_leverages_are_those_of_weighted_least_squares(rng):
    y, phi = nb_counts(rng, np.full((3, N), 10.0), 0.2), np.full((3, 1), 0.2)
    found = fit(NegativeBinomial(OFFSET, phi), y, X)
    for mu, hat in zip(found.mu, found.hat):
        root = np.sqrt(mu / (1 + 0.2 * mu))[:, None] * X
        np.testing.assert_allclose(hat, np.diag(root @ np.linalg.pinv(root)), rtol=1e-5)
        assert hat.sum() == pytest.approx(3, rel=1e-5)


def test_fold_of_two_groups_is_that_of_their_sums_and_a_half():
    """With equal exposures, the penalty adds half a count to each group."""
    y, group = np.array([[3, 5, 0, 2, 9, 4], [0, 0, 0, 7, 5, 3]], dtype=float), np.array([0, 0, 0, 1, 1, 1.0])
    family = NegativeBinomial(np.zeros(6), np.full((2, 1), 1e-6))
    found = f_test(family, y, np.ones((6, 1)), group)
    np.testing.assert_allclose(found.effect, np.log([15.5 / 8.5, 15.5 / 0.5]), rtol=1e-4)


def test_a_group_without_counts_has_a_finite_effect_and_says_nothing_about_the_variance(rng):
    y = np.array([[0, 0, 0, 0, 12, 9, 15, 11]], dtype=float).repeat(30, 0)
    y[:, 4:] = rng.poisson(12, (30, 4))
    group = np.repeat([0.0, 1.0], 4)
    family = NegativeBinomial(np.zeros(8), np.full((30, 1), 0.01))
    x = np.column_stack([np.ones(8), group])
    df = spread(family, y, fit(family, y, x))[1]
    np.testing.assert_allclose(df, 3, atol=0.1)  # of the four with counts
    found = f_test(family, y, np.ones((8, 1)), group)
    assert np.isfinite(found.effect).all()
    assert (found.pvalue < 1e-4).all()
    assert (found.error < found.effect).all()


@pytest.mark.parametrize("phi", [0.05, 0.4])
def test_shared_dispersion_is_that_of_the_counts(rng, phi):
    size = np.exp(rng.normal(0, 0.4, 60))  # with few samples it is too low, since means follow the counts
    y = nb_counts(rng, np.exp(rng.normal(3, 1, (400, 1))) * size, phi)
    x = np.column_stack([np.ones(60), np.arange(60) % 2])
    found = shared_dispersion(NegativeBinomial, np.log(size), y, x)
    assert np.median(found) == pytest.approx(phi, rel=0.1)


def test_shared_dispersion_follows_abundance(rng):
    mean = np.exp(np.linspace(1, 6, 1500))[:, None]
    phi = 0.05 + 1 / mean
    y = nb_counts(rng, mean * np.ones(10), phi)
    found = shared_dispersion(NegativeBinomial, np.zeros(10), y, np.ones((10, 1)))
    off = np.abs(np.log(found / phi)).mean()
    assert off < np.abs(np.log(np.median(phi) / phi)).mean() / 4


def test_correlation_within_donors_is_that_of_the_counts(rng):
    rho, p, total = 0.04, 0.2, rng.integers(100, 600, (200, 14))
    share = rng.beta(p * (1 / rho - 1), (1 - p) * (1 / rho - 1), (200, 14))
    y = rng.binomial(total, share).astype(float)
    found = shared_dispersion(BetaBinomial, total.astype(float), y, np.ones((14, 1)))
    assert np.median(found) == pytest.approx(rho, rel=0.12)


def test_rare_and_frequent_populations_share_the_variance_of_their_log_odds(rng):
    """Their correlations differ by orders of magnitude, and each is that of its own counts."""
    p, total = np.repeat([0.5, 0.1, 0.004], 8), np.full((24, 400), 500.0)
    odds = np.log(p / (1 - p))[:, None] + rng.normal(0, 0.4, (24, 400))
    y = rng.binomial(500, 1 / (1 + np.exp(-odds))).astype(float)
    found = shared_dispersion(BetaBinomial, total, y, np.ones((400, 1)))[:, 0]
    variance = y.var(1, ddof=1) / (500 * p * (1 - p))
    np.testing.assert_allclose(1 + 499 * found, variance, rtol=0.35)


@pytest.mark.parametrize(("prior", "centre"), [(5.0, 1.0), (20.0, 3.0)])
def test_squeeze_finds_the_prior(rng, prior, centre):
    df = np.full(4000, 6.0)
    truth = centre * prior / rng.chisquare(prior, 4000)
    variance = truth * rng.chisquare(6, 4000) / 6
    found, total = squeeze(variance, df)
    assert np.median(total - df) == pytest.approx(prior, rel=0.2)
    best = (6 * variance + prior * centre) / (6 + prior)
    np.testing.assert_allclose(found, best, rtol=0.1)
    assert np.mean((found - truth) ** 2) < np.mean((variance - truth) ** 2)


def test_a_single_variance_is_left_with_its_own_degrees_of_freedom():
    found, df = squeeze(np.array([2.0]), np.array([7.0]))
    np.testing.assert_allclose([found[0], df[0]], [2.0, 7.0], rtol=1e-3)


def test_nothing_is_squeezed_where_nothing_is_known():
    found, df = squeeze(np.array([np.nan, 1.0]), np.array([0.0, 0.1]))
    assert np.isnan(found[0])
    assert df.tolist() == [0.0, 0.1]


@pytest.mark.parametrize("n", [3, 6])
def test_p_values_are_uniform_where_nothing_differs(rng, n):
    size, group = np.exp(rng.normal(0, 0.5, 2 * n)), np.repeat([0.0, 1.0], n)
    mean = np.exp(rng.normal(2.5, 1.5, (4000, 1)))
    phi = (0.1 + 0.3 / mean) * np.exp(rng.normal(0, 0.4, (4000, 1)))
    y = nb_counts(rng, mean * size, phi)
    y = y[y.sum(1) >= 10]
    null, full = np.ones((2 * n, 1)), np.column_stack([np.ones(2 * n), group])
    family = NegativeBinomial(np.log(size), shared_dispersion(NegativeBinomial, np.log(size), y, full))
    found = f_test(family, y, null, group)
    for level in (0.01, 0.05, 0.2):
        assert (found.pvalue <= level).mean() == pytest.approx(level, rel=0.4)
    inside = np.abs(found.effect) < stats.t.ppf(0.975, found.df) * found.error
    assert inside.mean() == pytest.approx(0.95, abs=0.02)


def test_scores_of_labelings_are_those_of_the_labels_one_by_one(rng):
    y, phi = nb_counts(rng, np.full((5, 6), 8.0), 0.2), np.full((5, 1), 0.2)
    family, null = NegativeBinomial(np.zeros(6), phi), np.ones((6, 1))
    labels = np.array(list(itertools.product([0, 1], repeat=6))).T
    found = scores(family, y, null, labels)
    mean = y.mean(1, keepdims=True)
    for k, label in enumerate(labels.T):
        by_hand = np.abs(((y - mean) / (1 + 0.2 * mean))[:, label == 1].sum(1))
        np.testing.assert_allclose(found[:, k], by_hand, atol=1e-5)


# adjustment, library sizes, shrinkage ---------------------------------------------------------------


def test_adjusted_p_values_without_weights_are_scipys(rng):
    p = rng.random(50) ** 2
    np.testing.assert_allclose(adjusted(p), stats.false_discovery_control(p))
    p[::7] = np.nan
    found = adjusted(p)
    assert np.isnan(found[::7]).all()
    np.testing.assert_allclose(found[~np.isnan(p)], stats.false_discovery_control(p[~np.isnan(p)]))


def test_a_weight_of_two_counts_as_two_tests(rng):
    p, weight = rng.random(20) ** 3, rng.integers(1, 4, 20)
    found = adjusted(np.repeat(p, weight))
    np.testing.assert_allclose(adjusted(p, weight.astype(float)), found[np.cumsum(weight) - 1])
    assert np.isnan(adjusted(np.array([np.nan, np.nan]))).all()


def test_library_sizes_see_through_genes_that_rise(rng):
    size = np.exp(rng.normal(0, 0.5, 10))
    mean = np.exp(rng.normal(4, 1, (800, 1))) * size
    mean[:80, 5:] *= 30  # a tenth of the genes in half of the samples
    found = library_sizes(rng.poisson(mean).astype(float))
    ratio = np.log(found / size)
    assert np.abs(ratio - ratio.mean()).max() < 0.05
    total = np.log(rng.poisson(mean).sum(0) / size)
    assert np.abs(total - total.mean()).max() > 0.3


def test_library_sizes_of_hardly_any_genes_are_totals():
    counts = np.array([[4.0, 8.0], [6.0, 12.0]])
    np.testing.assert_allclose(library_sizes(counts), [10, 20])


def test_shrunken_effects_are_expectations_under_the_prior(rng):
    truth, error = rng.normal(0, 0.5, 5000), np.full(5000, 0.5)
    truth[:2500] = 0
    effect = truth + rng.normal(0, 0.5, 5000)
    mean = shrunken(effect, error)

    def density(e, sd):
        return stats.norm.pdf(e, 0, sd)

    part = density(effect, np.sqrt(0.5)) / (density(effect, np.sqrt(0.5)) + density(effect, 0.5))
    np.testing.assert_allclose(mean, part * effect / 2, atol=0.08)
    assert np.mean((mean - truth) ** 2) < 0.45 * np.mean((effect - truth) ** 2)
    assert np.isnan(shrunken(np.array([np.nan]), np.array([1.0]))).all()
