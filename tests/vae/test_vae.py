"""VAE and AE against exact answers; a user's own module on the same contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from scalloy.blocks.distributions import gaussian, standard_normal
from scalloy.blocks.likelihoods import Gaussian
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import factories
from scalloy.vae.autoencoder import AE
from scalloy.vae.base import Batch, Sizes, Terms, VAEModule
from scalloy.vae.vae import VAE, library_prior

SIZES = Sizes(n_vars=9)


def batch(n=30, seed=0, n_vars=9):
    gen = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.rand(n, n_vars, generator=gen) * 4, generator=gen)
    x[:, 0] += 1
    return Batch.of({"X": x.to_sparse_csr()})


class LinearVAE(VAEModule):
    """x ~ N(W z + m, 1), q(z | x) = N(V (x - m), S): probabilistic PCA as a module of one's own."""

    def __init__(self, n_vars, n_latent, *, exact):
        super().__init__()
        self.likelihood = Gaussian(n_latent, n_vars, on="given", variance="fixed")
        w, m = self.likelihood.head.weight.detach(), self.likelihood.head.bias.detach()
        precision = torch.eye(n_latent) + w.T @ w
        if exact:
            self.v, self.s = torch.linalg.solve(precision, w.T), torch.linalg.inv(precision)
        else:
            self.v, self.s = torch.zeros(n_latent, n_vars), torch.eye(n_latent)
        self.m = m
        self.marginal = MultivariateNormal(m, w @ w.T + torch.eye(n_vars))

    def encode(self, batch):
        mean = (batch.x - self.m) @ self.v.T
        return {"z": MultivariateNormal(mean, self.s.expand(len(mean), -1, -1))}

    def decode(self, batch, latents):
        p_z = MultivariateNormal(torch.zeros_like(latents["z"]), torch.eye(latents["z"].shape[-1]))
        return {"z": p_z, "x": self.likelihood(latents["z"], batch.log_ell, batch.b)}

    def terms(self, batch, q, latents, p):
        recon = -self.likelihood.log_prob(p["x"], batch.x)
        return Terms(recon, {"z": kl_divergence(q["z"], p["z"])})


def test_linear_vae_is_probabilistic_pca():
    """With the exact posterior every importance weight is the marginal likelihood itself."""
    x = torch.randn(20, 6)
    module = LinearVAE(6, 2, exact=True).eval()
    exact = module.marginal.log_prob(x)
    tensors = {"X": x, "size_factor": torch.ones(20, 1)}
    torch.testing.assert_close(module.marginal_ll(tensors, n_mc_samples=1), exact, rtol=1e-4, atol=1e-4)


def test_marginal_likelihood_rises_to_the_exact_one():
    """ELBO <= IWAE(5) <= IWAE(500) <= exact, with the prior as a poor posterior."""
    torch.manual_seed(0)
    x = torch.randn(300, 6)
    module = LinearVAE(6, 2, exact=False).eval()
    exact = module.marginal.log_prob(x).mean().item()
    tensors = {"X": x, "size_factor": torch.ones(300, 1)}
    t = [module.objective(Batch.of(tensors)) for _ in range(50)]
    elbo = torch.stack([-(v.recon + v.kl["z"]) for v in t]).mean().item()
    few, many = (module.marginal_ll(tensors, n_mc_samples=k).mean().item() for k in (5, 500))
    assert elbo < few < many < exact + 0.01
    assert many == pytest.approx(exact, abs=0.05)


def test_elbo_of_a_vae_by_hand():
    """Terms recomputed from the networks' outputs with torch's own distributions."""
    torch.manual_seed(0)
    module = VAE(
        SIZES, factories.likelihood("poisson", SIZES, 8), NetworkSettings(n_hidden=8, n_latent=2)
    ).eval()
    cells = batch()
    q = module.encode(cells)
    z = q["z"].mean
    terms = module.terms(cells, q, {"z": z}, module.decode(cells, {"z": z}))
    x = cells.x.to_dense()
    rate = x.sum(-1, keepdim=True) * torch.softmax(module.likelihood.head(module.dec_x(z, (cells.b,))), -1)
    recon = -torch.distributions.Poisson(rate).log_prob(x).sum(-1)
    m, v = q["z"].mean, q["z"].variance
    torch.testing.assert_close(terms.recon, recon, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.kl["z"], 0.5 * (m**2 + v - 1 - v.log()).sum(-1))


def test_ae_is_the_vae_without_sampling_and_kl():
    torch.manual_seed(0)
    vae = VAE(SIZES, factories.likelihood("nb", SIZES, 8), NetworkSettings(n_hidden=8, n_latent=2)).eval()
    ae = AE(SIZES, factories.likelihood("nb", SIZES, 8), NetworkSettings(n_hidden=8, n_latent=2)).eval()
    state = {k: v for k, v in vae.state_dict().items() if "log_variance" not in k}
    ae.load_state_dict(state)
    with torch.no_grad():
        vae.enc_z.head.log_variance.weight.zero_()
        vae.enc_z.head.log_variance.bias.fill_(-math.inf)
    cells = batch()
    vae.enc_z.head.forward = lambda h: gaussian(vae.enc_z.head.loc(h), torch.full((30, 2), 1e-12))
    torch.testing.assert_close(ae.objective(cells).recon, vae.objective(cells).recon)
    assert not ae.objective(cells).kl


def test_learned_library_has_a_prior_per_batch():
    b = torch.tensor([0] * 50 + [1] * 50 + [2])
    log_ell = torch.cat([torch.randn(50) * 0.1 + 5, torch.randn(50) * 0.5 + 8, torch.tensor([6.0])])
    prior = library_prior(log_ell, b, 3)
    assert prior.loc[0].item() == pytest.approx(5, abs=0.1)
    assert prior.scale[1].item() == pytest.approx(0.5, abs=0.15)
    assert prior.loc[2].item() == pytest.approx(log_ell.mean().item())  # one cell: borrows
    sizes = Sizes(9, n_batch=3)
    module = VAE(
        sizes, factories.likelihood("nb", sizes, 8), NetworkSettings(n_hidden=8), library_prior=prior
    )
    terms = module.objective(batch())
    assert set(terms.kl) == {"z", "ell"}


def test_standard_normal_prior():
    q = gaussian(torch.zeros(4, 3), torch.ones(4, 3))
    assert kl_divergence(q, standard_normal(torch.zeros(4, 3))).abs().max() == 0
