"""VAE: a Gaussian code for the counts of a cell.

    model                                inference
    z     ~ N(0, I)                      q(z | x)   = N
    ell   ~ LogN(m_b, s_b)               q(ell | x) = LogN     (only if the library size is learned)
    x | z ~ likelihood(ell, b)

    -ELBO = E[-log p(x | z, ell, b)]                           recon
          + KL(q(z | x) || N(0, I))                            z
          + KL(q(ell | x) || LogN(m_b, s_b))                   ell

Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014; Lopez et al., "Deep generative modeling
for single-cell transcriptomics", Nature Methods 2018. With ``plan_kwargs={"weights": {"z": beta}}`` this
is the beta-VAE of Higgins et al., ICLR 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from scalloy.blocks.distributions import gaussian, standard_normal
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import GaussianHead, NetworkSettings
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule


class LibraryPrior(nn.Module):
    """Gaussian prior of the log library size in each batch, with moments from the data."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc.reshape(-1, 1))
        self.register_buffer("scale", scale.reshape(-1, 1))

    def forward(self, b: Tensor) -> Any:
        return gaussian(self.loc[b], self.scale[b])


class VAE(VAEModule):
    """Variational autoencoder, as written at the top of this file.

    Parameters
    ----------
    sizes
        Sizes of the data.
    likelihood
        Likelihood of the counts, given the values at the end of the decoder.
    networks
        Settings of the networks.
    library_prior
        Prior of the library size, which is then a latent. ``None`` uses the observed library size.
    """

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        networks: NetworkSettings,
        *,
        library_prior: LibraryPrior | None = None,
    ) -> None:
        super().__init__()
        self.likelihood, self.library_prior = likelihood, library_prior
        self.networks, self.n_latent = networks, networks.n_latent
        seen = networks.sizes_encoded(sizes.covariates)
        self.enc_z = networks.encoder(sizes.n_vars, GaussianHead(networks.n_encoded, self.n_latent), **seen)
        if library_prior is not None:
            head = GaussianHead(networks.widths[0], 1)
            self.enc_ell = networks.encoder(sizes.n_vars, head, n_layers=1, **seen)
        self.dec_x = networks.decoder(self.n_latent, n_vars=sizes.n_vars, **sizes.covariates)

    def encode(self, batch: Batch) -> Distributions:
        x = self.likelihood.features(batch.x)
        known = self.networks.encoded(batch.removed, batch.cont)
        q: Distributions = {"z": self.enc_z(x, *known)}
        if self.library_prior is not None:
            q["ell"] = self.enc_ell(x, *known)
        return q

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        z, log_ell = latents["z"], latents.get("ell", batch.log_ell)
        h = self.dec_x(z, batch.removed, batch.cont)
        p: Distributions = {"z": standard_normal(z), "x": self.likelihood(h, log_ell, batch.b)}
        if self.library_prior is not None:
            p["ell"] = self.library_prior(batch.b)
        return p

    def from_prior(self, batch: Batch, cluster: Tensor | None = None) -> Latents:
        latents = super().from_prior(batch)
        if self.library_prior is not None:
            latents["ell"] = self.library_prior(batch.b).sample()
        return latents

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        recon = -self.likelihood.log_prob(p["x"], batch.x)
        kl = {"z": kl_divergence(q["z"], p["z"])}
        if self.library_prior is not None:
            kl["ell"] = kl_divergence(q["ell"], p["ell"])
        return Terms(recon, kl)


def library_prior(log_ell: Tensor, b: Tensor, n_batch: int) -> LibraryPrior:
    """Estimate the prior of the log library size in each batch; a batch of one cell uses that of all."""
    loc, scale = [], []
    for k in range(n_batch):
        own = log_ell[b == k]
        own = own if len(own) > 1 else log_ell
        loc.append(own.mean())
        scale.append(own.std().clamp_min(1e-2))
    return LibraryPrior(torch.stack(loc), torch.stack(scale))
