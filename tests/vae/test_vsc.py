"""Sparse coding: its bound against an exact p(x), its limits, and its schedule."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scalloy.blocks.distributions import gaussian
from scalloy.blocks.likelihoods import Gaussian
from scalloy.blocks.networks import NetworkSettings
from scalloy.blocks.spike_slab import SpikeSlab, SpikeSlabMixture
from scalloy.models._core import factories
from scalloy.vae.base import Batch, Sizes
from scalloy.vae.vsc import VSC

SIZES = Sizes(n_vars=6)


def sparse_coder(n_latent=2, alpha=0.3, seed=0, **more):
    """With a linear decoder and a Gaussian likelihood, so that p(x) can be computed."""
    torch.manual_seed(seed)
    lik = Gaussian(n_latent, 6, on="given", variance="fixed")
    made = VSC(
        SIZES,
        lik,
        NetworkSettings(n_hidden=16, n_latent=n_latent, dropout_rate=0.0, decoder_kind="linear"),
        alpha=alpha,
        **more,
    )
    return made.double().eval()


def batch(n=5, seed=1):
    x = torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Batch(x=x, log_ell=torch.zeros(n, 1, dtype=torch.float64), b=torch.zeros(n, dtype=torch.long))


def exact(made, cells, alpha):
    """log p(x): for each pattern of latents that are on, x is Gaussian."""
    w, m = made.likelihood.head.weight, made.likelihood.head.bias
    parts = []
    for gates in itertools.product((0.0, 1.0), repeat=w.shape[1]):
        s = torch.tensor(gates, dtype=torch.float64)
        cov = torch.eye(6, dtype=torch.float64) + (w * s) @ w.T
        p = torch.distributions.MultivariateNormal(m, cov)
        log_prior = (s * math.log(alpha) + (1 - s) * math.log(1 - alpha)).sum()
        parts.append(p.log_prob(cells.x) + log_prior)
    return torch.stack(parts).logsumexp(0)


def test_evidence_rises_to_the_exact_one():
    made, cells = sparse_coder(), batch()
    truth = exact(made, cells, 0.3)
    with torch.no_grad():
        draws = []
        for _ in range(400):
            t = made.objective(cells)
            draws.append(-(t.recon + sum(t.kl.values())))
        elbo = torch.stack(draws).mean(0)
        q = made.encode(cells)
        weights = []
        for _ in range(20_000):
            latents = made.draw(q)
            weights.append(made.log_weight(cells, q, latents, made.decode(cells, latents)))
        estimate = torch.stack(weights).logsumexp(0) - math.log(len(weights))
    assert (elbo < truth).all()
    np.testing.assert_allclose(estimate, truth.detach(), atol=0.05)


def test_all_latents_on_is_the_vae():
    """alpha and gamma near one: the KL of a Gaussian, and nothing for the gates."""
    made, cells = sparse_coder(alpha=1 - 1e-6), batch()
    with torch.no_grad():
        made.enc_z.head.logit.weight.zero_()
        made.enc_z.head.logit.bias.fill_(math.log((1 - 1e-6) / 1e-6))
        q = made.encode(cells)
        t = made.terms(cells, q, made.draw(q), made.decode(cells, made.draw(q)))
    one = torch.ones(5, 2, dtype=torch.float64)
    normal = kl_divergence(gaussian(q["z"].loc, q["z"].scale), gaussian(0 * one, one))
    np.testing.assert_allclose(t.kl["z"], normal, rtol=1e-4)
    np.testing.assert_allclose(t.kl["s"], 0, atol=1e-4)


def test_pseudo_inputs_one_is_its_posterior_and_many_are_a_bound():
    cells = batch()
    alone = sparse_coder(pseudo_inputs=torch.randn(1, 6, dtype=torch.float64))
    q = alone.encode(cells)
    t = alone.terms(cells, q, alone.draw(q), alone.decode(cells, alone.draw(q)))
    p = alone.enc_z(alone.pseudo_inputs)
    np.testing.assert_allclose((t.kl["z"] + t.kl["s"]).detach(), kl_divergence(q["z"], p).detach(), rtol=1e-9)
    np.testing.assert_allclose(t.kl["u"].detach(), 0, atol=1e-12)
    share = float(p.active.detach().mean())
    j_kl = 2 * (share * math.log(share / 0.3) + (1 - share) * math.log((1 - share) / 0.7))
    assert float(t.penalty["sparsity"].detach()) == pytest.approx(j_kl)
    many = sparse_coder(pseudo_inputs=torch.randn(4, 6, dtype=torch.float64))
    q = many.encode(cells)
    latents = many.draw(q)
    t = many.terms(cells, q, latents, many.decode(cells, latents))
    mixture = many.prior(latents["z"])
    assert isinstance(mixture, SpikeSlabMixture)
    z = q["z"].sample((20_000,))
    true_kl = (q["z"].log_prob(z) - mixture.log_prob(z)).mean(0)
    bound = sum(t.kl.values())
    assert (bound.detach() > true_kl - 0.02).all()
    each = torch.stack([kl_divergence(q["z"], many.enc_z(u[None])) for u in many.pseudo_inputs])
    np.testing.assert_allclose(bound.detach(), -(-each).logsumexp(0).detach() + math.log(4), rtol=1e-9)


def test_pseudo_inputs_are_trained():
    made = sparse_coder(pseudo_inputs=torch.randn(3, 6, dtype=torch.float64))
    t = made.objective(batch())
    (t.recon.mean() + sum(v.mean() for v in t.kl.values()) + t.penalty["sparsity"]).backward()
    assert (made.pseudo_inputs.grad.abs().sum(1) > 0).all()


def test_slab_follows_its_warmup():
    made = sparse_coder(slab_warmup=0.4)
    shares, changed = [], []
    with torch.no_grad():
        q = made.encode(batch())
    z = torch.stack([made.train().draw(q)["z"] for _ in range(8000)])
    for end in (0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 0.1):
        changed.append(made.begin_epoch(end, list))
        shares.append(float(made.slab))
    np.testing.assert_allclose(shares, [0, 0, 0.5, 1, 1, 1, 1], atol=1e-6)  # a trained model is not sent back
    assert changed == [True, True, True, True, False, False, False]
    on = z[z != 0]
    assert float(on.mean()) == pytest.approx(0, abs=0.03)
    assert float(on.std()) == pytest.approx(1, abs=0.03)
    stopped = sparse_coder(slab_warmup=0.4)
    stopped.begin_epoch(0.1, list)
    own = torch.stack([stopped.eval().draw(q)["z"] for _ in range(8000)])
    np.testing.assert_allclose(own.mean(0), q["z"].mean, atol=0.1)  # only training warms up
    stopped.finish(list)
    assert float(stopped.slab) == 1
    without = sparse_coder()
    assert not without.begin_epoch(0.01, list)
    assert float(without.slab) == 1


def test_linear_decoder_of_counts_is_log_linear():
    """What a latent does to the logarithm of expression is the same in every cell."""
    torch.manual_seed(0)
    networks, sizes = NetworkSettings(n_latent=2, n_hidden=4, decoder_kind="linear"), Sizes(6, n_batch=3)
    lik = factories.likelihood("nb", SIZES, networks.n_decoded(6, **sizes.covariates))
    assert lik.head.in_features == 2 + 3
    made = VSC(sizes, lik, networks)
    b = torch.tensor([0, 1, 2])
    cells = Batch(x=torch.ones(3, 6), log_ell=torch.zeros(3, 1), b=b)
    z = torch.randn(3, 2)
    rate = [made.decode(cells, {"z": v})["x"].rate.fraction.log() for v in (z, z + torch.tensor([1.5, 0.0]))]
    change = (rate[1] - rate[0]).detach()
    centred = change - change.mean(1, keepdim=True)
    weight = 1.5 * lik.head.weight[:, 0].detach()
    np.testing.assert_allclose(centred, (weight - weight.mean()).expand(3, 6), atol=1e-5)


def test_prior_of_the_density_is_normalised():
    one = torch.ones(1)
    p = SpikeSlab(0 * one, one, torch.logit(0.3 * one))
    grid = torch.linspace(-8, 8, 4001).unsqueeze(-1)
    grid = grid[grid[:, 0] != 0]
    mass = torch.trapezoid(p.log_prob(grid).exp(), grid[:, 0]) + p.log_prob(torch.zeros(1, 1)).exp()
    assert float(mass) == pytest.approx(1, abs=1e-4)
    assert float(p.log_prob(torch.ones(1, 1))) == pytest.approx(
        math.log(0.3) + float(Normal(0, 1).log_prob(torch.tensor(1.0)))
    )
