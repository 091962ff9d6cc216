"""What every module must do, whatever its mathematics. A new module adds one line to ``MODULES``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scalloy._keys import CONDITION_KEY
from scalloy.blocks.composed import Rows
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import factories
from scalloy.train.plan import TermsPlan
from scalloy.vae.autoencoder import AE
from scalloy.vae.base import Batch, Sizes, Terms
from scalloy.vae.cgmdvae import CGMDVAE
from scalloy.vae.gmvae import GMVAE
from scalloy.vae.poisevae import POISEVAE
from scalloy.vae.trvae import TRVAE
from scalloy.vae.vae import VAE, library_prior
from scalloy.vae.vsc import VSC

SIZES = Sizes(n_vars=12, n_batch=2, n_cats=(3,), n_cont=1, n_others=(4, 30))
SMALL = NetworkSettings(n_hidden=8, n_latent=3, dropout_rate=0.0)


def cgmdvae(lik, n_w=0, **more):
    prior = MixturePrior(
        factories.components("shared", SIZES, 4, 3, n_w),
        factories.weights("global", SIZES, 4, 1.0),
        placed=True,
    )
    return CGMDVAE(SIZES, lik, prior, SMALL, n_w=n_w, **more)


def gmvae(lik, networks=SMALL, n_clusters=4, **more):
    prior = MixturePrior(
        factories.components("decoder", SIZES, n_clusters, 3, 0),
        factories.cluster_weights("learned", n_clusters),
        placed=n_clusters > 1,
    )
    return GMVAE(SIZES, lik, prior, networks, **more)


def poisevae(lik, joint, *others):
    prior = factories.joint(joint, 3, 3, kappa=0.7, n_chains=16, n_sweeps=1, chains="kept")
    sizes = zip(others, SIZES.n_others, strict=True)
    liks = [factories.other_likelihood("likelihoods", name, n, 8) for name, n in sizes]
    return POISEVAE(SIZES, [lik, *liks], prior, SMALL, hide=(0.25, 0.25, 0.25), hidden_rate=0.0)


MODULES = {
    "gmvae": gmvae,
    "gmvae_all": lambda lik: gmvae(lik, replace(SMALL, encode_covariates=True), n_decoded=4),
    "gmvae_one": lambda lik: gmvae(lik, n_clusters=1),
    "cgmdvae": cgmdvae,
    "cgmdvae_w": lambda lik: cgmdvae(lik, n_w=2, amortised=True),
    "cgmdvae_mmd": lambda lik: cgmdvae(lik, mmd=True),
    "trvae": lambda lik: TRVAE(SIZES, lik, replace(SMALL, n_layers=2)),
    "trvae_first": lambda lik: TRVAE(SIZES, lik, SMALL, inject_all=False),
    "vsc": lambda lik: VSC(SIZES, lik, SMALL),
    "vsc_pseudo": lambda lik: VSC(SIZES, lik, SMALL, pseudo_inputs=torch.rand(4, 12)),
    "ae": lambda lik: AE(SIZES, lik, SMALL),
    "ae_deep_encode": lambda lik: AE(SIZES, lik, replace(SMALL, n_layers=2, encode_covariates=True)),
    "poisevae": lambda lik: poisevae(lik, "poise", "background", "poisson"),
    "poisevae_independent": lambda lik: poisevae(lik, "independent", "normal", "detected"),
    "poisevae_product": lambda lik: poisevae(lik, "product", "nb", "nb_total"),
    "vae": lambda lik: VAE(SIZES, lik, SMALL),
    "vae_batch_norm": lambda lik: VAE(SIZES, lik, replace(SMALL, norm="batch")),
    "vae_learned_library": lambda lik: VAE(
        SIZES,
        lik,
        replace(SMALL, encode_covariates=True),
        library_prior=library_prior(torch.randn(10) + 3, torch.arange(10) % 2, 2),
    ),
}
LIKELIHOODS = ["nb", "zinb", "poisson", "zip", "pc-nb", "pc-poisson", "mse", "gaussian", "bernoulli"]
every = pytest.mark.parametrize(("module", "likelihood"), [(m, k) for m in MODULES for k in LIKELIHOODS])


def build(module, likelihood):
    torch.manual_seed(0)
    name = likelihood.removeprefix("pc-")
    return MODULES[module](factories.likelihood(name, SIZES, 8, k_max=3 * (name != likelihood)))


def tensors(n=20, seed=0, *, sparse=True):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.poisson(rng.gamma(0.6, 3, (n, 12))), dtype=torch.float32)
    x[:, 0] += 1
    return {
        "X": x.to_sparse_csr() if sparse else x,
        "batch": torch.tensor(rng.integers(2, size=(n, 1))),
        "extra_categorical_covs": torch.tensor(rng.integers(3, size=(n, 1))),
        "second": torch.tensor(rng.poisson(5, (n, 4)), dtype=torch.float32),
        "modality_3": torch.tensor(rng.poisson(0.3, (n, 30)), dtype=torch.float32).to_sparse_csr(),
        "extra_continuous_covs": torch.tensor(rng.normal(size=(n, 1)), dtype=torch.float32),
    }


def terms_with(module, batch, seed=0):
    torch.manual_seed(seed)
    return module.objective(batch)


@every
def test_terms_are_per_cell_and_finite(module, likelihood):
    terms = terms_with(build(module, likelihood), Batch.of(tensors()))
    assert isinstance(terms, Terms)
    for value in (terms.recon, *terms.kl.values()):
        assert value.shape == (20,)
        assert torch.isfinite(value).all()
    if module not in {
        "cgmdvae",
        "cgmdvae_mmd",
        "cgmdvae_w",
        "poisevae",
    }:  # there only the mean over samples is not negative
        assert all((v >= -1e-5).all() for v in terms.kl.values())


@every
def test_bfloat16_networks_leave_the_objective_in_float32(module, likelihood):
    """Only products of networks are in bfloat16: the likelihood of what they say is that without autocast."""
    made, batch = build(module, likelihood), Batch.of(tensors())
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_with(made, batch)
        q = made.encode(batch)
        p = made.decode(batch, made.draw(q))
        value = made.likelihood.log_prob(p["x"], batch.x)
    assert {v.dtype for v in (terms.recon, *terms.kl.values(), *terms.kl_global.values())} == {torch.float32}
    torch.testing.assert_close(value, made.likelihood.log_prob(p["x"], batch.x), rtol=0, atol=0)
    exact = terms_with(made, batch)
    torch.testing.assert_close(terms.recon.mean(), exact.recon.mean(), rtol=0.05, atol=0.5)
    assert not torch.equal(terms.recon, exact.recon)  # that bfloat16 was there at all


def without_data(value):
    """On torch's device that has shapes and no values: whoever asks for one fails, as a GPU would wait."""
    if value.layout != torch.sparse_csr:
        return value.to("meta")
    parts = (t.to("meta") for t in (value.crow_indices(), value.col_indices(), value.values()))
    return torch.sparse_csr_tensor(*parts, size=value.shape)


