"""Posteriors of the latents of several modalities. Each gives an expert, and messages to the others.

    ``Coupled``   private latents: the coupled prior times the experts. The latents are drawn one after the
                  other, those of modalities that are not seen first; each is a Gaussian given those that were
                  drawn before it, by the coupling, and with the messages of the modalities that come later.
                  The last one is drawn from its exact conditional
    ``Shared``    one shared latent, with ``ProductOfExperts``: N(0, I) times the experts (Wu & Goodman,
                  NeurIPS 2018), or ``MixtureOfExperts``: one of the experts at random (Shi et al., NeurIPS
                  2019)

An expert is a vector of natural parameters ``nu``: it multiplies a density by ``exp{nu^T T(z)}``. The expert
of a modality that is not seen is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
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
N_SWEEPS = 50  # of the chains that draw several latents from the prior given one


def letters(n: int, letter: str = "z") -> tuple[str, ...]:
    """Return the letters of the latents of ``n`` modalities: z, z2, z3, ..."""
    return (letter, *(f"{letter}{k}" for k in range(2, n + 1)))


class Told(NamedTuple):
    """Natural parameters that a modality gives for its own latent, and for that of each other modality."""

    own: Tensor
    others: tuple[Tensor, ...]


class ExpertHead(nn.Module):
    """Map a hidden vector to an expert and messages, as ``N(mean, 1 / precision)`` in natural parameters.

    Parameters
    ----------
    n_hidden
        Size of the hidden vector.
    n_own
        Number of dimensions of the modality's own latent.
    n_others
        Numbers of dimensions of the latents of the other modalities; without any, there are no messages.
    """

    def __init__(self, n_hidden: int, n_own: int, n_others: Sequence[int]) -> None:
        super().__init__()
        self.n_others = tuple(n_others)
        self.own = Head(n_hidden, 2 * n_own)
        self.other = Head(n_hidden, 2 * sum(n_others)) if n_others else None

    def forward(self, h: Tensor) -> Told:
        own = _natural(self.own(h))
        if self.other is None:
            return Told(own, ())
        each = self.other(h).split([2 * n for n in self.n_others], -1)
        return Told(own, tuple(_natural(raw) for raw in each))


def _natural(raw: Tensor) -> Tensor:
    mean, log_precision = raw.chunk(2, -1)
    precision = bounded(log_precision, lower=-8.0, upper=12.0).exp()
    return torch.cat([mean * precision, -0.5 * precision], -1)


class Posterior(dict[str, Distribution]):
    """Posterior of each latent by itself, with what tells of it and which modalities were seen.

    Attributes
    ----------
    experts
        Natural parameters of each modality for its own latent.
    messages
        Natural parameters of modality ``j`` for latent ``k``, by ``(j, k)``.
    seen
        Mask of the modalities that were seen, cells x modalities.
    """

    def __init__(
        self,
        q: dict[str, Distribution],
        experts: Sequence[Tensor],
        seen: Tensor,
        messages: dict[tuple[int, int], Tensor] | None = None,
    ) -> None:
        super().__init__(q)
        self.experts, self.messages, self.seen = tuple(experts), messages or {}, seen


class Joint(nn.Module):
    """Base class of joint priors and posteriors.

    Latents are ``z``, ``z2`` and so on. With :class:`Coupled` there is also ``order``, cells x modalities:
    latents with lower values were drawn earlier.
    """

    sends = False  # whether each modality sends messages to the latents of the others
    letters: tuple[str, ...]

    def posterior(self, told: Sequence[Told], seen: Tensor) -> Posterior:
        raise NotImplementedError

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        raise NotImplementedError

    def kl(self, q: Posterior, latents: Latents) -> Tensor:
        """Return the KL of the posterior from the prior per cell, as exactly as one sample allows."""
        raise NotImplementedError

    def log_ratio(self, q: Posterior, latents: Latents) -> Tensor:
        """Return ``log p(z, z2, ..) - log q(z, z2, .. | ...)`` of the latents."""
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

    def apart(self, code: Tensor) -> Latents:
        """Take apart the whole code of each cell into its latents, the inverse of :meth:`together`."""
        raise NotImplementedError

    def prior(self, n: int, n_steps: int) -> Latents:
        """Draw the latents of ``n`` cells from the prior."""
        raise NotImplementedError


class Coupled(Joint):
    """Private latents under a coupled prior."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self.coupling = coupling
        self.sends = not isinstance(coupling, Uncoupled)
        self.letters = letters(len(coupling.sizes))

    def posterior(self, told: Sequence[Told], seen: Tensor) -> Posterior:
        here = seen.unsqueeze(-1).unbind(-2)
        experts = [t.own * s for t, s in zip(told, here, strict=True)]
        messages = {
            (j, k): nu * here[j]
            for j, t in enumerate(told)
            for k, nu in zip(gibbs.others(len(told), j), t.others, strict=bool(t.others))
        }
        q: dict[str, Distribution] = {}
        for k, letter in enumerate(self.letters):
            heard = [nu for (_, to), nu in messages.items() if to == k]
            q[letter] = gibbs.normal(torch.stack([experts[k], *heard]).sum(0))
        return Posterior(q, experts, seen, messages)

    def _heard(self, z: Sequence[Tensor], order: Tensor, k: int, pairs: gibbs.Pairs) -> Tensor:
        """Return the natural parameters of latent ``k`` in the prior given the latents drawn before it."""
        parts = []
        for j in gibbs.others(len(z), k):
            before = (order[..., j] < order[..., k]).unsqueeze(-1)
            parts.append(before * (gibbs.statistics(z[j]) @ gibbs.toward(pairs, j, k)))
        return torch.stack(parts).sum(0)

    def _told(self, q: Posterior, order: Tensor, k: int) -> Tensor:
        """Return the expert of latent ``k`` with the messages of the modalities drawn after it."""
        parts = [q.experts[k].expand(*order.shape[:-1], -1)]
        for j in gibbs.others(len(self.letters), k):
            if (j, k) in q.messages:
                parts.append((order[..., j] > order[..., k]).unsqueeze(-1) * q.messages[j, k])
        return torch.stack(parts).sum(0)

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        z = [q[letter].rsample(sample_shape) for letter in self.letters]
        seen = q.seen.expand(*sample_shape, *q.seen.shape)
        order = seen + torch.rand_like(seen)  # what is not seen comes first
        place, pairs = order.argsort(-1).argsort(-1), self.coupling()
        told = [self._told(q, order, k) for k in range(len(z))]
        for step in range(1, len(z)):
            given = [gibbs.normal(self._heard(z, order, k, pairs) + told[k]) for k in range(len(z))]
            now = (place == step).unsqueeze(-1).unbind(-2)
            z = [torch.where(here, p.rsample(), v) for here, p, v in zip(now, given, z, strict=True)]
        return {**dict(zip(self.letters, z, strict=True)), "order": order}

    def _order(self, q: Posterior, latents: Latents) -> Tensor:
        """Return in which order the latents were drawn; that of the modalities if they do not say."""
        known = latents.get("order")
        return torch.arange(len(self.letters), device=q.seen.device) + 0 * q.seen if known is None else known

    def kl(self, q: Posterior, latents: Latents) -> Tensor:
        z, order, pairs = [latents[k] for k in self.letters], self._order(q, latents), self.coupling()
        parts = []
        for k in range(len(z)):
            heard = self._heard(z, order, k, pairs)
            p, posterior = gibbs.normal(heard), gibbs.normal(heard + self._told(q, order, k))
            parts.append(kl_divergence(posterior, p) - gibbs.log_normaliser(heard))
        return torch.stack(parts).sum(0) + self.coupling.log_partition()

    def log_ratio(self, q: Posterior, latents: Latents) -> Tensor:
        z, order, pairs = [latents[k] for k in self.letters], self._order(q, latents), self.coupling()
        out = gibbs.energy(z, pairs) - self.coupling.log_partition()
        for k, value in enumerate(z):
            given = gibbs.normal(self._heard(z, order, k, pairs) + self._told(q, order, k))
            out = out + standard_normal(value).log_prob(value) - given.log_prob(value)
        return out

    def codes(self, q: Posterior) -> dict[str, Moments]:
        """Return the moments of each latent; if its modality was seen, given the means of those unseen."""
        means, pairs = [q[k].mean for k in self.letters], self.coupling()
        out = {}
        for k, letter in enumerate(self.letters):
            p = gibbs.normal(self._heard(means, q.seen, k, pairs) + q.experts[k] + self._messages(q, k))
            out[letter] = p.mean, p.variance
        return out

    def _messages(self, q: Posterior, k: int) -> Tensor:
        """Return the sum of all messages to latent ``k``; those of modalities that are not seen are zero."""
        heard = [nu for (_, to), nu in q.messages.items() if to == k]
        return torch.stack([torch.zeros_like(q.experts[k]), *heard]).sum(0)

    def code(self, q: Posterior) -> Moments:
        codes = self.codes(q)
        mean, variance = (torch.cat([codes[k][i] for k in self.letters], -1) for i in (0, 1))
        return mean, variance

    def together(self, latents: Latents) -> Tensor:
        return torch.cat([latents[k] for k in self.letters], -1)

    def apart(self, code: Tensor) -> Latents:
        return dict(zip(self.letters, code.split(self.coupling.sizes, -1), strict=True))

    def from_one(self, z: Tensor, side: int) -> Latents:
        """Return a given latent together with a draw of the others from the prior, given the first."""
        pairs, n = self.coupling(), len(self.letters)
        state = [z if k == side else z.new_zeros(len(z), size) for k, size in enumerate(self.coupling.sizes)]
        order = torch.tensor([0.0 if k == side else 1.0 for k in range(n)], device=z.device)
        for k in gibbs.others(n, side):  # each given the first alone, which is exact if there are two
            state[k] = gibbs.normal(self._heard(state, order.expand(len(z), n), k, pairs)).rsample()
        for _ in range(N_SWEEPS if n > 2 else 0):
            state = list(gibbs.sweep(tuple(state), pairs, fixed=(side,)))
        return dict(zip(self.letters, state, strict=True))

    def prior(self, n: int, n_steps: int) -> Latents:
        return dict(zip(self.letters, self.coupling.sample(n, n_steps), strict=True))


