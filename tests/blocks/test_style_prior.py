"""The prior of the style latent: its gradient, Bayes and transport, each against another source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import kl_divergence

from scalloy.blocks.distributions import gaussian
from scalloy.blocks.style_prior import StylePrior

N, C, L = 50, 3, 2


@pytest.fixture
def table():
    gen = torch.Generator().manual_seed(0)
    return torch.randn(C, 2 * L, generator=gen, dtype=torch.float64)


@pytest.fixture
def posterior():
    gen = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, N, L, generator=gen, dtype=torch.float64)
    return gaussian(a, b.exp())


def test_the_kl_reaches_the_prior_with_the_gradient_of_its_closed_form(table, posterior):
    """KL(N(a, b) || N(m, s)) = log s - log b + (b^2 + (a - m)^2) / (2 s^2) - 1/2, by hand."""
    c = torch.arange(N) % C
    table.requires_grad_()
    kl_divergence(posterior, StylePrior(table).at(c)).sum().backward()
    m, log_s = table.detach().chunk(2, -1)
    a, b, s = posterior.mean, posterior.stddev, log_s.exp()
    each = torch.cat([(m[c] - a) / s[c] ** 2, 1 - (b**2 + (a - m[c]) ** 2) / s[c] ** 2], -1)
    expected = torch.zeros_like(table.detach()).index_add_(0, c, each)
    torch.testing.assert_close(table.grad, expected)
    assert (table.grad.abs() > 0.1).all()


def test_the_prior_that_the_kl_draws_it_to_has_the_moments_of_the_posteriors(posterior):
    a, b = posterior.mean, posterior.stddev
    mean, second = a.mean(0), (b**2 + a**2).mean(0)
    table = torch.cat([mean, 0.5 * (second - mean**2).log()]).unsqueeze(0).requires_grad_()
    kl_divergence(posterior, StylePrior(table).at(torch.zeros(N, dtype=torch.long))).mean().backward()
    torch.testing.assert_close(table.grad, torch.zeros_like(table), atol=1e-10, rtol=0)


def test_the_condition_is_told_by_bayes(table):
    w = np.random.default_rng(0).normal(size=(N, L))
    m, s = table[:, :L].numpy(), table[:, L:].exp().numpy()
    density = np.stack([norm.pdf(w, m[k], s[k]).prod(-1) for k in range(C)], -1)
    told = StylePrior(table).log_told(torch.from_numpy(w)).exp()
    np.testing.assert_allclose(told, density / density.sum(-1, keepdims=True), rtol=1e-10)


def test_conditions_that_the_prior_does_not_have_are_told_by_nothing(table):
    w, c = torch.randn(6, L, dtype=torch.float64), torch.tensor([0, 2, 1, 3, 7, 2])
    prior = StylePrior(table)
    expected = [prior.log_told(w)[i, k].item() if k < C else 0.0 for i, k in enumerate(c.tolist())]
    np.testing.assert_allclose(prior.told_of(w, c), expected)


def test_carrying_keeps_the_quantile_and_is_undone_by_the_way_back(table):
    """In one dimension the optimal transport takes each quantile to the same one of the other condition."""
    style, c, to = StylePrior(table), torch.zeros(N, dtype=torch.long), torch.full((N,), 2)
    w = style.at(c).sample()
    there = style.carried(w, c, to)
    m, s = table[:, :L].numpy(), table[:, L:].exp().numpy()
    expected = norm.ppf(norm.cdf(w.numpy(), m[0], s[0]), m[2], s[2])
    np.testing.assert_allclose(there, expected, rtol=1e-6)
    torch.testing.assert_close(style.carried(there, to, c), w)
    torch.testing.assert_close(style.carried(w, c, c), w)


def test_in_units_of_the_prior_the_kl_does_not_depend_on_it(table, posterior):
    c = torch.arange(N) % C
    found = [
        kl_divergence(StylePrior(t).scaled(posterior, c), StylePrior(t).at(c)) for t in (table, 3 * table)
    ]
    standard = kl_divergence(posterior, gaussian(torch.zeros(N, L), torch.ones(N, L)))
    for kl in found:
        torch.testing.assert_close(kl, standard.to(kl))
