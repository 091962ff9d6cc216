"""Starting places of the components of a mixture, and how components that share cells are joined.

Without labels there are several components for each cluster, placed by k-means. After training they become
the leaves of a tree of clusters (:mod:`scalloy.blocks.cluster_tree`). With one component for each cluster,
the components start at the clusters that several methods agree on, if they do. With labels, they are placed
by a k-means that respects the labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from scalloy.blocks.cluster_tree import Merges, agreement, best_number, divide, gain, grow
from scalloy.blocks.cluster_votes import Votes, one_hot, renumbered

STARTS, STEPS = 20, 50
MOST, N_PCS, NEIGHBOURS = 3000, 30, 15
MANY = 30_000  # cells in random order that are enough to see where groups of them are
SPOTS, CROWD = 50, 20  # largest number of small groups of cells, and least number of cells in each on average
AGREED = 0.6  # mean ARI of methods, below which components start as compact groups
SURE, FEW = 4.0, 0.5  # where labels are missing: standard deviations, and share of those expected
GROUPS = 8  # components of a mixture of unknown cells, at most
OVERLAP = 0.2  # nats per cell of the smaller component, below which two components share no cells


def merged(r: np.ndarray) -> dict[int, np.ndarray]:
    """Join components that share cells, and return the cluster of each at every number of clusters.

    Joining two components lowers the entropy of the assignment by as much as cells are undecided between them
    (Baudry et al., "Combining mixture components for clustering", J. Comput. Graph. Stat. 2010). The pair for
    which this is largest, relative to the size of the smaller one, is joined first. Components that are not
    the most probable one of any cell are joined before all others.

    Parameters
    ----------
    r
        Probability of each component, cells x components.
    """
    return {int(of.max()) + 1: of for of, _ in _joins(r)}


def disjoint(r: np.ndarray) -> np.ndarray:
    """Join components, as in :func:`merged`, while two of them share cells; return the cluster of each."""
    return next(of for of, overlap in _joins(r) if overlap < OVERLAP)


def _joins(r: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the cluster of each component at each step, and the largest overlap of two of the clusters."""
    r, of = np.array(r, dtype=float), np.arange(r.shape[1])
    own = _plogp(r).sum(0)
    gain = np.array([_undecided(r, i, own) for i in range(len(of))])
    while r.shape[1] > 1:
        sizes = r.sum(0) + 1e-9
        overlap = gain / np.minimum(sizes[:, None], sizes)
        empty = np.bincount(r.argmax(1), minlength=len(sizes)) == 0
        if empty.any():
            overlap[~empty] = -np.inf
        yield of, float("inf") if empty.any() else float(overlap.max())
        i, j = sorted(np.unravel_index(overlap.argmax(), overlap.shape))
        r[:, i] += r[:, j]
        of = renumbered(of, i, j)
        r, gain = np.delete(r, j, axis=1), np.delete(np.delete(gain, j, axis=0), j, axis=1)
        gain[i] = gain[:, i] = _undecided(r, i, _plogp(r).sum(0))
    yield of, -float("inf")


def _undecided(r: np.ndarray, i: int, own: np.ndarray) -> np.ndarray:
    """Return the fall in entropy on merging each component into ``i``; ``own`` is minus the entropies."""
    gain = _plogp(r[:, i : i + 1] + r).sum(0) - own[i] - own
    gain[i] = -np.inf
    return gain


