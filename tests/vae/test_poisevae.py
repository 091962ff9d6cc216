"""POISEVAE's objective against independent VAEs, exact evidence and what was not measured."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch.distributions import Normal

from scalloy.blocks.joint_posteriors import Coupled
from scalloy.blocks.likelihoods import NB, Gaussian
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import factories
from scalloy.vae.base import Batch, Sizes
from scalloy.vae.poisevae import POISEVAE

SIZES = Sizes(n_vars=12, n_others=(4,))
SMALL = NetworkSettings(n_hidden=8, n_latent=3, dropout_rate=0.0)


def joint(name, n_latent=3, **more):
    return factories.joint(
        name, n_latent, **{"kappa": 0.9, "n_chains": 512, "n_sweeps": 3, "chains": "kept", **more}
    )


def made(name="poise", **more):
    torch.manual_seed(0)
    likelihoods = NB(8, 12), factories.other_likelihood("protein_likelihood", "background", 4, 8)
    return POISEVAE(SIZES, likelihoods, joint(name), SMALL, hidden_rate=0.0, **more)


def cells(n=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.full((n, 12), 4.0), generator=g) + 1
    x2 = torch.poisson(torch.full((n, 4), 20.0), generator=g)
    return Batch(x=x, log_ell=x.sum(1, keepdim=True).log(), b=torch.zeros(n, dtype=torch.long), others=(x2,))


def test_without_coupling_it_is_two_vaes():
    """Each modality's terms are those of a VAE of its own, computed here from the networks' outputs."""
    module, batch = made("independent").eval(), cells()
    q = module.encode(batch)
    latents = module.draw(q)
    terms = module.terms(batch, q, latents, module.decode(batch, latents))
    kl = recon = 0.0
    for i, (x, enc, dec, lik) in enumerate(
        [
            (module.likelihood.features(batch.x), module.encoders[0], module.decoders[0], module.likelihood),
            (
                batch.others[0].log1p() - module.middle_1,
                module.encoders[1],
                module.decoders[1],
                module.likelihoods[1],
            ),
        ]
    ):
        mean, log_precision = enc.head.own(enc.stack(x)).chunk(2, -1)
        precision = 1 + log_precision.exp()
        posterior = Normal(mean * log_precision.exp() / precision, precision.rsqrt())
        kl = kl + torch.distributions.kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1)
        cont = (batch.log_ell - module.usual_log_ell,) if i else ()
        h = dec(latents["z2" if i else "z"], (batch.b,), *cont)
        recon = recon - lik(h, batch.log_ell, batch.b).log_prob((batch.x, batch.others[0])[i])
    torch.testing.assert_close(terms.kl["z"], kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.recon, recon, rtol=1e-4, atol=1e-3)


def test_what_was_not_measured_costs_nothing_and_tells_nothing():
    module, batch = made().eval(), cells()
    whole = module.log_likelihoods(batch, module.decode(batch, module.draw(module.encode(batch))))
    assert all((v < 0).all() for v in whole)
    x2 = batch.others[0].clone()
    x2[:10] = torch.nan
    x2[10:20, 1] = torch.nan
    x = batch.x.clone()
    x[20:] = 0.0
    other = Batch(x=x, log_ell=x.sum(1, keepdim=True).clamp_min(1e-6).log(), b=batch.b, others=(x2,))
    assert other.measured.tolist() == [[1.0, 0.0]] * 10 + [[1.0, 1.0]] * 10 + [[0.0, 1.0]] * 10
    q = module.encode(other)
    latents = module.draw(q)
    log_p, log_p2 = module.log_likelihoods(other, module.decode(other, latents))
    assert (log_p2[:10] == 0).all()
    assert (log_p[20:] == 0).all()
    each = module.likelihoods[1].log_prob_entries(module.decode(other, latents)["x2"], batch.others[0])
    torch.testing.assert_close(log_p2[10:20], each[10:20, [0, 2, 3]].sum(-1))
    order = latents["order"]
    assert (order[:10, 1] < order[:10, 0]).all()  # what is not seen comes first
    assert (order[20:, 0] < order[20:, 1]).all()
    for key in ("z", "z2"):  # a measured protein that is hidden changes nothing in the others
        assert torch.isfinite(q[key].mean).all()
    expected = module.decode(other, latents)["x"].mean[20:].sum(-1)
    torch.testing.assert_close(expected, module.usual_log_ell.exp().expand(10), rtol=1e-4, atol=1e-4)


def test_modalities_are_hidden_in_training_only_and_in_the_shares_asked_for():
    module, batch = made(hide=(0.2, 0.5)), cells(5000)
    seen = module.train().seen(batch)
    assert seen.mean(0).tolist() == pytest.approx([0.8, 0.5], abs=0.03)
    assert (seen.sum(-1) >= 1).all()
    assert (module.eval().seen(batch) == 1).all()
    alone = Batch(
        x=batch.x, log_ell=batch.log_ell, b=batch.b, others=(torch.full_like(batch.others[0], torch.nan),)
    )
    assert (module.train().seen(alone)[:, 0] == 1).all()


def test_every_pattern_of_three_modalities_is_hidden_but_never_all():
    """One modality is chosen by its share; each other one follows with probability 1/2, and one stays."""
    sizes, n = Sizes(n_vars=12, n_others=(4, 4)), 40_000
    likelihoods = [NB(8, 12), *(factories.other_likelihood("", "nb", 4, 8) for _ in range(2))]
    prior = factories.joint("product", 3, 3, kappa=0.7, chains="kept")
    module = POISEVAE(sizes, likelihoods, prior, SMALL, hide=(0.2, 0.3, 0.4))
    batch = cells(n)
    batch = Batch(x=batch.x, log_ell=batch.log_ell, b=batch.b, others=batch.others * 2)
    seen = module.train().seen(batch)
    found = {
        p: float((seen == torch.tensor(p)).all(-1).float().mean()) for p in product((0.0, 1.0), repeat=3)
    }
    share = dict(enumerate((0.2, 0.3, 0.4)))
    expected = {(1.0, 1.0, 1.0): 0.1, (0.0, 0.0, 0.0): 0.0}
    for k, h in share.items():  # the one that may follow is one of the two others, the second of which stays
        a, b = (j for j in share if j != k)
        alone = tuple(float(j != k) for j in share)
        expected[alone] = expected.get(alone, 0.0) + h / 2
        for follows in (a, b):
            both = tuple(float(j not in (k, follows)) for j in share)
            expected[both] = expected.get(both, 0.0) + h / 4
    assert found == pytest.approx(expected, abs=0.01)


def linear(name="poise"):
    """One latent each, two Gaussian variables each: the exact evidence is an integral in two dimensions."""
    sizes = Sizes(n_vars=2, n_others=(2,))
    torch.manual_seed(1)
    likelihoods = [Gaussian(1, 2, on="given", variance="fixed") for _ in range(2)]
    networks = NetworkSettings(n_latent=1, n_hidden=1, dropout_rate=0.0)
    module = POISEVAE(sizes, likelihoods, joint(name, 1), networks, hidden_rate=0.0)
    for head in (
        module.encoders[0].head,
        module.encoders[1].head,
    ):  # wide posteriors, from which weights vary little
        for part in (head.own, head.other):
            part.bias.data = torch.tensor([0.3, -3.0])
    return module.eval()


def exact_log_p(module, batch):
    z = torch.linspace(-9, 9, 601)
    g = module.joint.coupling()[0, 1].detach()
    t = torch.stack([z, z.square()], -1)
    log_prior = -0.5 * z.square().unsqueeze(-1) - 0.5 * z.square() - math.log(2 * math.pi) + t @ g @ t.T
    step = 2 * math.log(float(z[1] - z[0]))
    log_z = torch.logsumexp(log_prior.flatten(), 0) + step
    out = []
    for i in range(len(batch.x)):
        one = Batch(
            x=batch.x[i].expand(601, 2),
            log_ell=batch.log_ell[i].expand(601, 1),
            b=batch.b[:1].expand(601),
            others=(batch.others[0][i].expand(601, 2),),
        )
        p = module.decode(one, {"z": z.unsqueeze(-1), "z2": z.unsqueeze(-1)})
        log_p, log_p2 = module.log_likelihoods(one, p)
        joint_density = log_prior + log_p.unsqueeze(-1) + log_p2
        out.append(torch.logsumexp(joint_density.flatten(), 0) + step - log_z)
    return torch.stack(out)


@pytest.mark.parametrize("name", ["poise", "gaussian"])
@pytest.mark.parametrize("missing", [None, "x2"])
def test_elbo_is_below_the_exact_evidence_and_importance_sampling_reaches_it(name, missing):
    module = linear(name)
    x, x2 = (torch.randn(4, 2) + 2 for _ in range(2))
    x2 = x2 if missing is None else torch.full_like(x2, torch.nan)
    x = x.abs() + 0.1
    batch = Batch(x=x, log_ell=x.sum(1, keepdim=True).log(), b=torch.zeros(4, dtype=torch.long), others=(x2,))
    with torch.no_grad():
        exact = exact_log_p(module, batch)
        elbo = []
        for _ in range(400):
            terms = module.objective(batch)
            elbo.append(-(terms.recon + terms.kl["z"]))
        elbo = torch.stack(elbo)
        se = elbo.std(0) / math.sqrt(len(elbo))
        assert (elbo.mean(0) <= exact + 3 * se + 0.01).all()
        tensors = {"X": batch.x, "second": batch.others[0]}
        estimate = module.marginal_ll(tensors, n_mc_samples=3000)
    torch.testing.assert_close(estimate, exact, atol=0.05, rtol=0)


def test_gradient_of_the_loss_is_that_of_finite_differences_where_log_z_is_exact():
    module, batch = made("gaussian").double().eval(), cells(6)
    batch = Batch(
        x=batch.x.double(), log_ell=batch.log_ell.double(), b=batch.b, others=(batch.others[0].double(),)
    )

    def loss():
        torch.manual_seed(3)
        terms = module.objective(batch)
        return terms.recon.mean() + terms.kl["z"].mean()

    loss().backward()
    (raw,) = module.joint.coupling.raw
    for place in ((0, 0), (1, 2)):
        ends = []
        for step in (1e-5, -1e-5):
            raw.data[place] += step
            ends.append(loss().item())
            raw.data[place] -= step
        assert raw.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_coupling_carries_one_modality_to_the_other():
    """With a strong coupling by hand, what is predicted of one follows the other."""
    module = made("gaussian").eval()
    assert isinstance(module.joint, Coupled)
    module.joint.coupling.raw[0].data = 5.0 * torch.eye(3)
    z = torch.linspace(-2, 2, 400).unsqueeze(-1).expand(400, 3)
    z2 = module.joint.from_one(z, 0)["z2"]
    slope = (5.0 / math.sqrt(26.0)) * torch.ones(3)
    found = (z * z2).sum(0) / z.square().sum(0)
    torch.testing.assert_close(found, slope, atol=0.15, rtol=0)


@pytest.mark.parametrize("side", [0, 1])
def test_gaussian_noise_is_learned_from_cells_whose_encoders_see_the_modality(side):
    """Its gradient is that of the cells that are seen, in closed form; the terms keep their values."""
    torch.manual_seed(0)
    likelihoods = [Gaussian(8, 12, on="given"), Gaussian(8, 4, on="given")]
    module = POISEVAE(
        SIZES,
        likelihoods,
        joint("poise"),
        SMALL,
        hidden_rate=0.0,
        hide=(0.4, 0.5),
    )
    batch = cells(200)
    module.train()
    q = module.encode(batch)
    hidden = q.seen[:, side] < batch.measured[:, side]
    assert 40 < int(hidden.sum()) < 140
    latents = module.draw(q)
    p = module.decode(batch, latents)
    terms = module.terms(batch, q, latents, p)
    torch.testing.assert_close(terms.recon, -sum(module.log_likelihoods(batch, p)))
    likelihood, x = likelihoods[side], (batch.x, batch.others[0])[side]
    found = torch.autograd.grad(terms.recon.sum(), likelihood.log_sigma, retain_graph=True)[0]
    residual, sigma = x - p[("x", "x2")[side]].mean, likelihood.log_sigma.exp()
    expected = (1 - (residual / sigma).square())[~hidden].sum(0)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-2)
    decoder = (module.decoders[0], module.decoders[1])[side]
    of_hidden = torch.autograd.grad(terms.recon[hidden].sum(), decoder.parameters(), allow_unused=True)
    assert sum(g.abs().sum() for g in of_hidden if g is not None) > 0  # the mean learns from all


def test_dispersions_of_counts_learn_from_all_cells():
    module, batch = made(hide=(0.4, 0.5)), cells(200)
    module.train()
    q = module.encode(batch)
    latents = module.draw(q)
    p = module.decode(batch, latents)
    terms = module.terms(batch, q, latents, p)
    hidden = q.seen[:, 1] == 0
    slope = torch.autograd.grad(terms.recon[hidden].sum(), module.likelihoods[1].log_theta)[0]
    assert slope.abs().sum() > 0
