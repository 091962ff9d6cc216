r"""Gaussian mixtures as the prior of a latent: the distribution, its components, and their weights.

    z | y=k, w, c ~ N( m_k + shift_c + own_kc + B_k(w), diag s_k^2 )       Components
    y             ~ Cat(pi),  with pi one of                               Weights
        Fixed        given numbers
        Empirical    softmax of free logits: a point estimate
        Dirichlet    pi ~ Dir(alpha) once for the data (or once per condition), q(pi) = Dir(gamma)
        Local        d ~ Dir(alpha) once per cell, integrated out

For ``Local``, the best q(d) given r = q(y) is Dir(alpha + r), with which the terms of y and d become

    T(r) = log K + sum_k r_k log r_k + K lnGamma(alpha) + ln alpha - sum_k lnGamma(alpha + r_k)

so that neither a network for d nor a sample of it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal, kl_divergence
from torch.distributions import Dirichlet as TorchDirichlet

from scalloy.blocks.composed import Categories, Composition, Rows, n_rows
from scalloy.blocks.distributions import bounded
from scalloy.blocks.layers import Stack, looked_up

LOG_SCALE_MIN, LOG_SCALE_MAX = -5.0, 3.0


class GaussianMixture(Distribution):
    r"""Mixture :math:`p(z) = \sum_k \pi_k N(z; \mu_k, \sigma_k)` with one event per cell.

    ``log_pi`` is ``(n, K)``, ``loc`` and ``scale`` are ``(n, K, L)``; any ``n`` may be one, for all cells.
    Weights that do not sum to one (:math:`e^{E \log \pi}`) give a lower bound of the density, as the ELBO
    needs it; :meth:`Weights.log_mean` gives the weights of a density.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False  # gradients reach the components, but not the choice among them

    def __init__(self, log_pi: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.log_pi, self.loc, self.scale = log_pi, loc, scale
        n = max(len(log_pi), len(loc))
        super().__init__(torch.Size([n]), loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (torch.softmax(self.log_pi, -1).unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Variance within the components plus variance between them."""
        second = self.scale.square() + (self.loc - self.mean.unsqueeze(-2)).square()
        return (torch.softmax(self.log_pi, -1).unsqueeze(-1) * second).sum(-2)

    def distance(self, z: Tensor) -> Tensor:
        """Return the squared distance from each component in units of its scales, ``(..., n, K)``."""
        return ((z.unsqueeze(-2) - self.loc) / self.scale).square().sum(-1)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Return ``log N(z; k)`` of each component, ``(..., n, K)``."""
        size = z.shape[-1] * 0.5 * math.log(2 * math.pi)
        return -0.5 * self.distance(z) - self.scale.log().sum(-1) - size

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logsumexp(self.log_pi + self.component_log_prob(value), -1)

    def kl_from(self, q_z: Distribution) -> Tensor:
        """Return ``KL(q(z) || N_k)`` for each component, ``(n, K)``.

        A mixture ``q_z`` is compared component by component, in their order.
        """
        if isinstance(q_z, GaussianMixture):
            loc, scale = q_z.loc, q_z.scale
        else:
            loc, scale = q_z.mean.unsqueeze(-2), q_z.stddev.unsqueeze(-2)
        pair = (Normal(*of, validate_args=False) for of in ((loc, scale), (self.loc, self.scale)))
        return kl_divergence(*pair).sum(-1)

    def of_component(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of component ``k`` of each cell, ``(..., n)`` to ``(..., n, L)``."""
        n = k.shape[-1]
        rows = k.reshape(-1, n).T.unsqueeze(-1).expand(-1, -1, self.loc.shape[-1])
        whole = (t.expand(n, -1, -1).gather(1, rows) for t in (self.loc, self.scale))
        loc, scale = (t.transpose(0, 1).reshape(*k.shape, -1) for t in whole)
        return loc, scale

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        n = self.batch_shape[0]
        drawn = Categorical(logits=self.log_pi.expand(n, -1), validate_args=False)
        k = drawn.sample(torch.Size(sample_shape))
        loc, scale = self.of_component(k)
        return loc + scale * torch.randn_like(loc)


class Components(nn.Module):
    """Location and scale of each component, and how conditions and a style latent ``w`` move them.

    Parameters
    ----------
    n_clusters, n_latent, n_w
        Numbers of components, latents and style latents. With ``n_w=0`` there is no style to move the
        components.
    conditions
        Number of conditions, or what each is made of.
    n_hidden
        Number of hidden units of the network by which ``w`` moves the components.
    shared
        Whether each condition moves all components together.
    own
        Whether each condition also moves each component in its own way.
    """

    def __init__(
        self,
        n_clusters: int,
        n_latent: int,
        *,
        conditions: Categories = 1,
        n_w: int = 0,
        n_hidden: int = 64,
        shared: bool = False,
        own: bool = False,
    ) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(n_clusters, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_clusters, n_latent))
        self.of_parts = Composition(conditions) if isinstance(conditions, Rows) else None
        zeros = torch.zeros(max(1, n_rows(conditions)), n_clusters, n_latent)
        self.shift = nn.Parameter(zeros[:, :1].clone()) if shared else None
        self.own = nn.Parameter(zeros) if own else None
        self.moves = None
        if n_w:
            self.moves = Stack(n_w, n_hidden, 1, n_cats=(conditions,) if own else ())
            self.head = nn.Linear(n_hidden, 2 * n_clusters * n_latent)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def forward(self, c: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``loc`` and ``scale``, each ``(n or 1, K, L)``."""
        loc, log_scale = self.loc.unsqueeze(0), self.log_scale.unsqueeze(0)
        for moved in (self.shift, self.own):
            if moved is not None:
                loc = loc + (moved[c] if self.of_parts is None else self.of_parts(moved, c))
        if self.moves is not None and w is not None:
            h = self.head(self.moves(w, (c,) if self.own is not None else ()))
            more_loc, more_scale = h.unflatten(-1, (2, *self.loc.shape)).unbind(-3)
            loc, log_scale = loc + more_loc, log_scale + more_scale
        return loc, bounded(log_scale, lower=LOG_SCALE_MIN, upper=LOG_SCALE_MAX).exp()

    @property
    def alike(self) -> bool:
        """True if the components are at the same places for all cells."""
        return self.shift is None and self.own is None and self.moves is None

    @torch.no_grad()
    def start_at(self, mean: Tensor, variance: Tensor, r: Tensor) -> None:
        """Start at the moments of posteriors ``N(mean, variance)`` of cells, assigned to components by ``r``.

        Each component has a thousandth of an average cell besides, so that one without cells starts at the
        moments of all.
        """
        second = variance + mean.square()
        total = r.sum(0).unsqueeze(-1) + 1e-3
        loc = (r.T @ mean + 1e-3 * mean.mean(0)) / total
        spread = (r.T @ second + 1e-3 * second.mean(0)) / total - loc.square()
        self.loc.copy_(loc)
        self.log_scale.copy_(0.5 * spread.clamp_min(1e-4).log())


class Weights(nn.Module):
    """Base class of weights: ``E log pi`` under the condition of each cell, and the terms of the ELBO."""

    def forward(self, c: Tensor) -> Tensor:
        """Return ``E log pi`` under the condition of each cell, ``(n or 1, K)``."""
        raise NotImplementedError

    def log_mean(self, c: Tensor) -> Tensor:
        """Return ``log E pi`` under the condition of each cell, ``(n or 1, K)``: weights for a new cell."""
        return self(c)

    def cost(self, r: Tensor, log_r: Tensor, c: Tensor) -> Tensor:
        """Return ``E log r - E log pi`` per cell."""
        return (r * (log_r - self(c))).sum(-1)

    def divergence(self) -> Tensor | None:
        """Return ``KL(q(pi) || p(pi))`` of the whole data set in nats; ``None`` if there is no q(pi)."""
        return None

    @torch.no_grad()
    def start_at(self, sizes: Tensor) -> None:
        """Start at the expected numbers of cells, conditions x components."""

    def arranged(self, r: Tensor) -> Tensor:
        """Return the groups ``(n, K)`` in the order in which they become components."""
        return r


class Fixed(Weights):
    """Weights that stay as given, ``(K,)``."""

    def __init__(self, pi: Tensor) -> None:
        super().__init__()
        self.log_pi: Tensor
        self.register_buffer("log_pi", (pi / pi.sum()).log().unsqueeze(0))

    def forward(self, c: Tensor) -> Tensor:
        return self.log_pi

    def arranged(self, r: Tensor) -> Tensor:
        """Give the largest group the largest weight, and so on."""
        place = torch.empty(r.shape[1], dtype=torch.long, device=r.device)
        place[self.log_pi[0].argsort(descending=True, stable=True)] = r.sum(0).argsort(
            descending=True, stable=True
        )
        return r[:, place]


class Empirical(Weights):
    """Point estimate of the weights for all data or, with ``n_conditions`` above one, for each condition."""

    def __init__(self, n_clusters: int, n_conditions: int = 1) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_conditions, n_clusters))

    def forward(self, c: Tensor) -> Tensor:
        log_pi = torch.log_softmax(self.logits, -1)
        return log_pi if len(log_pi) == 1 else looked_up(log_pi, c)

    @torch.no_grad()
    def start_at(self, sizes: Tensor) -> None:
        self.logits.copy_(_rows(sizes, len(self.logits)).add(1.0).log())


class Dirichlet(Weights):
    """Dirichlet weights for all data or, with ``n_conditions`` above one, for each condition."""

    def __init__(self, n_clusters: int, n_conditions: int = 1, *, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.log_gamma = nn.Parameter(torch.full((n_conditions, n_clusters), math.log(alpha + 1.0)))

    def forward(self, c: Tensor) -> Tensor:
        gamma = self.log_gamma.exp()
        log_pi = torch.digamma(gamma) - torch.digamma(gamma.sum(-1, keepdim=True))
        return log_pi if len(log_pi) == 1 else looked_up(log_pi, c)

    def log_mean(self, c: Tensor) -> Tensor:
        """Return ``log(gamma_k / sum_j gamma_j)``, which is above :meth:`forward` (Jensen)."""
        log_pi = torch.log_softmax(self.log_gamma, -1)
        return log_pi if len(log_pi) == 1 else looked_up(log_pi, c)

    def divergence(self) -> Tensor:
        gamma = self.log_gamma.exp()
        prior = torch.full_like(gamma, self.alpha)  # unchecked: a check would wait for the GPU in each step
        pair = (TorchDirichlet(t, validate_args=False) for t in (gamma, prior))
        return kl_divergence(*pair).sum()

    @torch.no_grad()
    def start_at(self, sizes: Tensor) -> None:
        self.log_gamma.copy_((self.alpha + _rows(sizes, len(self.log_gamma))).log())


class Local(Weights):
    """Dirichlet weights of each single cell, integrated out as at the top of this file."""

    def __init__(self, n_clusters: int, *, alpha: float = 1.0) -> None:
        super().__init__()
        self.n_clusters, self.alpha = n_clusters, alpha
        self.log_pi: Tensor
        self.register_buffer("log_pi", torch.full((1, n_clusters), -math.log(n_clusters)))

    def forward(self, c: Tensor) -> Tensor:
        return self.log_pi

    def cost(self, r: Tensor, log_r: Tensor, c: Tensor) -> Tensor:
        k, alpha = self.n_clusters, self.alpha
        slack = k * math.lgamma(alpha) + math.log(alpha) - torch.lgamma(alpha + r).sum(-1)
        return math.log(k) + (r * log_r).sum(-1) + slack


def _rows(sizes: Tensor, n: int) -> Tensor:
    """Return conditions x components, added up if one row serves all conditions."""
    return sizes.sum(0, keepdim=True) if n == 1 else sizes
