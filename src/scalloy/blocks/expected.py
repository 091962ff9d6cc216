r"""Expected logarithm of counts, which is not the logarithm of what is expected.

    E log1p(a x) = sum_{k <= K} p(k) log1p(a k) + p(x > K) E[log1p(a x) | x > K]

The first counts are summed. The others have the mean and the variance that are left, and are taken for gamma
distributed with these, for which ``E log x = log(mean) + digamma(shape) - log(shape)``. The error is below
0.004 where the mean is below 3, below 0.08 where the inverse dispersion is above 1 (0.03 above 2), and larger
only for genes with many counts and a dispersion such as few have.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from scalloy.blocks.distributions import (
    BackgroundMixture,
    CountDistribution,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)

SUMMED = 16  # counts of which each is a term
NEGLIGIBLE = 1e-6  # probability of the others with which they are left out


@torch.no_grad()
def mean_log1p(p: CountDistribution, factor: Tensor | float = 1.0) -> Tensor:
    """Mean of ``log1p(factor * x)`` of every entry, ``(..., G)``; it has no gradient.

    Parameters
    ----------
    p
        Of the counts.
    factor
        By which they are multiplied.
    """
    if isinstance(p, ZeroInflated):
        return torch.sigmoid(-p.gate) * mean_log1p(p.base, factor)
    if isinstance(p, BackgroundMixture):
        parts = mean_log1p(p.background, factor), mean_log1p(p.foreground, factor)
        return torch.lerp(parts[1], parts[0], p.pi)
    factor = torch.as_tensor(factor, dtype=p.mean.dtype, device=p.mean.device)
    left, first, second = torch.ones_like(p.mean), p.mean.clone(), p.variance + p.mean.square()
    total = torch.zeros_like(p.mean)
    for k, chance in enumerate(_chances(p)):
        left.sub_(chance)
        first.sub_(chance, alpha=k)
        second.sub_(chance, alpha=k**2)
        total.addcmul_(chance, torch.log1p(factor * k))
    left = left.clamp_min(NEGLIGIBLE)
    mean = (first / left).clamp_min(SUMMED + 1)
    shape = (mean + 1 / factor).square() / (second / left - mean.square()).clamp_min(1e-3)
    beyond = torch.log1p(factor * mean) + torch.digamma(shape) - shape.log()
    return total.add_(torch.where(left > NEGLIGIBLE, left * beyond.clamp_min(0), 0.0))


def _chances(p: CountDistribution) -> Iterator[Tensor]:
    """Probabilities of the counts from 0 to ``SUMMED``, each made of the one before and in its place."""
    if not isinstance(p, NegativeBinomial | Poisson):
        for k in range(SUMMED + 1):
            yield p.log_pmf(torch.full_like(p.mean, float(k))).exp()
        return
    if isinstance(p, Poisson):
        chance, ratio, theta = (-p.mean).exp(), p.mean, None
    else:
        theta, v = p.log_theta.exp(), p.rate.log_mean - p.log_theta
        chance, ratio = (-theta * F.softplus(v)).exp(), torch.sigmoid(v)
    for k in range(SUMMED + 1):
        yield chance
        chance.mul_(ratio).mul_((1.0 if theta is None else theta + k) / (k + 1))