class Experts(Protocol):
    """Experts on one shared latent."""

    def posterior(self, told: Sequence[Told], seen: Tensor) -> Posterior: ...
    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Tensor: ...
    def log_q(self, q: Posterior, z: Tensor) -> Tensor: ...
    def kl(self, q: Posterior, z: Tensor) -> Tensor: ...
    def code(self, q: Posterior) -> Moments: ...


class Shared(Joint):
    """One latent for all modalities, under N(0, I).

    Parameters
    ----------
    n_latent
        Dimensions of the latent.
    experts
        :class:`ProductOfExperts` or :class:`MixtureOfExperts`.
    n_modalities
        Number of modalities.
    """

    def __init__(self, n_latent: int, experts: Experts, n_modalities: int = 2) -> None:
        super().__init__()
        self.n_latent, self.experts, self.letters = n_latent, experts, letters(n_modalities)

    def posterior(self, told: Sequence[Told], seen: Tensor) -> Posterior:
        return self.experts.posterior(told, seen)

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Latents:
        return dict.fromkeys(self.letters, self.experts.draw(q, sample_shape))

    def log_ratio(self, q: Posterior, latents: Latents) -> Tensor:
        z = latents["z"]
        return standard_normal(z).log_prob(z) - self.experts.log_q(q, z)

    def kl(self, q: Posterior, latents: Latents) -> Tensor:
        return self.experts.kl(q, latents["z"])

    def codes(self, q: Posterior) -> dict[str, Moments]:
        return dict.fromkeys(self.letters, self.code(q))

    def code(self, q: Posterior) -> Moments:
        return self.experts.code(q)

    def together(self, latents: Latents) -> Tensor:
        return latents["z"]

    def apart(self, code: Tensor) -> Latents:
        return dict.fromkeys(self.letters, code)

    def prior(self, n: int, n_steps: int) -> Latents:
        return dict.fromkeys(self.letters, torch.randn(n, self.n_latent))


