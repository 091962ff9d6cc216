r"""Likelihoods as objects: the decoder's hidden vector in, the distribution of the counts of a cell out.

    count likelihoods   mu = ell * softmax(A h)       or mu = exp(A h) where ``log_ell`` is None
    ``Poisson``         x ~ Poisson(mu)
    ``NB``              x ~ NB(mu, theta)             theta per gene, per gene and batch, or per entry
    ``ZeroInflated``    x = 0 with probability pi_0 = sigmoid(C h), else as the likelihood within
    ``Background``      x ~ pi NB(beta, theta) + (1 - pi) NB(mu, theta), mu >= beta: counts of antibodies
    ``Piecewise``       x < K with probability pi_x = softmax(D h), else K and a draw of the likelihood within
    ``Gaussian``        t(x) ~ N(A h, sigma^2)        t: log-normalised, or the data as given
    ``Bernoulli``       [x > 0] ~ Bernoulli(sigmoid(A h)), or values within [0, 1] as given

A new one is a class with three methods: ``forward`` (the distribution), ``log_prob`` (per cell, of a
:class:`~scalloy.vae.base.Batch`'s counts, dense or sparse) and ``fraction`` (normalised expression).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent, Normal

from scalloy.blocks import distributions as dist
from scalloy.blocks.expected import mean_log1p
from scalloy.blocks.networks import Head
from scalloy.blocks.sparse import dense, log_normalise, map_values

Dispersion = Literal["gene", "gene-batch", "gene-cell"]


class Likelihood(nn.Module):
    """What all share. ``counts``: integer counts are expected; ``draws_counts``: samples are counts too."""

    counts = True
    draws_counts = True

    def __init__(self, n_hidden: int, n_vars: int) -> None:
        super().__init__()
        self.head = Head(n_hidden, n_vars)

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> Distribution:
        """Distribution of ``x`` given the hidden vector, the library size ``(n, 1)`` and the batch."""
        raise NotImplementedError

    def log_prob(self, p_x: Distribution, x: Tensor) -> Tensor:
        """Log-probability per cell of raw ``x``, dense or sparse CSR."""
        return p_x.log_prob(x)

    def log_prob_entries(self, p_x: Distribution, x: Tensor) -> Tensor:
        """Log-probability of every entry of dense ``x``."""
        return p_x.log_pmf(x)

    def fraction(self, p_x: Distribution) -> Tensor:
        """Normalised expression under ``p_x``: rows sum to one for counts."""
        return p_x.fraction

    def expected(self, p_x: Distribution, log_ell: Tensor) -> Tensor:
        """Expected counts of a cell with its own library size."""
        return p_x.mean

    def unlogged(self, x: Tensor, log_ell: Tensor) -> Tensor:
        """Samples as counts of a cell with its own library size."""
        return x

    @property
    def has_log_scale(self) -> bool:
        """Whether values have a ``log1p``: counts do, continuous data as given and probabilities do not."""
        return self.draws_counts

    def noise_from(self, p_x: Distribution, rows: Tensor) -> Distribution:
        """The same distribution, whose noise is learned from the chosen rows alone (continuous data)."""
        return p_x

    def features(self, x: Tensor) -> Tensor:
        """What the encoder sees."""
        return map_values(x, torch.log1p)

    def observed(self, x: Tensor, target_sum: float = 1e4) -> Tensor:
        """Expression of cells, dense, on the scale on which predictions are compared with it."""
        return dense(log_normalise(x, target_sum) if self.draws_counts else self.features(x))

    def mean_observed(self, p_x: Distribution, target_sum: float = 1e4) -> Tensor:
        """Mean of :meth:`observed` under ``p_x``."""
        if not self.draws_counts:
            return p_x.mean
        return mean_log1p(p_x, target_sum / p_x.mean.sum(-1, keepdim=True).clamp_min(1e-12))

    def predicted(self, p_x: Distribution) -> Tensor:
        """What is expected, on the scale of :meth:`observed`: of counts the logarithm of their mean.

        The mean of their logarithm is :meth:`mean_observed`.
        """
        return torch.log1p(1e4 * self.fraction(p_x)) if self.draws_counts else p_x.mean

    @torch.no_grad()
    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        """Begin at the moments of the genes, so that training need not find them first."""


class Poisson(Likelihood):
    """Poisson. With ``library`` the rates of a cell add up to its library size.

    scVAE's "constrained Poisson" is this with the observed total; its plain one is ``library=False``.
    """

    def __init__(self, n_hidden: int, n_vars: int, *, library: bool = True) -> None:
        super().__init__(n_hidden, n_vars)
        self.library = library

    def rate(self, h: Tensor, log_ell: Tensor) -> dist.Rate:
        return dist.Rate(self.head(h), log_ell if self.library else None)

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.Poisson:
        return dist.Poisson(self.rate(h, log_ell))

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        with torch.no_grad():
            floor = mean.sum() * 1e-9 + 1e-9
            log_mean = (mean + floor).log()
            self.head.bias.copy_(log_mean - log_ell.exp().mean().log() if self.library else log_mean)


class NB(Poisson):
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
        super().__init__(n_hidden, n_vars, library=library)
        self.dispersion = dispersion
        if dispersion == "gene-cell":
            self.theta_head = Head(n_hidden, n_vars)
        else:
            rows = n_batch if dispersion == "gene-batch" else 1
            self.log_theta = nn.Parameter(torch.zeros(rows, n_vars))

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.NegativeBinomial:  # type: ignore[override]
        if self.dispersion == "gene-cell":
            log_theta = self.theta_head(h)
        else:
            log_theta = self.log_theta[b] if self.dispersion == "gene-batch" else self.log_theta
        return dist.NegativeBinomial(self.rate(h, log_ell), log_theta)

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        super().start_at(mean, variance, log_ell)
        with torch.no_grad():
            log_theta = log_inverse_dispersion(mean, variance)
            target = self.theta_head.bias if self.dispersion == "gene-cell" else self.log_theta
            target.copy_(log_theta.expand_as(target))


def log_inverse_dispersion(mean: Tensor, variance: Tensor) -> Tensor:
    """``log theta`` of each gene by its moments, within reason."""
    excess = (variance - mean).clamp_min(1e-3 * mean.square() + 1e-9)
    return (mean.square() / excess).clamp(1e-2, 1e2).log()


class ZeroInflated(Likelihood):
    """Extra zeros on top of another count likelihood: ZIP and ZINB."""

    def __init__(self, base: Poisson | NB) -> None:
        nn.Module.__init__(self)
        self.base = base
        self.gate = Head(base.head.in_features, base.head.out_features)

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.ZeroInflated:
        return dist.ZeroInflated(self.base(h, log_ell, b), self.gate(h))

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        self.base.start_at(mean, variance, log_ell)
        with torch.no_grad():
            self.gate.bias.fill_(-3.0)  # few extra zeros until the data ask for them


class Background(Likelihood):
    """Counts of antibodies, of which some bind where there is nothing to bind to.

    As in totalVI (Gayoso et al., Nature Methods 2021), whose background is a latent of its own; here it is
    read from the hidden vector like everything else. Rates are free of the library size.
    """

    def __init__(self, n_hidden: int, n_vars: int) -> None:
        super().__init__(n_hidden, n_vars)
        self.rise, self.gate = Head(n_hidden, n_vars), Head(n_hidden, n_vars)
        self.log_theta = nn.Parameter(torch.zeros(1, n_vars))

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.BackgroundMixture:
        return dist.BackgroundMixture(self.head(h), self.rise(h), self.gate(h), self.log_theta)

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        """Half of the counts around a background of half the mean, the others around three times that."""
        with torch.no_grad():
            self.head.bias.copy_((mean / 2 + 1e-3).log())
            self.rise.bias.fill_(math.log(2.0))  # log(1 + 2) = log 3
            self.log_theta.zero_()


class Piecewise(Likelihood):
    """Counts below ``k_max`` as categories, the others shifted by it: scVAE's PC-Poisson and PC-NB.

    Differs from scVAE in that with ``library`` a cell's library size moves the categories and the rates of
    what exceeds them, by slopes for each gene: or depth would have to be in the code. ``base`` has rates of
    its own (``library=False``), for what exceeds ``k_max`` does not add up to anything.
    """

    def __init__(self, base: Poisson | NB, k_max: int, *, library: bool = True) -> None:
        nn.Module.__init__(self)
        self.base, self.k_max = base, k_max
        n_vars = base.head.out_features
        self.categories = Head(base.head.in_features, n_vars * (k_max + 1))
        self.slope = self.tail_slope = None
        if library:  # category k begins at the slope of a Poisson's
            self.slope = nn.Parameter(torch.arange(k_max + 1.0).unsqueeze(-1).repeat(1, n_vars))
            self.tail_slope = nn.Parameter(torch.zeros(n_vars))
        self.middle: Tensor
        self.register_buffer("middle", torch.zeros(()))

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> dist.PiecewiseCategorical:
        logits, tail = self.categories(h).unflatten(-1, (self.k_max + 1, -1)), self.base(h, log_ell, b)
        if self.slope is not None:
            depth = log_ell - self.middle
            logits, tail = logits + depth.unsqueeze(-1) * self.slope, tail.scaled(depth * self.tail_slope)
        return dist.PiecewiseCategorical(tail, logits)

    def start_at(self, mean: Tensor, variance: Tensor, log_ell: Tensor) -> None:
        """Categories as likely, and what exceeds them as large, as for NB counts of the gene's moments."""
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


