"""Where the components of a mixture begin, and which of them make one cluster in the end.

Without labels cells are divided by k-means where that is stable: the same on subsets of the cells. Where it
is not, clusters differ too much in size and shape for it; then there are several components for each, which
are merged after training where they overlap, as measured by the entropy of the assignment (Baudry et al.,
"Combining mixture components for clustering", J. Comput. Graph. Stat. 2010). With labels k-means respects
them.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

STARTS, STEPS = 20, 50
STABLE, SUBSETS, SHARE = 0.9, 5, 0.8
OVERLAP = 0.2  # nats


def stability(points: np.ndarray, k: int, seed: int = 0) -> float:
    """Adjusted Rand index between k-means on different subsets, on the cells that these share."""
    rng, n = np.random.default_rng(seed), len(points)
    found = []
    for _ in range(SUBSETS):
        rows = np.sort(rng.choice(n, max(k, int(SHARE * n)), replace=False))
        labels = np.full(n, -1)
        labels[rows] = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(points[rows])
        found.append(labels)
    pairs = [(a, b, (a >= 0) & (b >= 0)) for a, b in combinations(found, 2)]
    return float(np.mean([adjusted_rand_score(a[both], b[both]) for a, b, both in pairs]))


def merge(r: np.ndarray, n_clusters: int | None = None) -> np.ndarray:
    """Cluster of each component, by merging those that share cells.

    Merging i and j lowers the entropy of the assignment by what cells are undecided between the two; the pair
    for which this is largest beside the size of the smaller goes first.

    Parameters
    ----------
    r
        Probability of each component, cells x components.
    n_clusters
        How many to leave; ``None`` merges as long as this gain is above ``OVERLAP`` nats.
    """
    r, groups = np.asarray(r, dtype=float), [[k] for k in range(r.shape[1])]
    while len(groups) > (n_clusters or 1):
        own, sizes = _plogp(r).sum(0), r.sum(0) + 1e-9
        best = (-1.0, 0, 1)
        for i in range(len(groups) - 1):
            gain = _plogp(r[:, i : i + 1] + r[:, i + 1 :]).sum(0) - own[i] - own[i + 1 :]
            gain /= np.minimum(sizes[i], sizes[i + 1 :])
            best = max(best, (float(gain.max()), i, i + 1 + int(gain.argmax())))
        gained, i, j = best
        if n_clusters is None and gained < OVERLAP:
            break
        r[:, i] += r[:, j]
        r = np.delete(r, j, axis=1)
        groups[i] += groups.pop(j)
    order = np.argsort([-column.sum() for column in r.T], kind="stable")  # the largest cluster first
    cluster_of = np.empty(sum(map(len, groups)), dtype=np.int64)
    for cluster, at in enumerate(order):
        cluster_of[groups[at]] = cluster
    return cluster_of


def _plogp(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.maximum(p, 1e-30))


def partition(
    z: Tensor, label_of: Tensor, y: Tensor | None, n_labels: int, n_clusters: int | None = None
) -> Tensor:
    """Which component each cell begins in, one-hot ``(n, K)``.

    Where k-means with ``n_clusters`` is stable only so many components get cells, and else all of them.

    Parameters
    ----------
    z
        Places of the cells, ``(n, L)``.
    label_of
        Label to which each component is bound, ``(K,)``; -1 is free.
    y
        Label of each cell, ``n_labels`` where it is unknown; ``None`` is unknown for all.
    n_labels
        How many there are.
    n_clusters
        How many clusters are wanted, if fewer than components; without labels only.
    """
    points, bound = z.double().cpu().numpy(), label_of.cpu().numpy()
    seed = int(torch.randint(2**31 - 1, ()))
    if n_labels == 0 or y is None:
        k = min(len(bound), len(np.unique(points, axis=0)))
        if n_clusters is not None and n_clusters < k and stability(points, n_clusters, seed) >= STABLE:
            k = n_clusters
        assigned = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(points)
    else:
        assigned = _around_labels(points, bound, y.cpu().numpy(), n_labels, np.random.default_rng(seed))
    return torch.nn.functional.one_hot(torch.from_numpy(assigned).long(), len(bound)).to(z)


def _around_labels(
    points: np.ndarray, bound: np.ndarray, y: np.ndarray, n_labels: int, rng: np.random.Generator
) -> np.ndarray:
    """k-means whose labelled cells stay with the components of their label; the best of several starts."""
    allowed = (bound == y[:, None]) | (y >= n_labels)[:, None]
    best, lowest = None, np.inf
    for _ in range(STARTS):
        centres = _spread(points, bound, y, rng)
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


def _spread(points: np.ndarray, bound: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Starting centres: cells of the label for bound components, then others far from all (k-means++)."""
    centres = np.empty((len(bound), points.shape[1]))
    far = np.full(len(points), np.inf)
    order = np.argsort(bound < 0, kind="stable")  # the free ones last
    for k in order:
        own = np.flatnonzero(y == bound[k])
        alone = (bound == bound[k]).sum() == 1
        if bound[k] >= 0 and len(own) and alone:
            centres[k] = points[own].mean(0)
        else:
            among = own if bound[k] >= 0 and len(own) else np.arange(len(points))
            chance = np.where(np.isfinite(far[among]), far[among], 1.0) + 1e-12
            centres[k] = points[rng.choice(among, p=chance / chance.sum())]
        far = np.minimum(far, np.square(points - centres[k]).sum(1))
    return centres


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    cross = points @ centres.T
    return np.square(points).sum(1)[:, None] - 2 * cross + np.square(centres).sum(1)
