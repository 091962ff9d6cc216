"""Pooling of changes with their own noise: against direct formulas, and on simulated groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scalloy.perturbation import pooling_with_noise
from scalloy.perturbation.boosted_pooling import LearnedPooling
from scalloy.perturbation.pooling import fitted_shares, partial_pooling
from scalloy.perturbation.pooling_with_noise import NoisyPooling, RotatedByGene

GROUPS, GENES = 5, 400


def given(seed: int = 0, changed: float = 0.3, noise: float = 0.3):
    """Return control, shift, noise, profile to predict and its true change, of simulated groups."""
    rng = np.random.default_rng(seed)
    control = rng.normal(size=(GROUPS + 1, GENES))
    effect = rng.normal(size=GENES) * (rng.random(GENES) < changed)
    own = 0.2 * rng.normal(size=(GROUPS + 1, GENES)) * (effect != 0)
    variance = noise**2 * rng.gamma(0.5, 2, (GROUPS + 1, GENES))
    shift = effect + own + np.sqrt(variance) * rng.normal(size=control.shape)
    return control[:-1], shift[:-1], variance[:-1], control[-1], (effect + own)[-1]


def test_density_mean_and_variance_are_those_of_a_plain_gaussian_process():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(GROUPS, GROUPS))
    like = a @ a.T / GROUPS + np.eye(GROUPS)
    shift, noise = rng.normal(size=(GROUPS, 7)), rng.gamma(1.0, 1.0, (GROUPS, 7)) + 0.01
    near, sizes = rng.normal(size=GROUPS) / 3, np.array([0.0, 0.2, 1.5])
    found = RotatedByGene.of(like, shift, noise, sizes)
    mean, variance = found.predicted(near)
    weights = []
    for g in range(7):
        covariances = [s * like + np.diag(noise[:, g]) for s in sizes]
        density = [multivariate_normal.logpdf(shift[:, g], cov=c) for c in covariances]
        means = [s * near @ np.linalg.solve(c, shift[:, g]) for s, c in zip(sizes, covariances)]
        left = [s - s**2 * near @ np.linalg.solve(c, near) for s, c in zip(sizes, covariances)]
        share = found.share[:, g]
        weights.append(np.log(share) - density)  # posterior over likelihood: prior, up to a constant
        expected = share @ means
        assert mean[g] == pytest.approx(expected)
        assert variance[g] == pytest.approx(share @ (np.array(left).clip(0) + np.square(means)) - expected**2)
    weights = np.array(weights) - np.array(weights)[:, :1]
    np.testing.assert_allclose(weights, weights[[0]].repeat(7, 0), atol=1e-8)


def test_equal_noise_gives_what_partial_pooling_gives():
    control, shift, _, to, _ = given()
    within, inverse_size = np.full(GENES, 0.5), np.full(GROUPS, 0.02)
    settings = {"shared": (0.5,), "widths": (2.0,)}
    plain = partial_pooling(control, shift, to, within=within, inverse_size=inverse_size, **settings)
    noisy = NoisyPooling(control, shift, np.full(shift.shape, 0.01), **settings).predict(to)
    assert np.corrcoef(plain.mean, noisy.mean)[0, 1] > 0.999  # it also knows a size of zero
    np.testing.assert_allclose(noisy.mean, plain.mean, atol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_knowing_the_noise_of_each_gene_beats_its_mean(seed):
    control, shift, noise, to, truth = given(seed, noise=1.0)
    ours = NoisyPooling(control, shift, noise).predict(to)
    mean = NoisyPooling(control, shift, np.full(noise.shape, noise.mean())).predict(to)
    errors = [np.square(v.mean - truth).sum() for v in (ours, mean)]
    assert errors[0] < 0.9 * errors[1]
    assert errors[0] < 0.8 * np.square(truth).sum()
    inside = np.abs(ours.mean - truth) < 1.64 * np.maximum(ours.sd, 1e-3)
    assert inside.mean() > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_changes_next_to_nothing_is_predicted(seed):
    control, shift, noise, to, _ = given(seed, changed=0.0, noise=1.0)
    found = NoisyPooling(control, shift, noise).predict(to)
    assert np.square(found.mean).sum() < 0.1 * np.square(shift.mean(0)).sum()


def test_one_group_carries_over_most_of_a_clear_change():
    control, shift, noise, to, _ = given(noise=0.01)
    found = NoisyPooling(control[:1], shift[:1], noise[:1]).predict(to).mean
    clear = np.abs(shift[0]) > 0.5
    carried = found[clear] @ shift[0][clear] / np.square(shift[0][clear]).sum()
    assert 0.6 < carried < 1.0


def test_trees_learn_no_pull_towards_usual_values_if_halves_of_the_controls_are_given():
    """No group changes, but controls are noisy: what looks like a change is their noise."""
    rng = np.random.default_rng(0)
    n, genes, sd = 8, 3000, 0.5
    level = rng.normal(2, 1, genes)
    halves = tuple(level + np.sqrt(2) * sd * rng.normal(size=(n, genes)) for _ in range(2))
    control = (halves[0] + halves[1]) / 2
    treated = level + sd * rng.normal(size=(n, genes))
    noise = np.full((n, genes), 2 * sd**2)
    settings = {"within": noise.mean(0), "inverse_size": np.full(n, 0.01), "noise": noise}
    to = level + sd * rng.normal(size=genes)
    naive, ours = (
        LearnedPooling(control, treated - control, halves=h, **settings).predict(to).mean
        for h in (None, halves)
    )
    pull = [v @ (level - to) / np.square(level - to).sum() for v in (naive, ours)]
    assert pull[0] > 0.5
    assert abs(pull[1]) < 0.05


def test_genes_without_a_change_are_added(monkeypatch):
    """Where nothing tells the sizes apart, no change is what is taken; so less is predicted from noise."""
    flat = np.zeros((3, 20))
    np.testing.assert_allclose(fitted_shares(flat)[0], 1 / 3)
    assert (fitted_shares(flat, null=10.0)[0][0] > 0.99).all()
    control, shift, noise, to, _ = given(0, changed=0.0, noise=1.0)
    ours = np.square(NoisyPooling(control, shift, noise).predict(to).mean).sum()
    monkeypatch.setattr(pooling_with_noise, "NULL_GENES", 0.0)
    assert ours < np.square(NoisyPooling(control, shift, noise).predict(to).mean).sum()
