r"""Maximum mean discrepancy: a distance between distributions, estimated from samples of them.

    MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y)       k(x, y) = mean_a exp(-|x - y|^2 / (2 a))

Gretton et al., "A kernel two-sample test", JMLR 2012. The unbiased estimate leaves out the pairs of a sample
with itself and may be negative; the biased one includes them and is zero only for identical samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.checkpoint import checkpoint

#: Scales of trVAE (Lotfollahi et al. 2020), so wide a range that some of them suit any data.
TRVAE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
#: Multiples of the median squared distance.
AROUND_MEDIAN = (0.25, 0.5, 1.0, 2.0, 4.0)
ROWS = 1024  # rows of the kernel matrix that are computed at a time
EXACT = "donot_use_mm_for_euclid_dist"


def mmd2(x: Tensor, y: Tensor, scales: Sequence[float] | Tensor, *, unbiased: bool = True) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples.

    It is differentiable, and needs memory that is linear in the sizes of the samples.

    Parameters
    ----------
    x, y
        Samples x dimensions. The unbiased estimate needs at least two samples of each.
    scales
        Scale ``a`` of each kernel; the kernels are averaged.
    unbiased
        Whether to leave out the pairs of a sample with itself.
    """
    a = _tensor(scales, x)
    own = [(_sum(s, s, a) - len(s) * unbiased) / (len(s) * (len(s) - unbiased)) for s in (x, y)]
    return own[0] + own[1] - 2 * _sum(x, y, a) / (len(x) * len(y))


def median_scales(x: Tensor, factors: Sequence[float] = AROUND_MEDIAN) -> Tensor:
    """Return multiples of the median squared distance between samples (at most 512), without gradient."""
    some = x.detach()[torch.linspace(0, len(x) - 1, min(len(x), 512), device=x.device).long()]
    pairs = torch.pdist(some).square()
    median = pairs.median() if len(pairs) else x.new_ones(())
    return _tensor(factors, x) * median.clamp_min(1e-12)


