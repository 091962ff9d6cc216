"""GMVAE against exact answers: the VAE, closed forms, enumeration, and an exact marginal likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.mixtures import GaussianMixture
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import factories
from scalloy.vae.base import Batch, Sizes
from scalloy.vae.gmvae import GMVAE
from scalloy.vae.vae import VAE

SIZES = Sizes(n_vars=9)
SMALL = NetworkSettings(n_hidden=8, n_latent=3, dropout_rate=0.0)


def build(n_clusters=4, *, likelihood="nb", weights="learned", placed=True, seed=0, **more):
    torch.manual_seed(seed)
    prior = MixturePrior(
        factories.components("decoder", SIZES, n_clusters, 3, 0),
        factories.cluster_weights(weights, n_clusters),
        placed=placed and n_clusters > 1,
    )
    lik = factories.likelihood(likelihood, SIZES, 8)
    made = GMVAE(SIZES, lik, prior, SMALL, **more)
    if n_clusters > 1:
        for layer in (made.enc_z.head.changes, made.enc_z.head.choice):  # away from where they begin
            nn.init.normal_(layer.weight, std=0.3)
    return made.eval()


def batch(n=30, seed=0):
    gen = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.rand(n, 9, generator=gen) * 4, generator=gen)
    x[:, 0] += 1
    return Batch.of({"X": x.to_sparse_csr()})


def test_one_component_is_the_vae():
    """The same weights and noise give the same terms, and the same gradients."""
    one, cells = build(1), batch()
    vae = VAE(SIZES, factories.likelihood("nb", SIZES, 8), SMALL).eval()
    names = {k: k.replace("enc_z.head.", "enc_z.head.shared.") for k in vae.state_dict()}
    vae.load_state_dict({k: one.state_dict()[name] for k, name in names.items()})
    found = []
    for module in (one, vae):
        torch.manual_seed(3)
        terms = module.objective(cells)
        loss = terms.recon.sum() + sum(v.sum() for v in terms.kl.values())
        found.append((terms, torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad])))
    torch.testing.assert_close(found[0][0].recon, found[1][0].recon)
    torch.testing.assert_close(found[0][0].kl["z"], found[1][0].kl["z"])
    assert (found[0][0].kl["y"] == 0).all()
    by_name = zip((k for k, p in one.named_parameters() if p.requires_grad), found[0][1], strict=True)
    expected = dict(zip((names[k] for k, _ in vae.named_parameters()), found[1][1], strict=True))
    for name, grad in by_name:
        torch.testing.assert_close(grad, expected[name])


def test_terms_by_hand():
    """Every term recomputed with torch's own distributions, all components decoded one by one."""
    made, cells = build(n_decoded=4), batch()
    q, p_z = made.encode(cells)["z"], made.prior(cells.condition)
    torch.manual_seed(5)
    terms = made.objective(cells)
    torch.manual_seed(5)
    noise = torch.randn(30, 3)
    q_y, pi = q.log_pi.exp(), p_z.log_pi.exp()
    recon, kl_z, kl_y = torch.zeros(30), torch.zeros(30), torch.zeros(30)
    for k in range(4):
        each = Normal(q.loc[:, k], q.scale[:, k])
        z = each.loc + each.scale * noise
        p_x = made.decode(cells, {"z": z})["x"]
        recon -= q_y[:, k] * p_x.log_prob(cells.x.to_dense())
        kl_z += q_y[:, k] * kl_divergence(each, Normal(p_z.loc[:, k], p_z.scale[:, k])).sum(-1)
        kl_y += q_y[:, k] * (q_y[:, k].log() - pi[:, k].log())
    torch.testing.assert_close(terms.recon, recon, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.kl["z"], kl_z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.kl["y"], kl_y, rtol=1e-4, atol=1e-5)


def test_uniform_weights_cost_log_k_minus_entropy():
    made, cells = build(5, weights="uniform"), batch()
    q_y = made.assignment(cells)
    expected = math.log(5) - Categorical(q_y).entropy()
    torch.testing.assert_close(made.objective(cells).kl["y"], expected, rtol=1e-4, atol=1e-5)


