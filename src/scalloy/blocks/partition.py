"""Where the components of a mixture begin: cells are divided by k-means that respects known labels."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

STARTS, STEPS = 20, 50


def partition(z: Tensor, label_of: Tensor, y: Tensor | None, n_labels: int) -> Tensor:
    """Which component each cell begins in, one-hot ``(n, K)``.

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
    """
    points, bound = z.double().cpu().numpy(), label_of.cpu().numpy()
    seed = int(torch.randint(2**31 - 1, ()))
    if n_labels == 0 or y is None:
        k = min(len(bound), len(np.unique(points, axis=0)))
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
