r"""Gibbs sampling of latents that are coupled in pairs, an exponential-family harmonium.

    p(z_1, z_2, ..) ~ prod_k N(z_k; 0, I) exp{nu_k^T T(z_k)} prod_{j<k} exp{T(z_j)^T G_jk T(z_k)}

with ``T(z) = (z, z^2)``. Given all the others, each latent is a Gaussian with independent coordinates: with
``(b, e) = sum_j G_jk^T T(z_j) + nu_k``,

    z_ki | others ~ N(b_i / lambda_i, 1 / lambda_i)                    lambda = 1 - 2 e
    log int N(z_k; 0, I) exp{..} dz_k = sum_i (b_i^2 / lambda_i - log lambda_i) / 2   potential of the others

All functions are pure functions of a :class:`State`; nothing is stored here. Everything is relative to
standard normals, so that the log-partition is zero without coupling and without ``nu``.

Welling, Rosen-Zvi & Hinton, "Exponential family harmoniums", NIPS 2004. Annealed importance sampling: Neal,
Statistics and Computing 2001.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Generator, Tensor
from torch.distributions import Independent

from scalloy.blocks.distributions import gaussian

State = tuple[Tensor, ...]  # values of each latent, chains x dimensions
Pairs = Mapping[tuple[int, int], Tensor]  # the matrix G_jk of each pair of latents j < k
Natural = Sequence[Tensor | float]  # natural parameters beside those of the pairs, for each latent


def statistics(z: Tensor) -> Tensor:
    """Return ``T(z) = (z, z^2)``, in which the logarithms of prior and experts are linear."""
    return torch.cat([z, z.square()], -1)


def toward(pairs: Pairs, j: int, k: int) -> Tensor:
    """Return the matrix from the statistics of latent ``j`` to the natural parameters of latent ``k``."""
    return pairs[j, k] if j < k else pairs[k, j].T


def message(state: Sequence[Tensor], pairs: Pairs, k: int) -> Tensor:
    """Return the natural parameters that latent ``k`` receives from all others."""
    return torch.stack([statistics(state[j]) @ toward(pairs, j, k) for j in others(len(state), k)]).sum(0)


def others(n: int, k: int) -> Iterator[int]:
    """Yield the numbers below ``n`` without ``k``."""
    return (j for j in range(n) if j != k)


def energy(state: Sequence[Tensor], pairs: Pairs) -> Tensor:
    """Return ``sum T(z_j)^T G_jk T(z_k)`` over the pairs, chain by chain."""
    each = [((statistics(state[j]) @ g) * statistics(state[k])).sum(-1) for (j, k), g in pairs.items()]
    return torch.stack(each).sum(0)


def scaled(pairs: Pairs, factor: float) -> Pairs:
    """Return the coupling times a factor."""
    return {pair: g * factor for pair, g in pairs.items()}


def normal(natural: Tensor) -> Independent:
    """Return the Gaussian ``N(z; 0, I) exp{natural^T T(z)}``, normalised."""
    b, e = natural.chunk(2, -1)
    variance = 1.0 / (1.0 - 2.0 * e)
    return gaussian(b * variance, variance.sqrt())


def log_normaliser(natural: Tensor) -> Tensor:
    """Return ``log int N(z; 0, I) exp{natural^T T(z)} dz``."""
    b, e = natural.chunk(2, -1)
    precision = 1.0 - 2.0 * e
    return 0.5 * (b.square() / precision - precision.log()).sum(-1)


def sizes(pairs: Pairs) -> tuple[int, ...]:
    """Return the number of dimensions of each latent."""
    of = {k: g.shape[side] // 2 for pair, g in pairs.items() for side, k in enumerate(pair)}
    return tuple(of[k] for k in sorted(of))


def start(pairs: Pairs, n_chains: int, generator: Generator | None = None) -> State:
    """Draw independent states from standard normals."""
    like = next(iter(pairs.values()))
    draws = (
        torch.randn(n_chains, d, generator=generator, device=like.device, dtype=like.dtype)
        for d in sizes(pairs)
    )
    return tuple(draws)


def sweep(
    state: State,
    pairs: Pairs,
    nu: Natural | None = None,
    generator: Generator | None = None,
    fixed: Sequence[int] = (),
) -> State:
    """Draw each latent in turn given all the others, except those that are ``fixed``."""
    now = list(state)
    for k in range(len(now)):
        if k not in fixed:
            natural = message(now, pairs, k)
            now[k] = _draw(natural if nu is None else natural + nu[k], generator)
    return tuple(now)


def _draw(natural: Tensor, generator: Generator | None) -> Tensor:
    q = normal(natural)
    noise = torch.randn(q.mean.shape, generator=generator, device=natural.device, dtype=natural.dtype)
    return q.mean + q.stddev * noise


def run(
    state: State,
    pairs: Pairs,
    n_sweeps: int,
    nu: Natural | None = None,
    generator: Generator | None = None,
) -> State:
    """Run several sweeps."""
    for _ in range(n_sweeps):
        state = sweep(state, pairs, nu, generator)
    return state


def moments(state: State, pairs: Pairs) -> dict[tuple[int, int], Tensor]:
    """Estimate ``E[T(z_j) T(z_k)^T]`` of each pair from the chains, in the shapes of the coupling.

    The first latent of each pair is summed out exactly. Once the chains have reached the prior, these are the
    derivatives of the log-partition by the coupling.
    """
    out, expected = {}, {}
    for j, k in pairs:
        if j not in expected:
            q = normal(message(state, pairs, j))
            expected[j] = torch.cat([q.mean, q.mean.square() + q.variance], -1)
        out[j, k] = expected[j].T @ statistics(state[k]) / len(state[k])
    return out


def annealed(
    pairs: Pairs, n_chains: int, n_steps: int, generator: Generator | None = None
) -> tuple[State, Tensor]:
    """Lead chains from no coupling to the full one; return them and their log importance weights.

    The coupling grows in equal steps, with one sweep after each. The weights are those of all latents but the
    first, which is summed out; their mean estimates the partition function (Neal 2001).
    """
    state = start(pairs, n_chains, generator)
    log_weight = before = torch.zeros_like(state[0][:, 0])
    for step in range(1, n_steps + 1):
        now = scaled(pairs, step / n_steps)
        log_weight = log_weight + _without_first(state, now) - before
        state = sweep(state, now, generator=generator)
        before = _without_first(state, now)
    return state, log_weight


def _without_first(state: State, pairs: Pairs) -> Tensor:
    """Return the log density of all latents but the first, relative to standard normals, up to ``log Z``."""
    rest = {pair: g for pair, g in pairs.items() if 0 not in pair}
    out = log_normaliser(message(state, pairs, 0))
    return out + energy(state, rest) if rest else out


def log_mean(log_weight: Tensor) -> Tensor:
    """Return the logarithm of the mean weight of the chains."""
    return torch.logsumexp(log_weight, 0) - math.log(len(log_weight))


def log_partition(
    pairs: Pairs, *, n_chains: int = 1024, n_steps: int = 100, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Estimate the logarithm of the partition function, and its standard error."""
    _, log_weight = annealed(pairs, n_chains, n_steps, generator)
    value = log_mean(log_weight)
    weight = (log_weight - value).exp()
    return value, weight.std() / math.sqrt(n_chains)


def sample(pairs: Pairs, n: int, n_steps: int, generator: Generator | None = None) -> State:
    """Draw from the prior, with its modes in the right proportions.

    The draws are annealed chains, chosen by their weights: a chain of sweeps alone would stay in the mode
    that it fell into.
    """
    state, log_weight = annealed(pairs, 4 * n, n_steps, generator)
    return resampled(state, log_weight, n, generator)


def resampled(state: State, log_weight: Tensor, n: int, generator: Generator | None = None) -> State:
    """Choose chains by their importance weights, with replacement."""
    rows = torch.multinomial(torch.softmax(log_weight, 0), n, replacement=True, generator=generator)
    return tuple(v[rows] for v in state)
