r"""Joint prior of two latents: its parameters, and its log-partition function.

    p(z, z') = N(z; 0, I) N(z'; 0, I) exp{T(z)^T G T(z')} / Z(G)          G = [[g11, g12],     T(z) = (z, z^2)
                                                                              [g21, g22]]

``SecondOrder`` has all four blocks. It can be normalised because ``g22 < 0`` and, for every coordinate,

    sum_j g21_ij^2 / (4 |g22_ij|) < kappa^2 / 2         sum_i g12_ij^2 / (4 |g22_ij|) < kappa^2 / 2

(Cauchy-Schwarz on the collapsed density), so that no conditional precision is below ``1 - kappa^2``.
``FirstOrder`` has ``g11`` alone, with norm below one: a Gaussian whose canonical correlations are the
singular values of ``g11`` (probabilistic CCA). ``Uncoupled`` has no coupling.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from scalloy.blocks import gibbs

Chains = Literal["kept", "restarted"]
N_CHAINS, N_STEPS = 1024, 100  # of annealed importance sampling


class Coupling(nn.Module):
    """Base class: ``forward`` returns ``G``, statistics of the first latent x those of the second."""

    def __init__(self, n_first: int, n_second: int) -> None:
        super().__init__()
        self.sizes = (n_first, n_second)

    def forward(self) -> Tensor:
        raise NotImplementedError

    def log_partition(self) -> Tensor:
        """Return ``log Z`` relative to two standard normals, with its gradient."""
        raise NotImplementedError

    def sample(self, n: int, n_steps: int) -> gibbs.State:
        """Draw ``n`` pairs of latents from the prior."""
        return gibbs.sample(self(), n, n_steps)


class Uncoupled(Coupling):
    """Two independent standard normals."""

    none: Tensor

    def __init__(self, n_first: int, n_second: int) -> None:
        super().__init__(n_first, n_second)
        self.register_buffer("none", torch.zeros(2 * n_first, 2 * n_second))

    def forward(self) -> Tensor:
        return self.none

    def log_partition(self) -> Tensor:
        return self.none.new_zeros(())


class FirstOrder(Coupling):
    """A Gaussian with cross-precision ``-g11``; its log-partition is exact."""

    def __init__(self, n_first: int, n_second: int) -> None:
        super().__init__(n_first, n_second)
        self.raw = nn.Parameter(0.3 * torch.randn(n_first, n_second))

    def g11(self) -> Tensor:
        """Return ``W (I + W^T W)^(-1/2)``, which can be any matrix of norm below one."""
        values, vectors = torch.linalg.eigh(self.raw.T @ self.raw)
        return self.raw @ (vectors * (1 + values).rsqrt()) @ vectors.T

    def forward(self) -> Tensor:
        g11 = self.g11()
        return nn.functional.pad(g11, (0, g11.shape[1], 0, g11.shape[0]))

    def log_partition(self) -> Tensor:
        inner = self.raw.T @ self.raw  # det(I - g11^T g11) = 1 / det(I + W^T W)
        return 0.5 * torch.linalg.slogdet(inner + torch.eye(len(inner), device=inner.device))[1]


class SecondOrder(Coupling):
    """All second-order interactions; Gibbs chains give the gradient of the log-partition.

    In training, the value of the log-partition follows the parameters from step to step
    (``d log Z = <dG, E[T T'^T]>``). In evaluation it is computed anew by annealed importance sampling, with a
    random seed of its own.

    Parameters
    ----------
    n_first, n_second
        Numbers of dimensions of the two latents.
    kappa
        Bound on the strength of the coupling, below one. At one it could no longer be normalised.
    n_chains, n_sweeps
        Number of chains that follow the prior while it is learned, and of sweeps of each at every step.
    chains
        ``"kept"`` continues the chains from step to step (persistent contrastive divergence, Tieleman 2008);
        after each evaluation they go on from the annealed ones, so that every mode has its share.
        ``"restarted"`` starts them from the standard normals at every step.
    """

    value: Tensor
    valid_at: Tensor
    followed: Tensor
    first: Tensor
    second: Tensor

    def __init__(
        self,
        n_first: int,
        n_second: int,
        *,
        kappa: float = 0.7,
        n_chains: int = 256,
        n_sweeps: int = 2,
        chains: Chains = "kept",
    ) -> None:
        super().__init__(n_first, n_second)
        self.kappa, self.n_sweeps, self.chains = kappa, n_sweeps, chains
        shape = (n_first, n_second)
        self.g11 = nn.Parameter(0.3 * torch.randn(shape))
        self.log_g22 = nn.Parameter(torch.full(shape, -2.0))
        self.raw12, self.raw21 = (nn.Parameter(0.3 * torch.randn(shape)) for _ in range(2))
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("valid_at", torch.zeros(2 * n_first, 2 * n_second))
        self.register_buffer("followed", torch.tensor(True))
        for name, values in zip(("first", "second"), gibbs.start(self.valid_at, n_chains), strict=True):
            self.register_buffer(name, values)

    def forward(self) -> Tensor:
        size = self.log_g22.exp()
        reach = self.kappa * (2.0 * size).sqrt()
        n_first, n_second = self.sizes
        g12 = reach * torch.tanh(self.raw12) / n_first**0.5
        g21 = reach * torch.tanh(self.raw21) / n_second**0.5
        return torch.cat([torch.cat([self.g11, g12], 1), torch.cat([g21, -size], 1)])

    def log_partition(self) -> Tensor:
        g = self()
        if not self.training:
            self._evaluate(g.detach())
            return self.value
        slope = self._follow(g.detach())
        return self.value + ((g - g.detach()) * slope).sum()

    @torch.no_grad()
    def _follow(self, g: Tensor) -> Tensor:
        """Move the chains, update the value, and return the gradient of the log-partition by ``g``."""
        state = gibbs.State(self.first, self.second)
        if self.chains == "restarted":
            state = gibbs.start(g, len(self.first))
        state = gibbs.run(state, g, self.n_sweeps)
        slope = gibbs.moments(state, g)
        self.value += ((g - self.valid_at) * slope).sum()
        self.followed.fill_(True)
        for kept, values in ((self.first, state.first), (self.second, state.second), (self.valid_at, g)):
            kept.copy_(values)
        return slope

    @torch.no_grad()
    def _evaluate(self, g: Tensor) -> None:
        """Compute the value unless it is known for these parameters, and keep the annealed chains with it."""
        if self.followed or not torch.equal(g, self.valid_at):
            generator = torch.Generator(g.device).manual_seed(0)
            state, log_weight = gibbs.annealed(g, N_CHAINS, N_STEPS, generator)
            drawn = gibbs.resampled(state, log_weight, len(self.first), generator)
            self.value.copy_(gibbs.log_mean(log_weight))
            for kept, values in ((self.first, drawn.first), (self.second, drawn.second), (self.valid_at, g)):
                kept.copy_(values)
            self.followed.fill_(False)