class Gaussian(Likelihood):
    """Normal density of log-normalised data or of the data as given, variance per gene or fixed at one.

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
        loc, scale = p_x.base_dist.loc, p_x.base_dist.scale  # type: ignore[attr-defined]
        scale = torch.where(rows.unsqueeze(-1), scale, scale.detach())
        return Independent(Normal(loc, scale, validate_args=False), 1)

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
        return p_x.base_dist.log_prob(dense(self.features(x)))  # type: ignore[attr-defined]

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
    """Is the gene detected in the cell? Or, with ``on="given"``, values within [0, 1] such as grey levels."""

    draws_counts = False

    def __init__(self, n_hidden: int, n_vars: int, *, on: Literal["detected", "given"] = "detected") -> None:
        super().__init__(n_hidden, n_vars)
        self.on, self.counts = on, on == "detected"

    def forward(self, h: Tensor, log_ell: Tensor, b: Tensor) -> Independent:
        return Independent(TorchBernoulli(logits=self.head(h), validate_args=False), 1)

    def features(self, x: Tensor) -> Tensor:
        return map_values(x, lambda v: (v > 0).to(v.dtype)) if self.on == "detected" else x

    def log_prob(self, p_x: Distribution, x: Tensor) -> Tensor:
        return self.log_prob_entries(p_x, x).sum(-1)

    def log_prob_entries(self, p_x: Distribution, x: Tensor) -> Tensor:
        target, logits = dense(self.features(x)), p_x.base_dist.logits  # type: ignore[attr-defined]
        return target * logits - F.softplus(logits)

    def fraction(self, p_x: Distribution) -> Tensor:
        return p_x.mean
