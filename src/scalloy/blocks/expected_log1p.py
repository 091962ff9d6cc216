r"""Expected logarithm of counts, which is not the logarithm of the expected counts.

    E log1p(a x) = sum_{k <= K} p(k) log1p(a k) + p(x > K) E[log1p(a x) | x > K]

The first sum is computed term by term. Mean and variance of the larger counts are what is left of the
moments. For these counts, ``x + 1 / a`` is taken to be gamma distributed, so that its mean logarithm is
``log(mean) + digamma(shape) - log(shape)``. The error is below 0.004 where the mean is below 3, and below
0.08 where the inverse dispersion is above 1 (0.03 above 2). It is larger only for genes with many counts and
an unusually large dispersion.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from scalloy.blocks.distributions import (
    BackgroundMixture,
    CountDistribution,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)
from scalloy.kernels.digamma import digamma

SUMMED = 16  # K, the largest count that has a term of its own
TINY = 1e-30  # probability that counts as zero: processors are slow with numbers close to underflow
NEGLIGIBLE = 1e-5  # probability of larger counts below which they are left out


@torch.no_grad()
def mean_log1p(p: CountDistribution, factor: Tensor | float = 1.0) -> Tensor:
    """Return the mean of ``log1p(factor * x)`` of every entry, ``(..., G)``, without gradient.

    Parameters
    ----------
    p
        Distribution of the counts.
    factor
        Factor by which counts are multiplied: one number, or one for each cell or each entry.
    """
    if isinstance(p, ZeroInflated):
        return torch.sigmoid(-p.gate) * mean_log1p(p.base, factor)
    if isinstance(p, BackgroundMixture):
        parts = mean_log1p(p.background, factor), mean_log1p(p.foreground, factor)
        return torch.lerp(parts[1], parts[0], p.pi)
    mean = p.mean
    factor = torch.as_tensor(factor, dtype=mean.dtype, device=mean.device)
    if isinstance(p, NegativeBinomial | Poisson) and mean.device.type == "cpu":
        return _compiled(p, factor)
    return _by_torch(p, factor)


def _by_torch(p: CountDistribution, factor: Tensor) -> Tensor:
    """Compute it with operations of torch."""
    total, left, first, second = _summed(p, factor)
    some = left > NEGLIGIBLE
    factor, left, first, second = (v.expand_as(total)[some] for v in (factor, left, first, second))
    mean = (first / left).clamp_min(SUMMED + 1)
    shape = (mean + 1 / factor).square() / (second / left - mean.square()).clamp_min(1e-3)
    beyond = torch.log1p(factor * mean) + torch.digamma(shape) - shape.log()
    total[some] += left * beyond.clamp_min(0)
    return total


def _summed(p: CountDistribution, factor: Tensor) -> tuple[Tensor, ...]:
    """Sum over the first counts; return also the probability of the others and their part of two moments."""
    left, first, second = torch.ones_like(p.mean), p.mean.clone(), p.variance + p.mean.square()
    total = torch.zeros_like(p.mean)
    for k in range(SUMMED + 1):
        chance = p.log_pmf(torch.full_like(p.mean, float(k))).exp()
        left.sub_(chance)
        first.sub_(chance, alpha=k)
        second.sub_(chance, alpha=k**2)
        total.addcmul_(chance, torch.log1p(factor * k))
    return total, left, first, second


def _compiled(p: NegativeBinomial | Poisson, factor: Tensor) -> Tensor:
    """Compute the same from the recursion ``p(k + 1) = p(k) (a + b k) / (k + 1)``, in compiled loops.

    The first terms of many genes are summed at once; entries with larger counts are then computed one by one.
    """
    mean, shape = p.mean, p.mean.shape
    if isinstance(p, NegativeBinomial):
        theta = p.log_theta.exp()
        ratio = mean / (mean + theta)
        start, a, b = torch.exp(-theta * torch.log1p(mean / theta)), ratio * theta, ratio
    else:
        theta, start, a, b = torch.tensor(torch.inf), torch.exp(-mean), mean, torch.zeros(())
    per_cell = factor.ndim == 0 or factor.shape[-1] == 1

    def flat(values: Tensor) -> np.ndarray:
        return values.expand(shape).reshape(-1, shape[-1]).numpy()

    scale, total = flat(factor), np.empty_like(flat(mean))
    more = np.ones_like(total)
    if per_cell:
        more = _first_terms(flat(start), flat(a), flat(b), scale, total)
    _all_terms(flat(mean), flat(theta), scale, more, total)
    return torch.from_numpy(total).view(shape)


@njit(error_model="numpy", fastmath=True)
def _first_terms(
    start: np.ndarray, a: np.ndarray, b: np.ndarray, factor: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """Fill in ``total`` with the first terms of the sum, and return the probability of larger counts.

    All entries of a cell have the same factor. The number of terms is fixed, and small enough for the
    compiler to unroll their loop, so that many genes are summed at once with vector instructions.
    """
    zero, one, least = total.dtype.type(0), total.dtype.type(1), total.dtype.type(TINY)
    more = np.empty_like(total)
    logs, steps = np.empty(SUMMED, dtype=total.dtype), np.empty(SUMMED, dtype=total.dtype)
    rises = np.empty(SUMMED, dtype=total.dtype)
    for k in range(SUMMED):
        steps[k], rises[k] = 1 / (k + 1), k
    for i in range(total.shape[0]):
        for k in range(SUMMED):
            logs[k] = math.log1p(factor[i, 0] * (k + 1))
        for g in range(total.shape[1]):
            chance, first, slope = start[i, g], a[i, g], b[i, g]
            rest, value = one - chance, zero
            for k in range(SUMMED):
                chance = chance * (first + rises[k] * slope) * steps[k]
                chance = chance if chance > least else zero
                rest -= chance
                value += chance * logs[k]
            total[i, g], more[i, g] = value, rest
    return more


@njit(error_model="numpy")
def _all_terms(
    mean: np.ndarray, theta: np.ndarray, factor: np.ndarray, more: np.ndarray, total: np.ndarray
) -> None:
    """Fill in ``total`` where larger counts have more than a negligible probability."""
    logs, per_step, known = np.zeros(SUMMED + 1), np.zeros(SUMMED + 1), math.nan
    for k in range(1, SUMMED + 1):
        per_step[k] = 1 / k
    for i in range(mean.shape[0]):
        for g in range(mean.shape[1]):
            if more[i, g] > NEGLIGIBLE:
                if factor[i, g] != known:
                    known = factor[i, g]
                    for k in range(SUMMED + 1):
                        logs[k] = math.log1p(float(known) * k)
                of = float(mean[i, g]), float(theta[i, g]), float(known)
                total[i, g] = _of_entry(*of, logs, per_step)


@njit(error_model="numpy")
def _of_entry(mean: float, theta: float, factor: float, logs: np.ndarray, per_step: np.ndarray) -> float:
    """Return the mean logarithm of one entry."""
    finite = theta < math.inf
    start = math.exp(-theta * math.log1p(mean / theta)) if finite else math.exp(-mean)
    ratio = mean / (mean + theta) if finite else mean
    chance, more, value = start, 1 - start, 0.0
    for k in range(SUMMED):
        chance *= ratio * ((theta + k) if finite else 1.0) * per_step[k + 1]
        more -= chance
        value += chance * logs[k + 1]
    if more <= NEGLIGIBLE:
        return value
    chance, first, second = start, mean, mean + mean * mean * (1 + 1 / theta)
    for k in range(SUMMED):
        chance *= ratio * ((theta + k) if finite else 1.0) * per_step[k + 1]
        first -= (k + 1) * chance
        second -= (k + 1) ** 2 * chance
    beyond = max(first / more, SUMMED + 1.0)
    level = beyond + 1 / factor
    shape = level * level / max(second / more - beyond * beyond, 1e-3)
    return value + more * max(math.log1p(factor * beyond) + digamma(shape) - math.log(shape), 0.0)
