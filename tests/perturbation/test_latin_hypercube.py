"""Draws that are spread evenly over cells: each as it should be, and their mean with little noise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from scalloy.perturbation import latin_hypercube

N, TIMES = 50, 400


def rng(seed=0):
    return np.random.default_rng(seed)


def strata(u):
    """In which n-th of the unit interval each number lies, sorted."""
    return np.sort(np.floor(u * len(u)).astype(int))


def test_the_cells_of_each_gene_have_one_number_in_each_stratum():
    u = latin_hypercube.of_cells((N, 3), rng())
    for column in u.T:
        np.testing.assert_array_equal(strata(column), np.arange(N))
    assert not np.array_equal(np.argsort(u[:, 0]), np.argsort(u[:, 1]))  # genes are independent


def test_the_entries_of_each_gene_have_one_number_in_each_stratum():
    x = sp.random(80, 5, 0.4, format="csr", rng=np.random.default_rng(0))
    u = latin_hypercube.of_entries(x, rng())
    for g in range(5):
        of = u[x.indices == g]
        np.testing.assert_array_equal(strata(of), np.arange(len(of)))


def agrees(drawn, pmf, shape):
    """The counts of single cells have these probabilities, within five standard errors."""
    for k in range(4):
        expected = pmf(k)
        se = np.sqrt(expected * (1 - expected) / len(drawn))
        np.testing.assert_array_less(np.abs((drawn == k).mean(0) - expected), 5 * se + 1e-9)
    assert drawn.shape[1:] == shape


def test_each_count_has_its_distribution_and_the_mean_little_noise():
    mean = np.linspace(0.05, 3.0, N)[:, None] * np.array([[1.0, 0.3]])
    generator = rng()
    drawn = np.stack([latin_hypercube.poisson(mean, generator) for _ in range(TIMES)])
    agrees(drawn, lambda k: stats.poisson.pmf(k, mean), mean.shape)
    independent = mean.sum(0) / N**2  # of the mean over cells, had they been drawn one by one
    assert (drawn.mean(1).var(0) < independent / 2).all()
    np.testing.assert_allclose(drawn.mean((0, 1)), mean.mean(0), rtol=0.02)


def test_thinning_keeps_each_count_with_its_probability():
    n = np.tile([1, 2, 5, 300], 25).astype(np.float32)
    x = sp.csr_matrix(n[:, None])
    keep = np.tile([0.3, 0.9, 0.5, 0.02], 25)
    generator = rng()
    drawn = np.stack([latin_hypercube.thinned(x, keep, generator).toarray()[:, 0] for _ in range(TIMES)])
    for i in range(4):
        cells = drawn[:, i::4]
        for k in range(6):
            expected = stats.binom.pmf(k, n[i], keep[i])
            se = np.sqrt(expected * (1 - expected) / cells.size)
            assert abs((cells == k).mean() - expected) < 5 * se + 1e-9
    independent = (n * keep * (1 - keep)).sum() / len(n) ** 2
    assert drawn.mean(1).var() < 0.75 * independent


@pytest.mark.parametrize("mean", [499.0, 501.0, 800.0, 1e5, 1e6])
def test_large_means(mean):
    drawn = latin_hypercube.poisson(np.full((400, 1), mean), rng())
    assert abs(drawn.mean() - mean) < 5 * np.sqrt(mean / 400)
    assert drawn.std() == pytest.approx(np.sqrt(mean), rel=0.2)


def test_what_is_certain_and_what_is_too_large_for_a_sum():
    x = sp.csr_matrix(np.array([[3.0, 4.0, 50_000.0]]))
    kept = latin_hypercube.thinned(x, np.array([1.0, 0.0, 0.25]), rng()).toarray()[0]
    assert list(kept[:2]) == [3, 0]
    assert abs(kept[2] - 12_500) < 6 * np.sqrt(50_000 * 0.25 * 0.75)
    assert not latin_hypercube.poisson(np.zeros((4, 2)), rng()).any()
