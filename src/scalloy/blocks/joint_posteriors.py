"""Posteriors of the latents of two modalities. Each modality gives an expert, and a message to the other.

    ``Coupled``   private latents: the coupled prior times the experts. The latents are drawn in order, the
                  first from a Gaussian with the message of the other modality, the second from its exact
                  conditional; the latent of a modality that is not seen comes first
    ``Shared``    one shared latent, with ``ProductOfExperts``: N(0, I) times the experts (Wu & Goodman,
                  NeurIPS 2018), or ``MixtureOfExperts``: one of the experts at random (Shi et al., NeurIPS
                  2019)

An expert is a vector of natural parameters ``nu``: it multiplies a density by ``exp{nu^T T(z)}``. The expert
of a modality that is not seen is zero.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from scalloy.blocks import gibbs
from scalloy.blocks.coupled_prior import Coupling, Uncoupled
from scalloy.blocks.distributions import bounded, standard_normal
from scalloy.blocks.networks import Head

Latents = dict[str, Tensor]
Moments = tuple[Tensor, Tensor]
BOTH = ("z", "z2")
ORDERS = (BOTH, BOTH[::-1])


class Told(NamedTuple):
    """Natural parameters that one modality gives for its own latent, and for that of the other modality."""

    own: Tensor
    other: Tensor


class ExpertHead(nn.Module):
    """Map a hidden vector to an expert and a message, as ``N(mean, 1 / precision)`` in natural parameters.

    Without ``n_other`` (zero) there is no message.
    """

    def __init__(self, n_hidden: int, n_own: int, n_other: int) -> None:
        super().__init__()
        self.own = Head(n_hidden, 2 * n_own)
        self.other = Head(n_hidden, 2 * n_other) if n_other else None

    def forward(self, h: Tensor) -> Told:
        return Told(_natural(self.own(h)), h.new_zeros(()) if self.other is None else _natural(self.other(h)))


def _natural(raw: Tensor) -> Tensor:
    mean, log_precision = raw.chunk(2, -1)
    precision = bounded(log_precision, lower=-8.0, upper=12.0).exp()
    return torch.cat([mean * precision, -0.5 * precision], -1)


class Posterior(dict[str, Distribution]):
    """Posterior of each latent by itself, with the experts and which modalities were seen, ``(n, 2)``."""

    def __init__(self, q: dict[str, Distribution], experts: tuple[Tensor, Tensor], seen: Tensor) -> None:
        super().__init__(q)
        self.experts, self.seen = experts, seen


class Joint(nn.Module):
    """Base class of joint priors and posteriors.

    Latents are ``z`` and ``z2``. With :class:`Coupled` there is also ``z_first``: whether ``z`` was drawn
    first.
    """

    sends = False  # whether each modality sends a message to the latent of the other

    def posterior(self, told: tuple[Told, Told], seen: Tensor) -> Posterior:
        raise NotImplementedError

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        raise NotImplementedError

    def kl(self, q: Posterior, latents: Latents) -> Tensor:
        """Return the KL of the posterior from the prior per cell, as exactly as one sample allows."""
        raise NotImplementedError

    def log_ratio(self, q: Posterior, latents: Latents) -> Tensor:
        """Return ``log p(z, z2) - log q(z, z2 | ...)`` of the latents."""
        raise NotImplementedError

    def codes(self, q: Posterior) -> dict[str, Moments]:
        """Return the mean and variance of each latent of each cell, given all that was seen of the cell."""
        raise NotImplementedError

    def code(self, q: Posterior) -> Moments:
        """Return the mean and variance of the whole code of each cell."""
        raise NotImplementedError

    def together(self, latents: Latents) -> Tensor:
        """Put together the code of each cell from its latents."""
        raise NotImplementedError

    def prior(self, n: int, n_steps: int) -> Latents:
        """Draw the latents of ``n`` cells from the prior."""
        raise NotImplementedError


class Given(NamedTuple):
    """Posterior and prior of one latent given the other, and the natural parameters that the other sends."""

    posterior: Distribution
    prior: Distribution
    heard: Tensor


class Coupled(Joint):
    """Private latents under a coupled prior."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self.coupling = coupling
        self.sends = not isinstance(coupling, Uncoupled)

    def posterior(self, told: tuple[Told, Told], seen: Tensor) -> Posterior:
        here = seen.unsqueeze(-1).unbind(-2)
        experts = told[0].own * here[0], told[1].own * here[1]
        heard = told[1].other * here[1], told[0].other * here[0]
        q: dict[str, Distribution] = {
            k: gibbs.normal(nu + m) for k, nu, m in zip(BOTH, experts, heard, strict=True)
        }
        return Posterior(q, experts, seen)

    def _second(self, q: Posterior, latents: Latents) -> dict[str, Given]:
        """Return the distribution of each latent given the other one."""
        g, out = self.coupling(), {}
        for k, other, expert, matrix in zip(BOTH, BOTH[::-1], q.experts, (g.T, g), strict=True):
            heard = gibbs.message(latents[other], matrix)
            out[k] = Given(gibbs.normal(heard + expert), gibbs.normal(heard), heard)
        return out

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        drawn = {k: q[k].rsample(sample_shape) for k in BOTH}
        only = q.seen[..., 0] != q.seen[..., 1]
        either = torch.rand(drawn["z"].shape[:-1], device=only.device) < 0.5
        z_first = torch.where(only, q.seen[..., 0] == 0, either).unsqueeze(-1)
        second = {k: given.posterior.rsample() for k, given in self._second(q, drawn).items()}
        return {
            "z": torch.where(z_first, drawn["z"], second["z"]),
            "z2": torch.where(z_first, second["z2"], drawn["z2"]),
            "z_first": z_first,
        }

    def _in_order(self, latents: Latents, if_z: Tensor, if_z2: Tensor) -> Tensor:
        """Choose by which latent was drawn first; it is ``z`` if the latents do not say."""
        z_first = latents.get("z_first")
        return if_z if z_first is None else torch.where(z_first.squeeze(-1), if_z, if_z2)

    def kl(self, q: Posterior, latents: Latents) -> Tensor:
        parts, second = {}, self._second(q, latents)
        for k, other in ORDERS:
            given = second[other]
            first = kl_divergence(q[k], standard_normal(q[k].mean)) - gibbs.log_normaliser(given.heard)
            parts[k] = first + kl_divergence(given.posterior, given.prior)
        return self._in_order(latents, parts["z"], parts["z2"]) + self.coupling.log_partition()

    def log_ratio(self, q: Posterior, latents: Latents) -> Tensor:
        second = self._second(q, latents)
        energy = (second["z2"].heard * gibbs.statistics(latents["z2"])).sum(-1)
        log_p = sum(standard_normal(latents[k]).log_prob(latents[k]) for k in BOTH) + energy
        log_q = {k: q[k].log_prob(latents[k]) + second[o].posterior.log_prob(latents[o]) for k, o in ORDERS}
        return log_p - self.coupling.log_partition() - self._in_order(latents, log_q["z"], log_q["z2"])

    def codes(self, q: Posterior) -> dict[str, Moments]:
        """Return the moments of each latent; if only its modality was seen, given the other one's mean."""
        second, out = self._second(q, {k: q[k].mean for k in BOTH}), {}
        only = (q.seen > q.seen.flip(-1)).unsqueeze(-1)
        for k, alone in zip(BOTH, only.unbind(-2), strict=True):
            p = second[k].posterior
            out[k] = torch.where(alone, p.mean, q[k].mean), torch.where(alone, p.variance, q[k].variance)
        return out

    def code(self, q: Posterior) -> Moments:
        codes = self.codes(q)
        mean, variance = (torch.cat([codes[k][i] for k in BOTH], -1) for i in (0, 1))
        return mean, variance

    def together(self, latents: Latents) -> Tensor:
        return torch.cat([latents[k] for k in BOTH], -1)

    def from_one(self, z: Tensor, side: int) -> Latents:
        """Return a given latent together with a draw of the other one from the prior, given the first."""
        g = self.coupling()
        other = gibbs.normal(gibbs.message(z, g if side == 0 else g.T)).rsample()
        return dict(zip(BOTH, (z, other) if side == 0 else (other, z), strict=True))

    def prior(self, n: int, n_steps: int) -> Latents:
        state = self.coupling.sample(n, n_steps)
        return {"z": state.first, "z2": state.second}


