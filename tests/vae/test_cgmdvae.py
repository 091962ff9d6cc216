"""CGMDVAE: the mathematics of its objective, each against something computed in another way."""

from __future__ import annotations

import pytest
import torch

from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import factories
from scalloy.vae import component_init, routes
from scalloy.vae.base import Batch, Sizes
from scalloy.vae.cgmdvae import CGMDVAE
from scalloy.vae.vae import VAE

N, G, K = 30, 12, 4


def build(n_clusters=K, n_labels=0, *, placed=True, conditioning="decoder", weights="global", n_w=0, **more):
    torch.manual_seed(0)
    sizes = Sizes(n_vars=G, n_conditions=2, n_labels=n_labels)
    prior = MixturePrior(
        factories.components(conditioning, sizes, n_clusters, 3, n_w),
        factories.weights(weights, sizes, n_clusters, 1.0),
        n_labels=n_labels,
        n_conditions=2,
    )
    module = CGMDVAE(
        sizes,
        factories.likelihood("nb", sizes, 8),
        prior,
        NetworkSettings(n_hidden=8, n_latent=3, dropout_rate=0.0),
        n_w=n_w,
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
    networks = NetworkSettings(n_hidden=8, n_latent=3, dropout_rate=0.0, encode_covariates=True)
    vae = VAE(Sizes(n_vars=G, n_cats=(2,)), module.likelihood, networks).eval()
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
@pytest.mark.parametrize(
    ("n_w", "w_prior"), [(0, "standard"), (2, "standard"), (2, "condition"), (2, "free")]
)
@pytest.mark.parametrize("amortised", [False, True])
def test_gradient_reaches_every_parameter(conditioning, n_w, w_prior, amortised):
    made = {
        "conditioning": conditioning,
        "n_w": n_w,
        "amortised": amortised,
        "w_prior": w_prior,
        "ridge": 1.0,
    }
    module = build(n_labels=2, **made)
    t = terms(module, cells(y=torch.arange(N) % 3))
    loss = total(t).mean() + sum(v.mean() for v in t.penalty.values()) + sum(t.kl_global.values())
    loss.backward()
    missing = [k for k, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


# style ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w_prior", ["condition", "free"])
def test_the_kl_teaches_the_prior_of_w_where_its_posteriors_are(w_prior):
    """The derivatives (m - a) / s^2 and 1 - (b^2 + (a - m)^2) / s^2, at m = 0 and log s = 0."""
    module, batch = build(n_w=2, w_prior=w_prior), cells()
    assert not module.prior_w.any()
    q = module.encode(batch)["w"]
    terms(module, batch).kl["w"].sum().backward()
    a, b = q.mean, q.stddev
    each = torch.cat([-a, 1 - b**2 - a**2], -1)
    expected = torch.zeros(2, 4).index_add_(0, batch.c, each)
    torch.testing.assert_close(module.prior_w.grad, expected, rtol=1e-4, atol=1e-5)
    assert (expected.abs() > 0.1).any(-1).all()


def test_w_tells_a_condition_that_it_has_not_been_told():
    module, batch, other = build(n_w=2, w_prior="condition"), cells(), cells(c=1 - torch.arange(N) % 2)
    assert torch.equal(module.encode(batch)["w"].mean, module.encode(other)["w"].mean)
    with torch.no_grad():
        module.prior_w.normal_()
    t, w = terms(module, batch), module.encode(batch)["w"].mean
    m, s = module.prior_w.detach().chunk(2, -1)
    density = torch.distributions.Normal(m, s.exp()).log_prob(w.unsqueeze(1)).sum(-1).exp()
    told = density[torch.arange(N), batch.c] / density.sum(-1)
    torch.testing.assert_close(t.penalty["condition"], -told.log(), rtol=1e-4, atol=1e-5)
    assert "condition" not in terms(build(n_w=2), batch).penalty
    assert "condition" not in terms(build(n_w=2, w_prior="free"), batch).penalty


def test_in_old_models_the_posterior_of_w_follows_its_prior():
    module, batch = build(n_w=2, w_prior="relative"), cells()
    before, q = terms(module, batch).kl["w"], module.encode(batch)["w"]
    with torch.no_grad():
        module.prior_w[1, :2] += 5.0
    after, moved = terms(module, batch).kl["w"], module.encode(batch)["w"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    step = 5.0 * (batch.c == 1).float().unsqueeze(-1).expand(-1, 2)
    torch.testing.assert_close(moved.mean - q.mean, step, rtol=1e-4, atol=1e-5)


# routes -----------------------------------------------------------------------------------------


def by_route(route, y=None, seed=0, **made):
    """Module, cells under condition 0, their posteriors and the latents under condition 1."""
    module = build(n_w=2, w_prior="condition", conditioning="interaction", **made)
    with torch.no_grad():
        module.prior_w.normal_()
        module.prior.components.head.weight.normal_(std=0.2)
    batch = cells(y=y, c=torch.zeros(N, dtype=torch.long))
    q = module.encode(batch)
    torch.manual_seed(seed)
    latents = module.draw(q)
    return module, batch, q, latents, routes.moved(module, batch, 1, q, latents, route)


@pytest.mark.parametrize("route", ["transport", "style"])
def test_routes_carry_w_to_the_prior_of_the_new_condition(route):
    module, _, q, latents, new = by_route(route)
    (m, log_s), (m_to, log_s_to) = (row.chunk(2) for row in module.prior_w)
    w = q["w"].mean if route == "style" else latents["w"]
    torch.testing.assert_close(new["w"], m_to + (log_s_to - log_s).exp() * (w - m))


def test_transport_is_that_of_each_component_at_its_w():
    module, batch, _, latents, new = by_route("transport")
    one, zero = torch.ones(N, dtype=torch.long), torch.zeros(N, dtype=torch.long)
    here, there = module.prior(zero, latents["w"]), module.prior(one, new["w"])
    r = module.log_assignment(here, latents["z"], batch.c).exp()
    expected = torch.zeros_like(latents["z"])
    for i in range(N):
        for k in range(K):
            residual = (latents["z"][i] - here.loc[i, k]) / here.scale[i, k]
            expected[i] += r[i, k] * (there.loc[i, k] + there.scale[i, k] * residual)
    torch.testing.assert_close(new["z"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("route", ["transport", "style"])
def test_a_known_label_stays_on_every_route(route):
    y = torch.arange(N) % 3  # two labels and unknown
    module, _, _, latents, new = by_route(route, y=y, n_labels=2)
    one = torch.ones(N, dtype=torch.long)
    here, there = module.prior(0 * one, latents["w"]), module.prior(one, new["w"])
    for i in range(N):
        if y[i] == 2:
            continue
        k = int(y[i])
        if route == "style":
            expected = there.loc[i, k]
        else:
            expected = (
                there.loc[i, k] + there.scale[i, k] * (latents["z"][i] - here.loc[i, k]) / here.scale[i, k]
            )
        torch.testing.assert_close(new["z"][i], expected, rtol=1e-4, atol=1e-4)


def test_the_prototype_does_not_depend_on_a_sample():
    found, components = [], []
    for seed in (0, 1):
        module, batch, q, latents, new = by_route("style", seed=seed)
        found.append(new)
        here = module.prior(batch.c, q["w"].mean)
        components.append(module.log_assignment(here, latents["z"], batch.c).argmax(-1))
    assert (components[0] != components[1]).any()  # by a sample it would
    for key in ("w", "z"):
        assert torch.equal(found[0][key], found[1][key])


# evidence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["global", "condition", "empirical", "uniform", "local"])
def test_weights_of_a_new_cell_are_their_posterior_means_and_sum_to_one(weights):
    module, c = build(weights=weights), torch.tensor([0, 1])
    with torch.no_grad():
        for parameter in module.prior.weights.parameters():
            parameter.normal_()
    pi = module.prior.density(c).log_pi.exp().expand(2, -1)
    torch.testing.assert_close(pi.sum(-1), torch.ones(2))
    if weights in {"global", "condition"}:
        gamma = module.prior.weights.log_gamma.exp().expand(2, -1)
        drawn = torch.distributions.Dirichlet(gamma).sample((100_000,))
        torch.testing.assert_close(pi, drawn.mean(0), atol=5e-3, rtol=0)
        lower = module.prior(c).log_pi.exp()
        assert (lower.sum(-1) < 0.99).all()  # exp(E log pi), for the ELBO
    module.prior.used[2] = False
    torch.testing.assert_close(module.prior.density(c).log_pi.exp().sum(-1).expand(2), torch.ones(2))
    assert (module.prior.density(c).log_pi.exp()[:, 2] == 0).all()


@pytest.mark.parametrize("n_w", [0, 2])
def test_evidence_where_all_components_are_alike_is_that_of_a_vae(n_w):
    """q(z | x) and all components are N(0, I): every importance weight is p(x | z), as of a VAE."""
    module, batch = build(n_w=n_w), cells()
    with torch.no_grad():
        for of in ("loc", "log_scale"):
            getattr(module.prior.components, of).zero_()
        for head in (e.head for e in (module.enc_z, module.enc_w) if e is not None):
            for layer in (head.loc, head.log_variance):
                layer.weight.zero_()
                layer.bias.zero_()
        if n_w:
            module.prior.components.head.weight.zero_()
            module.prior.components.head.bias.zero_()
    q = module.encode(batch)
    latents = module.draw(q)
    p = module.decode(batch, latents)
    expected = module.likelihood.log_prob(p["x"], batch.x)
    torch.testing.assert_close(module.log_weight(batch, q, latents, p), expected, rtol=1e-5, atol=1e-4)


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
    monkeypatch.setattr(component_init, "MANY", 2 * N)
    monkeypatch.setattr(component_init, "RARE", 5)
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