def test_permuting_components_leaves_the_elbo_as_it_is():
    made, cells, order = build(n_decoded=4), batch(), torch.tensor([2, 0, 3, 1])

    def elbo():
        torch.manual_seed(1)
        t = made.objective(cells)
        return t.recon + t.kl["z"] + t.kl["y"]

    before = elbo()
    with torch.no_grad():
        for p in (made.prior.components.loc, made.prior.components.log_scale):
            p.copy_(p[order])
        made.prior.weights.logits.copy_(made.prior.weights.logits[:, order])
        head = made.enc_z.head
        for p in (*head.choice.parameters(), *head.changes.parameters()):
            shaped = p.view(*(head.shape if len(p) > 4 else (4,)), -1)
            p.copy_(shaped[:, order].reshape(p.shape) if len(p) > 4 else p[order])
    torch.testing.assert_close(elbo(), before, rtol=1e-4, atol=1e-4)


def test_begins_at_the_best_q_that_one_gaussian_allows():
    """Then both KLs add up to -log sum_k pi_k exp(-KL_k), which no other q(y | x) undercuts."""
    made, cells = build(), batch()
    for layer in (made.enc_z.head.changes, made.enc_z.head.choice):
        nn.init.zeros_(layer.weight)
    q, p_z = made.encode(cells)["z"], made.prior(cells.condition)
    q_0 = Normal(q.loc[:, 0], q.scale[:, 0])
    each = torch.stack(
        [kl_divergence(q_0, Normal(p_z.loc[:, k], p_z.scale[:, k])).sum(-1) for k in range(4)], -1
    )
    best = -torch.logsumexp(p_z.log_pi - each, -1)
    kl = made.divergences(cells, {"z": q}, {"z": p_z})
    torch.testing.assert_close(kl["z"] + kl["y"], best)
    other = torch.softmax(q.log_pi + 0.5 * torch.randn(30, 4), -1).log()
    moved = made.divergences(cells, {"z": GaussianMixture(other, q.loc, q.scale)}, {"z": p_z})
    assert (moved["z"] + moved["y"] > best).all()


@pytest.mark.parametrize("n_decoded", [2, 3])
def test_few_decoded_codes_have_value_and_gradient_of_all(n_decoded):
    """Averaged over the draw of the last one, which is enumerated here: exactly those of the whole sum."""
    torch.manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    r, log_q = 100 + 10 * torch.randn(7, 5, dtype=torch.float64), torch.log_softmax(logits, -1)
    made = build(5, n_decoded=n_decoded)
    exact = (log_q.exp() * r).sum(-1)
    expected = torch.autograd.grad(exact.sum(), logits, retain_graph=True)[0]
    sure = log_q.topk(n_decoded - 1, -1).indices
    value, gradient, total = 0, 0, 0
    for k in range(5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Categorical, "sample", lambda self, k=k: torch.full((7,), k))
            picked, weight = made.chosen(log_q)
        each = r.gather(1, picked.T).T
        level = each[0].detach()
        estimate = level + (weight * (each - level)).sum(0)
        rest = log_q.detach().exp().scatter(-1, sure, 0)
        p = (rest / rest.sum(-1, keepdim=True))[:, k]  # 0 for the sure ones
        value = value + p * estimate.detach()
        gradient = gradient + torch.autograd.grad((p * estimate).sum(), logits, retain_graph=True)[0]
        total = total + p
        assert picked.shape == weight.shape == (n_decoded, 7)
    torch.testing.assert_close(total, torch.ones_like(total))
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(gradient, expected)


def test_the_last_code_is_drawn_in_proportion():
    made, log_q = build(4), torch.tensor([0.6, 0.1, 0.25, 0.05]).log().expand(20_000, 4)
    picked, weight = made.chosen(log_q)
    assert (picked[0] == 0).all()
    torch.testing.assert_close(weight, torch.tensor([[0.6], [0.4]]).expand(2, 20_000))
    share = torch.bincount(picked[1], minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0, 0.1, 0.25, 0.05]) / 0.4, rtol=0, atol=0.015)


