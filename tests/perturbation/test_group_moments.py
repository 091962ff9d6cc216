"""Moments of several donors, against the same cells weighted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from scalloy.perturbation.group_moments import averaged, moments_of, pooled
from scalloy.perturbation.pseudobulk import SCALE

SIZES, GENES = (30, 90, 12), 40
DISPERSION = np.full(GENES, 0.4)


def cells(seed=0, concentration=2.0):
    """Negative binomial counts of three donors of different sizes, rates and depths."""
    rng = np.random.default_rng(seed)
    mean = np.random.default_rng(9).dirichlet(np.full(GENES, 2.0))
    rate = np.random.default_rng(9).dirichlet(mean * GENES * concentration, len(SIZES))
    ell = [np.random.default_rng(5).integers(200, 900, n) for n in SIZES]
    return [rng.poisson(e[:, None] * r * rng.gamma(2.5, 0.4, (len(e), GENES))) for e, r in zip(ell, rate)]


def moments(counts):
    donors = np.repeat([str(d) for d in range(len(SIZES))], SIZES)
    x = np.concatenate(counts).astype(float)
    found, dispersion = moments_of([donors], ((np.log1p(v), v) for v in np.array_split(x, 5)))
    assert dispersion is not None
    assert [found[str(d),].n for d in range(len(SIZES))] == list(SIZES)
    return [found[str(d),] for d in range(len(SIZES))]


def test_averaged_moments_are_those_of_weighted_cells():
    counts, weight = cells(), np.array([3.0, 1.0, 0.5])
    made = averaged(moments(counts), weight)
    w = weight / weight.sum()
    log = [np.log1p(c) for c in counts]
    np.testing.assert_allclose(made.mean, sum(a * v.mean(0) for a, v in zip(w, log)))
    np.testing.assert_allclose(made.variance, sum(a * v.var(0) for a, v in zip(w, log)))
    per_cell = np.repeat(w / SIZES, SIZES)
    assert made.n == pytest.approx(1 / np.square(per_cell).sum())
    every = np.concatenate(counts)
    np.testing.assert_allclose(made.bulk.rate, per_cell @ every / (per_cell @ every.sum(1)))


def test_averaged_noise_is_that_of_many_repetitions():
    """The variance of the level of a weighted sum, for many draws of the same cells of similar donors."""
    weight = np.array([1.0, 1.0, 1.0])
    drawn = [averaged(moments(cells(seed, 1e3)), weight).bulk for seed in range(300)]
    level = np.log1p(SCALE * np.stack([b.rate for b in drawn]))
    expected = np.mean([b.level_variance(DISPERSION) for b in drawn], axis=0)
    np.testing.assert_allclose(level.var(0), expected, rtol=0.35)
    # more weight on the smallest donor makes it noisier
    other = averaged(moments(cells()), np.array([0.1, 0.1, 5.0])).bulk
    assert (other.level_variance(DISPERSION) > 2 * drawn[0].level_variance(DISPERSION)).all()


def test_pooled_moments_are_those_of_all_cells():
    counts = cells()
    made, every = pooled(moments(counts)), np.concatenate(counts).astype(float)
    np.testing.assert_allclose(made.mean, np.log1p(every).mean(0))
    np.testing.assert_allclose(made.variance, np.log1p(every).var(0))
    assert made.n == pytest.approx(sum(SIZES))
    np.testing.assert_allclose(made.bulk.rate, every.sum(0) / every.sum())
    np.testing.assert_allclose(made.bulk.total, every.sum())
    np.testing.assert_allclose(made.bulk.square_total, np.square(every.sum(1)).sum())


def test_data_that_are_not_counts_have_no_pseudobulk():
    x = np.random.default_rng(0).normal(size=(20, 3))
    found, dispersion = moments_of([["a"] * 10 + ["b"] * 10], [(x, None)])
    assert dispersion is None
    assert averaged(list(found.values()), np.ones(2)).bulk is None
