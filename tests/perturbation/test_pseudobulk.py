"""Rates of groups of cells: their noise against simulations, and the dispersion of counts."""

from __future__ import annotations

import numpy as np
import pytest

from scalloy.perturbation import pseudobulk
from scalloy.perturbation.group_moments import Sums
from scalloy.perturbation.pseudobulk import (
    SUMMED,
    Pseudobulk,
    dispersions,
    level,
    log_per_level,
    rate_at,
)

GENES = 60


def cells(rng: np.random.Generator, n: int, rate: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Draw negative binomial counts of cells of different depths."""
    mean = rng.uniform(200, 3000, n)[:, None] * rate
    return rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape)).astype(float)


def summed(x: np.ndarray, group: np.ndarray) -> Sums:
    """Sum cells of groups in three pieces."""
    sums, begin = Sums(group, int(group.max()) + 1), 0
    for piece in np.array_split(x, 3):
        sums.add(begin, np.log1p(piece), piece)
        begin += len(piece)
    return sums


def test_levels_and_rates_are_inverse_and_levels_grow_like_logarithms():
    rate = np.geomspace(1e-7, 0.1, 30)
    np.testing.assert_allclose(rate_at(level(rate)), rate, rtol=1e-9)
    assert rate_at(np.array([-1.0]))[0] == 0
    small = 1e-6 * np.maximum(rate, 1e-5)
    by_step = (np.log(rate + small) - np.log(rate)) / (level(rate + small) - level(rate))
    known = pseudobulk.SCALE * rate > pseudobulk.PSEUDO
    np.testing.assert_allclose(log_per_level(rate)[known], by_step[known], rtol=1e-3)


def test_sums_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    x, group = cells(rng, 50, np.full(GENES, 1e-2), np.full(GENES, 0.5)), rng.integers(0, 3, 50)
    sums = summed(x, group)
    for g in range(3):
        own, bulk = x[group == g], sums.bulk(g)
        np.testing.assert_allclose(bulk.counts, own.sum(0))
        assert bulk.total == own.sum()
        np.testing.assert_allclose(bulk.square_total, np.square(own.sum(1)).sum())
        np.testing.assert_allclose(sums.squares[g], np.square(own).sum(0))
        np.testing.assert_allclose(sums.products[g], (own * own.sum(1, keepdims=True)).sum(0))
        for k in (0, 1):  # cells by turns
            np.testing.assert_allclose(bulk.halves[k], own[k::2].sum(0) / own[k::2].sum())


@pytest.mark.parametrize("dispersion", [0.1, 1.0, 5.0])
def test_variance_of_levels_is_that_of_repeated_sampling(dispersion):
    rng = np.random.default_rng(1)
    rate = np.geomspace(1e-4, 3e-2, GENES)
    phi = np.full(GENES, dispersion)
    found, said = [], []
    for _ in range(300):
        x = cells(rng, 60, rate, phi)
        bulk = summed(x, np.zeros(60, dtype=int)).bulk(0)
        found.append(level(bulk.rate))
        said.append(bulk.level_variance(phi))
    ratio = np.mean(said, axis=0) / np.var(found, axis=0)
    assert 0.75 < np.median(ratio) < 1.25
    assert (ratio > 0.5).all()


def test_dispersions_are_found_and_shrunk_where_counts_are_few():
    rng = np.random.default_rng(2)
    rate = np.concatenate([np.full(40, 1e-2), np.full(20, 1e-5)])
    phi = np.concatenate([np.full(20, 0.2), np.full(20, 2.0), rng.choice([0.2, 2.0], 20)])
    group = np.repeat([0, 1], 400)
    sums = summed(cells(rng, 800, rate * rng.uniform(0.5, 2, GENES), phi), group)
    found = dispersions([sums.bulk(0), sums.bulk(1)], sums.squares, sums.products)
    assert np.median(found[:20]) == pytest.approx(0.2, rel=0.3)
    assert np.median(found[20:40]) == pytest.approx(2.0, rel=0.3)
    assert found[40:].min() > 0.2  # nothing can be known of them, so they are near the mean
    assert found[40:].max() < 3.0


def test_a_gene_without_counts_is_as_uncertain_as_one_of_which_half_a_count_is_expected():
    drawn = np.random.default_rng(0).poisson(0.5, 100_000)
    found = Pseudobulk(np.zeros(1), 1e6, 1e9).level_variance(np.zeros(1))
    assert found[0] == pytest.approx(level(drawn / 1e6).var(), rel=0.1)


def test_genes_without_counts_have_the_mean_dispersion_and_a_finite_variance():
    rng = np.random.default_rng(3)
    x = cells(rng, 100, np.full(GENES, 1e-3), np.full(GENES, 1.0))
    x[:, :5] = 0
    sums = summed(x, np.zeros(100, dtype=int))
    found = dispersions([sums.bulk(0)], sums.squares, sums.products)
    assert len(np.unique(found[:5])) == 1
    assert np.isfinite(sums.bulk(0).level_variance(found)).all()
    nothing = Pseudobulk(np.zeros(3), 0.0, 0.0)
    np.testing.assert_array_equal(nothing.rate, 0)
    np.testing.assert_array_equal(dispersions([nothing], [np.zeros(3)], [np.zeros(3)]), 0)


# few counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.01, 0.1, 0.5, 2.0, 8.0, 24.0, 26.0, 100.0])
@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_the_variance_of_few_counts_is_that_of_draws(mean, dispersion):
    """Monte Carlo: counts of a group are negative binomial, and their level is a logarithm."""
    rng, total, n = np.random.default_rng(0), 1e5, 200_000
    cells = 40  # of the same size
    spread = dispersion / cells
    rate = rng.gamma(1 / spread, spread, n) * mean if spread else mean
    drawn = level(rng.poisson(rate, n) / total)
    group = Pseudobulk(np.array([mean]), total, total**2 / cells)
    found = group.variance_of_few(np.array([dispersion]), np.array([mean / total]))
    tolerance = 0.02 if mean < SUMMED / 4 else 0.1  # a tangent for many counts, a sum over counts for few
    assert found == pytest.approx(drawn.var(), rel=tolerance)


def test_genes_without_counts_are_not_taken_to_be_without_noise():
    """Their expected count is half of the usual one; so is that of a gene with many and no usual count."""
    group = Pseudobulk(np.array([0.0, 3.0, 0.0]), 1e4, 1e6)
    usual = np.array([3e-4, 3e-4, 0.0])
    found = group.variance_of_few(np.full(3, 0.1), usual)
    as_usual = Pseudobulk(np.array([1.5]), 1e4, 1e6).variance_of_few(np.full(1, 0.1), np.full(1, 1.5e-4))
    assert found[0] == pytest.approx(as_usual[0])
    assert found[1] > 0
    assert 0 <= found[2] < 1e-3
    many = Pseudobulk(np.array([50.0, 1.0]), 1e4, 1e6).variance_of_few(np.full(2, 0.1), np.full(2, 5e-3))
    assert np.isfinite(many).all()
    assert np.isfinite(Pseudobulk(np.zeros(2), 0.0, 0.0).variance_of_few(np.zeros(2), np.zeros(2))).all()


def test_dispersions_of_small_groups_are_not_too_small():
    """Deviations are from the group's own rate, which is fitted to a dozen cells."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(400), 12)
    x = rng.poisson(25 * rng.gamma(2, 0.5, (len(group), GENES))).astype(float)
    sums = summed(x, group)
    bulks = [sums.bulk(g) for g in range(400)]
    found = dispersions(bulks, list(sums.squares), list(sums.products))
    of_rest = (1 - 1 / GENES) ** 2  # a gene is a part of the total to which it is compared
    squares = 1 + (1 / 25 + 0.5) / 12  # of fitted rates, which are larger than those of the rates
    expected = 0.5 * of_rest / squares
    assert found.mean() == pytest.approx(expected, rel=0.03)  # 8 % smaller without the correction


def test_spread_of_a_sum_is_that_of_repeats():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(2000), 20)
    rate, dispersion = np.full(GENES, 1 / GENES), np.linspace(0.1, 2, GENES)
    mean = 500 * rate
    x = rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, (len(group), GENES))).astype(float)
    sums = summed(x, group)
    bulks = [sums.bulk(g) for g in range(2000)]
    shown = np.mean([bulk.spread for bulk in bulks], axis=0)
    repeats = np.var([bulk.counts - 20 * 500 * rate * (bulk.total / 1e4) for bulk in bulks], axis=0)
    np.testing.assert_allclose(shown, repeats, rtol=0.15)


def test_a_few_cells_with_very_many_counts_make_noise():
    counts, usual = np.array([60.0, 60.0]), np.array([6e-3, 6e-3])
    without = Pseudobulk(counts, 1e4, 1e6).variance_of_few(np.full(2, 0.1), usual)
    model = 60 + 0.1 * 60**2 / 100
    spread = np.array([100 * model, model / 10])
    found = Pseudobulk(counts, 1e4, 1e6, None, spread).variance_of_few(np.full(2, 0.1), usual)
    assert found[0] / without[0] == pytest.approx((100 * 100 + 30) / 130, rel=1e-6)  # 100 cells against 30
    assert found[1] == without[1]  # never less than what the other genes let expect