@every
def test_no_step_waits_for_a_device(module, likelihood):
    """Forward, backward and the sum of the terms need no value on the host, nor any that is on a CPU."""
    made = build(module, likelihood).to("meta")
    plan = TermsPlan(made)
    plan.n_obs_training = 100
    batch = Batch.of({k: without_data(v) for k, v in tensors().items()})
    means = made.objective(batch).means()
    plan.weigh(means, 0.5).backward()
    assert all(
        p.grad is not None and p.grad.device.type == "meta" for p in made.parameters() if p.requires_grad
    )


@every
def test_gradient_reaches_every_parameter(module, likelihood):
    made = build(module, likelihood)
    terms = terms_with(made, Batch.of(tensors()))
    (terms.recon.mean() + sum(v.mean() for v in (*terms.kl.values(), *terms.kl_global.values()))).backward()
    trained = {k: p.grad for k, p in made.named_parameters() if p.requires_grad}
    missing = [k for k, grad in trained.items() if grad is None or not grad.abs().sum() > 0]
    assert not missing


@every
def test_sparse_equals_dense(module, likelihood):
    made = build(module, likelihood).eval()
    sparse, dense = (terms_with(made, Batch.of(tensors(sparse=s))) for s in (True, False))
    torch.testing.assert_close(sparse.recon, dense.recon, rtol=1e-4, atol=1e-3)
    for key, value in sparse.kl.items():
        torch.testing.assert_close(value, dense.kl[key], rtol=1e-4, atol=1e-4)


@every
def test_permuting_cells_permutes_terms(module, likelihood):
    made = build(module, likelihood).eval()
    given, order = tensors(), torch.randperm(20)
    moved = {
        k: v[order] if v.layout == torch.strided else v.to_dense()[order].to_sparse_csr()
        for k, v in given.items()
    }
    code = made.encode(Batch.of(given))["z"].mean
    torch.testing.assert_close(made.encode(Batch.of(moved))["z"].mean, code[order], rtol=1e-4, atol=1e-5)
    batch, moved = Batch.of(given), Batch.of(moved)
    latents = {k: v.mean for k, v in made.encode(batch).items()}
    there = made.terms(batch, made.encode(batch), latents, made.decode(batch, latents))
    latents = {k: v[order] for k, v in latents.items()}
    here = made.terms(moved, made.encode(moved), latents, made.decode(moved, latents))
    torch.testing.assert_close(here.recon, there.recon[order], rtol=1e-4, atol=1e-3)


