"""Distributions of the counts of a whole cell, which torch lacks.

Each has one event per cell: ``log_prob`` sums over genes. It accepts dense counts and sparse CSR ones, with
the same result; most of the sparse ones go through :mod:`scalloy.kernels.count_log_prob`.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from scalloy.kernels import gpu
from scalloy.kernels.count_log_prob import Nonzeros, category_log_prob, count_log_prob, take
from scalloy.kernels.csr import dense, stacked

Shape = torch.Size | list[int] | tuple[int, ...]  # of samples, as in all distributions of torch
LOG_MEAN_MAX = 16.0  # e^16 is about nine million counts of one gene in one cell


class Rate:
    r"""Mean of counts: :math:`\mu = \ell\,\mathrm{softmax}(a)`, or :math:`\mu = e^a` without ``log_ell``."""

    def __init__(self, logits: Tensor, log_ell: Tensor | None) -> None:
        logits = full(logits)
        self.logits = bounded(logits, upper=LOG_MEAN_MAX) if log_ell is None else logits
        self.log_ell = log_ell

    @cached_property
    def log_mean(self) -> Tensor:
        if self.log_ell is None:
            return self.logits
        return torch.log_softmax(self.logits, -1) + self.log_ell

    @cached_property
    def fraction(self) -> Tensor:
        """Share of each gene in the counts of its cell; rows sum to one."""
        return torch.softmax(self.logits, -1)


def full(value: Tensor) -> Tensor:
    """Convert to at least single precision, which counts and gamma functions need even under autocast."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def bounded(value: Tensor, *, lower: float | None = None, upper: float | None = None) -> Tensor:
    """Clamp the value but not its gradient, so that nothing gets stuck outside the bounds."""
    return value + (value.clamp(lower, upper) - value).detach()


def gaussian(loc: Tensor, scale: Tensor) -> Independent:
    """Return a diagonal Gaussian with one event per cell."""
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def standard_normal(like: Tensor) -> Independent:
    """Return ``N(0, I)`` with the shape of ``like``."""
    return gaussian(torch.zeros_like(like), torch.ones_like(like))


class Delta(Distribution):
    """Distribution with all its mass at one point: the code of a plain autoencoder."""

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.value.expand(self._extended_shape(sample_shape))


