r"""Likelihoods: from the hidden vector of a decoder to the distribution of the counts of a cell.

    count likelihoods   mu = ell * softmax(A h)       or mu = exp(A h) without library size
    ``Poisson``         x ~ Poisson(mu)
    ``NB``              x ~ NB(mu, theta)             theta per gene, per gene and batch, or per entry
    ``ZeroInflated``    x = 0 with probability pi_0 = sigmoid(C h), otherwise as the base likelihood
    ``Background``      x ~ pi NB(beta, theta) + (1 - pi) NB(mu, theta), mu >= beta: antibody counts
    ``Piecewise``       x < K with probability pi_x = softmax(D h), otherwise K plus a draw of the base
    ``Gaussian``        t(x) ~ N(A h, sigma^2)        t: log-normalised, or the data as given
    ``Bernoulli``       [x > 0] ~ Bernoulli(sigmoid(A h)), or values within [0, 1] as given

To add one, write a class with three methods: ``forward`` (the distribution), ``log_prob`` (per cell, of the
counts of a :class:`~scalloy.vae.base.Batch`, dense or sparse) and ``fraction`` (normalised expression), and
register it in :mod:`scalloy.blocks.gene_likelihoods`.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent, Normal

from scalloy.blocks import distributions as dist
from scalloy.blocks.expected_log1p import mean_log1p
from scalloy.blocks.layers import Head
from scalloy.kernels.csr import dense, log_normalise, map_values

Dispersion = Literal["gene", "gene-batch", "gene-cell"]
Depth = Literal["total", "own", "other"]


class Likelihood(nn.Module):
    """Base class of all likelihoods.

    ``counts`` says whether the data must be integer counts, ``draws_counts`` whether samples are counts too.
    ``depth`` says how the depth of a cell enters if this is the likelihood of one of several modalities:
    ``"total"`` (rates are shares of the cell's own total), ``"own"`` (the decoder sees this total) or
    ``"other"`` (the decoder sees the total of the first modality).
    """

    counts = True
    draws_counts = True
    depth: Depth = "other"

    def __init__(self, n_hidden: int, n_vars: int) -> None:
        super().__init__()
        self.head = Head(n_hidden, n_vars)

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> Distribution:
        """Return the distribution of ``x`` given hidden vector, log library size ``(n, 1)`` and batch."""
        raise NotImplementedError

    def log_prob(self, p_x: Distribution, x: Tensor) -> Tensor:
        """Return the log-probability of each cell of raw ``x``, dense or sparse CSR."""
        return p_x.log_prob(x)

    def log_prob_entries(self, p_x: Distribution, x: Tensor) -> Tensor:
        """Return the log-probability of every entry of dense ``x``."""
        return cast("dist.CountDistribution", p_x).log_pmf(x)  # other likelihoods have methods of their own

    def fraction(self, p_x: Distribution) -> Tensor:
        """Return the normalised expression under ``p_x``; for counts, rows sum to one."""
        return cast("dist.CountDistribution", p_x).fraction

    def expected(self, p_x: Distribution, log_ell: Tensor) -> Tensor:
        """Return the expected counts of each cell with its own library size."""
        return p_x.mean

    def unlogged(self, x: Tensor, log_ell: Tensor) -> Tensor:
        """Convert samples to counts of a cell with its own library size."""
        return x

    @property
    def has_log_scale(self) -> bool:
        """True if ``log1p`` suits the values: counts yes, continuous data as given and probabilities no."""
        return self.draws_counts

    def noise_from(self, p_x: Distribution, rows: Tensor) -> Distribution:
        """Return the same distribution, its noise learned from the chosen rows only (continuous data)."""
        return p_x

    def features(self, x: Tensor) -> Tensor:
        """Transform ``x`` to the input of the encoder."""
        return map_values(x, torch.log1p)

    def observed(self, x: Tensor, target_sum: float = 1e4) -> Tensor:
        """Return the expression of cells, dense, on the scale on which predictions are compared with it."""
        return dense(log_normalise(x, target_sum) if self.draws_counts else self.features(x))

    def mean_observed(self, p_x: Distribution, target_sum: float = 1e4) -> Tensor:
        """Return the mean of :meth:`observed` under ``p_x``."""
        if not self.draws_counts:
            return p_x.mean
        counts = cast("dist.CountDistribution", p_x)
        return mean_log1p(counts, target_sum / p_x.mean.sum(-1, keepdim=True).clamp_min(1e-12))

    def predicted(self, p_x: Distribution) -> Tensor:
        """Return the prediction on the scale of :meth:`observed`; for counts, the logarithm of their mean.

        The mean of the logarithm is :meth:`mean_observed`.
        """
        return torch.log1p(1e4 * self.fraction(p_x)) if self.draws_counts else p_x.mean

    @torch.no_grad()
    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        """Start at the moments of the genes, so that training need not find them first."""


class Poisson(Likelihood):
    """Poisson likelihood; with ``library``, the rates of a cell add up to its library size.

    With the observed total this is scVAE's "constrained Poisson"; ``library=False`` is its plain Poisson.
    """

    def __init__(self, n_hidden: int, n_vars: int, *, library: bool = True) -> None:
        super().__init__(n_hidden, n_vars)
        self.library = library
        self.depth = "total" if library else "other"

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.Poisson:
        return dist.Poisson(dist.Rate(self.head(h), log_ell if self.library else None))

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        start_rates_at(self.head, mean, log_ell if self.library else None)


def start_rates_at(head: Head, mean: Tensor, log_ell: Tensor | None) -> None:
    """Let the rates of a likelihood of counts begin at the mean of each gene."""
    with torch.no_grad():
        log_mean = (mean + mean.sum() * 1e-9 + 1e-9).log()
        head.bias.copy_(log_mean if log_ell is None else log_mean - log_ell.exp().mean().log())


class NB(Likelihood):
    """Negative binomial with inverse dispersion per gene, per gene and batch, or per gene and cell."""

    def __init__(
        self,
        n_hidden: int,
        n_vars: int,
        *,
        n_batch: int = 1,
        dispersion: Dispersion = "gene",
        library: bool = True,
    ) -> None:
        super().__init__(n_hidden, n_vars)
        self.library, self.dispersion = library, dispersion
        self.depth = "total" if library else "other"
        if dispersion == "gene-cell":
            self.theta_head = Head(n_hidden, n_vars)
        else:
            rows = n_batch if dispersion == "gene-batch" else 1
            self.log_theta = nn.Parameter(torch.zeros(rows, n_vars))

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.NegativeBinomial:
        if self.dispersion == "gene-cell":
            log_theta = self.theta_head(h)
        else:
            log_theta = self.log_theta[b] if self.dispersion == "gene-batch" else self.log_theta
        rate = dist.Rate(self.head(h), log_ell if self.library else None)
        return dist.NegativeBinomial(rate, log_theta)

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        start_rates_at(self.head, mean, log_ell if self.library else None)
        with torch.no_grad():
            log_theta = log_inverse_dispersion(mean, variance)
            target = self.theta_head.bias if self.dispersion == "gene-cell" else self.log_theta
            target.copy_(log_theta.expand_as(target))


def log_inverse_dispersion(mean: Tensor, variance: Tensor) -> Tensor:
    """Estimate ``log theta`` of each gene by its moments, for ``theta`` between 0.01 and 100."""
    excess = (variance - mean).clamp_min(1e-3 * mean.square() + 1e-9)
    return (mean.square() / excess).clamp(1e-2, 1e2).log()


class ZeroInflated(Likelihood):
    """Extra zeros on top of a Poisson or NB likelihood: ZIP and ZINB."""

    def __init__(self, base: Poisson | NB) -> None:
        nn.Module.__init__(self)
        self.base, self.depth = base, base.depth
        self.gate = Head(base.head.in_features, base.head.out_features)

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.ZeroInflated:
        return dist.ZeroInflated(self.base(h, log_ell, b), self.gate(h))

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        self.base.start_at(mean, variance, log_ell)
        with torch.no_grad():
            self.gate.bias.fill_(-3.0)  # few extra zeros until the data ask for them


class Background(Likelihood):
    """Antibody counts with a background of unspecific binding.

    As in totalVI (Gayoso et al., Nature Methods 2021), except that the background there is a latent of its
    own; here it is read from the hidden vector like everything else. Rates do not depend on the library size.
    """

    def __init__(self, n_hidden: int, n_vars: int) -> None:
        super().__init__(n_hidden, n_vars)
        self.rise, self.gate = Head(n_hidden, n_vars), Head(n_hidden, n_vars)
        self.log_theta = nn.Parameter(torch.zeros(1, n_vars))

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.BackgroundMixture:
        return dist.BackgroundMixture(self.head(h), self.rise(h), self.gate(h), self.log_theta)

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        """Start with half of the counts around a background of half the mean, the rest around 1.5 means."""
        with torch.no_grad():
            self.head.bias.copy_((mean / 2 + 1e-3).log())
            self.rise.bias.fill_(math.log(2.0))  # log(1 + 2) = log 3
            self.log_theta.zero_()


class Piecewise(Likelihood):
    """Counts below ``k_max`` as categories, larger ones shifted by it: scVAE's PC-Poisson and PC-NB.

    Differs from scVAE in that, with ``library``, the library size of a cell moves the categories and the
    rates of larger counts, by slopes for each gene; otherwise the code would have to hold the depth. ``base``
    must have rates of its own (``library=False``), since counts beyond ``k_max`` do not add up to anything
    known.
    """

    def __init__(self, base: Poisson | NB, k_max: int, *, library: bool = True) -> None:
        nn.Module.__init__(self)
        self.base, self.k_max = base, k_max
        n_vars = base.head.out_features
        self.categories = Head(base.head.in_features, n_vars * (k_max + 1))
        self.slope = self.tail_slope = None
        if library:  # category k starts at the slope that it has for a Poisson
            self.slope = nn.Parameter(torch.arange(k_max + 1.0).unsqueeze(-1).repeat(1, n_vars))
            self.tail_slope = nn.Parameter(torch.zeros(n_vars))
        self.middle: Tensor
        self.register_buffer("middle", torch.zeros(()))

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.PiecewiseCategorical:
        logits, tail = self.categories(h).unflatten(-1, (self.k_max + 1, -1)), self.base(h, log_ell, b)
        if self.slope is not None and self.tail_slope is not None:
            depth = log_ell - self.middle
            logits, tail = logits + depth.unsqueeze(-1) * self.slope, tail.scaled(depth * self.tail_slope)
        return dist.PiecewiseCategorical(tail, logits)

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        """Start with the categories and the mean of larger counts that an NB with each gene's moments has."""
        self.base.start_at(mean, variance, log_ell)
        with torch.no_grad():
            self.middle.copy_(log_ell.mean())
            mean = mean.double() + 1e-9
            log_theta = log_inverse_dispersion(mean, variance.double())
            p = dist.NegativeBinomial(dist.Rate(mean.log(), None), log_theta)
            k = torch.arange(self.k_max, dtype=mean.dtype, device=mean.device).unsqueeze(-1)
            below = torch.stack([p.log_pmf(v.expand_as(mean)).exp() for v in k])
            rest = (1 - below.sum(0)).clamp_min(1e-8)
            bias = torch.cat([below.clamp_min(1e-8), rest.unsqueeze(0)]).log()
            self.categories.bias.copy_(bias.flatten())
            beyond = (mean - (k * below).sum(0)) / rest - self.k_max
            self.base.head.bias.copy_(beyond.clamp_min(0.05).log())


def of_entries(p_x: Distribution) -> Distribution:
    """Return the distribution of every entry, of which ``p_x`` makes one event per cell."""
    assert isinstance(p_x, Independent)
    return p_x.base_dist


class Gaussian(Likelihood):
    """Normal density of log-normalised data or of data as given; variance per gene, or fixed at one.

    With ``variance="fixed"`` the reconstruction is half the squared error plus a constant.
    """

    counts = draws_counts = False

    def __init__(
        self,
        n_hidden: int,
        n_vars: int,
        *,
        on: Literal["log1p", "given"] = "log1p",
        variance: Literal["gene", "fixed"] = "gene",
    ) -> None:
        super().__init__(n_hidden, n_vars)
        self.on, self.counts = on, on == "log1p"
        if variance == "gene":
            self.log_sigma = nn.Parameter(torch.zeros(n_vars))
        else:
            self.register_buffer("log_sigma", torch.zeros(n_vars))

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> Independent:
        loc = self.head(h)
        scale = dist.bounded(self.log_sigma, lower=-5.0, upper=10.0).exp()
        return Independent(Normal(loc, scale.expand_as(loc), validate_args=False), 1)

    def noise_from(self, p_x: Distribution, rows: Tensor) -> Independent:
        each = of_entries(p_x)
        assert isinstance(each, Normal)
        scale = torch.where(rows.unsqueeze(-1), each.scale, each.scale.detach())
        return Independent(Normal(each.loc, scale, validate_args=False), 1)

    def features(self, x: Tensor) -> Tensor:
        return log_normalise(x) if self.on == "log1p" else x

    def observed(self, x: Tensor, target_sum: float = 1e4) -> Tensor:
        return dense(log_normalise(x, target_sum) if self.on == "log1p" else x)

    def mean_observed(self, p_x: Distribution, target_sum: float = 1e4) -> Tensor:
        if self.on != "log1p" or target_sum == 1e4:
            return p_x.mean
        return torch.log1p(torch.expm1(p_x.mean.clamp(0, 80)) * (target_sum / 1e4))

    def log_prob(self, p_x: Distribution, x: Tensor) -> Tensor:
        return p_x.log_prob(dense(self.features(x)))

    def log_prob_entries(self, p_x: Distribution, x: Tensor) -> Tensor:
        return of_entries(p_x).log_prob(dense(self.features(x)))

    def fraction(self, p_x: Distribution) -> Tensor:
        return torch.expm1(p_x.mean.clamp(0, 80)) / 1e4 if self.on == "log1p" else p_x.mean

    def expected(self, p_x: Distribution, log_ell: Tensor) -> Tensor:
        return self.unlogged(p_x.mean, log_ell)

    def unlogged(self, x: Tensor, log_ell: Tensor) -> Tensor:
        return torch.expm1(x.clamp(0, 80)) / 1e4 * log_ell.exp() if self.on == "log1p" else x

    @property
    def has_log_scale(self) -> bool:
        return self.on == "log1p"

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        if self.on == "given":
            with torch.no_grad():
                self.head.bias.copy_(mean)
                if isinstance(self.log_sigma, nn.Parameter):
                    self.log_sigma.copy_(variance.clamp_min(1e-4).sqrt().log())


class Bernoulli(Likelihood):
    """Detection of genes in a cell or, with ``on="given"``, values within [0, 1] such as grey levels."""

    draws_counts = False

    def __init__(self, n_hidden: int, n_vars: int, *, on: Literal["detected", "given"] = "detected") -> None:
        super().__init__(n_hidden, n_vars)
        self.on, self.counts = on, on == "detected"
        self.depth = "own" if on == "detected" else "other"

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> Independent:
        return Independent(TorchBernoulli(logits=self.head(h), validate_args=False), 1)

    def features(self, x: Tensor) -> Tensor:
        return map_values(x, lambda v: (v > 0).to(v.dtype)) if self.on == "detected" else x

    def log_prob(self, p_x: Distribution, x: Tensor) -> Tensor:
        return self.log_prob_entries(p_x, x).sum(-1)

    def log_prob_entries(self, p_x: Distribution, x: Tensor) -> Tensor:
        each, target = of_entries(p_x), dense(self.features(x))
        assert isinstance(each, TorchBernoulli)
        logits = each.logits
        return target * logits - F.softplus(logits)

    def fraction(self, p_x: Distribution) -> Tensor:
        return p_x.mean
