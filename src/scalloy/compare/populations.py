"""Populations whose numbers are compared: labels, clusters, nodes of their tree, or neighbourhoods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from scalloy.compare.groups import column, representation
from scalloy.models._core.cluster_tree import clusters_after

PER_SAMPLE, FEWEST = 5, 50  # cells of a neighbourhood for each sample, and at least
SHARE, MOST = 0.1, 2000  # neighbourhoods per cell, and at most
PARTS = 20  # parts of a latent space among which those that do not move are looked for
AT_ONCE = 200  # neighbourhoods whose centres are moved at a time
NEIGHBOURHOODS = ("neighbourhoods", "neighborhoods")


@dataclass(frozen=True)
class Populations:
    """Populations of cells, which may overlap.

    Parameters
    ----------
    table
        One row per population, with the columns that name it.
    members
        Which cells belong to which population, ``(cells, populations)``.
    part
        Code of the part of each cell; parts do not overlap.
    parts
        Names of the parts.
    weight
        Weight of each population in the adjustment of p-values; ``None`` is the same for all.
    """

    table: pd.DataFrame
    members: sp.csr_matrix
    part: np.ndarray
    parts: list[str]
    weight: np.ndarray | None = None

    @property
    def one_hot(self) -> sp.csr_matrix:
        """Membership of cells in parts, ``(cells, parts)``."""
        return _one_hot(self.part, len(self.parts))


def _one_hot(code: np.ndarray, n: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(code)), (np.arange(len(code)), code)), (len(code), n))


def is_of_neighbourhoods(table: pd.DataFrame) -> bool:
    """Return whether the populations of a table of abundances are neighbourhoods."""
    return {"cell", "radius"} <= set(getattr(table, "columns", ()))


def populations(
    data: Any,
    obs: pd.DataFrame,
    by: str,
    use_rep: str | None,
    *,
    n_samples: int,
    size: int | None,
    most: int | None,
    rng: np.random.Generator,
) -> Populations:
    """Find the populations that ``by`` names; see :func:`scalloy.compare.abundance`."""
    if by in obs or by not in (*NEIGHBOURHOODS, "clusters", "tree"):
        return _labelled(column(obs, "by", by), by)
    if by in NEIGHBOURHOODS:
        x, _ = representation(data, use_rep)
        return _neighbourhoods(x, obs.index, n_samples, size, most, rng)
    if not hasattr(data, "get_cluster_tree"):
        msg = (
            f"`by={by!r}` needs a trained model that finds clusters, such as `CGMDVAE`, in place of cells. "
            "Pass one, or a column of `adata.obs`."
        )
        raise TypeError(msg)
    return (
        _labelled(np.asarray(data.get_clusters()).astype(str), "cluster") if by == "clusters" else _tree(data)
    )


def _labelled(of: np.ndarray, name: str) -> Populations:
    """Make populations of labels."""
    names, part = np.unique(of, return_inverse=True)
    return Populations(pd.DataFrame({name: names}), _one_hot(part, len(names)), part, names.tolist())


def _tree(model: Any) -> Populations:
    """Make a population of each node of the tree of clusters, the root left out."""
    rows, members, of = list[dict[str, Any]](), list[sp.csr_matrix](), np.empty(0)
    for division, of in clusters_after(model):
        for name in (division.larger, division.smaller):
            number = len(division.cut.names)
            rows.append({"n_clusters": number, "cluster": name, "divided": division.divided})
            members.append(sp.csr_matrix((of == name).astype(float)[:, None]))
    if not rows:
        msg = (
            "`by='tree'`, but the model has one cluster only, which is not divided. Pass a column of `.obs`."
        )
        raise ValueError(msg)
    names, part = np.unique(of, return_inverse=True)
    return Populations(pd.DataFrame(rows), sp.hstack(members).tocsr(), part, names.tolist())


def _neighbourhoods(
    x: np.ndarray,
    names: pd.Index,
    n_samples: int,
    size: int | None,
    most: int | None,
    rng: np.random.Generator,
) -> Populations:
    """Make neighbourhoods around cells that lie in the middle of their neighbours.

    Cells are drawn at random, and each is replaced by the cell nearest to the median of its neighbours. This
    avoids the outskirts. Dann et al., Nature Biotechnology 40 (2022).
    """
    n = len(x)
    size = min(size or max(FEWEST, PER_SAMPLE * n_samples), n)
    most = min(most or max(min(round(SHARE * n), MOST), 1), n)
    search = NearestNeighbors(n_neighbors=size).fit(x)
    first = np.sort(rng.choice(n, most, replace=False))
    medians = [
        np.median(x[search.kneighbors(x[rows], return_distance=False)], axis=1)
        for rows in np.array_split(first, -(-most // AT_ONCE))
    ]
    centre = np.unique(search.kneighbors(np.concatenate(medians), 1, return_distance=False))
    distance, near = search.kneighbors(x[centre])
    rows, columns = near.ravel(), np.repeat(np.arange(len(centre)), size)
    members = sp.csr_matrix((np.ones(len(rows)), (rows, columns)), (n, len(centre)))
    made = KMeans(min(PARTS, len(centre)), n_init=1, random_state=int(rng.integers(2**31))).fit(x[centre])
    table = pd.DataFrame({"cell": names[centre], "n_cells": size, "radius": distance[:, -1]})
    weight = 1 / np.maximum(distance[:, -1], 1e-12)
    part = made.predict(x)
    return Populations(table, members, part, [str(i) for i in range(made.n_clusters)], weight)
