"""TRVAE: a conditional VAE whose conditions look alike after the first layer of the decoder.

    model                                inference
    z        ~ N(0, I)                   q(z | x, c) = N
    h        = first layer(z, c, b)
    x | z, c ~ likelihood(ell, b), from the further layers of h

    -ELBO = E[-log p(x | z, c)]                                        recon
          + KL(q(z | x, c) || N(0, I))                                 z
    penalty: mean over pairs of conditions of MMD^2(h | c, h | c')     mmd      (or their sum, as published)

Lotfollahi et al., "Conditional out-of-distribution generation for unpaired data using transfer VAE",
Bioinformatics 2020. If ``h`` has the same distribution under all conditions, only the layers after it can
make a difference between them. In the published model they cannot: the condition enters the first layer
alone, so a strong penalty removes its effect. With ``inject_all`` the further layers see the condition again,
and the penalty asks for a code that is free of it. The estimate of MMD^2 is unbiased and its kernels follow
the data. It can be limited to cells of the same label, since conditions also differ in their composition.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import kl_divergence

from scalloy.blocks import divergences as div
from scalloy.blocks.distributions import Delta, standard_normal
from scalloy.blocks.layers import Layer
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import GaussianHead, NetworkSettings
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule


def later_known(sizes: Sizes, *, inject_all: bool) -> dict[str, Any]:
    """Return the sizes of the covariates that layers of the decoder after the first one see."""
    return sizes.known if inject_all else sizes.covariates


class TRVAE(VAEModule):
    """Conditional VAE with an MMD penalty, as written at the top of this file.

    Parameters
    ----------
    sizes
        Sizes of the data.
    likelihood
        Likelihood of the counts, given the values at the end of the decoder.
    networks
        Settings of the networks; the first layer of the decoder is made apart, whatever its network is.
    inject_all
        Whether the decoder layers after the first one see the condition too.
    published_kernel
        Whether to use the 19 kernels and the biased estimate of the paper.
    by_label
        Whether to compare only cells of the same label.
    sum_pairs
        Whether to add up the discrepancies of pairs of conditions, as in the paper, instead of averaging.
    """

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        networks: NetworkSettings,
        *,
        inject_all: bool = True,
        published_kernel: bool = False,
        by_label: bool = False,
        sum_pairs: bool = False,
    ) -> None:
        super().__init__()
        self.likelihood, self.n_latent = likelihood, networks.n_latent
        self.published_kernel, self.by_label, self.sum_pairs = published_kernel, by_label, sum_pairs
        self.n_conditions, self.n_sets = sizes.n_conditions, sizes.n_labels + 1  # one for unlabelled cells
        known, later = sizes.known, later_known(sizes, inject_all=inject_all)
        self.after, width = len(later["n_cats"]), networks.decodes.widths[0]
        self.enc_z = networks.encoder(sizes.n_vars, GaussianHead(networks.n_encoded, self.n_latent), **known)
        self.dec_h = Layer(self.n_latent, width, norm=networks.norm, **known)
        self.dec_x = networks.decoder(width, skip=1, n_vars=sizes.n_vars, **later)

    def encode(self, batch: Batch) -> Distributions:
        known = (*batch.removed, batch.condition)
        return {"z": self.enc_z(self.likelihood.features(batch.x), known, batch.cont)}

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        known = (*batch.removed, batch.condition)
        h = self.dec_h(latents["z"], known, batch.cont)
        last = self.dec_x(h, known[: self.after], batch.cont)
        p_x = self.likelihood(last, batch.log_ell, batch.b)
        return {"z": standard_normal(latents["z"]), "h": Delta(h), "x": p_x}

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        recon = -self.likelihood.log_prob(p["x"], batch.x)
        kl = {"z": kl_divergence(q["z"], p["z"])}
        return Terms(recon, kl, penalty={"mmd": self.discrepancy(p["h"].mean, batch)})

    def discrepancy(self, h: Tensor, batch: Batch) -> Tensor:
        """Return the squared MMD between conditions, averaged or added up over pairs of them."""
        within, n = batch.y if self.by_label else None, self.n_conditions
        if not self.training:  # cells may be under conditions that were never seen
            n = max(n, 1 + int(batch.condition.max()))
        return div.between_groups(
            h,
            batch.condition,
            div.TRVAE if self.published_kernel else div.median_scales(h),
            n_groups=n,
            unbiased=not self.published_kernel,
            at_least=1 if self.published_kernel else 8,
            within=within,
            n_within=1 if within is None else self.n_sets,
            add_up=self.sum_pairs,
        )
