"""AE: an autoencoder, whose code has neither uncertainty nor a prior.

    model                        inference
    x | z ~ likelihood(ell, b)   z = enc(x)

    loss = -log p(x | z, b)                          recon

With the likelihood ``mse`` this is the classical autoencoder of log-normalised expression. It is the
VAE of :mod:`scalloy.vae.vae` without sampling and without the KL, built from the same blocks.
"""

from __future__ import annotations

from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import NetworkSettings, PointHead
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule


class AE(VAEModule):
    """Autoencoder as written at the top of this file; its parameters are among those of the VAE.

    They are described in :class:`scalloy.vae.vae.VAE`.
    """

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        networks: NetworkSettings,
    ) -> None:
        super().__init__()
        self.likelihood, self.networks, self.n_latent = likelihood, networks, networks.n_latent
        seen = networks.sizes_encoded(sizes.covariates)
        self.enc_z = networks.encoder(sizes.n_vars, PointHead(networks.n_encoded, self.n_latent), **seen)
        self.dec_x = networks.decoder(self.n_latent, n_vars=sizes.n_vars, **sizes.covariates)

    def encode(self, batch: Batch) -> Distributions:
        known = self.networks.encoded(batch.removed, batch.cont)
        return {"z": self.enc_z(self.likelihood.features(batch.x), *known)}

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        h = self.dec_x(latents["z"], batch.removed, batch.cont)
        return {"x": self.likelihood(h, batch.log_ell, batch.b)}

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        return Terms(recon=-self.likelihood.log_prob(p["x"], batch.x))
