"""Mixture prior of a latent: N(0, I) at first, then placed where cells are, then merged into clusters.

    before it is placed      p(z) = N(0, I)
    from then on             p(z | w, c) = sum_k pi_k(c) N(z; m_k(w, c), s_k(w))

The first components are bound to labels, the others are free. If there are more components than clusters are
wanted, several make one cluster; all are leaves of a tree of clusters (:mod:`scalloy.blocks.cluster_tree`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from scalloy.blocks.cluster_tree import cut, mistaken
from scalloy.blocks.consensus_clustering import MANY, SPOTS, label_cover, partition, tree_of
from scalloy.blocks.hierarchy import Hierarchy
from scalloy.blocks.mixtures import Components, GaussianMixture, Weights

NEVER = -1e9  # log-probability of what is excluded
ALL = -1  # as many clusters as components
AT_LEAST = 3  # cells of a label that are needed to know how far it reaches
DOUBT = 5.0  # labels, found and expected alike, that are added to the counts of each group of cells


class MixturePrior(nn.Module):
    """Mixture of Gaussians as the prior of a latent, as written at the top of this file.

    Parameters
    ----------
    components, weights
        Components and weights of the mixture; the first ``n_labels`` components are bound to the labels.
    n_labels, n_conditions
        Numbers of known labels and of conditions; if labels are a tree, that of its leaves.
    n_clusters
        Number of clusters that the components make in the end. ``None`` finds it from the data; ``ALL`` makes
        each component a cluster.
    placed
        Whether the mixture is the prior from the start, with components at random places.
    hierarchy
        Tree of the labels; ``None`` if they have no hierarchy.
    """

    label_of: Tensor
    cluster_of: Tensor
    reach: Tensor
    used: Tensor
    placed: Tensor
    settled: Tensor
    spots: Tensor
    cover: Tensor
    tree: Tensor
    evidence: Tensor
    agreement: Tensor
    fits: Tensor
    span: Tensor

    def __init__(
        self,
        components: Components,
        weights: Weights,
        *,
        n_labels: int = 0,
        n_conditions: int = 1,
        n_clusters: int | None = ALL,
        placed: bool = False,
        hierarchy: Hierarchy | None = None,
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
        self.is_placed = placed  # a copy that can be read without waiting for the device
        self.register_load_state_dict_post_hook(_look)
        self.register_buffer("settled", torch.tensor(False))
        self.register_buffer("spots", torch.full((SPOTS, components.loc.shape[1]), torch.inf))
        self.register_buffer("cover", torch.ones(SPOTS))
        self.register_buffer("tree", torch.zeros(len(each) - 1, 2, dtype=torch.long))
        self.register_buffer("evidence", torch.zeros(len(each) - 1, 3))
        self.register_buffer("agreement", torch.zeros(len(each) + 1))
        self.hierarchy = hierarchy or Hierarchy(n_labels)
        nodes = len(self.hierarchy)  # the last row is an unknown label, the last column a free component
        fits = torch.zeros(nodes + 1, n_labels + 1, dtype=torch.bool)
        fits[:nodes, :n_labels], fits[nodes] = self.hierarchy.below, True
        self.register_buffer("fits", fits, persistent=False)
        if self.hierarchy.n_inner:
            self.register_buffer("span", torch.full((self.hierarchy.n_inner,), torch.inf))
        if placed:
            nn.init.normal_(components.loc)

    def forward(self, c: Tensor, w: Tensor | None = None) -> GaussianMixture:
        """Return the mixture with weights ``exp(E log pi)``, as in the ELBO."""
        return self._mixture(self._log_pi(self.weights(c)), c, w)

    def density(self, c: Tensor, w: Tensor | None = None) -> GaussianMixture:
        """Return ``p(z | w, c)`` of a new cell, with weights ``E pi`` among the components in use.

        With q(pi) = Dir(gamma), the integral of sum_k pi_k N(z; k) over pi is sum_k E[pi_k] N(z; k). The
        shares of some components in their sum have a Dirichlet distribution too, with means
        gamma_k / (sum of gamma over these components).
        """
        return self._mixture(torch.log_softmax(self._log_pi(self.weights.log_mean(c)), -1), c, w)

    def shares(self, c: Tensor) -> Tensor:
        """Return the probability of each cluster of a new cell under a condition, ``(n, clusters)``."""
        return self.of_clusters(torch.softmax(self._log_pi(self.weights.log_mean(c)), -1).expand(len(c), -1))

    def draw(self, c: Tensor, w: Tensor | None = None, cluster: Tensor | None = None) -> Tensor:
        """Draw codes of new cells, by the weights ``E pi`` or within the given cluster of each."""
        p_z = self.density(c, w)
        log_pi = p_z.log_pi.expand(len(c), -1)
        if cluster is not None:
            log_pi = log_pi.masked_fill(self.cluster_of != cluster.unsqueeze(-1), -torch.inf)
        k = torch.distributions.Categorical(logits=log_pi).sample()
        return torch.normal(*p_z.of_component(k))

    def _log_pi(self, log_pi: Tensor) -> Tensor:
        """Make weights uniform until the components are placed, and exclude components that are not used."""
        uniform = torch.full_like(log_pi, 1.0 / log_pi.shape[-1]).log()
        return torch.lerp(uniform, log_pi, self.placed).masked_fill(~self.used, NEVER)

    def _mixture(self, log_pi: Tensor, c: Tensor, w: Tensor | None) -> GaussianMixture:
        loc, scale = self.components(c, w)
        return GaussianMixture(log_pi, loc * self.placed, scale**self.placed)

    def allowed(self, y: Tensor | None) -> Tensor | None:
        """Return which components each cell may belong to, ``(n, K)``; ``None`` means all of them."""
        if y is None or self.n_labels == 0:
            return None
        return self.fits[y.clamp_max(len(self.hierarchy))][:, self.label_of]

    def cost(self, r: Tensor, log_r: Tensor, c: Tensor) -> Tensor:
        """Return ``E log r - E log pi`` per cell."""
        return self.weights.cost(r, log_r, c) * self.placed

    def of_all_cells(self, ridge: float) -> dict[str, Tensor]:
        """Return the cost of the mixture itself, in nats of the whole data set."""
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
        """Place the components where cells with posteriors ``N(mean, variance)`` are; see :func:`partition`.

        Each of these cells stands for ``each`` cells of the data.
        """
        r = mean.new_ones(len(mean), 1)
        if len(self.used) > 1:
            allowed = self.allowed(y)
            r = partition(mean, self.label_of, y, self.n_labels, self.n_clusters, observed, allowed)
        r = r if self.n_labels else self.weights.arranged(r)
        self._begin(mean, variance, c, r, each)
        self.placed.fill_(1.0)
        self.is_placed = True
        if self.merges:
            self.used.copy_(r.sum(0) > 0)

    def _begin(self, mean: Tensor, variance: Tensor, c: Tensor, r: Tensor, each: float) -> None:
        """Start the components at the moments of their cells, and the weights at their numbers of cells."""
        self.components.start_at(mean, variance, r)
        self.weights.start_at(each * nn.functional.one_hot(c, self.n_conditions).to(r.dtype).T @ r)

    @property
    def merges(self) -> bool:
        """True if components are still to be merged into clusters."""
        return self.n_clusters != len(self.used) and not self.settled

    @torch.no_grad()
    def grow(
        self,
        r: Tensor,
        mean: Tensor,
        variance: Tensor,
        c: Tensor,
        observed: Tensor | None,
        *,
        each: float,
        places: bool,
    ) -> None:
        """Make the components leaves of a tree of clusters, and cut it at the number of clusters.

        Parameters
        ----------
        r
            Probability of each component, ``(n, K)``.
        mean, variance, c, observed, each
            As in :meth:`place`.
        places
            Whether components may be placed again, within the clusters that methods agree on. They are if
            they are to be merged and are at the same places for all cells.
        """
        values, z = r.cpu()[:, self.used.cpu()].double().numpy(), mean.double().cpu().numpy()
        if values.shape[1] < 2:
            return
        places &= self.merges and self.components.alike
        found = tree_of(values, z, observed, self.n_clusters if self.merges else None, places=places)
        n, pairs = len(found.leaf), found.merges.pairs
        if places:
            r = nn.functional.one_hot(torch.from_numpy(found.leaf), len(self.used)).to(mean)
            self._begin(mean[:n], variance[:n], c[:n], r, each * len(mean) / n)
            self.used.copy_(r.sum(0) > 0)
            p_z = self(c[:n])
            r = torch.softmax(p_z.log_pi + p_z.component_log_prob(mean[:n]), -1)
            values = r[:, self.used].double().cpu().numpy()
        evidence = (found.merges.apart, mistaken(values[:n], pairs), found.gain)
        for buffer, given in (
            (self.tree, pairs),
            (self.evidence, np.column_stack(evidence)),
            (self.agreement, found.agreement),
        ):
            buffer.zero_()
            buffer[: len(given)] = torch.from_numpy(given).to(buffer)
        if self.merges:
            self.cluster_of.copy_(self.clusters_at(found.n_clusters))

    @property
    def merged(self) -> np.ndarray:
        """Merges of the tree of clusters, ``(leaves - 1, 2)``; leaves are the components in use.

        There are none before the tree is grown, and in models of earlier versions.
        """
        pairs = self.tree.cpu().numpy()
        return pairs[pairs[:, 0] != pairs[:, 1]]

    def clusters_at(self, n: int) -> Tensor:
        """Return the cluster of each component if the tree is cut into ``n`` clusters."""
        out = self.cluster_of.clone()
        out[self.used] = torch.from_numpy(cut(self.merged, n)).to(out)
        return out

    def settle(self) -> None:
        """Keep clusters and labels as they are, whatever cells are trained on from now on."""
        self.settled.fill_(True)

    def measure(self, p_z: GaussianMixture, z: Tensor, y: Tensor) -> None:
        """Measure how far labels reach, and where they are.

        The reach of a label is the distance from the nearest of its components within which 95 % of its cells
        lie. A small group of cells with fewer labels than expected counts as covered by them only in part.
        """
        distance, allowed = p_z.distance(z), self.allowed(y)
        assert allowed is not None
        nearest = distance.masked_fill(~allowed, torch.inf).min(-1).values
        for label in range(self.n_labels):
            if (own := y == label).sum() >= AT_LEAST:
                self.reach[self.label_of == label] = nearest[own].quantile(0.95)
        self._measure_spans(distance, y)
        some, known = z[:MANY].double().cpu().numpy(), (y[:MANY] < len(self.hierarchy)).cpu().numpy()
        centres, labelled, expected = label_cover(some, known)
        cover = (labelled + DOUBT) / (expected + DOUBT)
        self.spots[: len(centres)] = torch.from_numpy(centres).to(self.spots)
        self.cover[: len(centres)] = torch.from_numpy(cover).to(self.cover).clamp_max(1)

    def _measure_spans(self, distance: Tensor, y: Tensor) -> None:
        """Measure how far from one another the children of each inner node lie.

        The span of a node is the distance from the components of its other children within which 95 % of the
        cells of a child lie: about where a child is to be expected that no label names. It is the largest of
        all children, and the mean of other nodes where there are too few cells to tell.
        """
        tree, bound = self.hierarchy, self.label_of.clamp_min(0)
        below, is_bound = tree.below.to(y.device), self.label_of >= 0
        for i, node in enumerate(range(tree.n_leaves, len(tree))):
            found = []
            for child in tree.children(node):
                own = torch.isin(y, torch.tensor(tree.at_or_below(child), device=y.device))
                others = (below[node] & ~below[child])[bound] & is_bound
                if own.sum() >= AT_LEAST and others.any():
                    found.append(distance[own][:, others].min(-1).values.quantile(0.95))
            self.span[i] = torch.stack(found).max() if found else torch.inf
        if tree.n_inner and (told := self.span.isfinite()).any():
            self.span[~told] = self.span[told].mean()

    def near(self, p_z: GaussianMixture, z: Tensor) -> Tensor:
        """Return 1 for a cell within the span of each inner node, falling to 0 outside, ``(n, inner)``."""
        tree, distance, out = self.hierarchy, p_z.distance(z), []
        for i, node in enumerate(range(tree.n_leaves, len(tree))):
            of = tree.below[node].to(z.device)[self.label_of.clamp_min(0)] & (self.label_of >= 0)
            excess = distance[..., of].min(-1).values / self.span[i] - 1
            out.append(torch.exp(-excess.clamp_min(0)))
        return torch.stack(out, -1) if out else z.new_zeros(len(z), 0)

    def typical(self, p_z: GaussianMixture, z: Tensor) -> Tensor:
        """Return 1 for a cell where labels are and within reach of the nearest one, falling to 0 outside."""
        bound = self.label_of >= 0
        excess = p_z.distance(z)[..., bound] / self.reach[bound] - 1
        return torch.exp(-excess.min(-1).values.clamp_min(0)) * self.covered(z)

    def covered(self, z: Tensor) -> Tensor:
        """Return the share of the expected labels that are found among the cells around each cell."""
        return self.cover[(z.unsqueeze(-2) - self.spots).square().sum(-1).argmin(-1)]

    def of_labels(self, r: Tensor) -> Tensor:
        """Return the probability of each label, ``(n, K)`` to ``(n, labels)``; free components have none."""
        out = torch.zeros(*r.shape[:-1], self.n_labels, dtype=r.dtype, device=r.device)
        bound = self.label_of >= 0
        return out.index_add_(-1, self.label_of[bound], r[..., bound])

    def of_clusters(self, r: Tensor, cluster_of: Tensor | None = None) -> Tensor:
        """Return the probability of each cluster, ``(n, K)`` to ``(n, clusters)``.

        Parameters
        ----------
        r
            Probability of each component.
        cluster_of
            Cluster of each component; ``None`` is the cut that the model was trained for.
        """
        of = (self.cluster_of if cluster_of is None else cluster_of)[self.used]
        out = torch.zeros(*r.shape[:-1], int(of.max()) + 1, dtype=r.dtype, device=r.device)
        return out.index_add_(-1, of, r[..., self.used])


def _look(prior: MixturePrior, *_: object) -> None:
    """Update ``is_placed`` after a state dict has been loaded."""
    prior.is_placed = bool(prior.placed)
