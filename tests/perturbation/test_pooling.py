"""Partial pooling against scikit-learn's Gaussian process, scipy's density, simulated groups and limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from scalloy.baselines import kernel_ridge, mean_shift, partial_pooling
from scalloy.perturbation.pooling import Rotated, fitted_shares
from scalloy.perturbation.similarity import squared_distances, typical_distance


def groups(n=6, genes=40, seed=0):
    rng = np.random.default_rng(seed)
    sizes = 1 / rng.integers(20, 400, n) + 1 / rng.integers(20, 400, n)
    return rng.normal(size=(n, genes)), rng.normal(size=(n, genes)), rng.normal(size=genes), sizes


def test_given_the_kernel_it_is_scikit_learns_regression():
    """One size of changes, so that nothing is left to be learned; gene by gene."""
    control, shift, to, h = groups()
    within, size, rho, width = np.linspace(0.5, 3, 40), 0.7, 0.25, 2.0
    scale = typical_distance(control)
    like = rho + (1 - rho) * np.exp(-squared_distances(control, control) / scale / width)
    near = rho + (1 - rho) * np.exp(-squared_distances(to[None], control)[0] / scale / width)
    rotated = Rotated.of(like, shift, within, h, np.array([size]))
    mean, variance = rotated.predicted(near)
    kernel = ConstantKernel(size * rho) + ConstantKernel(size * (1 - rho)) * RBF(np.sqrt(scale * width / 2))
    for g in range(40):
        theirs = GaussianProcessRegressor(kernel, alpha=within[g] * h, optimizer=None)
        expected, sd = theirs.fit(control, shift[:, g]).predict(to[None], return_std=True)
        np.testing.assert_allclose(mean[g], expected[0], rtol=1e-8)
        np.testing.assert_allclose(np.sqrt(variance[g]), sd[0], rtol=1e-6)
    # its evidence, up to what does not depend on the kernel: log h, and constants
    densities = [
        multivariate_normal(np.zeros(6), size * like + np.diag(within[g] * h)).logpdf(shift[:, g])
        for g in range(40)
    ]
    constant = 40 * (-3 * np.log(2 * np.pi) - 0.5 * np.log(h).sum())
    np.testing.assert_allclose(rotated.evidence + constant, np.sum(densities), rtol=1e-10)


def test_weights_of_sizes_have_the_highest_evidence():
    rng = np.random.default_rng(0)
    log_density = rng.normal(0, 2, (3, 200))
    share, evidence = fitted_shares(log_density)
    np.testing.assert_allclose(share.sum(0), 1)
    tried = rng.dirichlet(np.ones(3), 3000)
    each = np.log(tried @ np.exp(log_density)).sum(1)
    assert evidence >= each.max() - 1e-3
    assert evidence - each.max() < 0.5


def simulated(shared, own, noise, seed, n=7, genes=800):
    """Groups whose change is partly shared and partly goes with their controls; the last is to predict."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(n, 2))
    control = state @ rng.normal(size=(2, genes)) + rng.normal(0, 0.1, (n, genes))
    changes = rng.random(genes) < 0.3
    truth = changes * (shared * rng.normal(size=genes) + own * state @ rng.normal(size=(2, genes)))
    h = rng.choice([0.01, 0.1], n)
    seen = truth + noise * rng.normal(size=(n, genes)) * np.sqrt(h)[:, None]
    settings = {"within": np.full(genes, noise**2), "inverse_size": h[:-1]}
    return control[:-1], seen[:-1], control[-1], settings, truth[-1]


@pytest.mark.parametrize(("shared", "own"), [(1.0, 0.0), (0.7, 0.4), (0.0, 0.6)])
def test_it_misses_less_than_the_mean_shift_and_kernel_ridge(shared, own):
    missed: dict[str, float] = {"pooled": 0.0, "mean": 0.0, "ridge": 0.0}
    inside = []
    for seed in range(10):
        control, shift, to, settings, truth = simulated(shared, own, 2.0, seed)
        found = partial_pooling(control, shift, to, **settings)
        missed["pooled"] += float(np.square(found.mean - truth).sum())
        missed["mean"] += float(np.square(mean_shift(control, shift, to) - truth).sum())
        missed["ridge"] += float(np.square(kernel_ridge(control, shift, to) - truth).sum())
        inside.append((np.abs(found.mean - truth) <= 1.645 * found.sd + 1e-12).mean())
    assert missed["pooled"] < min(missed["mean"], missed["ridge"])
    assert 0.85 < np.mean(inside) <= 1


def test_what_is_noise_is_no_change():
    """Two groups, nothing but noise: better to say nothing. The mean shift pays for it."""
    worst = []
    for seed in range(20):
        control, shift, to, settings, _ = simulated(0.0, 0.0, 1.0, seed, n=3)
        new = np.random.default_rng(seed + 99).normal(size=800) * 0.3
        found = partial_pooling(control, shift, to, **settings).mean
        worst.append(1 - np.square(new - found).sum() / np.square(new).sum())
        assert np.square(found).sum() < 0.1 * np.square(mean_shift(control, shift, to)).sum()
    assert min(worst) > -0.01


def test_it_scales_with_the_data_and_takes_one_group():
    control, shift, to, h = groups()
    within = np.full(40, 0.3)
    one = partial_pooling(control, shift, to, within=within, inverse_size=h)
    ten = partial_pooling(10 * control, 10 * shift, 10 * to, within=100 * within, inverse_size=h)
    np.testing.assert_allclose(ten.mean, 10 * one.mean, rtol=1e-6)
    np.testing.assert_allclose(ten.sd, 10 * one.sd, rtol=1e-6)
    alone = partial_pooling(control[:1], shift[:1], to, within=within, inverse_size=h[:1])
    assert np.isfinite(alone.mean).all()
    nothing = partial_pooling(control, 0 * shift, to, within=0 * within, inverse_size=h)
    np.testing.assert_array_equal(nothing.mean, 0)
    cells = np.random.default_rng(0).normal(size=(50, 40))
    np.testing.assert_allclose(
        np.square(one.sd_of_mean(cells)), np.square(one.sd) + 2 * cells.var(0) / 50, rtol=1e-10
    )