@every
def test_a_cell_without_counts_and_a_million_stay_finite(module, likelihood):
    made = build(module, likelihood)
    x = torch.zeros(3, 12)
    x[1, 4], x[2] = 1e6, 1.0
    given = {**tensors(3), "X": x.to_sparse_csr()}
    terms = terms_with(made, Batch.of(given))
    terms.recon.sum().backward()
    assert torch.isfinite(terms.recon).all()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


@every
def test_scvi_contract(module, likelihood):
    """scvi-tools' forward, loss, transform_batch, several samples and predictive samples."""
    made = build(module, likelihood)
    given = tensors()
    inference, generative, loss = made(given)
    assert inference["z"].shape == (20, 3)
    assert loss.n_obs_minibatch == 20
    total = loss.reconstruction_loss_sum / 20 + loss.kl_local_sum / 20 + sum(loss.extra_metrics.values())
    torch.testing.assert_close(loss.loss, total, rtol=1e-4, atol=1e-3)
    made.eval()
    inference, generative = made(given, inference_kwargs={"n_samples": 4}, compute_loss=False)
    assert inference["z"].shape == (4, 20, 3)
    assert generative["px"].mean.shape == (4, 20, 12)
    plain = made.generative(inference["batch"], {k: v[0] for k, v in inference["latents"].items()})
    moved = made.generative(
        inference["batch"], {k: v[0] for k, v in inference["latents"].items()}, transform_batch=1
    )
    was_there = given["batch"][:, 0] == 1
    torch.testing.assert_close(moved["px"].mean[was_there], plain["px"].mean[was_there])
    assert (moved["px"].mean[~was_there] != plain["px"].mean[~was_there]).any()
    assert made.sample(given, 2).shape == (20, 12, 2)


def test_what_the_networks_ignore_changes_nothing():
    made = build("vae", "nb").eval()
    batch = Batch.of(tensors())
    other = replace(batch, y=torch.ones(20, dtype=torch.long))
    torch.testing.assert_close(terms_with(made, batch).recon, terms_with(made, other).recon)


# conditions that are made of parts ----------------------------------------------------------------

ONE_EACH = Rows(np.arange(3)[:, None], np.ones((3, 1), np.float32), 3)
OF_PARTS = Rows(
    np.array([[0, 1], [2, 4], [1, 3]]), np.array([[1, 0.5], [0.2, 1], [1, 1]], dtype=np.float32), 5
)


def conditional(name, rows):
    sizes = replace(SIZES, n_conditions=3, rows=rows)
    torch.manual_seed(0)
    lik = factories.likelihood("nb", sizes, 8, k_max=0)
    if name == "trvae":
        return TRVAE(sizes, lik, SMALL)
    n_w = 2 if name == "full" else 0
    components = factories.components(name, sizes, 4, 3, n_w)
    weights = factories.weights("condition", sizes, 4, 1.0)
    more = {"w_prior": "condition", "amortised": True} if n_w else {}
    return CGMDVAE(sizes, lik, MixturePrior(components, weights, placed=True), SMALL, n_w=n_w, **more)


def under_conditions(n=20):
    return {**tensors(n), CONDITION_KEY: torch.arange(n)[:, None] % 3}


with_conditions = pytest.mark.parametrize("name", ["decoder", "shared", "interaction", "full", "trvae"])


@with_conditions
def test_conditions_of_one_part_each_are_mere_categories(name):
    """The same objective, to the last bit, and the same gradient."""
    plain, composed = conditional(name, None), conditional(name, ONE_EACH)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in composed.state_dict().items()
    }
    for p in plain.parameters():
        torch.nn.init.normal_(p, std=0.2)
    composed.load_state_dict(plain.state_dict())
    batch = Batch.of(under_conditions())
    for module in (plain, composed):
        terms = terms_with(module, batch)
        (terms.recon.sum() + sum(v.sum() for v in terms.kl.values())).backward()
    assert torch.equal(terms_with(plain, batch).recon, terms_with(composed, batch).recon)
    for (key, p), q in zip(plain.named_parameters(), composed.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:  # whose sums over cells are in another order
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5)


@with_conditions
def test_every_weight_of_a_part_is_reached_and_nothing_waits_for_a_device(name):
    made, given = conditional(name, OF_PARTS), under_conditions()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    terms = terms_with(made, Batch.of(given))
    assert all(torch.isfinite(v).all() for v in (terms.recon, *terms.kl.values()))
    (terms.recon.sum() + sum(v.sum() for v in terms.kl.values())).backward()
    for key, p in made.named_parameters():
        if len(p) == OF_PARTS.n_columns and p.ndim > 1 and "head" not in key:
            assert p.grad.flatten(1).any(1).all(), key
    far = conditional(name, OF_PARTS).to("meta")
    means = far.objective(Batch.of({k: without_data(v) for k, v in given.items()})).means()
    plan = TermsPlan(far)
    plan.n_obs_training = 100
    plan.weigh(means, 0.5).backward()