def test_moments_of_the_code_are_those_of_its_mixture():
    q = build().encode(batch(4))["z"]
    torch.manual_seed(0)
    draws = q.sample((40_000,))
    torch.testing.assert_close(draws.mean(0), q.mean, rtol=0, atol=5 * q.variance.max().sqrt().item() / 200)
    torch.testing.assert_close(draws.var(0), q.variance, rtol=0.1, atol=0.01)
    families = Normal(q.loc.transpose(1, 2), q.scale.transpose(1, 2))
    per_dimension = MixtureSameFamily(Categorical(logits=q.log_pi[:, None].expand(-1, 3, -1)), families)
    torch.testing.assert_close(q.mean, per_dimension.mean)
    torch.testing.assert_close(q.variance, per_dimension.variance)


def test_marginal_likelihood_rises_to_the_exact_one():
    """A linear decoder of a Gaussian mixture has p(x) in closed form; the prior is a poor but wide q."""
    made = build(3, likelihood="normal", weights=[0.5, 0.3, 0.2])
    made.dec_x = Linear(made.likelihood.head)
    with torch.no_grad():
        made.prior.components.loc.mul_(2)
        made.likelihood.log_sigma.fill_(math.log(0.7))
    w, b = made.dec_x.weight, made.dec_x.bias
    p_z = made.prior(torch.zeros(1, dtype=torch.long))
    loc = p_z.loc[0] @ w.T + b
    cov = (w * p_z.scale[0].square()[:, None]) @ w.T + 0.49 * torch.eye(9)
    whole = [t.expand(200, *t.shape[1:]) for t in (p_z.log_pi, p_z.loc, p_z.scale)]
    made.encode = lambda batch: {"z": GaussianMixture(*whole)}
    exact = MixtureSameFamily(Categorical(torch.tensor([0.5, 0.3, 0.2])), MultivariateNormal(loc, cov))
    torch.manual_seed(0)
    x = exact.sample((200,))
    truth = exact.log_prob(x).mean().item()
    tensors = {"X": x, "size_factor": torch.ones(200, 1)}
    terms = [made.objective(Batch.of(tensors)) for _ in range(30)]
    elbo = torch.stack([-(t.recon + t.kl["z"] + t.kl["y"]) for t in terms]).mean().item()
    few, more, many = (made.marginal_ll(tensors, n_mc_samples=k).mean().item() for k in (5, 50, 5000))
    assert elbo < few < more < many < truth + 0.05
    assert many == pytest.approx(truth, abs=0.1)


class Linear(nn.Module):
    """The decoder's hidden vector that makes the likelihood's head return ``W z + b``."""

    def __init__(self, head):
        super().__init__()
        self.weight = head.weight.detach() @ torch.randn(8, 3)
        self.bias = head.bias.detach()
        self.solve = torch.linalg.pinv(head.weight.detach())

    def forward(self, z, cats, cont):
        return z @ self.weight.T @ self.solve.T


def test_before_they_are_placed_the_prior_is_standard_and_all_components_are_the_same():
    made, cells = build(placed=False), batch()
    q = made.encode(cells)["z"]
    torch.testing.assert_close(q.log_pi.exp(), torch.full((30, 4), 0.25))
    torch.testing.assert_close(q.loc[:, 0], q.loc[:, 3])
    terms = made.objective(cells)
    standard = kl_divergence(Normal(q.loc[:, 0], q.scale[:, 0]), Normal(0, 1)).sum(-1)
    torch.testing.assert_close(terms.kl["z"], standard)
    assert terms.kl["y"].abs().max() < 1e-5
    assert not made.begin_epoch(0.1, lambda: iter([cells]))
    assert made.begin_epoch(0.3, lambda: iter([cells]))
    assert made.prior.placed
    assert not made.begin_epoch(0.4, lambda: iter([cells]))
    assert made.prior.components.loc.std(0).max() > 0


def test_given_weights_go_to_the_groups_by_size():
    weights = factories.cluster_weights([0.1, 0.6, 0.3], 3)
    r = torch.zeros(10, 3)
    r[:2, 0], r[2:4, 1], r[4:, 2] = 1, 1, 1
    r[2, 1] = 1.5  # the second group is a little larger than the first
    arranged = weights.arranged(r).sum(0)
    torch.testing.assert_close(arranged, torch.tensor([2.0, 6.0, 2.5]))
    uniform = factories.cluster_weights("uniform", 3)
    assert uniform.arranged(r).sum(0).sort().values.tolist() == [2.0, 2.5, 6.0]
