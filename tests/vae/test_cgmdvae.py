"""CGMDVAE: the mathematics of its objective, each against something computed in another way."""

from __future__ import annotations

import pytest
import torch

from scalloy.blocks.priors import MixturePrior
from scalloy.models import _options
from scalloy.vae import placing
from scalloy.vae.base import Batch, Sizes
from scalloy.vae.cgmdvae import CGMDVAE
from scalloy.vae.vae import VAE

N, G, K = 30, 12, 4


def build(n_clusters=K, n_labels=0, *, placed=True, conditioning="decoder", weights="global", n_w=0, **more):
    torch.manual_seed(0)
    sizes = Sizes(n_vars=G, n_conditions=2, n_labels=n_labels)
    prior = MixturePrior(
        _options.components(conditioning, sizes, n_clusters, 3, n_w),
        _options.weights(weights, sizes, n_clusters, 1.0),
        n_labels=n_labels,
        n_conditions=2,
    )
    module = CGMDVAE(
        sizes,
        _options.likelihood("nb", sizes, 8),
        prior,
        n_hidden=8,
        n_latent=3,
        n_w=n_w,
        dropout_rate=0.0,
        **more,
    ).eval()
    if placed:
        module.prior.placed.fill_(1.0)
        for parameter in module.prior.components.parameters():
            torch.nn.init.normal_(parameter)
        module.prior.components.log_scale.data.mul_(0.3)
    return module


def cells(y=None, c=None):
    gen = torch.Generator().manual_seed(1)
    x = torch.poisson(2 * torch.rand(N, G, generator=gen), generator=gen) + torch.eye(N, G)
    c = torch.arange(N) % 2 if c is None else c
    zeros = torch.zeros(N, dtype=torch.long)
    return Batch(x=x.to_sparse_csr(), log_ell=x.sum(1, keepdim=True).log(), b=zeros, c=c, y=y)


def terms(module, batch, seed=0):
    torch.manual_seed(seed)
    return module.objective(batch)


def total(t):
    return t.recon + sum(t.kl.values())


@pytest.mark.parametrize("weights", ["global", "uniform", "empirical", "condition"])
def test_z_and_y_add_up_to_the_integrated_mixture(weights):
    module, batch = build(weights=weights), cells()
    torch.manual_seed(0)
    q = module.encode(batch)
    z = module.draw(q)
    p = module.decode(batch, z)
    t = module.terms(batch, q, z, p)
    expected = q["z"].log_prob(z["z"]) - p["z"].log_prob(z["z"])
    torch.testing.assert_close(t.kl["z"] + t.kl["y"], expected, rtol=1e-4, atol=1e-5)


def test_before_placing_the_prior_is_standard_normal():
    module, batch = build(placed=False), cells()
    module.prior.components.loc.data.normal_()
    torch.manual_seed(0)
    q = module.encode(batch)
    z = module.draw(q)["z"]
    t = terms(module, batch)
    expected = q["z"].log_prob(z) - torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    torch.testing.assert_close(t.kl["z"] + t.kl["y"], expected, rtol=1e-4, atol=1e-5)


def test_one_component_is_a_conditional_vae():
    """K = 1 at N(0, I) with the weights of a VAE: the same bound in expectation."""
    module, batch = build(n_clusters=1, placed=False), cells()
    module.prior.placed.fill_(1.0)
    vae = VAE(Sizes(n_vars=G, n_cats=(2,)), module.likelihood, n_hidden=8, n_latent=3, dropout_rate=0.0,
              encode_covariates=True).eval()  # fmt: skip
    vae.enc_z, vae.dec_x = module.enc_z, module.dec_x
    other = Batch(batch.x, batch.log_ell, batch.b, cats=batch.c.unsqueeze(-1))
    ours = torch.stack([total(terms(module, batch, s)) for s in range(400)])
    theirs = torch.stack([total(terms(vae, other, s)) for s in range(400)])
    difference = ours - theirs  # same draws: only the noise of the KL remains
    assert (difference.mean(0).abs() < 5 * difference.std(0) / 20 + 1e-4).all()


def test_exact_is_not_above_amortised_at_the_same_draws():
    module, batch = build(amortised=True), cells()
    amortised = torch.stack([total(terms(module, batch, s)) for s in range(300)])
    module.enc_y = None
    exact = torch.stack([total(terms(module, batch, s)) for s in range(300)])
    difference = amortised - exact
    assert (difference.mean(0) > -4 * difference.std(0) / 300**0.5).all()


