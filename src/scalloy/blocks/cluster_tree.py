"""Tree of clusters: components of a mixture are its leaves, and each merge joins two of its nodes.

Several methods vote on which cells belong together (:mod:`scalloy.blocks.cluster_votes`). From one number
of clusters to the next lower one, the two nodes are joined that the methods put apart least at that number:
average linkage with a distance that depends on the level. So every number of clusters is a cut of the same
tree, and clusters are nested.

The tree is built around one number of clusters: the one that is asked for, or else the one that the methods
agree on. At this number cells are divided by the votes there alone. Components are then placed within these
clusters, and joined there first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import comb
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from scalloy.blocks.cluster_votes import Labels, Votes, one_hot

NEARLY = 0.8  # share of the best agreement between methods
MOSTLY, WORTH = 0.5, 0.1  # of the votes; nats per cell
LEAST = 3  # cells that a Gaussian is fitted to


@dataclass(frozen=True)
class Merges:
    """Merges of a tree, from the leaves to the root.

    Attributes
    ----------
    pairs
        The two nodes that are joined, ``(leaves - 1, 2)``. Leaves are numbered from 0, and merge ``m`` makes
        node ``leaves + m``, as in scipy. The larger node comes first.
    apart
        Share of the votes that put the two nodes apart at the number of clusters before the merge.
    """

    pairs: np.ndarray
    apart: np.ndarray


def cut(pairs: np.ndarray, n: int) -> np.ndarray:
    """Return the cluster of each leaf if there are ``n`` clusters.

    Numbers of clusters stay the same from one cut to the next: where a cluster is divided, its larger part
    keeps the number and the smaller one gets the next free number.

    Parameters
    ----------
    pairs
        Merges of the tree, as in :class:`Merges`.
    n
        Number of clusters.
    """
    leaves = len(pairs) + 1
    number = {2 * leaves - 2: 0}
    for m in range(len(pairs) - 1, -1, -1):
        if len(number) == n:
            break
        first, second = pairs[m]
        number[int(first)] = number.pop(leaves + m)
        number[int(second)] = len(number)
    out = np.empty(leaves, dtype=np.int64)
    for node, cluster in number.items():
        out[leaves_below(pairs, node)] = cluster
    return out


def leaves_below(pairs: np.ndarray, node: int) -> list[int]:
    """Return the leaves below a node, which is one itself if it is a leaf."""
    if node <= len(pairs):
        return [int(node)]
    return [leaf for child in pairs[node - len(pairs) - 1] for leaf in leaves_below(pairs, int(child))]


def best_number(agreement: np.ndarray, apart: np.ndarray, gain: np.ndarray) -> int:
    """Return the number of clusters that methods agree on.

    It is the largest one at which they agree nearly as well as they do at best, at which most of them put the
    two clusters apart that are made last, and two Gaussians describe these better than one.

    Parameters
    ----------
    agreement
        Agreement of the methods at each number of clusters, from 0; one cluster is no clustering.
    apart
        Share of the votes that put the parts of the last division apart, from two clusters on.
    gain
        Gain in nats per cell of the last division, from two clusters on; see :func:`gain`.
    """
    n = min(len(agreement) - 2, len(apart))
    nearly = agreement[2 : 2 + n] >= NEARLY * agreement[2:].max(initial=0.0)
    good = np.flatnonzero(nearly & (apart[:n] >= MOSTLY) & (gain[:n] >= WORTH))
    return 2 + int(good[-1]) if len(good) else 1


def agreement(votes: Votes, k: int) -> float:
    """Return the mean adjusted Rand index between different methods at a number of clusters."""
    pairs = combinations(votes.at(k), 2)
    return float(np.mean([rand_index(a, b) for one, other in pairs for a in one for b in other]))


def rand_index(a: Labels, b: Labels) -> float:
    """Return the adjusted Rand index of two divisions of the same cells.

    It is scikit-learn's, whose checks take many times as long; thousands are computed for a tree.
    """
    n, width = len(a), int(b.max()) + 1
    both = comb(np.bincount(a * width + b), 2).sum()
    one, other = (comb(np.bincount(labels), 2).sum() for labels in (a, b))
    expected, largest = one * other / comb(n, 2), (one + other) / 2
    return 1.0 if largest == expected else float((both - expected) / (largest - expected))


def divide(votes: Votes, k: int) -> Labels:
    """Divide the cells into ``k`` clusters by the votes at this number alone; number 0 is the largest."""
    group = votes.groups[0]
    apart = votes.apart(one_hot(group), k)
    found = cut(grow(np.bincount(group), lambda _: apart).pairs, k)[group]
    return np.argsort(np.argsort(-np.bincount(found, minlength=k), kind="stable"))[found]


def grow(size: np.ndarray, apart: Callable[[int], np.ndarray], cluster: Labels | None = None) -> Merges:
    """Join components of cells, level by level.

    Parameters
    ----------
    size
        Number of cells of each component.
    apart
        Function that returns by how much components are apart at a number of clusters.
    cluster
        Cluster of each component; components of one cluster are joined before clusters are.
    """
    held = np.diag(np.maximum(size, 1e-9))  # number of cells, groups x components
    node, of = np.arange(len(held)), np.zeros(len(held), dtype=np.int64) if cluster is None else cluster
    pairs, how_far, made = [], [], len(held)
    before = apart(len(held))
    while len(held) > 1:
        total, now = held.sum(1), apart(len(held) - 1)
        between = held @ now @ held.T / np.outer(total, total)
        upper = np.triu(np.ones_like(between, dtype=bool), 1)
        inside = upper & (of[:, None] == of)
        between[~(inside if inside.any() else upper)] = np.inf
        i, j = np.unravel_index(between.argmin(), between.shape)
        pairs.append((node[i], node[j]) if total[i] >= total[j] else (node[j], node[i]))
        how_far.append(held[i] @ before @ held[j] / (total[i] * total[j]))
        before = now
        held[i] += held[j]
        node[i], made = made, made + 1
        held, node, of = np.delete(held, j, 0), np.delete(node, j), np.delete(of, j)
    return Merges(np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(how_far))


def mistaken(r: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return for each merge the expected share of the smaller node's cells that look like the other's.

    Parameters
    ----------
    r
        Probability of each leaf, cells x leaves.
    pairs
        Merges of the tree.
    """
    out = np.empty(len(pairs))
    for m, (one, other) in enumerate(pairs):
        a, b = (r[:, leaves_below(pairs, int(node))].sum(1) for node in (one, other))
        out[m] = np.minimum(a, b).sum() / max(min(a.sum(), b.sum()), 1e-12)
    return out


