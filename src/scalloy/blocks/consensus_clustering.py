"""Starting places of the components of a mixture, and the clusters that these components make in the end.

Without labels there are several components for each cluster, placed by k-means. After training, the wanted
number of clusters is tested for stability: does k-means find the same ones on random subsets of the cells?

If they are stable, several methods vote on how to divide the cells: k-means, Ward's method, a mixture with
one covariance and spectral clustering. Each is applied to the latent and, if given, to principal components
of the observed expression; in each of these the components themselves, merged where they overlap, have a vote
too. The similarity of two cells is the share of the votes that put them together, and average linkage cuts it
(Fred and Jain, "Combining multiple clusterings using evidence accumulation", IEEE TPAMI 2005). Then the
components are placed again, within these clusters.

If they are not stable, clusters differ too much in size and shape. Components are then only merged where they
overlap, as measured by the entropy of the assignment (Baudry et al., "Combining mixture components for
clustering", J. Comput. Graph. Stat. 2010).

With one component for each cluster, the components start at the clusters that the methods agree on, if these
are stable. With labels, they are placed by a k-means that respects the labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

STARTS, STEPS = 20, 50
STABLE, SUBSETS, SHARE = 0.85, 10, 0.8
MOST, N_PCS, NEIGHBOURS = 3000, 30, 15
MANY = 30_000  # cells in random order that are enough to see where groups of them are
SPOTS, CROWD = 50, 20  # largest number of small groups of cells, and least number of cells in each on average
SURE, FEW = 4.0, 0.5  # where labels are missing: standard deviations, and share of those expected
OVERLAP = 0.2  # nats per cell of the smaller component, below which two components are not merged


def stability(points: np.ndarray, k: int, seed: int = 0) -> float:
    """Return the mean adjusted Rand index of k-means on pairs of random subsets, on the cells they share."""
    rng, n = np.random.default_rng(seed), len(points)
    found = []
    for _ in range(SUBSETS):
        rows = np.sort(rng.choice(n, max(k, int(SHARE * n)), replace=False))
        labels = np.full(n, -1)
        labels[rows] = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(points[rows])
        found.append(labels)
    pairs = [(a, b, (a >= 0) & (b >= 0)) for a, b in combinations(found, 2)]
    return float(np.mean([adjusted_rand_score(a[both], b[both]) for a, b, both in pairs]))


def consensus(
    views: list[np.ndarray], k: int, seed: int = 0, candidate: np.ndarray | None = None
) -> np.ndarray:
    """Divide the cells into ``k`` clusters on which several methods agree.

    Each of ``views`` is cells x features, all of the same cells. A ``candidate`` counts as one more method in
    each view, unless it agrees with the others less than every method does.
    """
    found = [clusters for view in views for clusters in _several(view, k, seed)]
    if candidate is not None and _mean_agreement(candidate, found) >= min(
        _mean_agreement(one, found[:i] + found[i + 1 :]) for i, one in enumerate(found)
    ):
        found += [candidate] * len(views)
    apart = np.zeros((len(views[0]),) * 2, dtype=np.float32)
    for clusters in found:
        apart += clusters[:, None] != clusters
    together = AgglomerativeClustering(k, metric="precomputed", linkage="average")
    return together.fit_predict(apart / len(found))


def _mean_agreement(clusters: np.ndarray, others: list[np.ndarray]) -> float:
    return float(np.mean([adjusted_rand_score(clusters, other) for other in others]))


def _several(view: np.ndarray, k: int, seed: int) -> Iterator[np.ndarray]:
    """Yield divisions of the cells into ``k``; three are by k-means, since it depends on where it starts."""
    for start in range(3):
        yield KMeans(k, n_init=3, random_state=seed + start).fit_predict(view)
    yield AgglomerativeClustering(k).fit_predict(view)
    ridge = 1e-4 * view.var()
    mixture = GaussianMixture(k, covariance_type="tied", reg_covar=ridge, n_init=2, random_state=seed)
    spectral = SpectralClustering(
        k,
        affinity="nearest_neighbors",
        n_neighbors=min(NEIGHBOURS, len(view)),
        assign_labels="cluster_qr",
        random_state=seed,
    )
    with warnings.catch_warnings():  # no convergence, graph in pieces: it is only one vote of many
        warnings.simplefilter("ignore")
        yield mixture.fit_predict(view)
        yield spectral.fit_predict(view)


def merge(r: np.ndarray, n_clusters: int | None = None) -> np.ndarray:
    """Merge components that share cells, and return the cluster of each.

    Merging two components lowers the entropy of the assignment by as much as cells are undecided between
    them. The pair for which this is largest, relative to the size of the smaller one, is merged first.
    Components that are not the most probable one of any cell are merged before all others.

    Parameters
    ----------
    r
        Probability of each component, cells x components.
    n_clusters
        Number of clusters to leave. ``None`` merges as long as this relative gain is at least ``OVERLAP``.
    """
    r, groups = np.array(r, dtype=float), [[k] for k in range(r.shape[1])]
    own = _plogp(r).sum(0)
    gain = np.array([_undecided(r, i, own) for i in range(len(groups))])
    while len(groups) > (n_clusters or 1):
        sizes = r.sum(0) + 1e-9
        overlap = gain / np.minimum(sizes[:, None], sizes)
        empty = np.bincount(r.argmax(1), minlength=len(groups)) == 0
        if empty.any():
            overlap[~empty] = -np.inf
        elif n_clusters is None and overlap.max() < OVERLAP:
            break
        i, j = sorted(np.unravel_index(overlap.argmax(), overlap.shape))
        r[:, i] += r[:, j]
        groups[i] += groups.pop(j)
        r, gain = np.delete(r, j, axis=1), np.delete(np.delete(gain, j, axis=0), j, axis=1)
        gain[i] = gain[:, i] = _undecided(r, i, _plogp(r).sum(0))
    order = np.argsort([-column.sum() for column in r.T], kind="stable")  # the largest cluster first
    cluster_of = np.empty(sum(map(len, groups)), dtype=np.int64)
    for cluster, at in enumerate(order):
        cluster_of[groups[at]] = cluster
    return cluster_of


def _undecided(r: np.ndarray, i: int, own: np.ndarray) -> np.ndarray:
    """Return the fall in entropy on merging each component into ``i``; ``own`` is minus the entropies."""
    gain = _plogp(r[:, i : i + 1] + r).sum(0) - own[i] - own
    gain[i] = -np.inf
    return gain


def agreed(
    r: np.ndarray, n_clusters: int, z: np.ndarray, observed: Tensor | None = None, seed: int = 0
) -> np.ndarray | None:
    """Return clusters of the first ``MOST`` cells, the largest first; ``None`` if k-means is not stable.

    Parameters
    ----------
    r
        Probability of each component, cells x components.
    n_clusters
        Number of clusters.
    z
        Latents of the cells, ``(n, L)``.
    observed
        Expression of the first cells, in which clusters are looked for as well.
    seed
        Random seed of the methods.
    """
    views = _views(z, observed, seed)
    if np.mean([stability(view, n_clusters, seed) for view in views]) < STABLE:
        return None
    merged = merge(r, n_clusters)[r[: len(views[0])].argmax(1)]
    found = consensus(views, n_clusters, seed, merged)
    return np.argsort(np.argsort(-np.bincount(found), kind="stable"))[found]


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
        if n_clusters == len(bound) == k and stability(points, k, seed) >= STABLE:
            assigned = _consensus_of_all(points, k, seed, observed)
        else:
            assigned = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(points)
    else:
        codes, rng = y.cpu().numpy(), np.random.default_rng(seed)
        of = (bound == codes[:, None]) | (codes >= n_labels)[:, None]
        of = np.asarray(of if allowed is None else allowed.cpu().numpy())
        assigned = _around_labels(points, bound, codes, of, rng)
    return torch.nn.functional.one_hot(torch.from_numpy(assigned).long(), len(bound)).to(z)


def _consensus_of_all(points: np.ndarray, k: int, seed: int, observed: Tensor | None) -> np.ndarray:
    """Cluster the first ``MOST`` cells by consensus, and the others by their neighbours among these."""
    clusters = consensus(_views(points, observed, seed), k, seed)
    if len(points) == len(clusters):
        return clusters
    near = KNeighborsClassifier(NEIGHBOURS).fit(points[:MOST], clusters)
    return np.concatenate([clusters, near.predict(points[MOST:])])


def _views(points: np.ndarray, observed: Tensor | None, seed: int) -> list[np.ndarray]:
    """Return the latents of the first ``MOST`` cells, and principal components of any expression given."""
    views = [points[:MOST]]
    if observed is not None:
        n_pcs = min(N_PCS, *observed.shape)
        views.append(PCA(n_pcs, random_state=seed).fit_transform(observed[:MOST].double().cpu().numpy()))
    return views


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
