"""BetaVSC: variational sparse coding, in which each cell uses only a few latents of the code.

    model                                                    inference
    z_j ~ alpha N(0, 1) + (1 - alpha) delta_0                q(z_j | x) = gamma_j N(mu_j, sigma_j^2)
    x | z ~ likelihood(ell, b)                                            + (1 - gamma_j) delta_0

    -ELBO = E[-log p(x | z, ell, b)]                                        recon
          + sum_j gamma_j KL(N(mu_j, sigma_j^2) || N(0, 1))                 z
          + sum_j KL(Bernoulli(gamma_j) || Bernoulli(alpha))                s

With pseudo-inputs u_1 ... u_M the prior is p(z) = 1/M sum_m q(z | u_m), r_m is how near a cell is to each,
and the last two terms become

          + sum_m r_m sum_j gamma_j KL(N || N_m)                            z
          + sum_m r_m sum_j KL(Bernoulli(gamma_j) || Bernoulli(gamma_mj))   s
          + KL(r || 1/M)            r_m = softmax_m(-KL(q(z|x) || q(z|u_m))) u
    and   J KL(Bernoulli(mean of gamma_m over cells and latents) || Bernoulli(alpha))     penalty sparsity

Tonolini et al., "Variational sparse coding", UAI 2019, with a weight beta on the KLs as in Higgins et al.,
ICLR 2017. Differs from eq. 9 of the former in how the pseudo-input is chosen. That takes no further network:
r is the optimal choice in closed form, and its cost (u) is included, so that the sum is a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from scalloy.blocks.likelihoods import Likelihood
from scalloy.blocks.networks import NetworkSettings
from scalloy.blocks.spike_slab import SpikeSlab, SpikeSlabHead, SpikeSlabMixture, kl_gates, kl_slab, kl_spike
from scalloy.vae.base import Batch, Distributions, Latents, Sizes, Terms, VAEModule


class VSC(VAEModule):
    """Variational sparse coding, as written at the top of this file.

    The other parameters are those of :class:`scalloy.vae.vae.VAE`.

    Parameters
    ----------
    alpha
        Prior probability that a latent is on.
    pseudo_inputs
        Initial pseudo-inputs, as the encoder sees them, ``(M, G)``. ``None`` uses the prior without them.
    temperature
        Temperature of the relaxed gates; see :mod:`scalloy.blocks.spike_slab`.
    slab_warmup
        Share of training over which the slabs are warmed up. For its first half they are standard normal in
        every cell, so that cells must be told apart by which latents are on; over its second half they move
        to the slabs of the encoder.
    """

    slab: Tensor
    alpha: Tensor

    def __init__(
        self,
        sizes: Sizes,
        likelihood: Likelihood,
        networks: NetworkSettings,
        *,
        alpha: float = 0.1,
        pseudo_inputs: Tensor | None = None,
        temperature: float = 1.0,
        slab_warmup: float = 0.0,
    ) -> None:
        super().__init__()
        self.likelihood, self.networks, self.n_latent = likelihood, networks, networks.n_latent
        self.slab_warmup = slab_warmup
        head = SpikeSlabHead(networks.n_encoded, self.n_latent, temperature=temperature)
        seen = networks.sizes_encoded(sizes.covariates)
        self.enc_z = networks.encoder(sizes.n_vars, head, **seen)
        self.dec_x = networks.decoder(self.n_latent, n_vars=sizes.n_vars, **sizes.covariates)
        self.pseudo_inputs = None if pseudo_inputs is None else nn.Parameter(pseudo_inputs)
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("slab", torch.tensor(float(slab_warmup == 0)))

    def encode(self, batch: Batch) -> Distributions:
        known = self.networks.encoded(batch.removed, batch.cont)
        return {"z": self.enc_z(self.likelihood.features(batch.x), *known)}

    def draw(self, q: Distributions, sample_shape: tuple[int, ...] = ()) -> Latents:
        q_z = q["z"]
        if self.training and self.slab_warmup > 0:
            assert isinstance(q_z, SpikeSlab)
            q_z = q_z.slab(self.slab)
        return {"z": q_z.rsample(sample_shape)}

    def decode(self, batch: Batch, latents: Latents) -> Distributions:
        z = latents["z"]
        h = self.dec_x(z, batch.removed, batch.cont)
        return {"z": self.prior(z), "x": self.likelihood(h, batch.log_ell, batch.b)}

    def prior(self, like: Tensor) -> SpikeSlab | SpikeSlabMixture:
        """Return the prior of the code."""
        if self.pseudo_inputs is not None:
            return SpikeSlabMixture(self.enc_z(self.pseudo_inputs))
        one = like.new_ones(self.n_latent)
        return SpikeSlab(0 * one, one, torch.logit(self.alpha))

    @property
    def learns_prior(self) -> bool:  # type: ignore[override]  # of others a constant
        """Whether the prior is a mixture of the posteriors of pseudo-inputs, which are learned."""
        return self.pseudo_inputs is not None

    def from_prior(self, batch: Batch, cluster: Tensor | None = None) -> Latents:
        n = torch.Size((len(batch.b),))
        return {"z": self.prior(self.alpha.expand(self.n_latent)).sample(n)}

    def terms(self, batch: Batch, q: Distributions, latents: Latents, p: Distributions) -> Terms:
        recon, q_z, p_z = -self.likelihood.log_prob(p["x"], batch.x), q["z"], p["z"]
        assert isinstance(q_z, SpikeSlab)
        if isinstance(p_z, SpikeSlab):
            return Terms(recon, {"z": kl_slab(q_z, p_z), "s": kl_spike(q_z, p_z)})
        assert isinstance(p_z, SpikeSlabMixture)
        each, near = p_z.components, q_z.unsqueeze(-1)
        slab, spike = kl_slab(near, each), kl_spike(near, each)
        log_r = torch.log_softmax(-(slab + spike), -1)
        r = log_r.exp()
        choice = (r * (log_r + math.log(len(each.loc)))).sum(-1)
        kl = {"z": (r * slab).sum(-1), "s": (r * spike).sum(-1), "u": choice}
        share = (r.mean(0).unsqueeze(-1) * each.active).sum(0).mean()
        excess = self.n_latent * kl_gates(torch.logit(share), torch.logit(self.alpha))
        return Terms(recon, kl, penalty={"sparsity": excess})

    def begin_epoch(self, end: float, cells: Callable[[], Iterable[Batch]]) -> bool:
        if self.slab == 1:  # no warm-up is wanted, or the model is trained already
            return False
        half = self.slab_warmup / 2
        self.slab.fill_(1.0 if end >= 2 * half else max(0.0, end / half - 1))
        return True

    def finish(self, cells: Callable[[], Iterable[Batch]]) -> None:
        self.slab.fill_(1.0)