class ProductOfExperts:
    """The posterior is N(0, I) times the experts."""

    def posterior(self, told: Sequence[Told], seen: Tensor) -> Posterior:
        experts = [t.own * s for t, s in zip(told, seen.unsqueeze(-1).unbind(-2), strict=True)]
        shared = gibbs.normal(torch.stack(experts).sum(0))
        return Posterior(dict.fromkeys(letters(len(told)), shared), experts, seen)

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Tensor:
        return q["z"].rsample(sample_shape)

    def log_q(self, q: Posterior, z: Tensor) -> Tensor:
        return q["z"].log_prob(z)

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        return kl_divergence(q["z"], standard_normal(z))

    def code(self, q: Posterior) -> Moments:
        return q["z"].mean, q["z"].variance


class MixtureOfExperts:
    """The latent is drawn from one of the experts; modalities that are seen have equal weights."""

    def posterior(self, told: Sequence[Told], seen: Tensor) -> Posterior:
        q: dict[str, Distribution] = {
            k: gibbs.normal(t.own * s.unsqueeze(-1))
            for k, t, s in zip(letters(len(told)), told, seen.unbind(-1), strict=True)
        }
        return Posterior(q, [t.own for t in told], seen)

    def draw(self, q: Posterior, sample_shape: tuple[int, ...] = ()) -> Tensor:
        each = torch.stack([p.rsample(sample_shape) for p in q.values()], -1)
        weight = _weights(q).cumsum(-1).expand(*each.shape[:-2], -1)
        chosen = (torch.rand_like(weight[..., :1]) >= weight[..., :-1]).sum(-1, keepdim=True)
        return each.gather(-1, chosen.unsqueeze(-1).expand(*each.shape[:-1], 1)).squeeze(-1)

    def log_q(self, q: Posterior, z: Tensor) -> Tensor:
        each = torch.stack([p.log_prob(z) for p in q.values()], -1)
        return torch.logsumexp(each + _weights(q).log(), -1)

    def kl(self, q: Posterior, z: Tensor) -> Tensor:
        return self.log_q(q, z) - standard_normal(z).log_prob(z)

    def code(self, q: Posterior) -> Moments:
        mean, variance = (torch.stack([getattr(p, v) for p in q.values()], -1) for v in ("mean", "variance"))
        weight = _weights(q).unsqueeze(-2)
        first, second = ((weight * v).sum(-1) for v in (mean, variance + mean.square()))
        return first, second - first.square()


def _weights(q: Posterior) -> Tensor:
    """Return the weights of the experts, cells x modalities; they are equal if nothing is seen."""
    return (q.seen + 1e-9) / (q.seen + 1e-9).sum(-1, keepdim=True)
