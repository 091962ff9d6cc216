r"""Distances between distributions from samples of them: the maximum mean discrepancy.

    MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y)       k(x, y) = mean_a exp(-|x - y|^2 / (2 a))

Gretton et al., "A kernel two-sample test", JMLR 2012. The unbiased estimate leaves out the pairs of a sample
with itself and may be negative; the biased one keeps them and is zero only for identical samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Scales of trVAE (Lotfollahi et al. 2020): so wide a range that some of them fit any data.
TRVAE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
#: Multiples of the median squared distance.
AROUND_MEDIAN = (0.25, 0.5, 1.0, 2.0, 4.0)
ROWS = 1024  # of the matrix of kernels at a time


def mmd2(x: Tensor, y: Tensor, scales: Sequence[float] | Tensor, *, unbiased: bool = True) -> Tensor:
    """Squared maximum mean discrepancy of two samples, differentiable, in memory linear in their sizes.

    Parameters
    ----------
    x, y
        Samples x dimensions; at least two of each for the unbiased estimate.
    scales
        ``a`` of each kernel, over which is averaged.
    unbiased
        Whether a sample's pairs with itself are left out.
    """
    a = torch.as_tensor(scales, dtype=x.dtype, device=x.device)
    own = [(_sum(s, s, a) - len(s) * unbiased) / (len(s) * (len(s) - unbiased)) for s in (x, y)]
    return own[0] + own[1] - 2 * _sum(x, y, a) / (len(x) * len(y))


def median_scales(x: Tensor, factors: Sequence[float] = AROUND_MEDIAN) -> Tensor:
    """Multiples of the median squared distance between samples (of at most 512), without gradient."""
    some = x.detach()[torch.linspace(0, len(x) - 1, min(len(x), 512)).long().to(x.device)]
    pairs = torch.pdist(some).square()
    median = pairs.median() if len(pairs) else x.new_tensor(1.0)
    return x.new_tensor(factors) * median.clamp_min(1e-12)


def between_groups(
    x: Tensor, groups: Tensor, scales: Sequence[float] | Tensor, *, at_least: int = 8, unbiased: bool = True
) -> Tensor:
    """Mean of :func:`mmd2` over all pairs of groups which have enough samples; 0 if there are no two.

    Parameters
    ----------
    x
        Samples x dimensions.
    groups
        Code of the group of each.
    scales, unbiased
        As there.
    at_least
        Samples of a group.
    """
    codes, sizes = torch.unique(groups, return_counts=True)
    parts = [x[groups == code] for code in codes[sizes >= at_least]]
    found = [mmd2(a, b, scales, unbiased=unbiased) for a, b in combinations(parts, 2)]
    return torch.stack(found).mean() if found else x.sum() * 0.0


def _sum(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """Sum of the kernel over all pairs."""
    if len(x) <= ROWS:
        return _block(x, y, a)
    again = x.requires_grad or y.requires_grad
    blocks = (
        checkpoint(_block, rows, y, a, use_reentrant=False) if again else _block(rows, y, a)
        for rows in x.split(ROWS)
    )
    return torch.stack(list(blocks)).sum()


def _block(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    return kernel(x, y, a).sum()


def kernel(x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """``k`` of all pairs, ``(len(x), len(y))``."""
    squared = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    total = torch.zeros_like(squared)
    for scale in scales:
        total = total + torch.exp(-squared / (2 * scale))
    return total / len(scales)


class RandomFeatures:
    """Features ``f(x)`` whose scalar products are ``k`` on average, and ``f(x) f(x) = k(x, x)`` exactly.

    Rahimi & Recht, "Random features for large-scale kernel machines", NeurIPS 2007.

    Parameters
    ----------
    n_dims
        Of the samples.
    scales
        As in :func:`mmd2`; each has its part of the features.
    n_features
        How many at least.
    generator
        Of the frequencies.
    """

    def __init__(self, n_dims: int, scales: Tensor, n_features: int, generator: torch.Generator) -> None:
        each = -(-n_features // (2 * len(scales)))
        waves = torch.randn(n_dims, len(scales), each, generator=generator, dtype=scales.dtype)
        self.waves = (waves / scales[:, None].sqrt()).flatten(1)

    def __call__(self, x: Tensor) -> Tensor:
        angle = x @ self.waves
        return torch.cat([angle.cos(), angle.sin()], -1) / self.waves.shape[1] ** 0.5
