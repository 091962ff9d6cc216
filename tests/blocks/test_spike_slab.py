"""Spike and slab against numerical integration, enumeration and what the paper's formulas give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import kl_divergence

from scalloy.blocks.networks import Beside
from scalloy.blocks.spike_slab import SpikeSlab, SpikeSlabHead, SpikeSlabMixture, kl_gates, kl_slab, kl_spike


def spike_slab(gamma, mu, sigma, **more):
    gamma, mu, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (gamma, mu, sigma))
    return SpikeSlab(mu, sigma, torch.logit(gamma), **more)


def test_kl_against_integration_with_a_narrow_spike():
    gamma, mu, sigma, alpha = 0.3, 1.2, 0.5, 0.1
    eps = 1e-5  # width of the spike, the same in q and p

    def density(z, g, m, s):
        return g * norm.pdf(z, m, s) + (1 - g) * norm.pdf(z, 0, eps)

    def integrand(z):
        q, p = density(z, gamma, mu, sigma), density(z, alpha, 0, 1)
        return q * np.log(q / p) if q > 0 else 0.0

    parts = [(-9, -1e-3), (-1e-3, -8 * eps), (-8 * eps, 8 * eps), (8 * eps, 1e-3), (1e-3, 9)]
    truth = sum(quad(integrand, *ends, limit=500, epsabs=1e-12)[0] for ends in parts)
    q, p = spike_slab(gamma, mu, sigma), spike_slab(alpha, 0.0, 1.0)
    assert float(kl_divergence(q, p)) == pytest.approx(truth, abs=2e-4)
    assert float(kl_divergence(q, p)) == pytest.approx(0.4651077409717821, abs=1e-12)  # golden
    assert float(kl_slab(q, p) + kl_spike(q, p)) == pytest.approx(float(kl_divergence(q, p)))


def test_kl_is_zero_for_the_same_and_finite_at_the_ends():
    q = spike_slab([0.2, 0.7], [0.0, 0.0], [1.0, 1.0])
    assert float(kl_divergence(q, spike_slab([0.2, 0.7], [0.0, 0.0], [1.0, 1.0]))) == pytest.approx(
        0, abs=1e-12
    )
    wide = torch.tensor([-40.0, 40.0], requires_grad=True)
    value = kl_gates(wide, torch.logit(torch.tensor(0.1)))
    value.sum().backward()
    np.testing.assert_allclose(value.detach(), [-np.log(0.9), -np.log(0.1)], rtol=1e-5)
    assert torch.isfinite(wide.grad).all()


def test_log_prob_is_that_of_the_kl():
    """E_q[log q - log p] by sampling is the divergence, so the mixed density is right."""
    q, p = spike_slab([0.3, 0.8], [1.2, -0.4], [0.5, 0.9]), spike_slab([0.1, 0.5], [0.0, 0.1], [1.0, 1.2])
    z = q.sample((200_000,))
    weight = q.log_prob(z) - p.log_prob(z)
    assert float(weight.mean()) == pytest.approx(
        float(kl_divergence(q, p)), abs=4 * float(weight.std()) / 447
    )


def test_samples_are_exactly_zero_as_often_as_they_should_be():
    q = spike_slab([0.05, 0.5, 0.9], [2.0, 0.0, -1.0], [0.1, 1.0, 3.0])
    z = q.sample((100_000,))
    error = 4 * np.sqrt(0.25 / 1e5)
    np.testing.assert_allclose((z == 0).double().mean(0), 1 - q.active, atol=error)
    np.testing.assert_allclose(z.mean(0), q.mean, atol=0.04)
    np.testing.assert_allclose(z.var(0), q.variance, rtol=0.05, atol=0.01)


def test_mixture_density_by_enumeration_of_its_components():
    each = spike_slab([0.3, 0.8, 0.2, 0.5], [1.0, 0.0, -1.0, 2.0], [1.0, 0.5, 1.0, 2.0])
    components = SpikeSlab(*(v.reshape(2, 2) for v in (each.loc, each.scale, each.logit)))
    mixture = SpikeSlabMixture(components)
    z = torch.tensor([[0.0, 0.3], [1.1, 0.0], [0.0, 0.0]], dtype=torch.float64)
    truth = []
    for row in z.numpy():
        total = 0.0
        for m in range(2):
            one = 1.0
            for j in range(2):
                g = float(components.active[m, j])
                d = norm.pdf(row[j], float(components.loc[m, j]), float(components.scale[m, j]))
                one *= 1 - g if row[j] == 0 else g * d
            total += one / 2
        truth.append(np.log(total))
    np.testing.assert_allclose(mixture.log_prob(z), truth, rtol=1e-10)
    drawn = mixture.sample((50_000,))
    assert drawn.shape == (50_000, 2)
    np.testing.assert_allclose(drawn.mean(0), components.mean.mean(0), atol=0.04)
    np.testing.assert_allclose((drawn == 0).double().mean(0), 1 - components.active.mean(0), atol=0.01)


def exact_gradient(logit, value):
    """Of the mean over gates of a function of them, by enumeration."""
    logit = logit.clone().requires_grad_()
    total = 0.0
    for gates in itertools.product((0.0, 1.0), repeat=len(logit)):
        gates = torch.tensor(gates, dtype=logit.dtype)
        p = torch.sigmoid(logit)
        total = total + (gates * p + (1 - gates) * (1 - p)).prod() * value(gates)
    return torch.autograd.grad(total, logit)[0]


def relaxed_gradients(logit, value, temperature, n=40_000):
    q = SpikeSlab(torch.ones_like(logit), torch.zeros_like(logit) + 1e-9, logit, temperature=temperature)
    out = []
    for noise in torch.rand(n, len(logit), dtype=logit.dtype):
        leaf = logit.clone().requires_grad_()
        gate = SpikeSlab(q.loc, q.scale, leaf, temperature=temperature).gate(noise)
        out.append(torch.autograd.grad(value(gate), leaf)[0])
    return torch.stack(out)


def test_gradient_of_gates_is_that_of_the_relaxed_gate():
    """Its mean is that of the slope of the relaxed gate; the true one is p (1 - p)."""
    logit = torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64)
    weights = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    exact = exact_gradient(logit, lambda s: s @ weights)
    p = torch.sigmoid(logit)
    np.testing.assert_allclose(exact, weights * p * (1 - p), rtol=1e-9)
    found = relaxed_gradients(logit, lambda s: s @ weights, 1.0, n=8000)
    error = found.std(0) / np.sqrt(len(found))
    expected = torch.stack([weights[j] * soft_slope(float(logit[j])) for j in range(3)])
    assert ((found.mean(0) - expected).abs() < 4 * error).all()


def soft_slope(logit):
    """E of the slope of sigmoid(logit + Logistic noise), by integration."""

    def integrand(x):
        s = 1 / (1 + np.exp(-(logit + x)))
        return s * (1 - s) * np.exp(-abs(x)) / (1 + np.exp(-abs(x))) ** 2

    return quad(integrand, -40, 40)[0]


def test_every_gate_has_a_gradient():
    """The paper's log gamma = -ReLU(-v) has none where gamma is one: half of the units at the start."""
    head = SpikeSlabHead(4, 50)
    q = head(torch.randn(20, 4))
    (grad,) = torch.autograd.grad(kl_spike(q, spike_slab(0.1, 0.0, 1.0)).sum(), head.logit.bias)
    assert (grad.abs() > 0).all()
    assert ((q.active > 0) & (q.active < 1)).all()


def test_code_beside_what_is_known():
    made = Beside(2, n_cats=(3, 1), n_cont=1)
    assert made.n_out == 2 + 3 + 1
    z, cats = torch.tensor([[0.5, 1.0], [2.0, 3.0]]), (torch.tensor([2, 0]), torch.zeros(2, dtype=torch.long))
    out = made(z, cats, torch.tensor([[7.0], [8.0]]))
    np.testing.assert_array_equal(out, [[0.5, 1, 0, 0, 1, 7], [2, 3, 1, 0, 0, 8]])
    assert made(z.expand(4, 2, 2), cats, torch.ones(2, 1)).shape == (4, 2, 6)