def test_permuting_components_changes_nothing():
    module, batch = build(), cells()
    before = terms(module, batch)
    order = torch.tensor([2, 0, 3, 1])
    for parameter in (module.prior.components.loc, module.prior.components.log_scale):
        parameter.data = parameter.data[order]
    module.prior.weights.log_gamma.data = module.prior.weights.log_gamma.data[:, order]
    after = terms(module, batch)
    for key in before.kl:
        torch.testing.assert_close(before.kl[key], after.kl[key], rtol=1e-4, atol=1e-5)


def test_masked_labels_are_no_labels():
    with_labels, without = build(n_labels=2), build()
    unknown = cells(y=torch.full((N,), 2))
    a, b = terms(with_labels, unknown), terms(without, cells())
    torch.testing.assert_close(total(a), total(b))
    torch.testing.assert_close(a.penalty["label"], torch.zeros(N))


@pytest.mark.parametrize("amortised", [False, True])
def test_a_known_label_leaves_its_component_only(amortised):
    module = build(n_labels=2, amortised=amortised)
    y = torch.arange(N) % 3  # two labels and unknown
    batch = cells(y=y)
    torch.manual_seed(0)
    q = module.encode(batch)
    z = module.draw(q)
    p = module.decode(batch, z)
    t = module.terms(batch, q, z, p)
    log_r = module.log_assignment(p["z"], z["z"], batch.c)
    for i in range(N):
        if y[i] == 2:
            assert t.penalty["label"][i].abs() < 1e-5
            continue
        k = int(y[i])
        torch.testing.assert_close(t.penalty["label"][i], -log_r[i, k])
        torch.testing.assert_close(t.kl["y"][i], -p["z"].log_pi[0, k], rtol=1e-4, atol=1e-5)
        if not amortised:
            alone = q["z"].log_prob(z["z"])[i] - p["z"].component_log_prob(z["z"])[i, k]
            torch.testing.assert_close(t.kl["z"][i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["decoder", "shared", "interaction", "full"])
@pytest.mark.parametrize("n_w", [0, 2])
@pytest.mark.parametrize("amortised", [False, True])
def test_gradient_reaches_every_parameter(conditioning, n_w, amortised):
    made = {"conditioning": conditioning, "n_w": n_w, "amortised": amortised, "w_prior": True, "ridge": 1.0}
    module = build(n_labels=2, **made)
    t = terms(module, cells(y=torch.arange(N) % 3))
    loss = total(t).mean() + sum(v.mean() for v in t.penalty.values()) + sum(t.kl_global.values())
    loss.backward()
    missing = [k for k, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


def test_nothing_draws_the_priors_of_w_together():
    """Its posterior follows the prior of its condition, at the same cost."""
    module, batch = build(n_w=2, w_prior=True), cells()
    before, q = terms(module, batch).kl["w"], module.encode(batch)["w"]
    with torch.no_grad():
        module.prior_w[1, :2] += 5.0
    after, moved = terms(module, batch).kl["w"], module.encode(batch)["w"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    step = 5.0 * (batch.c == 1).float().unsqueeze(-1).expand(-1, 2)
    torch.testing.assert_close(moved.mean - q.mean, step, rtol=1e-4, atol=1e-5)
    assert (module.prior_w[0, :2] - module.prior_w[1, :2]).abs().max() > 1


def test_placing_happens_once_and_where_the_cells_are():
    module, batch = build(placed=False), cells()
    module.begin_epoch(0.1, lambda: [batch])
    assert not module.prior.placed
    module.begin_epoch(0.3, lambda: [batch, batch])
    assert module.prior.placed
    torch.testing.assert_close(
        module.prior.weights.log_gamma.exp().sum(), torch.tensor(2.0 * N + K), rtol=1e-4, atol=0
    )
    before = module.prior.components.loc.clone()
    module.begin_epoch(0.5, lambda: [batch])
    assert torch.equal(before, module.prior.components.loc)


def test_some_of_many_cells_show_where_groups_are_and_all_of_rare_labels(monkeypatch):
    monkeypatch.setattr(placing, "MANY", 2 * N)
    monkeypatch.setattr(placing, "RARE", 5)
    y = torch.arange(N) % 2
    y[0] = 2
    batches = [cells(torch.roll(y, k)) for k in range(10)]
    module, asked = build(n_labels=3, placed=False), {}
    place = module.prior.place

    def placed(mean, variance, c, y, x, *, each):
        asked.update(y=y, each=each)
        place(mean, variance, c, y, x, each=each)

    monkeypatch.setattr(module.prior, "place", placed)
    assert module.begin_epoch(1.0, lambda: batches)
    assert torch.bincount(asked["y"]).tolist() == [28, 30, 5]  # of two batches, and the rare cell of three
    assert asked["each"] == pytest.approx(10 * N / 63)
    weight = module.prior.weights.log_gamma.exp() - module.prior.weights.alpha
    torch.testing.assert_close(weight.sum(), torch.tensor(10.0 * N), rtol=1e-4, atol=0)