def _tensor(values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Make a tensor like ``like``; numbers are written on its device, so that nothing is sent there."""
    if isinstance(values, Tensor):
        return values.to(like)
    return torch.stack([like.new_full((), v) for v in values])


def between_groups(
    x: Tensor,
    groups: Tensor,
    scales: Sequence[float] | Tensor,
    *,
    n_groups: int,
    within: Tensor | None = None,
    n_within: int = 1,
    at_least: int = 8,
    unbiased: bool = True,
    add_up: bool = False,
    by_size: bool = False,
) -> Tensor:
    """Return the mean of :func:`mmd2` over all pairs of groups with enough samples; 0 if there is no pair.

    Pairs with absent groups are computed too and then masked, so that nothing waits for a device to count
    samples.

    Parameters
    ----------
    x
        Samples x dimensions.
    groups, n_groups
        Code of the group of each sample, and the number of groups.
    scales
        Scale ``a`` of each kernel; the kernels are averaged.
    within, n_within
        Code of the set of each sample, or its probability of each set, and the number of sets. Only samples
        of the same set are compared, and the result is the mean over the sets that have pairs.
    at_least
        Number of samples that a group needs.
    unbiased
        Whether to leave out the pairs of a sample with itself.
    add_up
        Whether to return the sum over pairs of groups instead of their mean.
    by_size
        Whether a pair of groups in a set counts by its number of samples, as ``n m / (n + m)``, instead of
        pairs and sets all alike.
    """
    sets = torch.zeros_like(groups) if within is None else within
    shares = sets if sets.is_floating_point() else one_hot(sets, n_within)
    members = shares.unsqueeze(-1).to(x.dtype) * one_hot(groups, n_groups).unsqueeze(-2).to(x.dtype)
    left_out = int(unbiased)
    sizes, itself = members.sum(0), members.square().sum(0) * left_out  # a sample with itself
    follow = isinstance(scales, Tensor)  # scales from the data are not so small that tiny distances matter
    total = _sums(x, members, _tensor(scales, x), by_products=follow and x.is_cuda)
    own = total.diagonal(dim1=-2, dim2=-1) - itself
    own = own / (sizes.square() - itself).clamp_min(1)
    n = sizes.clamp_min(1)
    cross = total / (n.unsqueeze(-1) * n.unsqueeze(-2))
    found = own.unsqueeze(-1) + own.unsqueeze(-2) - 2 * cross
    enough = sizes >= max(at_least, 1 + left_out)
    wanted = (enough.unsqueeze(-1) & enough.unsqueeze(-2)).triu(1).to(x.dtype)
    if by_size:
        wanted = wanted * n.unsqueeze(-1) * n.unsqueeze(-2) / (n.unsqueeze(-1) + n.unsqueeze(-2))
        return (found * wanted).sum() / wanted.sum().clamp_min(1)
    pairs = wanted.sum((-2, -1))
    of_set = (found * wanted).sum((-2, -1))
    of_set = of_set if add_up else of_set / pairs.clamp_min(1)
    return of_set.sum() / (pairs > 0).sum().clamp_min(1)


def _sums(x: Tensor, members: Tensor, a: Tensor, *, by_products: bool = False) -> Tensor:
    """Sum the kernel over the pairs of any two groups of a set, ``(sets, groups, groups)``."""
    if len(x) <= ROWS:
        return _members_block(x, members, x, members, a, by_products)
    parts = zip(x.split(ROWS), members.split(ROWS), strict=True)
    blocks = (
        checkpoint(
            _members_block, *part, x, members, a, by_products, use_reentrant=False, preserve_rng_state=False
        )
        if x.requires_grad
        else _members_block(*part, x, members, a, by_products)
        for part in parts
    )
    return torch.stack(list(blocks)).sum(0)


def _members_block(x: Tensor, of_x: Tensor, y: Tensor, of_y: Tensor, a: Tensor, by_products: bool) -> Tensor:
    each = (kernel(x, y, a, by_products=by_products) @ of_y.flatten(1)).view(len(x), *of_y.shape[1:])
    return torch.einsum("nsk,nsl->skl", of_x, each)


def _sum(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """Sum the kernel over all pairs."""
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


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances by a matrix product: much faster on a GPU, but not exact for small ones."""
    middle = y.detach().mean(0)
    x, y = x - middle, y - middle
    return (x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * x @ y.T).clamp_min(0)


def kernel(x: Tensor, y: Tensor, scales: Tensor, *, by_products: bool = False) -> Tensor:
    """Return ``k`` of all pairs, ``(len(x), len(y))``."""
    squared = squared_distances(x, y) if by_products else torch.cdist(x, y, compute_mode=EXACT).square()
    total = torch.zeros_like(squared)
    for scale in scales:
        total = total + torch.exp(-squared / (2 * scale))
    return total / len(scales)


class RandomFeatures:
    """Random features ``f(x)`` with ``k(x, y)`` as their mean scalar product.

    ``f(x) f(x) = k(x, x)`` holds exactly.

    Rahimi & Recht, "Random features for large-scale kernel machines", NeurIPS 2007.

    Parameters
    ----------
    n_dims
        Number of dimensions of the samples.
    scales
        Scale ``a`` of each kernel; each has the same number of features.
    n_features
        Least number of features.
    generator
        Random generator of the frequencies.
    """

    def __init__(self, n_dims: int, scales: Tensor, n_features: int, generator: torch.Generator) -> None:
        each = -(-n_features // (2 * len(scales)))
        waves = torch.randn(n_dims, len(scales), each, generator=generator, dtype=scales.dtype)
        self.waves = (waves / scales[:, None].sqrt()).flatten(1)

    def __call__(self, x: Tensor) -> Tensor:
        angle = x @ self.waves
        return torch.cat([angle.cos(), angle.sin()], -1) / self.waves.shape[1] ** 0.5
