r"""Gibbs sampling of two latents coupled by an exponential-family harmonium.

    p(z, z') ~ N(z; 0, I) N(z'; 0, I) exp{T(z)^T G T(z') + nu^T T(z) + nu'^T T(z')}       T(z) = (z, z^2)

Given the other one, each latent is a Gaussian with independent coordinates: with ``(b, e) = G T(z') + nu``,

    z_i | z' ~ N(b_i / lambda_i, 1 / lambda_i)                         lambda = 1 - 2 e
    log int N(z; 0, I) exp{..} dz = sum_i (b_i^2 / lambda_i - log lambda_i) / 2           the potential of z'

All functions are pure functions of a :class:`State`; nothing is stored here. Everything is relative to the
two standard normals, so that the log-partition is zero without coupling and without ``nu``.

Welling, Rosen-Zvi & Hinton, "Exponential family harmoniums", NIPS 2004. Annealed importance sampling: Neal,
Statistics and Computing 2001.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.distributions import Independent

from scalloy.blocks.distributions import gaussian


class State(NamedTuple):
    """Values of the two latents, chains x dimensions each."""

    first: Tensor
    second: Tensor


def statistics(z: Tensor) -> Tensor:
    """Return ``T(z) = (z, z^2)``, in which the logarithms of prior and experts are linear."""
    return torch.cat([z, z.square()], -1)


def message(other: Tensor, g: Tensor) -> Tensor:
    """Return the natural parameters that a latent receives from ``other``, to which rows of ``g`` belong."""
    return statistics(other) @ g


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


def start(g: Tensor, n_chains: int, generator: Generator | None = None) -> State:
    """Draw independent states from the two standard normals."""
    sizes = (g.shape[0] // 2, g.shape[1] // 2)
    draws = (torch.randn(n_chains, d, generator=generator, device=g.device, dtype=g.dtype) for d in sizes)
    return State(*draws)


def sweep(
    state: State,
    g: Tensor,
    nu: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
    generator: Generator | None = None,
) -> State:
    """Draw the first latent given the second, then the second given the first."""
    first = _draw(message(state.second, g.T) + nu[0], generator)
    return State(first, _draw(message(first, g) + nu[1], generator))


def _draw(natural: Tensor, generator: Generator | None) -> Tensor:
    q = normal(natural)
    noise = torch.randn(q.mean.shape, generator=generator, device=natural.device, dtype=natural.dtype)
    return q.mean + q.stddev * noise


def run(
    state: State,
    g: Tensor,
    n_sweeps: int,
    nu: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
    generator: Generator | None = None,
) -> State:
    """Run several sweeps."""
    for _ in range(n_sweeps):
        state = sweep(state, g, nu, generator)
    return state


def moments(state: State, g: Tensor) -> Tensor:
    """Estimate ``E[T(z) T(z')^T]`` from the chains, in the shape of ``g``.

    The first latent is summed out exactly. Once the chains have reached the prior, this is the derivative of
    the log-partition by ``g``.
    """
    q = normal(message(state.second, g.T))
    expected = torch.cat([q.mean, q.mean.square() + q.variance], -1)
    return expected.T @ statistics(state.second) / len(state.second)


def annealed(
    g: Tensor, n_chains: int, n_steps: int, generator: Generator | None = None
) -> tuple[State, Tensor]:
    """Lead chains from no coupling to the full one; return them and their log importance weights.

    The coupling grows in equal steps, with one sweep after each. The weights are those of the second latent
    alone, as the first is summed out; their mean estimates the partition function (Neal 2001).
    """
    state = start(g, n_chains, generator)
    log_weight = g.new_zeros(n_chains)
    before = g.new_zeros(n_chains)
    for k in range(1, n_steps + 1):
        now = g * (k / n_steps)
        log_weight += log_normaliser(message(state.second, now.T)) - before
        state = sweep(state, now, generator=generator)
        before = log_normaliser(message(state.second, now.T))
    return state, log_weight


def log_mean(log_weight: Tensor) -> Tensor:
    """Return the logarithm of the mean weight of the chains."""
    return torch.logsumexp(log_weight, 0) - math.log(len(log_weight))


def log_partition(
    g: Tensor, *, n_chains: int = 1024, n_steps: int = 100, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Estimate the logarithm of the partition function, and its standard error."""
    _, log_weight = annealed(g, n_chains, n_steps, generator)
    value = log_mean(log_weight)
    weight = (log_weight - value).exp()
    return value, weight.std() / math.sqrt(n_chains)


def sample(g: Tensor, n: int, n_steps: int, generator: Generator | None = None) -> State:
    """Draw from the prior, with its modes in the right proportions.

    The draws are annealed chains, chosen by their weights: a chain of sweeps alone would stay in the mode
    that it fell into.
    """
    state, log_weight = annealed(g, 4 * n, n_steps, generator)
    return resampled(state, log_weight, n, generator)


def resampled(state: State, log_weight: Tensor, n: int, generator: Generator | None = None) -> State:
    """Choose chains by their importance weights, with replacement."""
    rows = torch.multinomial(torch.softmax(log_weight, 0), n, replacement=True, generator=generator)
    return State(*(v[rows] for v in state))
