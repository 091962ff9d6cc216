"""AE: an autoencoder, whose code has neither uncertainty nor a prior.

    model                        inference
    x | z ~ likelihood(ell, b)   z = enc(x)

    loss = -log p(x | z, b)                          recon

With the likelihood ``mse`` this is the classical autoencoder of log-normalised expression. It is the
VAE of :mod:`scalloy.vae.vae` without sampling and without the KL, built from the same blocks.
"""

from __future__ import annotations

from typing import Any

from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import Encoder, PointHead, Stack
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule


class AE(VAEModule):
    """Autoencoder as written at the top of this file; its parameters are among those of the VAE.

    They are described in :class:`scalloy.vae.vae.VAE`.
    """

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        *,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        norm: str = "layer",
        encode_covariates: bool = False,
    ) -> None:
        super().__init__()
        self.likelihood, self.n_latent = likelihood, n_latent
        self.encode_covariates = encode_covariates
        width: dict[str, Any] = {"n_hidden": n_hidden, "n_layers": n_layers, "norm": norm}
        known: dict[str, Any] = {"n_cats": sizes.removed, "n_cont": sizes.n_cont}
        encoder = {**width, "dropout_rate": dropout_rate, **(known if encode_covariates else {})}
        self.enc_z = Encoder(sizes.n_vars, PointHead(n_hidden, n_latent), **encoder)
        self.dec_x = Stack(n_latent, **width, **known)

    def encode(self, batch: Batch) -> Distributions:
        known = (batch.removed, batch.cont) if self.encode_covariates else ()
        return {"z": self.enc_z(self.likelihood.features(batch.x), *known)}

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        h = self.dec_x(latents["z"], batch.removed, batch.cont)
        return {"x": self.likelihood(h, batch.log_ell, batch.b)}

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        return Terms(recon=-self.likelihood.log_prob(p["x"], batch.x))
