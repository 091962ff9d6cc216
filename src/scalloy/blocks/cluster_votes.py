"""Votes of several methods on which cells belong together, at each number of clusters.

    k-means         compact groups
    Leiden          groups with more neighbours inside than expected, at the resolution that gives the number
    overlap         groups of nearest neighbours, of which the two that share most neighbours are joined
    components      components of the mixture, of which the two that share most cells are joined

Each method divides small groups of cells (by k-means), each in the latent and, if given, in principal
components of the observed expression, and with several such groupings. Two cells are apart at a number of
clusters by as much as the methods put them apart there (Fred and Jain, "Combining multiple clusterings using
evidence accumulation", IEEE TPAMI 2005). No method is right everywhere: k-means divides a large type, Leiden
a dense one, and overlap loses groups that touch.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import igraph
import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import kneighbors_graph

MICRO, PER_MICRO = 200, 5  # small groups of cells, and least number of cells in each on average
GROUPINGS = 3
NEIGHBOURS = 15
RESOLUTIONS = np.geomspace(0.05, 8.0, 60)

Labels = np.ndarray  # one number for each cell, or for each small group


class Votes:
    """Votes of several methods on which cells belong together.

    Parameters
    ----------
    views
        Features of the same cells, each cells x features.
    most
        Largest number of clusters that is asked for.
    components
        Clusters of the cells from merged components at each number of clusters; ``None`` if there are none.
    seed
        Random seed.
    """

    def __init__(
        self,
        views: Sequence[np.ndarray],
        most: int,
        components: dict[int, Labels] | None = None,
        seed: int = 0,
    ) -> None:
        self.most, self.groups = most, list[Labels]()
        self._votes: list[list[dict[int, Labels]]] = [[], [], []]
        if components is not None:
            self._votes.append([components])
        with _repeatable(seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
            self._vote(views, seed)

    def _vote(self, views: Sequence[np.ndarray], seed: int) -> None:
        """Ask all methods, in each view and with several groupings of the cells."""
        most = self.most
        graphs = [_neighbours(view) for view in views]
        together = np.hstack([view / max(np.sqrt(view.var(0).sum()), 1e-12) for view in views])
        n = int(np.clip(len(together) // PER_MICRO, min(most, len(together)), max(MICRO, 4 * most)))
        for start in range(seed, seed + GROUPINGS):
            fitted = _kmeans(n, start, max_iter=20).fit(together)
            group = np.unique(fitted.labels_, return_inverse=True)[1]
            self.groups.append(group)
            for view, graph in zip(views, graphs, strict=True):
                shared = _shared(graph, group)
                found = (
                    _compact(view, group, most, start),
                    _modular(shared, most),
                    _connected(shared, group, most),
                )
                for votes, by_level in zip(self._votes, found, strict=False):
                    votes.append({k: labels[group] for k, labels in by_level.items()})

    def at(self, k: int) -> list[list[Labels]]:
        """Return the clusters of the cells by each method, at a number of clusters or that nearest to it."""
        return [[_nearest(votes, k) for votes in method] for method in self._votes]

    def apart(self, held: np.ndarray, k: int) -> np.ndarray:
        """Return by how much the methods put components apart at a number of clusters, from 0 to 1.

        Parameters
        ----------
        held
            Probability of each component, cells x components.
        k
            Number of clusters.
        """
        weight = (held / np.maximum(held.sum(0), 1e-12)).T
        out = np.zeros((len(weight),) * 2)
        for method in self.at(k):
            for labels in method:
                share = weight @ one_hot(labels)
                out += (1 - share @ share.T) / len(method)
        return out / len(self._votes)


def one_hot(labels: Labels) -> np.ndarray:
    """Return which cells have each label, cells x labels."""
    return np.eye(int(labels.max()) + 1)[labels]


def renumbered(of: Labels, i: int, j: int) -> Labels:
    """Return the group of each member after group ``j`` has joined group ``i``, with no number left out."""
    return np.where(of == j, i, np.where(of > j, of - 1, of))


def _nearest(votes: dict[int, Labels], k: int) -> Labels:
    return votes[min(votes, key=lambda have: (abs(have - k), have))]


def _neighbours(view: np.ndarray) -> sparse.csr_matrix:
    graph = kneighbors_graph(view, min(NEIGHBOURS, len(view) - 1))
    return ((graph + graph.T) > 0).astype(float)


def _shared(graph: sparse.csr_matrix, group: Labels) -> np.ndarray:
    """Return the number of neighbouring pairs of cells of each two groups."""
    member = sparse.csr_matrix(one_hot(group))
    return (member.T @ graph @ member).toarray()


def _compact(view: np.ndarray, group: Labels, most: int, seed: int) -> dict[int, Labels]:
    """Return k-means of the groups at each number of clusters."""
    size = np.bincount(group).astype(float)
    centres = np.zeros((len(size), view.shape[1]))
    np.add.at(centres, group, view)
    centres /= size[:, None]
    numbers = range(1, min(most, len(np.unique(centres, axis=0))) + 1)
    return {k: _kmeans(k, seed).fit_predict(centres, sample_weight=size) for k in numbers}


def _kmeans(k: int, seed: int, **options: int) -> KMeans:
    return KMeans(k, n_init=1, random_state=seed, **options)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Give igraph, which draws from Python's global generator, one of its own."""
    igraph.set_random_number_generator(random.Random(seed))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


def _modular(shared: np.ndarray, most: int) -> dict[int, Labels]:
    """Return Leiden clusters of the groups at each number of clusters that some resolution gives."""
    i, j = np.triu_indices(len(shared))
    weight = np.where(i == j, shared[i, j] / 2, shared[i, j])
    kept = weight > 0
    graph = igraph.Graph(len(shared), edges=np.column_stack([i[kept], j[kept]]).tolist())
    found: dict[int, Labels] = {1: np.zeros(len(shared), dtype=np.int64)}
    for resolution in RESOLUTIONS:
        clusters = graph.community_leiden(
            objective_function="modularity",
            weights=weight[kept].tolist(),
            resolution=float(resolution),
            n_iterations=3,
        )
        found.setdefault(len(clusters), np.array(clusters.membership))
        if len(clusters) > most:
            break
    return found


def _connected(shared: np.ndarray, group: Labels, most: int) -> dict[int, Labels]:
    """Return groups joined by the neighbours that they share, relative to the size of the smaller one."""
    steps = joined(shared, np.bincount(group).astype(float))
    return {k: labels for k, labels in steps if k <= most}


def joined(shared: np.ndarray, size: np.ndarray) -> Iterator[tuple[int, Labels]]:
    """Join the two groups that share most, relative to the smaller one, and yield each step."""
    shared, size, of = shared.copy(), size.copy(), np.arange(len(size))
    while True:
        yield len(size), of.copy()
        if len(size) == 1:
            return
        overlap = shared / np.minimum(size[:, None], size)
        overlap[np.tril_indices(len(size))] = -1
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        shared[i] += shared[j]
        shared[:, i] += shared[:, j]
        size[i] += size[j]
        shared, size = np.delete(np.delete(shared, j, 0), j, 1), np.delete(size, j)
        of = renumbered(of, i, j)
