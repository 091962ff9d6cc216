r"""Spike and slab: a latent that is exactly zero in most cells, and Gaussian in the others.

    z_j ~ gamma_j N(mu_j, sigma_j^2) + (1 - gamma_j) delta_0          gamma = sigmoid(logit)

    KL(q || p) = sum_j gamma_j KL(N_q || N_p)                         slab
               + sum_j KL(Bernoulli(gamma_j) || Bernoulli(alpha_j))   spike

Tonolini et al., "Variational sparse coding", UAI 2019. Differs from it in that samples are hard: a latent
that is off is exactly zero, so the decoder cannot read from it and the ELBO is a bound. The gradient is that
of the relaxed gate ``sigmoid((logit + Logistic noise) / temperature)`` (straight through: Bengio et al. 2013;
Jang et al., ICLR 2017). The logits have a gradient everywhere, which those of the paper do not have.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.distributions.kl import kl_divergence, register_kl

from scalloy.blocks.distributions import Shape, bounded
from scalloy.blocks.layers import Head

LOGIT = 12.0  # largest logit of a gate: off with probability 6e-6


class SpikeSlab(Distribution):
    """Spike-and-slab distribution with one event per cell, as written at the top of this file.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation of the slab.
    logit
        Logit of the probability that a latent is on.
    temperature
        Temperature of the relaxed gate, whose gradient is used. If it is low, the gradient has little bias
        and much variance.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, logit: Tensor, *, temperature: float = 1.0) -> None:
        self.loc, self.scale, self.logit = torch.broadcast_tensors(loc, scale, logit)
        self.temperature = temperature
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=False)

    @cached_property
    def active(self) -> Tensor:
        """Probability that each latent is on."""
        return torch.sigmoid(self.logit)

    @property
    def mean(self) -> Tensor:
        return self.active * self.loc

    @property
    def variance(self) -> Tensor:
        return self.active * (self.scale.square() + self.loc.square()) - self.mean.square()

    def gate(self, noise: Tensor) -> Tensor:
        """Return one where the latent is on, by uniform noise, with the gradient of the relaxed gate."""
        at = self.logit + torch.logit(noise, eps=1e-6)
        hard = (at > 0).to(at.dtype)
        soft = torch.sigmoid(at / self.temperature)
        return hard + soft - soft.detach()

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise, eps = torch.rand(shape, device=self.loc.device), torch.randn(shape, device=self.loc.device)
        return self.gate(noise) * (self.loc + self.scale * eps)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, by cell; a latent that is zero counts with its log-probability."""
        on = F.logsigmoid(self.logit) + Normal(self.loc, self.scale, validate_args=False).log_prob(value)
        return torch.where(value == 0, F.logsigmoid(-self.logit), on).sum(-1)

    def unsqueeze(self, dim: int) -> SpikeSlab:
        """Add a dimension to the batch; ``dim`` counts from its end."""
        parts = (v.unsqueeze(dim - 1) for v in (self.loc, self.scale, self.logit))
        return SpikeSlab(*parts, temperature=self.temperature)

    def slab(self, share: float | Tensor) -> SpikeSlab:
        """Return the same with a slab between the standard normal (``share`` 0) and its own (1)."""
        return SpikeSlab(share * self.loc, self.scale**share, self.logit, temperature=self.temperature)


class SpikeSlabMixture(Distribution):
    """Mixture of ``K`` spike-and-slab distributions, ``(K, J)``, with equal weights."""

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, components: SpikeSlab) -> None:
        self.components = components
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        each = self.components.log_prob(value.unsqueeze(-2))
        return each.logsumexp(-1) - math.log(each.shape[-1])

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        each = self.components.sample(sample_shape)
        chosen = torch.randint(each.shape[-2], each.shape[:-2], device=each.device)[..., None, None]
        return each.gather(-2, chosen.expand(*each.shape[:-2], 1, each.shape[-1])).squeeze(-2)


def kl_slab(q: SpikeSlab, p: SpikeSlab) -> Tensor:
    """Return the part of the KL that is due to the values of latents that are on, by cell."""
    each = kl_divergence(
        Normal(q.loc, q.scale, validate_args=False), Normal(p.loc, p.scale, validate_args=False)
    )
    return (q.active * each).sum(-1)


def kl_spike(q: SpikeSlab, p: SpikeSlab) -> Tensor:
    """Return the part of the KL that is due to which latents are on, by cell."""
    return kl_gates(q.logit, p.logit).sum(-1)


def kl_gates(q: Tensor, p: Tensor) -> Tensor:
    """Return ``KL(Bernoulli || Bernoulli)`` from the logits of the two."""
    active = torch.sigmoid(q)
    on, off = F.logsigmoid(q) - F.logsigmoid(p), F.logsigmoid(-q) - F.logsigmoid(-p)
    return active * on + (1 - active) * off


@register_kl(SpikeSlab, SpikeSlab)
def _kl_spike_slab(q: SpikeSlab, p: SpikeSlab) -> Tensor:
    return kl_slab(q, p) + kl_spike(q, p)


class SpikeSlabHead(nn.Module):
    """Map a hidden vector to a spike-and-slab distribution."""

    def __init__(self, n_hidden: int, n_latent: int, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.loc = Head(n_hidden, n_latent)
        self.log_variance = Head(n_hidden, n_latent)
        self.logit = Head(n_hidden, n_latent)
        self.temperature = temperature

    def forward(self, h: Tensor) -> SpikeSlab:
        scale = torch.exp(0.5 * bounded(self.log_variance(h), lower=-15.0, upper=8.0))
        logit = bounded(self.logit(h), lower=-LOGIT, upper=LOGIT)
        return SpikeSlab(self.loc(h), scale, logit, temperature=self.temperature)
