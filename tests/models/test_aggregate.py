"""Mixture of the codes of the training cells, against the mixture that the codes were drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.neighbors import NearestNeighbors

from scalloy.models._core.aggregate import Aggregate, companions

CENTRES = np.array([[4.0, 0, 0], [-4, 0, 0], [0, 40, 0], [0, -40, 0]])
SCALE = np.array([1.0, 10.0, 1.0])


@pytest.fixture(scope="module")
def codes():
    """Three samples of the codes of 600 cells in four clusters; the second dimension has large values."""
    rng = np.random.default_rng(0)
    cells = CENTRES[rng.integers(4, size=600)] + rng.normal(size=(600, 3)) * 0.5 * SCALE
    return cells + rng.normal(size=(3, 600, 3)) * 0.1 * SCALE


@pytest.fixture(scope="module")
def aggregate(codes):
    return Aggregate(codes)


def test_number_of_components_is_chosen_by_cells_that_were_left_out(aggregate):
    assert aggregate.n_components == 4
    assert list(aggregate.held_out) == [1, 2, 4, 8, 16]
    score = aggregate.held_out
    assert score[1] < score[2] < score[4] - 0.5
    assert score[4] < score[8] < score[4] + 0.02  # eight are no better than four by more than chance
    assert score[16] < score[8]  # where the search ends
    rng = np.random.default_rng(1)
    one = Aggregate(rng.normal(size=(1, 400, 3)))
    assert one.n_components == 1
    alone = Aggregate(np.repeat(rng.normal(size=(1, 20, 12)), 50, axis=0))  # samples are not further cells
    assert alone.n_components == 1


def test_density_is_that_of_the_mixture(aggregate, codes):
    points = codes[0, :50]
    expected = np.mean(
        [multivariate_normal(c, np.diag((0.25 + 0.01) * SCALE**2)).pdf(points) for c in CENTRES], axis=0
    )
    assert np.abs(aggregate.log_prob(points) - np.log(expected)).mean() < 0.3
    naive = np.zeros(50)
    for weight, mean, covariance in zip(
        *(getattr(aggregate.mixture, k) for k in ("weights_", "means_", "covariances_")), strict=True
    ):
        mean = aggregate.centre + aggregate.scale * mean
        covariance = covariance * np.outer(aggregate.scale, aggregate.scale)
        naive += weight * multivariate_normal(mean, covariance).pdf(points)
    np.testing.assert_allclose(aggregate.log_prob(points), np.log(naive), rtol=1e-8)


def test_draws_lie_where_the_codes_lie_and_not_between(aggregate, codes):
    made = aggregate.draw(8000, np.random.default_rng(2))
    away = np.linalg.norm((made[:, None] - CENTRES) / SCALE, axis=-1)
    assert away.min(1).max() < 3.5  # centres are at least 5.6 apart: nothing lies in the gaps
    share = np.bincount(away.argmin(1), minlength=4) / 8000
    real = np.linalg.norm((codes[0][:, None] - CENTRES) / SCALE, axis=-1).argmin(1)
    np.testing.assert_allclose(share, np.bincount(real) / 600, atol=0.02)
    for k in range(4):
        here = made[away.argmin(1) == k]
        np.testing.assert_allclose(here.mean(0) / SCALE, CENTRES[k] / SCALE, atol=0.15)
        np.testing.assert_allclose(here.std(0) / SCALE, 0.26**0.5, atol=0.08)
    again = aggregate.draw(8000, np.random.default_rng(2))
    np.testing.assert_array_equal(made, again)


def test_dimensions_that_never_vary_and_few_cells():
    codes = np.random.default_rng(0).normal(size=(2, 5, 3))
    codes[..., 1] = 7.0
    few = Aggregate(codes)
    made = few.draw(50, np.random.default_rng(0))
    np.testing.assert_allclose(made[:, 1], 7.0, atol=1e-6)
    assert few.n_components <= 2
    assert np.isfinite(made).all()


def test_companions_are_among_the_nearest_cells():
    rng = np.random.default_rng(3)
    known, new = rng.normal(size=(300, 4)), rng.normal(size=(500, 4))
    near = NearestNeighbors(n_neighbors=5).fit(known).kneighbors(new)[1]
    chosen = companions(new, known, np.random.default_rng(0))
    assert (chosen[:, None] == near).any(1).all()
    place = (chosen[:, None] == near).argmax(1)
    assert np.bincount(place, minlength=5).min() > 60  # each of the five is chosen as often
    np.testing.assert_array_equal(companions(new, known, rng, 1), near[:, 0])
    assert set(companions(new, known[:3], rng)) == {0, 1, 2}