def within(z: np.ndarray, clusters: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide up to ``n`` components among clusters by their sizes.

    Returns the component of each cell, and the cluster of each component.
    """
    sizes = np.bincount(clusters)
    wanted = np.maximum(1, n * sizes // sizes.sum())
    while wanted.sum() > n:
        wanted[wanted.argmax()] -= 1
    component, cluster_of = np.empty(len(z), dtype=np.int64), list[int]()
    for cluster, k in enumerate(wanted):
        own = clusters == cluster
        k = min(k, len(np.unique(z[own], axis=0)))
        component[own] = len(cluster_of) + KMeans(k, n_init=5, random_state=seed).fit_predict(z[own])
        cluster_of += [cluster] * k
    return component, np.array(cluster_of)


@dataclass(frozen=True)
class Tree:
    """Tree of clusters whose leaves are components of a mixture.

    Attributes
    ----------
    merges
        Merges of the leaves.
    gain
        Gain in nats per cell of each division; see :func:`scalloy.blocks.cluster_tree.gain`.
    agreement
        Agreement of the methods at each number of clusters, from 0.
    n_clusters
        Number of clusters at which the tree is cut.
    leaf
        Leaf of each of the first ``MOST`` cells.
    """

    merges: Merges
    gain: np.ndarray
    agreement: np.ndarray
    n_clusters: int
    leaf: np.ndarray


def tree_of(
    r: np.ndarray, z: np.ndarray, observed: Tensor | None, n_clusters: int | None, *, places: bool
) -> Tree:
    """Make a tree of clusters.

    Parameters
    ----------
    r
        Probability of each component, cells x components.
    z
        Latents of the cells, ``(n, L)``.
    observed
        Expression of the first cells, in which clusters are looked for as well.
    n_clusters
        Number of clusters; ``None`` finds it.
    places
        Whether the leaves are new components within the clusters, rather than the given ones.
    """
    seen = views(z, observed)
    r, most = r[: len(seen[0])], max(r.shape[1], n_clusters or 0)
    leaf = r.argmax(1)
    votes = Votes(seen, most, {k: of[leaf] for k, of in merged(r).items()})
    agreed = np.array([agreement(votes, k) if k > 1 else 1.0 for k in range(most + 1)])

    if n_clusters is None or not places:
        merges = grow(r.sum(0), partial(votes.apart, r))
        gains = gain(seen[0], leaf, merges.pairs)
        n_clusters = n_clusters or best_number(agreed, merges.apart[::-1], gains[::-1])
    if places:
        leaf, cluster_of = within(seen[0], divide(votes, n_clusters), r.shape[1])
        held = one_hot(leaf)
        merges = grow(held.sum(0), partial(votes.apart, held), cluster_of)
        gains = gain(seen[0], leaf, merges.pairs)
    return Tree(merges, gains, agreed, n_clusters, leaf)


def _plogp(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.maximum(p, 1e-30))


def partition(
    z: Tensor,
    label_of: Tensor,
    y: Tensor | None,
    n_labels: int,
    n_clusters: int | None = None,
    observed: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Assign each cell to the component in which it starts, one-hot ``(n, K)``.

    Parameters
    ----------
    z
        Latents of the cells, ``(n, L)``.
    label_of
        Label to which each component is bound, ``(K,)``; -1 means that it is free.
    y
        Label of each cell; ``n_labels`` stands for an unknown one. ``None`` means that all are unknown.
    n_labels
        Number of labels.
    n_clusters
        Number of clusters that are wanted; used without labels only.
    observed
        Expression of the first ``MOST`` cells, in which clusters are looked for as well; used without labels
        only.
    allowed
        Whether each cell may belong to each component, ``(n, K)``; by default by its label. If it may belong
        to all, its label is unknown.
    """
    points, bound = z.double().cpu().numpy(), label_of.cpu().numpy()
    seed = int(torch.randint(2**31 - 1, ()))
    if n_labels == 0 or y is None:
        k = min(len(bound), len(np.unique(points, axis=0)))
        votes = Votes(views(points, observed), k, seed=seed) if n_clusters == len(bound) == k > 1 else None
        if votes is not None and agreement(votes, k) >= AGREED:
            assigned = _of_all(points, divide(votes, k))
        else:
            assigned = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(points)
    else:
        codes, rng = y.cpu().numpy(), np.random.default_rng(seed)
        of = (bound == codes[:, None]) | (codes >= n_labels)[:, None]
        of = np.asarray(of if allowed is None else allowed.cpu().numpy())
        assigned = _around_labels(points, bound, codes, of, rng)
    return torch.nn.functional.one_hot(torch.from_numpy(assigned).long(), len(bound)).to(z)


def _of_all(points: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the clusters of all cells, by the neighbours of those beyond the first ones among these."""
    n = len(clusters)
    if len(points) == n:
        return clusters
    near = KNeighborsClassifier(min(NEIGHBOURS, n)).fit(points[:n], clusters)
    return np.concatenate([clusters, near.predict(points[n:])])


def views(points: np.ndarray, observed: Tensor | None) -> list[np.ndarray]:
    """Return the latents of the first ``MOST`` cells, and principal components of any expression given."""
    out = [points[:MOST]]
    if observed is not None:
        n_pcs = min(N_PCS, *observed.shape)
        out.append(PCA(n_pcs, random_state=0).fit_transform(observed[:MOST].double().cpu().numpy()))
    return out


def _around_labels(
    points: np.ndarray, bound: np.ndarray, y: np.ndarray, allowed: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Run k-means with labelled cells kept in components of their label; take the best of several starts."""
    best, lowest = None, np.inf
    new = _out_of_reach(points, np.asarray(~allowed.all(1)), int(rng.integers(2**31)))
    for _ in range(STARTS):
        centres = _spread(points, bound, y, rng, new)
        for _ in range(STEPS):
            distance = np.where(allowed, _squared_distances(points, centres), np.inf)
            assigned = distance.argmin(1)
            counts = np.bincount(assigned, minlength=len(bound))
            moved = np.zeros_like(centres)
            np.add.at(moved, assigned, points)
            new = np.where(counts[:, None] > 0, moved / np.maximum(counts, 1)[:, None], centres)
            if np.allclose(new, centres):
                break
            centres = new
        if (inertia := distance.min(1).sum()) < lowest:
            best, lowest = assigned, inertia
    assert best is not None
    return best


def label_cover(points: np.ndarray, known: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Divide cells into small groups; return their centres, numbers of labels, and expected numbers."""
    n = min(SPOTS, 1 + len(points) // CROWD, len(np.unique(points, axis=0)))
    found = KMeans(n, n_init=3, random_state=seed).fit(points)
    sizes, labelled = (np.bincount(found.labels_, weights=w, minlength=n) for w in (None, known))
    return found.cluster_centers_, labelled, sizes * known.mean()


def _out_of_reach(points: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """Return the centres of small groups with far fewer labels than cells elsewhere, the surest first."""
    centres, labelled, expected = label_cover(points, known, seed)
    missing = (expected - labelled) / np.sqrt(np.maximum(expected * (1 - known.mean()), 1e-9))
    order = np.argsort(-missing)
    return centres[order[(missing > SURE)[order] & (labelled < FEW * expected)[order]]]


def _spread(
    points: np.ndarray, bound: np.ndarray, y: np.ndarray, rng: np.random.Generator, new: np.ndarray
) -> np.ndarray:
    """Choose starting centres.

    A component that is bound to a label starts at cells of that label. Free components start at the centres
    ``new`` and, if these run out, at distant cells (k-means++).
    """
    centres = np.empty((len(bound), points.shape[1]))
    far = np.full(len(points), np.inf)
    order = np.argsort(bound < 0, kind="stable")  # free components last
    for k in order:
        own = np.flatnonzero(y == bound[k])
        alone = (bound == bound[k]).sum() == 1
        if bound[k] >= 0 and len(own) and alone:
            centres[k] = points[own].mean(0)
        elif bound[k] < 0 and len(new):
            centres[k], new = new[0], new[1:]
        else:
            among = own if bound[k] >= 0 and len(own) else np.arange(len(points))
            chance = np.where(np.isfinite(far[among]), far[among], 1.0) + 1e-12
            centres[k] = points[rng.choice(among, p=chance / chance.sum())]
        far = np.minimum(far, np.square(points - centres[k]).sum(1))
    return centres


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    cross = points @ centres.T
    return np.square(points).sum(1)[:, None] - 2 * cross + np.square(centres).sum(1)


def gaussian_groups(z: np.ndarray, least: int, seed: int = 0) -> np.ndarray:
    """Divide cells into groups that do not overlap, the largest first; -1 for cells of smaller groups.

    Parameters
    ----------
    z
        Latents of the cells, ``(n, L)``.
    least
        Smallest number of cells of a group.
    seed
        Random seed of the mixture. The Bayesian information criterion chooses its number of components, up to
        ``GROUPS``, and whether latents are correlated within them; those that overlap are merged.
    """
    points = z.astype(np.float64)
    most = int(np.clip(min(len(points) // CROWD, len(np.unique(points, axis=0))), 1, GROUPS))
    ridge, tried = 1e-3 * max(float(points.var()), 1e-6), list[tuple[float, np.ndarray]]()
    for k, shape in product(range(1, most + 1), ("diag", "full")):
        mixture = GaussianMixture(k, covariance_type=shape, reg_covar=ridge, n_init=2, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no convergence
            r = mixture.fit(points).predict_proba(points)
        tried.append((mixture.bic(points), r))
    _, r = min(tried, key=lambda one: one[0])
    of = disjoint(r)[r.argmax(1)]
    sizes = np.bincount(of)
    order = np.argsort(-sizes, kind="stable")
    rank = np.full(len(sizes), -1)
    kept = order[sizes[order] >= least]
    rank[kept] = np.arange(len(kept))
    return rank[of]
