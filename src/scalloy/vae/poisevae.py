"""POISEVAE: two modalities with private latents under one coupled prior.

    model                                            inference
    z, z2       ~ N(0, I) N(0, I)                    in either order; nu, nu2 and the messages m, m2 come from
                  exp{T(z)^T G T(z2)} / Z(G)         the encoders of what is seen, and T(z) = (z, z^2):
    x  | z      ~ likelihood(ell, b)                 q(z | x, x2)      ~ N(z; 0, I) exp{(nu + m2)^T T(z)}
    x2 | z2     ~ likelihood(b)                      q(z2 | z, x2)     ~ p(z2 | z) exp{nu2^T T(z2)}

    -ELBO = E[-log p(x | z, ell, b)] + E[-log p(x2 | z2, b)]         recon    (of what was measured)
          + KL(q(z | x, x2) || N(0, I)) - E[log Z(z)]                z        or with z2 before z
          + E[KL(q(z2 | z, x2) || p(z2 | z))] + log Z(G)

``log Z(z)`` is the potential of :mod:`scalloy.blocks.gibbs`: what the coupling adds to the log density of
``z`` when ``z2`` is summed out. ``log Z(G)`` is one number for all cells
(:mod:`scalloy.blocks.coupled_prior`). The bound takes one sample of the latents. Apart from that, and from
the estimate of ``log Z(G)`` for a coupling of second order, it is exact.

In training, one modality of some cells is hidden from the encoders but not from the likelihood. The bound
holds whatever the posterior sees, and in this way each modality learns to predict the other. The latent of
the modality that is not seen is drawn first, from the message alone. The bound is loose for such cells: what
cannot be predicted from the other modality would be taken for measurement noise. So the standard deviation
of a Gaussian likelihood is learned only from cells whose encoders see the modality.

Kumar, Gong & Pearson, "Product of identifiable sufficient experts" (POISE-VAE). This model differs in two
ways: instead of a chain for each cell there is a posterior in two steps, the second of them exact, so that
there is an ELBO; and the KL is taken from the coupled prior.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from scalloy.blocks.joint_posteriors import ExpertHead, Joint, Posterior
from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import NetworkSettings
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule


class POISEVAE(VAEModule):
    """VAE of two modalities under a coupled prior, as written at the top of this file.

    Parameters
    ----------
    sizes
        Sizes of the data.
    likelihood, likelihood2
        Likelihood of each modality, given a hidden vector of size ``n_hidden``.
    joint
        Prior and posterior of the two latents.
    networks
        Settings of the networks; each latent has ``n_latent`` dimensions.
    hide
        Shares of the cells with both modalities of which the first, or the second, is hidden from the
        encoders in training.
    hidden_rate
        Share of the values of the first modality that is hidden from its encoder in training.
    """

    middle: Tensor
    usual_log_ell: Tensor

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        likelihood2: Likelihood,
        joint: Joint,
        networks: NetworkSettings,
        *,
        hide: tuple[float, float] = (0.25, 0.5),
        hidden_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.likelihood, self.likelihood2, self.joint, self.hide = likelihood, likelihood2, joint, hide
        self.networks, n_latent, known = networks, networks.n_latent, sizes.covariates
        seen = networks.sizes_encoded(known)
        head, head2 = (ExpertHead(networks.n_hidden, n_latent, n_latent * joint.sends) for _ in range(2))
        self.enc_z = networks.encoder(sizes.n_vars, head, hidden_rate=hidden_rate, **seen)
        self.enc_z2 = networks.encoder(sizes.n_vars2, head2, **seen)
        self.dec_x = networks.decoder(n_latent, **known)
        self.dec_x2 = networks.decoder(n_latent, **{**known, "n_cont": sizes.n_cont + 1})
        self.register_buffer("middle", torch.zeros(sizes.n_vars2))
        self.register_buffer("usual_log_ell", torch.zeros(()))

    def seen(self, batch: Batch) -> Tensor:
        """Return which modalities the encoders see; in training, one is hidden in a share of the cells."""
        measured = batch.measured
        if not self.training:
            return measured
        u, both = torch.rand_like(measured[:, 0]), measured.prod(-1) > 0
        hidden = torch.stack([u < self.hide[0], u > 1.0 - self.hide[1]], -1) & both.unsqueeze(-1)
        return measured * ~hidden

    def encode(self, batch: Batch) -> Posterior:
        assert batch.x2 is not None
        x2 = self.likelihood2.features(batch.x2) - self.middle
        known = self.networks.encoded(batch.removed, batch.cont)
        told = self.enc_z(self.likelihood.features(batch.x), *known), self.enc_z2(x2.nan_to_num(0.0), *known)
        return self.joint.posterior(told, self.seen(batch))

    def draw(self, q: Distributions, sample_shape: tuple[int, ...] = ()) -> Latents:
        assert isinstance(q, Posterior)
        return self.joint.draw(q, sample_shape)

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        return {k: self.decode_one(k, batch, latents) for k in ("x", "x2")}

    def decode_one(self, which: str, batch: Batch, latents: Latents) -> Distribution:
        """Return the distribution of one modality, ``"x"`` or ``"x2"``."""
        log_ell = self.log_ell(batch)
        if which == "x":
            return self.likelihood(self.dec_x(latents["z"], batch.removed, batch.cont), log_ell, batch.b)
        depth = (log_ell - self.usual_log_ell) * self.likelihood.draws_counts
        cont = depth if batch.cont is None else torch.cat([batch.cont, depth], -1)
        return self.likelihood2(self.dec_x2(latents["z2"], batch.removed, cont), log_ell, batch.b)

    def log_ell(self, batch: Batch) -> Tensor:
        """Return the log library size of each cell; the mean one if its genes were not measured."""
        return torch.where(batch.measured[:, :1] > 0, batch.log_ell, self.usual_log_ell)

    def log_likelihoods(self, batch: Batch, p: Distributions) -> tuple[Tensor, Tensor]:
        """Return ``log p(x | z)`` and ``log p(x2 | z2)`` of what was measured."""
        assert batch.x2 is not None
        log_p = self.likelihood.log_prob(p["x"], batch.x) * batch.measured[:, 0]
        each = self.likelihood2.log_prob_entries(p["x2"], batch.x2.nan_to_num(0.0))
        return log_p, torch.where(batch.x2.isnan(), 0.0, each).sum(-1)

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        assert isinstance(q, Posterior)
        seen = (q.seen >= batch.measured).unbind(-1)
        both = zip(("x", "x2"), (self.likelihood, self.likelihood2), seen, strict=True)
        parts = self.log_likelihoods(batch, {k: lik.noise_from(p[k], rows) for k, lik, rows in both})
        return Terms(-(parts[0] + parts[1]), {"z": self.joint.kl(q, latents)})

    def log_weight(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Tensor:
        assert isinstance(q, Posterior)
        return sum(self.log_likelihoods(batch, p)) + self.joint.log_ratio(q, latents)

    @torch.no_grad()
    def start_at(self, middle: Tensor, log_ell: Tensor) -> None:
        """Start at the mean of the second modality, as the encoder sees it, and the mean log library size."""
        self.middle.copy_(middle)
        self.usual_log_ell.copy_(log_ell.mean())
