r"""Joint prior of the latents of several modalities: its parameters, and its log-partition function.

    p(z_1, .., z_M) = prod_k N(z_k; 0, I) prod_{j<k} exp{T(z_j)^T G_jk T(z_k)} / Z(G)       T(z) = (z, z^2)
    G_jk            = [[g11, g12], [g21, g22]]

``SecondOrder`` has all four blocks of each pair. It can be normalised because ``g22 < 0`` and, for every
coordinate ``i`` of every latent,

    sum_j' g12_j'i^2 / (4 |g22_j'i|) < kappa^2 / 2        M = 2, sum over the coordinates of the other latent
                                     < kappa^2 / 4        M > 2, sum over those of all other latents

(``g12`` stands for the weights of the first power of the others with the second power of this one). With two
latents this follows from the collapsed density by Cauchy-Schwarz. With more, complete the squares:

    g12 a b^2 - |g22| a^2 b^2 / 2 <= g12^2 b^2 / (2 |g22|)        any share of g22 bounds g11 a b

so that the exponents of all pairs are at most a constant plus ``kappa^2 |z_k|^2 / 2`` in all, which the
standard normals outweigh. No conditional precision is below ``1 - kappa^2``.

``FirstOrder`` has ``g11`` alone: a Gaussian with precision ``I - B``, where ``B`` has the ``g11`` of each
pair beside its diagonal and norm below one. With two latents their canonical correlations are the singular
values of ``g11`` (probabilistic CCA). ``Uncoupled`` has no coupling.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from scalloy.blocks import gibbs

Chains = Literal["kept", "restarted"]
N_CHAINS, N_STEPS = 1024, 100  # of annealed importance sampling


class Coupling(nn.Module):
    """Base class: ``forward`` returns ``G_jk`` of each pair, statistics of one latent x those of the other.

    Parameters
    ----------
    sizes
        Number of dimensions of each latent.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.which = tuple(combinations(range(len(self.sizes)), 2))

    def forward(self) -> gibbs.Pairs:
        raise NotImplementedError

    def log_partition(self) -> Tensor:
        """Return ``log Z`` relative to standard normals, with its gradient."""
        raise NotImplementedError

    def sample(self, n: int, n_steps: int) -> gibbs.State:
        """Draw the latents of ``n`` cells from the prior."""
        return gibbs.sample(self(), n, n_steps)

    def shapes(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Return the numbers of dimensions of the two latents of each pair."""
        return {(j, k): (self.sizes[j], self.sizes[k]) for j, k in self.which}


class Uncoupled(Coupling):
    """Independent standard normals."""

    none: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        largest = 2 * max(self.sizes)
        self.register_buffer("none", torch.zeros(largest, largest))

    def forward(self) -> gibbs.Pairs:
        return {pair: self.none[: 2 * a, : 2 * b] for pair, (a, b) in self.shapes().items()}

    def log_partition(self) -> Tensor:
        return self.none.new_zeros(())


class FirstOrder(Coupling):
    """A Gaussian with precision ``I - B``; its log-partition is exact."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.raw = nn.ParameterList(0.3 * torch.randn(shape) for shape in self.shapes().values())

    def g11(self) -> list[Tensor]:
        """Return the weights of each pair, for which ``B`` can be any such matrix of norm below one.

        Of two latents, each singular value is bounded by itself: ``W (I + W^T W)^(-1/2)``. Of more, the whole
        matrix is divided by ``(1 + its norm^2)^(1/2)``, which leaves the blocks of its diagonal zero.
        """
        if len(self.raw) == 1:
            (raw,) = self.raw
            values, vectors = torch.linalg.eigh(raw.T @ raw)
            return [raw @ (vectors * (1 + values).rsqrt()) @ vectors.T]
        norm = torch.linalg.eigvalsh(self._beside_diagonal(list(self.raw))).abs().max()
        return [raw * (1 + norm.square()).rsqrt() for raw in self.raw]

    def _beside_diagonal(self, blocks: Sequence[Tensor]) -> Tensor:
        """Return the symmetric matrix with these blocks beside its diagonal."""
        found = dict(zip(self.which, blocks, strict=True))
        rows = []
        for j, a in enumerate(self.sizes):
            of = [gibbs.toward(found, j, k) if j != k else blocks[0].new_zeros(a, a) for k in self._numbers]
            rows.append(torch.cat(of, 1))
        return torch.cat(rows)

    @property
    def _numbers(self) -> range:
        return range(len(self.sizes))

    def forward(self) -> gibbs.Pairs:
        g11 = zip(self.which, self.g11(), strict=True)
        return {pair: nn.functional.pad(g, (0, g.shape[1], 0, g.shape[0])) for pair, g in g11}

    def log_partition(self) -> Tensor:
        if len(self.raw) == 1:
            inner = self.raw[0].T @ self.raw[0]  # det(I - g11^T g11) = 1 / det(I + W^T W)
            return 0.5 * torch.linalg.slogdet(inner + torch.eye(len(inner), device=inner.device))[1]
        b = self._beside_diagonal(self.g11())
        return -0.5 * torch.linalg.slogdet(torch.eye(len(b), device=b.device, dtype=b.dtype) - b)[1]


class PairOfSecondOrder(nn.Module):
    """All second-order interactions of two latents.

    Parameters
    ----------
    n_first, n_second
        Numbers of dimensions of the two latents.
    reach
        Bound on the strength of the coupling of first powers with second ones.
    """

    def __init__(self, n_first: int, n_second: int, reach: float) -> None:
        super().__init__()
        shape = (n_first, n_second)
        self.reach = reach
        self.g11 = nn.Parameter(0.3 * torch.randn(shape))
        self.log_g22 = nn.Parameter(torch.full(shape, -2.0))
        self.raw12, self.raw21 = (nn.Parameter(0.3 * torch.randn(shape)) for _ in range(2))

    def forward(self) -> Tensor:
        size = self.log_g22.exp()
        reach = self.reach * (2.0 * size).sqrt()
        n_first, n_second = size.shape
        g12 = reach * torch.tanh(self.raw12) / n_first**0.5
        g21 = reach * torch.tanh(self.raw21) / n_second**0.5
        return torch.cat([torch.cat([self.g11, g12], 1), torch.cat([g21, -size], 1)])


class SecondOrder(Coupling):
    """All second-order interactions; Gibbs chains give the gradient of the log-partition.

    In training, the value of the log-partition follows the parameters from step to step
    (``d log Z = sum <dG_jk, E[T T'^T]>``). In evaluation it is computed anew by annealed importance sampling,
    with a random seed of its own.

    Parameters
    ----------
    sizes
        Number of dimensions of each latent.
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
    followed: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        kappa: float = 0.7,
        n_chains: int = 256,
        n_sweeps: int = 2,
        chains: Chains = "kept",
    ) -> None:
        super().__init__(sizes)
        self.kappa, self.n_sweeps, self.chains = kappa, n_sweeps, chains
        n_others = len(self.sizes) - 1
        reach = kappa if n_others == 1 else kappa / (2 * n_others) ** 0.5
        self.pairs = nn.ModuleList(PairOfSecondOrder(a, b, reach) for a, b in self.shapes().values())
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("followed", torch.tensor(True))
        for i, (a, b) in enumerate(self.shapes().values()):
            self.register_buffer(f"valid_at_{i}", torch.zeros(2 * a, 2 * b))
        for i, d in enumerate(self.sizes):
            self.register_buffer(f"chains_{i}", torch.randn(n_chains, d))

    def forward(self) -> gibbs.Pairs:
        return {which: pair() for which, pair in zip(self.which, self.pairs, strict=True)}

    @property
    def kept(self) -> gibbs.State:
        """Chains that follow the prior."""
        return tuple(self.get_buffer(f"chains_{i}") for i in range(len(self.sizes)))

    @property
    def valid_at(self) -> gibbs.Pairs:
        """Coupling for which the value of the log-partition holds."""
        return {which: self.get_buffer(f"valid_at_{i}") for i, which in enumerate(self.which)}

    def log_partition(self) -> Tensor:
        pairs = self()
        fixed = {k: g.detach() for k, g in pairs.items()}
        if not self.training:
            self._evaluate(fixed)
            return self.value
        slope = self._follow(fixed)
        return self.value + _product({k: g - fixed[k] for k, g in pairs.items()}, slope)

    @torch.no_grad()
    def _follow(self, pairs: gibbs.Pairs) -> gibbs.Pairs:
        """Move the chains, update the value, and return the gradient of the log-partition."""
        state = self.kept
        if self.chains == "restarted":
            state = gibbs.start(pairs, len(state[0]))
        state = gibbs.run(state, pairs, self.n_sweeps)
        slope = gibbs.moments(state, pairs)
        known = self.valid_at
        self.value += _product({k: g - known[k] for k, g in pairs.items()}, slope)
        self.followed.fill_(True)
        self._keep(state, pairs)
        return slope

    def _keep(self, state: gibbs.State, pairs: gibbs.Pairs) -> None:
        for kept, values in zip(self.kept, state, strict=True):
            kept.copy_(values)
        for k, kept in self.valid_at.items():
            kept.copy_(pairs[k])

    @torch.no_grad()
    def _evaluate(self, pairs: gibbs.Pairs) -> None:
        """Compute the value unless it is known for these parameters, and keep the annealed chains with it."""
        known = self.valid_at
        if self.followed or not all(torch.equal(g, known[k]) for k, g in pairs.items()):
            generator = torch.Generator(self.value.device).manual_seed(0)
            state, log_weight = gibbs.annealed(pairs, N_CHAINS, N_STEPS, generator)
            drawn = gibbs.resampled(state, log_weight, len(self.kept[0]), generator)
            self.value.copy_(gibbs.log_mean(log_weight))
            self._keep(drawn, pairs)
            self.followed.fill_(False)


def _product(a: gibbs.Pairs, b: gibbs.Pairs) -> Tensor:
    """Return the sum of all products of entries of two sets of matrices."""
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()