class Experts(Protocol):
    """Two experts on one shared latent."""

    def posterior(self, told: tuple[Told, Told], seen: Tensor) -> Posterior: ...
    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents: ...
    def log_q(self, q: Posterior, z: Tensor) -> Tensor: ...
    def kl(self, q: Posterior, z: Tensor) -> Tensor: ...
    def code(self, q: Posterior) -> Moments: ...


class Shared(Joint):
    """One latent for both modalities, under N(0, I).

    Parameters
    ----------
    n_latent
        Dimensions of the latent.
    experts
        :class:`ProductOfExperts` or :class:`MixtureOfExperts`.
    """

    def __init__(self, n_latent: int, experts: Experts) -> None:
        super().__init__()
        self.n_latent, self.experts = n_latent, experts

    def posterior(self, told: tuple[Told, Told], seen: Tensor) -> Posterior:
        return self.experts.posterior(told, seen)

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        return self.experts.draw(q, sample_shape)

    def log_ratio(self, q: Posterior, latents: Latents) -> Tensor:
        z = latents["z"]
        return standard_normal(z).log_prob(z) - self.experts.log_q(q, z)

    def kl(self, q: Posterior, latents: Latents) -> Tensor:
        return self.experts.kl(q, latents["z"])

    def codes(self, q: Posterior) -> dict[str, Moments]:
        return dict.fromkeys(BOTH, self.code(q))

    def code(self, q: Posterior) -> Moments:
        return self.experts.code(q)

    def together(self, latents: Latents) -> Tensor:
        return latents["z"]

    def prior(self, n: int, n_steps: int) -> Latents:
        z = torch.randn(n, self.n_latent)
        return {"z": z, "z2": z}