def gain(z: np.ndarray, leaf: Labels, pairs: np.ndarray) -> np.ndarray:
    """Return for each merge by how many nats per held-out cell two Gaussians are better than one.

    They are Gaussians along the line that separates the two nodes best (linear discriminant analysis). Line
    and Gaussians are fitted to every second cell of the two nodes, and scored on the others.

    Parameters
    ----------
    z
        Latents of the cells.
    leaf
        Leaf of each cell.
    pairs
        Merges of the tree.
    """
    odd, out = np.arange(len(z)) % 2 == 1, np.zeros(len(pairs))
    for m, nodes in enumerate(pairs):
        one, other = (np.isin(leaf, leaves_below(pairs, int(node))) for node in nodes)
        fitted, scored = (one | other) & ~odd, (one | other) & odd
        sizes = np.array([(own & fitted).sum() for own in (one, other)])
        if sizes.min() < LEAST or not scored.any():
            continue
        line = (
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(z[fitted], one[fitted]).coef_[0]
        )
        x = z @ line
        each = [_log_normal(x[scored], x[own & fitted]) for own in (one, other, fitted)]
        two = np.logaddexp(*(e + np.log(n / sizes.sum()) for e, n in zip(each[:2], sizes, strict=True)))
        out[m] = float(np.mean(two - each[2]))
    return out


def _log_normal(x: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return the log-density of a Gaussian with the moments of the cells that it is fitted to."""
    return norm.logpdf(x, fitted.mean(), max(fitted.std(ddof=1), 1e-12))
