"""Every likelihood against scipy, against its dense path, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import scipy.stats as st
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as hs

from scalloy.blocks import distributions as dist
from scalloy.blocks import likelihoods as lik
from scalloy.kernels import count_log_prob, cpu
from scalloy.models._core import factories
from scalloy.vae.base import Sizes

COUNTS = ["poisson", "nb", "zip", "zinb"]
PIECEWISE = ["pc-poisson", "pc-nb"]
ALL = [
    *COUNTS,
    *PIECEWISE,
    "constrained_poisson",
    "gaussian",
    "mse",
    "normal",
    "bernoulli",
    "bernoulli_given",
]


def make(name, n=6, g=9, *, free=False, theta_rows=1, dtype=torch.float64, seed=0):
    """A count distribution with leaves that want a gradient."""
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=gen, dtype=dtype)  # noqa: E731
    leaves = {"logits": rand(n, g) * 1.5}
    if not free:
        leaves["log_ell"] = rand(n, 1) + 3
    if "nb" in name:
        leaves["log_theta"] = rand(theta_rows, g)
    if name.startswith("zi"):
        leaves["gate"] = rand(n, g)
    if name in PIECEWISE:
        leaves["categories"] = rand(n, 4, g)
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    rate = dist.Rate(leaves["logits"], leaves.get("log_ell"))
    base = dist.NegativeBinomial(rate, leaves["log_theta"]) if "nb" in name else dist.Poisson(rate)
    if name in PIECEWISE:
        return dist.PiecewiseCategorical(base, leaves["categories"]), leaves
    return (dist.ZeroInflated(base, leaves["gate"]) if "gate" in leaves else base), leaves


def counts(n=6, g=9, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(0.5, 4, (n, g)))
    x[0] = 0
    return torch.tensor(x, dtype=dtype)


def scipy_log_pmf(p, x):
    base = getattr(p, "base", p)
    if isinstance(p, dist.PiecewiseCategorical):
        logits = p.logits.detach().numpy()
        pi = np.exp(logits) / np.exp(logits).sum(-2, keepdims=True)
        own = np.take_along_axis(pi, np.minimum(x, 3).astype(int)[..., None, :], -2)[..., 0, :]
        return np.log(own) + np.where(x >= 3, scipy_log_pmf(base, np.maximum(x - 3, 0)), 0)
    mu = base.mean.detach().numpy()
    if isinstance(base, dist.NegativeBinomial):
        theta = np.broadcast_to(base.log_theta.exp().detach().numpy(), mu.shape)
        out = st.nbinom.logpmf(x, theta, theta / (theta + mu))
    else:
        out = st.poisson.logpmf(x, mu)
    if base is p:
        return out
    pi = torch.sigmoid(p.gate).detach().numpy()
    return np.where(x == 0, np.log(pi + (1 - pi) * np.exp(out)), np.log1p(-pi) + out)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("theta_rows", [1, 6])
@pytest.mark.parametrize("name", COUNTS + PIECEWISE)
def test_equals_scipy(name, theta_rows, free):
    p, _ = make(name, theta_rows=theta_rows, free=free)
    x = counts()
    expected = scipy_log_pmf(p, x.numpy())
    np.testing.assert_allclose(p.log_pmf(x).detach(), expected, rtol=1e-10)
    np.testing.assert_allclose(p.log_prob(x.to_sparse_csr()).detach(), expected.sum(1), rtol=1e-10)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("theta_rows", [1, 6])
@pytest.mark.parametrize("name", COUNTS)
def test_fused_gradient_equals_autograd_and_finite_differences(name, theta_rows, free):
    x = counts()
    p, leaves = make(name, theta_rows=theta_rows, free=free)
    weight = torch.linspace(0.2, 2, len(x), dtype=x.dtype)
    dense = torch.autograd.grad((p.log_prob(x) * weight).sum(), list(leaves.values()))
    p, leaves = make(name, theta_rows=theta_rows, free=free)
    sparse = torch.autograd.grad((p.log_prob(x.to_sparse_csr()) * weight).sum(), list(leaves.values()))
    for key, a, b in zip(leaves, sparse, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")
    keys = ("logits", "log_ell", "log_theta", "gate")
    args = [leaves.get(k) for k in keys]

    def function(*tensors):
        return count_log_prob.count_log_prob(
            x.to_sparse_csr(), tensors[0], log_ell=tensors[1], log_theta=tensors[2], gate=tensors[3]
        )

    assert torch.autograd.gradcheck(function, args, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    name=hs.sampled_from(COUNTS),
    n=hs.integers(1, 40),
    g=hs.integers(2, 130),
    theta_per_cell=hs.booleans(),
    seed=hs.integers(0, 10_000),
)
def test_kernel_equals_torch_in_single_precision(name, n, g, theta_per_cell, seed):
    """The numba pass, the torch pass and the dense distribution agree, value and gradient."""
    x = counts(n, g, seed, torch.float32)
    results = []
    for path in ("kernel", "torch", "dense"):
        p, leaves = make(name, n, g, theta_rows=n if theta_per_cell else 1, dtype=torch.float32, seed=seed)
        rate, base = p.rate, getattr(p, "base", p)
        assert cpu.serves(rate.logits, rate.log_ell)
        if path == "dense":
            value = p.log_prob(x)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cpu, "serves", lambda *_, path=path: path == "kernel")
                theta = getattr(base, "log_theta", None)
                value = count_log_prob.count_log_prob(
                    x.to_sparse_csr(),
                    rate.logits,
                    log_ell=rate.log_ell,
                    log_theta=theta,
                    gate=getattr(p, "gate", None),
                )
        results.append((value, *torch.autograd.grad(value.sum(), list(leaves.values()))))
    for part, (kernel, torch_, dense) in enumerate(zip(*results, strict=True)):
        # gradients are differences of terms of the size of counts, means and dispersions, and may cancel to
        # nothing; that of a dispersion which cells share is a sum over them
        largest = max(x.max(), rate.log_mean.detach().exp().max(), torch.tensor(1.0))
        if part and list(leaves)[part - 1] == "log_theta":
            shared = 1 if theta_per_cell else n
            largest = shared * max(largest, base.log_theta.detach().exp().max())
        scale = dense.abs().max() if part == 0 else max(dense.abs().max(), largest)
        assert (kernel - dense).abs().max() <= 1e-5 * scale
        assert (torch_ - dense).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("name", COUNTS + PIECEWISE)
def test_sums_to_one_and_moments(name):
    p, _ = make(name, n=3, g=2, seed=3)
    grid = torch.arange(4000, dtype=torch.float64)
    pmf = torch.stack([p.log_pmf(x.expand(3, 2)).exp() for x in grid]).detach()
    torch.testing.assert_close(pmf.sum(0), torch.ones(3, 2, dtype=torch.float64), rtol=1e-8, atol=0)
    mean = (pmf * grid[:, None, None]).sum(0)
    torch.testing.assert_close(p.mean.detach(), mean, rtol=1e-6, atol=1e-9)
    variance = (pmf * (grid[:, None, None] - mean) ** 2).sum(0)
    torch.testing.assert_close(p.variance.detach(), variance, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", COUNTS + PIECEWISE)
def test_samples_have_the_moments(name):
    torch.manual_seed(0)
    p, _ = make(name, n=2, g=3, seed=5)
    draws = p.sample((40_000,))
    error = (p.variance / len(draws)).sqrt()
    assert ((draws.mean(0) - p.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0), p.variance.detach(), rtol=0.25, atol=0.05)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COUNTS + PIECEWISE)
@pytest.mark.parametrize("free", [False, True])
def test_extremes_stay_finite(name, dtype, free, sparse):
    """A cell of zeros, a million counts, a rate that vanishes or explodes where there are counts."""
    x = torch.zeros(4, 5, dtype=dtype)
    x[1, 0], x[2, 1], x[3] = 1e6, 7, 3
    logits = torch.zeros(4, 5, dtype=dtype)
    logits[2, 1], logits[3, 2] = -400.0, 120.0
    logits.requires_grad_()
    log_ell = None if free else torch.tensor([[0.0], [13.8], [2.0], [2.0]], dtype=dtype)
    rate = dist.Rate(logits, log_ell)
    theta = torch.tensor([[-30.0, 0, 30, 2, -2]], dtype=dtype, requires_grad=True)
    p = dist.NegativeBinomial(rate, theta) if "nb" in name else dist.Poisson(rate)
    if name.startswith("zi"):
        p = dist.ZeroInflated(p, torch.tensor([[-40.0, 40, 0, 5, -5]], dtype=dtype).expand(4, 5).clone())
    if name in PIECEWISE:
        p = dist.PiecewiseCategorical(
            p, torch.tensor([[-40.0], [40], [0]], dtype=dtype).expand(4, 3, 5).clone()
        )
    value = p.log_prob(x.to_sparse_csr() if sparse else x)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("theta_rows", [1, 6, "each"])
@pytest.mark.parametrize("name", COUNTS + PIECEWISE)
def test_several_samples_of_a_cell_read_the_same_sparse_counts(name, theta_rows, samples):
    """``(S, n, G)`` rates: value and gradient as from dense counts, every sample and cell in its place."""
    each, theta_rows = theta_rows == "each", 6 if theta_rows == "each" else theta_rows
    x, found = counts(), []
    for source in (x, x.to_sparse_csr()):
        one, leaves = make(name, theta_rows=theta_rows)
        more = torch.linspace(0, 1, samples, dtype=x.dtype)[:, None, None]
        rate = dist.Rate(leaves["logits"] * (1 + more), leaves["log_ell"])
        log_theta = leaves["log_theta"] + more * each if each and "nb" in name else leaves.get("log_theta")
        p = dist.NegativeBinomial(rate, log_theta) if "nb" in name else dist.Poisson(rate)
        if "gate" in leaves:
            p = dist.ZeroInflated(p, leaves["gate"] + more)
        if "categories" in leaves:
            p = dist.PiecewiseCategorical(
                p, leaves["categories"] + more[..., None] * torch.arange(4)[:, None]
            )
        value = p.log_prob(source)
        assert value.shape == (samples, 6)
        weight = torch.arange(6.0 * samples, dtype=x.dtype).view(samples, 6)
        found.append((value, *torch.autograd.grad((value * weight).sum(), list(leaves.values()))))
        torch.testing.assert_close(value[0], one.log_prob(x), rtol=1e-9, atol=0)
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-8, atol=1e-10)


def test_piecewise_of_a_poissons_own_probabilities_is_that_poisson():
    log_mean = torch.tensor([[-2.0, -1.0, 0.0, 0.5]], dtype=torch.float64)
    whole, k = dist.Poisson(dist.Rate(log_mean, None)), torch.arange(30, dtype=torch.float64)
    log_pi = torch.stack([whole.log_pmf(v.expand(1, 4)) for v in k[:20]], -2)
    p = dist.PiecewiseCategorical(dist.Poisson(dist.Rate(torch.full_like(log_mean, -3.0), None)), log_pi)
    torch.testing.assert_close(p.mean, whole.mean, rtol=1e-6, atol=0)


def test_piecewise_begins_at_the_frequencies_of_counts():
    """Categories before training have the probabilities of NB counts, and follow the library size."""
    made = factories.likelihood("nb", Sizes(n_vars=3), 4, k_max=4)
    mean, theta = torch.tensor([0.1, 1.0, 20.0]), 2.0
    ell = torch.full((10, 1), 5.0)
    made.start_at(mean, mean + mean**2 / theta, ell)
    p = made(torch.zeros(1, 4), ell[:1], torch.zeros(1, dtype=torch.long))
    for x in range(4):
        expected = st.nbinom.pmf(x, theta, theta / (theta + mean.numpy()))
        np.testing.assert_allclose(
            p.log_pmf(torch.full((1, 3), float(x))).exp()[0].detach(), expected, rtol=1e-3
        )
    np.testing.assert_allclose(p.mean[0].detach(), mean, rtol=0.02)
    deeper = made(torch.zeros(1, 4), ell[:1] + np.log(2), torch.zeros(1, dtype=torch.long))
    assert (deeper.mean[0, 0] / p.mean[0, 0]).item() == pytest.approx(2, rel=0.15)


def test_poisson_of_400_at_zero_costs_exactly_400_nats():
    rate = dist.Rate(torch.tensor([[np.log(400.0)]], dtype=torch.float64), None)
    value = dist.Poisson(rate).log_prob(torch.zeros(1, 1, dtype=torch.float64).to_sparse_csr())
    assert value.item() == pytest.approx(-400, rel=1e-12)


def test_nb_tends_to_poisson():
    p, leaves = make("poisson")
    theta = torch.full((1, 9), 12.0, dtype=torch.float64)
    nb = dist.NegativeBinomial(p.rate, theta)
    x = counts()
    torch.testing.assert_close(nb.log_prob(x), p.log_prob(x), rtol=1e-2, atol=0)
    assert leaves["logits"].requires_grad


@pytest.mark.parametrize("name", ALL)
def test_object_contract(name):
    """Hidden vector in, distribution out; dense and sparse agree; fractions have the right shape."""
    torch.manual_seed(1)
    plain = name.removeprefix("pc-")
    made = factories.likelihood(plain, Sizes(n_vars=9, n_batch=2), 4, k_max=2 * (plain != name))
    x = counts(dtype=torch.float32)[1:]
    x = x / x.max() if name == "bernoulli_given" else x
    log_ell, b = x.sum(-1, keepdim=True).log(), torch.tensor([0, 1, 0, 1, 1])
    made.start_at(x.mean(0), x.var(0), log_ell)
    p_x = made(torch.randn(5, 4), log_ell, b)
    dense, sparse = made.log_prob(p_x, x), made.log_prob(p_x, x.to_sparse_csr())
    assert dense.shape == (5,)
    torch.testing.assert_close(dense, sparse, rtol=1e-5, atol=1e-4)
    assert made.fraction(p_x).shape == (5, 9)
    assert p_x.sample().shape == (5, 9)
    features = made.features(x.to_sparse_csr())
    torch.testing.assert_close(features.to_dense(), made.features(x))
    if name in COUNTS + PIECEWISE:
        torch.testing.assert_close(made.fraction(p_x).sum(-1), torch.ones(5))


@pytest.mark.parametrize("name", ["nb", "zinb"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_dispersions(name, dispersion):
    made = factories.likelihood(name, Sizes(n_vars=9, n_batch=3), 4, dispersion=dispersion)
    x = counts(dtype=torch.float32)[1:]
    h, log_ell = torch.randn(5, 4), torch.ones(5, 1)
    b = torch.tensor([0, 1, 2, 2, 0])
    p_x = made(h, log_ell, b)
    log_theta = getattr(p_x, "base", p_x).log_theta
    assert log_theta.shape == ((1, 9) if dispersion == "gene" else (5, 9))
    if dispersion == "gene-batch":
        torch.testing.assert_close(log_theta[2], log_theta[3])
    made.log_prob(p_x, x.to_sparse_csr()).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())


def test_library_size_scales_the_mean():
    made = lik.NB(4, 9)
    h, b = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
    one, ten = (made(h, torch.full((5, 1), np.log(k)), b).mean for k in (1.0, 10.0))
    torch.testing.assert_close(ten, 10 * one)
    free = lik.NB(4, 9, library=False)
    torch.testing.assert_close(free(h, torch.zeros(5, 1), b).mean, free(h, torch.full((5, 1), 9.0), b).mean)


def test_gaussian_equals_scipy_on_scanpy_log_normalised_data():
    x = counts(dtype=torch.float32)[1:]
    adata = AnnData(x.numpy().copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    made = lik.Gaussian(4, 9)
    with torch.no_grad():
        made.log_sigma.copy_(torch.linspace(-1, 1, 9))
    p_x = made(torch.randn(5, 4), torch.zeros(5, 1), torch.zeros(5, dtype=torch.long))
    expected = st.norm.logpdf(adata.X, p_x.mean.detach(), np.exp(np.linspace(-1, 1, 9))).sum(1)
    np.testing.assert_allclose(made.log_prob(p_x, x.to_sparse_csr()).detach(), expected, rtol=1e-5)


def test_fixed_variance_is_half_the_squared_error():
    x = counts(dtype=torch.float32)[1:]
    made = lik.Gaussian(4, 9, on="given", variance="fixed")
    p_x = made(torch.randn(5, 4), torch.zeros(5, 1), torch.zeros(5, dtype=torch.long))
    half = 0.5 * ((x - p_x.mean) ** 2).sum(-1) + 4.5 * np.log(2 * np.pi)
    torch.testing.assert_close(-made.log_prob(p_x, x), half)


def test_bernoulli_equals_scipy():
    x = counts(dtype=torch.float32)[1:]
    made = lik.Bernoulli(4, 9)
    p_x = made(torch.randn(5, 4), torch.zeros(5, 1), torch.zeros(5, dtype=torch.long))
    expected = st.bernoulli.logpmf((x > 0).int(), p_x.mean.detach()).sum(1)
    np.testing.assert_allclose(made.log_prob(p_x, x).detach(), expected, rtol=1e-5)


def test_start_at_the_moments():
    """Before training the mean of every gene is already right."""
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.negative_binomial(2, 0.3, (4000, 6)) * (rng.random(6) < 2), dtype=torch.float32)
    log_ell = x.sum(-1, keepdim=True).clamp_min(1).log()
    made = lik.NB(3, 6)
    made.start_at(x.mean(0), x.var(0), log_ell)
    p_x = made(torch.zeros(4000, 3), log_ell, torch.zeros(4000, dtype=torch.long))
    torch.testing.assert_close(p_x.mean.mean(0), x.mean(0), rtol=0.02, atol=0.02)
    assert made.log_theta.exp().mean().item() == pytest.approx(2.0, rel=0.2)


def test_wrong_strings_name_the_right_ones():
    with pytest.raises(ValueError, match=r"`gene_likelihood='znb'` is not known.*Did you mean 'zinb'"):
        factories.likelihood("znb", Sizes(3), 4)
    with pytest.raises(ValueError, match=r"`dispersion='cell'` is not known"):
        factories.likelihood("nb", Sizes(3), 4, dispersion="cell")
    with pytest.raises(ValueError, match="has no meaning for `gene_likelihood='poisson'`"):
        factories.likelihood("poisson", Sizes(3), 4, dispersion="gene-cell")
    with pytest.raises(ValueError, match="`library='none'` has no meaning for `gene_likelihood='mse'`"):
        factories.likelihood("mse", Sizes(3), 4, library="none")
    for name, k_max in (("zinb", 3), ("bernoulli", 1), ("nb", -1)):
        with pytest.raises(
            ValueError, match=rf"`k_max={k_max}` with `gene_likelihood='{name}'` has no meaning"
        ):
            factories.likelihood(name, Sizes(3), 4, k_max=k_max)
    with pytest.raises(ValueError, match="ties the rates to the observed total"):
        factories.likelihood("constrained_poisson", Sizes(3), 4, library="learned")