class ProductOfExperts:
    """The posterior is N(0, I) times the experts."""

    def posterior(self, told: tuple[Told, Told], seen: Tensor) -> Posterior:
        here = seen.unsqueeze(-1).unbind(-2)
        first, second = (t.own * s for t, s in zip(told, here, strict=True))
        shared = gibbs.normal(first + second)
        return Posterior({"z": shared, "z2": shared}, (first, second), seen)

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        z = q["z"].rsample(sample_shape)
        return {"z": z, "z2": z}

    def log_q(self, q: Posterior, z: Tensor) -> Tensor:
        return q["z"].log_prob(z)

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        return kl_divergence(q["z"], standard_normal(z))

    def code(self, q: Posterior) -> Moments:
        return q["z"].mean, q["z"].variance


class MixtureOfExperts:
    """The latent is drawn from one of the experts; modalities that are seen have equal weights."""

    def posterior(self, told: tuple[Told, Told], seen: Tensor) -> Posterior:
        q: dict[str, Distribution] = {
            k: gibbs.normal(t.own * s.unsqueeze(-1))
            for k, t, s in zip(BOTH, told, seen.unbind(-1), strict=True)
        }
        return Posterior(q, (told[0].own, told[1].own), seen)

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        each = {k: q[k].rsample(sample_shape) for k in BOTH}
        weight = _weights(q)[:, :1].expand(*each["z"].shape[:-1], 1)
        z = torch.where(torch.rand_like(weight) < weight, each["z"], each["z2"])
        return {"z": z, "z2": z}

    def log_q(self, q: Posterior, z: Tensor) -> Tensor:
        each = torch.stack([q[k].log_prob(z) for k in BOTH], -1)
        return torch.logsumexp(each + _weights(q).log(), -1)

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        return self.log_q(q, z) - standard_normal(z).log_prob(z)

    def code(self, q: Posterior) -> Moments:
        mean, variance = (torch.stack([getattr(q[k], v) for k in BOTH], -1) for v in ("mean", "variance"))
        weight = _weights(q).unsqueeze(-2)
        first, second = ((weight * v).sum(-1) for v in (mean, variance + mean.square()))
        return first, second - first.square()


def _weights(q: Posterior) -> Tensor:
    """Return the weights of the experts, ``(n, 2)``; they are equal if nothing is seen."""
    return (q.seen + 1e-9) / (q.seen + 1e-9).sum(-1, keepdim=True)
