"""The mixture prior of a latent through its life: nothing, placed where cells are, merged into clusters.

    before it is placed      p(z) = N(0, I)
    from then on             p(z | w, c) = sum_k pi_k(c) N(z; m_k(w, c), s_k(w))

Components are bound to labels (the first ones) or free. Where there are more components than clusters are
wanted, several make one cluster: :mod:`scalloy.blocks.partition`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scalloy.blocks.mixtures import Components, GaussianMixture, Weights
from scalloy.blocks.partition import MANY, SPOTS, agreed, label_cover, merge, partition, within

NEVER = -1e9  # log-probability of what is excluded
ALL = -1
AT_LEAST = 3  # cells of a label, to know how far they reach
DOUBT = 5.0  # labels that a group of cells is given before any is counted


class MixturePrior(nn.Module):
    """See the head of this file.

    Parameters
    ----------
    components, weights
        Of the mixture; the first ``n_labels`` components are bound to the labels.
    n_labels, n_conditions
        Numbers of known labels and of conditions.
    n_clusters
        How many clusters the components make in the end; ``None`` finds out, ``ALL`` takes each as one.
    placed
        Whether the components are where they should be from the beginning.
    """

    label_of: Tensor
    cluster_of: Tensor
    reach: Tensor
    used: Tensor
    placed: Tensor
    settled: Tensor
    spots: Tensor
    cover: Tensor

    def __init__(
        self,
        components: Components,
        weights: Weights,
        *,
        n_labels: int = 0,
        n_conditions: int = 1,
        n_clusters: int | None = ALL,
        placed: bool = False,
    ) -> None:
        super().__init__()
        self.components, self.weights = components, weights
        self.n_labels, self.n_conditions = n_labels, n_conditions
        each = torch.arange(len(components.loc))
        self.n_clusters = len(each) if n_clusters == ALL else n_clusters
        self.register_buffer("label_of", torch.where(each < n_labels, each, -1))
        self.register_buffer("cluster_of", each % (self.n_clusters or len(each)))
        self.register_buffer("reach", torch.full((len(each),), torch.inf))
        self.register_buffer("used", torch.ones(len(each), dtype=torch.bool))
        self.register_buffer("placed", torch.tensor(float(placed)))
        self.is_placed = placed  # the same, without asking the device
        self.register_load_state_dict_post_hook(_look)
        self.register_buffer("settled", torch.tensor(False))
        self.register_buffer("spots", torch.full((SPOTS, components.loc.shape[1]), torch.inf))
        self.register_buffer("cover", torch.ones(SPOTS))
        if placed:
            nn.init.normal_(components.loc)

    def forward(self, c: Tensor, w: Tensor | None = None) -> GaussianMixture:
        """With weights ``exp(E log pi)``, as in the ELBO."""
        return self._mixture(self._log_pi(self.weights(c)), c, w)

    def density(self, c: Tensor, w: Tensor | None = None) -> GaussianMixture:
        """``p(z | w, c)`` of a new cell: the weights are ``E pi`` among the components in use.

        With q(pi) = Dir(gamma), the integral of sum_k pi_k N(z; k) over pi is sum_k E[pi_k] N(z; k). Of a
        Dirichlet the shares among some of its components are a Dirichlet of theirs, whose means are
        gamma_k / (sum over these).
        """
        return self._mixture(torch.log_softmax(self._log_pi(self.weights.log_mean(c)), -1), c, w)

    def _log_pi(self, log_pi: Tensor) -> Tensor:
        """Uniform before the components are placed; without those that are not used."""
        uniform = torch.full_like(log_pi, 1.0 / log_pi.shape[-1]).log()
        return torch.lerp(uniform, log_pi, self.placed).masked_fill(~self.used, NEVER)

    def _mixture(self, log_pi: Tensor, c: Tensor, w: Tensor | None) -> GaussianMixture:
        loc, scale = self.components(c, w)
        return GaussianMixture(log_pi, loc * self.placed, scale**self.placed)

    def allowed(self, y: Tensor | None) -> Tensor | None:
        """Which components a cell may belong to, ``(n, K)``; ``None`` is all of any."""
        if y is None or self.n_labels == 0:
            return None
        return (self.label_of == y.unsqueeze(-1)) | (y >= self.n_labels).unsqueeze(-1)

    def cost(self, r: Tensor, log_r: Tensor, c: Tensor) -> Tensor:
        """``E log r - E log pi`` per cell."""
        return self.weights.cost(r, log_r, c) * self.placed

    def of_all_cells(self, ridge: float) -> dict[str, Tensor]:
        """What the mixture itself costs, in nats of the whole data set."""
        out, divergence = {}, self.weights.divergence()
        if divergence is not None:
            out["pi"] = divergence * self.placed
        if self.components.own is not None and ridge:
            out["own"] = ridge * self.components.own.square().sum()
        return out

    @torch.no_grad()
    def place(
        self,
        mean: Tensor,
        variance: Tensor,
        c: Tensor,
        y: Tensor | None,
        observed: Tensor | None = None,
        each: float = 1.0,
    ) -> None:
        """Begin where the cells with posteriors ``N(mean, variance)`` are; see :func:`partition`.

        Each stands for so many cells.
        """
        r = mean.new_ones(len(mean), 1)
        if len(self.used) > 1:
            r = partition(mean, self.label_of, y, self.n_labels, self.n_clusters, observed)
        r = r if self.n_labels else self.weights.arranged(r)
        self._begin(mean, variance, c, r, each)
        self.placed.fill_(1.0)
        self.is_placed = True
        if self.merges:
            self.used.copy_(r.sum(0) > 0)

    def _begin(self, mean: Tensor, variance: Tensor, c: Tensor, r: Tensor, each: float) -> None:
        """Components at the moments of their cells, weights at how many these are."""
        self.components.start_at(mean, variance, r)
        self.weights.start_at(each * nn.functional.one_hot(c, self.n_conditions).to(r.dtype).T @ r)

    @property
    def merges(self) -> bool:
        """Whether a cluster may have several components."""
        return self.n_clusters != len(self.used) and not self.settled

    @torch.no_grad()
    def merge(
        self, r: Tensor, mean: Tensor, variance: Tensor, c: Tensor, observed: Tensor | None, *, each: float
    ) -> None:
        """Make clusters of components, by their probabilities ``(n, K)``; the rest is as in :meth:`place`."""
        values, k = r.cpu()[:, self.used.cpu()].double().numpy(), self.n_clusters
        clusters = None
        if k is not None and 1 < k < values.shape[1] and self.components.alike:
            z = mean.double().cpu().numpy()
            clusters = agreed(values, k, z, observed)
        if clusters is None:
            self.cluster_of[self.used] = torch.from_numpy(merge(values, k)).to(self.cluster_of)
            return
        n = len(clusters)
        component, cluster_of = within(z[:n], clusters, len(self.used))
        r = nn.functional.one_hot(torch.from_numpy(component), len(self.used)).to(mean)
        self._begin(mean[:n], variance[:n], c[:n], r, each * len(mean) / n)
        self.used.copy_(r.sum(0) > 0)
        self.cluster_of[: len(cluster_of)] = torch.from_numpy(cluster_of).to(self.cluster_of)

    def settle(self) -> None:
        """Leave clusters and labels as they are, whatever other cells are trained on."""
        self.settled.fill_(True)

    def measure(self, p_z: GaussianMixture, z: Tensor, y: Tensor) -> None:
        """Keep how far from its component (of those of its label) 95 % of the cells of each label lie.

        And where labels are: a group of cells that has fewer of them than others is not covered by them.
        """
        distance, allowed = p_z.distance(z), self.allowed(y)
        assert allowed is not None
        nearest = distance.masked_fill(~allowed, torch.inf).min(-1).values
        for label in range(self.n_labels):
            if (own := y == label).sum() >= AT_LEAST:
                self.reach[self.label_of == label] = nearest[own].quantile(0.95)
        some, known = z[:MANY].double().cpu().numpy(), (y[:MANY] < self.n_labels).cpu().numpy()
        centres, labelled, expected = label_cover(some, known)
        cover = (labelled + DOUBT) / (expected + DOUBT)
        self.spots[: len(centres)] = torch.from_numpy(centres).to(self.spots)
        self.cover[: len(centres)] = torch.from_numpy(cover).to(self.cover).clamp_max(1)

    def typical(self, p_z: GaussianMixture, z: Tensor) -> Tensor:
        """1 for a cell where labels are and within the reach of the nearest one, falling to 0 outside."""
        bound = self.label_of >= 0
        excess = p_z.distance(z)[..., bound] / self.reach[bound] - 1
        near = (z.unsqueeze(-2) - self.spots).square().sum(-1).argmin(-1)
        return torch.exp(-excess.min(-1).values.clamp_min(0)) * self.cover[near]

    def of_labels(self, r: Tensor) -> Tensor:
        """Probability of each label, ``(n, K)`` to ``(n, labels)``; what lacks to one is free."""
        out = torch.zeros(*r.shape[:-1], self.n_labels, dtype=r.dtype, device=r.device)
        bound = self.label_of >= 0
        return out.index_add_(-1, self.label_of[bound], r[..., bound])

    def of_clusters(self, r: Tensor) -> Tensor:
        """Probability of each cluster, ``(n, K)`` to ``(n, clusters)``."""
        size = int(self.cluster_of[self.used].max()) + 1
        out = torch.zeros(*r.shape[:-1], size, dtype=r.dtype, device=r.device)
        return out.index_add_(-1, self.cluster_of[self.used], r[..., self.used])


def _look(prior: MixturePrior, *_: object) -> None:
    """After other weights have come."""
    prior.is_placed = bool(prior.placed)