class CountDistribution(Distribution):
    """Independent counts of the genes of a cell."""

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False
    of_dense = True  # whether the fused kernel may serve dense counts on a GPU

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        shape = rate.logits.shape
        super().__init__(shape[:-1], shape[-1:], validate_args=False)

    @cached_property
    def mean(self) -> Tensor:
        return self.rate.log_mean.exp()

    @property
    def fraction(self) -> Tensor:
        """Normalised expression: expected share of each gene."""
        return self.rate.fraction

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each cell, for dense ``(..., G)`` or sparse CSR counts."""
        logits = self.rate.logits
        if value.layout == torch.sparse_csr and logits.dim() >= 2:
            return self._log_prob_fused(value)
        if self.of_dense and gpu.serves(logits) and value.shape == logits.shape[-2:] and logits.dim() > 1:
            return self._log_prob_fused(value.to(logits.dtype))
        return self.log_pmf(dense(value).to(logits.dtype)).sum(-1)

    def log_pmf(self, value: Tensor) -> Tensor:
        """Return the log-probability of every entry, ``(..., G)``."""
        raise NotImplementedError

    def _log_prob_fused(self, value: Tensor) -> Tensor:
        return self.log_pmf(dense(value).to(self.rate.logits.dtype)).sum(-1)


class Poisson(CountDistribution):
    r"""Poisson counts, :math:`\log p = x\log\mu - \mu - \log x!`."""

    @property
    def variance(self) -> Tensor:
        return self.mean

    def log_pmf(self, value: Tensor) -> Tensor:
        return value * self.rate.log_mean - self.mean - torch.lgamma(value + 1)

    def scaled(self, log_factor: Tensor) -> Poisson:
        """Multiply the rates by gene; with a library size, those of a cell still add up to it."""
        return Poisson(Rate(self.rate.logits + log_factor, self.rate.log_ell))

    def entries(self, nz: Nonzeros) -> Poisson:
        """Return the distribution of these entries alone."""
        return Poisson(Rate(take(self.rate.log_mean, nz.flat), None))

    def _log_prob_fused(self, value: Tensor) -> Tensor:
        return count_log_prob(value, self.rate.logits, log_ell=self.rate.log_ell)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(sample_shape)))


class NegativeBinomial(CountDistribution):
    r"""Negative binomial with mean :math:`\mu` and inverse dispersion :math:`\theta`.

    The variance is :math:`\mu + \mu^2/\theta`.
    """

    def __init__(self, rate: Rate, log_theta: Tensor) -> None:
        self.log_theta = bounded(full(log_theta), lower=-12.0, upper=12.0)
        super().__init__(rate)

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() * (-self.log_theta).exp()

    def log_pmf(self, value: Tensor) -> Tensor:
        theta = self.log_theta.exp()
        v = self.rate.log_mean - self.log_theta
        count = torch.lgamma(value + theta) - torch.lgamma(theta) - torch.lgamma(value + 1)
        return count - theta * F.softplus(v) + value * F.logsigmoid(v)

    def scaled(self, log_factor: Tensor) -> NegativeBinomial:
        """Multiply the rates by gene; with a library size, those of a cell still add up to it."""
        return NegativeBinomial(Rate(self.rate.logits + log_factor, self.rate.log_ell), self.log_theta)

    def entries(self, nz: Nonzeros) -> NegativeBinomial:
        """Return the distribution of these entries alone."""
        theta = self.log_theta
        if theta.shape != (1, theta.shape[-1]):
            theta = theta.expand(self.rate.logits.shape).reshape(-1, theta.shape[-1])
        return NegativeBinomial(Rate(take(self.rate.log_mean, nz.flat), None), nz.pick(theta))

    def _log_prob_fused(self, value: Tensor) -> Tensor:
        return count_log_prob(value, self.rate.logits, log_ell=self.rate.log_ell, log_theta=self.log_theta)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            theta = self.log_theta.exp().expand(shape)
            gamma = torch._standard_gamma(theta.contiguous())
            return torch.poisson(gamma * (self.mean / theta).expand(shape))


class ZeroInflated(CountDistribution):
    r"""Counts with an extra probability :math:`\pi_0 = \sigma(\mathrm{gate})` of being zero."""

    def __init__(self, base: Poisson | NegativeBinomial, gate: Tensor) -> None:
        self.base, self.gate = base, full(gate)
        super().__init__(base.rate)

    @cached_property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.gate) * self.base.mean

    @property
    def variance(self) -> Tensor:
        open_, mu = torch.sigmoid(-self.gate), self.base.mean
        return open_ * self.base.variance + open_ * (1 - open_) * mu.square()

    def log_pmf(self, value: Tensor) -> Tensor:
        base = self.base.log_pmf(value)
        zero = torch.logaddexp(self.gate, base)
        return torch.where(value == 0, zero, base) - F.softplus(self.gate)

    def _log_prob_fused(self, value: Tensor) -> Tensor:
        return count_log_prob(
            value,
            self.rate.logits,
            log_ell=self.rate.log_ell,
            log_theta=getattr(self.base, "log_theta", None),
            gate=self.gate,
        )

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        counts = self.base.sample(sample_shape)
        with torch.no_grad():
            return counts * torch.bernoulli(torch.sigmoid(-self.gate).expand_as(counts))


class BackgroundMixture(CountDistribution):
    r"""Antibody counts: negative binomial around a background, or around a foreground above it.

    :math:`p(x) = \pi\,\mathrm{NB}(x; \beta, \theta) + (1 - \pi)\,\mathrm{NB}(x; \mu, \theta)` with
    :math:`\mu \ge \beta` and :math:`\pi = \sigma(\mathrm{gate})`.
    """

    of_dense = False

    def __init__(self, log_background: Tensor, log_rise: Tensor, gate: Tensor, log_theta: Tensor) -> None:
        low = Rate(log_background, None)
        high = Rate(low.logits + F.softplus(full(log_rise)), None)
        self.background, self.foreground = (NegativeBinomial(rate, log_theta) for rate in (low, high))
        self.gate = full(gate)
        super().__init__(high)

    @cached_property
    def pi(self) -> Tensor:
        """Probability that a count is background."""
        return torch.sigmoid(self.gate)

    @cached_property
    def mean(self) -> Tensor:
        return self.pi * self.background.mean + (1 - self.pi) * self.foreground.mean

    @property
    def variance(self) -> Tensor:
        parts = (self.pi, self.background), (1 - self.pi, self.foreground)
        return sum(w * (p.variance + p.mean.square()) for w, p in parts) - self.mean.square()

    @property
    def fraction(self) -> Tensor:
        """Share of each protein in the expected counts without background."""
        clean = (1 - self.pi) * self.foreground.mean
        return clean / clean.sum(-1, keepdim=True).clamp_min(1e-12)

    def log_pmf(self, value: Tensor) -> Tensor:
        low = self.background.log_pmf(value) + F.logsigmoid(self.gate)
        return torch.logaddexp(low, self.foreground.log_pmf(value) + F.logsigmoid(-self.gate))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        low, high = (p.sample(sample_shape) for p in (self.background, self.foreground))
        return torch.where(torch.rand_like(low) < self.pi, low, high)


class PiecewiseCategorical(CountDistribution):
    r"""Counts below :math:`K` as categories; larger ones are :math:`K` plus a count of another distribution.

    :math:`\log p(x) = \log \pi_x` for :math:`x < K`, otherwise :math:`\log \pi_K + \log f(x - K)`.
    ``logits`` is ``(..., K + 1, G)``.
    """

    of_dense = False

    def __init__(self, base: Poisson | NegativeBinomial, logits: Tensor) -> None:
        self.base, self.logits = base, full(logits)
        self.k_max = logits.shape[-2] - 1
        super().__init__(base.rate)

    @cached_property
    def log_pi(self) -> Tensor:
        """Log-probabilities of the categories."""
        return torch.log_softmax(self.logits, -2)

    def _moments(self) -> tuple[Tensor, Tensor]:
        below, above, tail = *self.log_pi.exp().tensor_split([self.k_max], -2), self.base.mean + self.k_max
        k = torch.arange(self.k_max, dtype=tail.dtype, device=tail.device).unsqueeze(-1)
        above = above.squeeze(-2)
        first = (below * k).sum(-2) + above * tail
        second = (below * k.square()).sum(-2) + above * (self.base.variance + tail.square())
        return first, second

    @cached_property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        first, second = self._moments()
        return second - first.square()

    @property
    def fraction(self) -> Tensor:
        return self.mean / self.mean.sum(-1, keepdim=True).clamp_min(1e-12)

    def log_pmf(self, value: Tensor) -> Tensor:
        category = value.clamp_max(self.k_max).long().expand(self.rate.logits.shape)
        head = self.log_pi.gather(-2, category.unsqueeze(-2)).squeeze(-2)
        return head + self._log_tail(self.base, value)

    def _log_tail(self, base: Poisson | NegativeBinomial, value: Tensor) -> Tensor:
        tail = base.log_pmf((value - self.k_max).clamp_min(0))
        return torch.where(value >= self.k_max, tail, torch.zeros_like(tail))

    def _log_prob_fused(self, value: Tensor) -> Tensor:
        shape = self.rate.logits.shape
        nz = Nonzeros.of(stacked(value, shape[:-2].numel()), self.rate.logits.dtype)
        categories = category_log_prob(nz._replace(x=nz.x.clamp_max(self.k_max)), self.logits.flatten(0, -3))
        return categories.index_add(0, nz.row, self._log_tail(self.base.entries(nz), nz.x)).view(shape[:-1])

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            category = Categorical(logits=self.logits.transpose(-1, -2)).sample(torch.Size(sample_shape))
            return category + (category == self.k_max) * self.base.sample(sample_shape)
