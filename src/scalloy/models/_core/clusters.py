"""Clusters of cells: components of a mixture prior, and the tree in which these are joined.

Each public function is a method of the models with a mixture, :class:`scalloy.GMVAE` and
:class:`scalloy.CGMDVAE`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import whole
from scalloy.models._core.annotations import Annotator, Found, Written
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions, HasClusters

CUTS = ("coarse", "fine")  # numbers of clusters with a name
Number = int | Literal["coarse", "fine"]


def cluster_names(model: ModelOf[HasClusters]) -> list[str]:
    """Names of the clusters: the labels of those that are bound to one, then the numbers of the free ones.

    If a label is such a number itself, such as ``"3"``, free clusters are called ``"free 3"`` and so on.

    Examples
    --------
    >>> model.cluster_names[:5] == model.labels
    True
    """
    prior = model.module.prior
    return _names(model, int(prior.cluster_of[prior.used].max()) + 1)


def _names(model: ModelOf[HasClusters], n: int) -> list[str]:
    """Return the names of ``n`` clusters that are bound to labels as far as there are any."""
    bound = model.reader.labels[: model.module.prior.n_labels]
    return [*bound, *_keys.unique((str(k) for k in range(len(bound), n)), bound)]


@dataclass(frozen=True)
class Cut:
    """Clusters of a model at some number of them.

    Attributes
    ----------
    names
        Names of the clusters.
    cluster_of
        Cluster of each component.
    """

    names: list[str]
    cluster_of: torch.Tensor


def cut_at(model: ModelOf[HasClusters], n: Number | None) -> Cut:
    """Return the clusters of a model at a number of them.

    Parameters
    ----------
    model
        Model with clusters.
    n
        Number of clusters, ``"coarse"`` or ``"fine"``, as in :meth:`scalloy.CGMDVAE.get_clusters`; ``None``
        is the number that the model was trained for.
    """
    prior = model.module.prior
    if n is None:
        return Cut(cluster_names(model), prior.cluster_of)
    cluster_of = prior.clusters_at(_number(model, n))
    if not prior.n_labels:
        return Cut(_names(model, int(cluster_of[prior.used].max()) + 1), cluster_of)
    parts = defaultdict(list)
    each = _names(model, len(cluster_of))
    for component in np.flatnonzero(prior.used.cpu().numpy()):
        parts[int(cluster_of[component])].append(each[component])
    return Cut([" + ".join(parts[k]) for k in range(len(parts))], cluster_of)


def _number(model: ModelOf[HasClusters], n: Number) -> int:
    """Return a number of clusters that the tree of a model has, from what the user asks for."""
    most = len(merges_of(model)) + 1
    if isinstance(n, str):
        if n not in CUTS:
            msg = f"`n={n!r}` must be above zero: pass a whole number, 'coarse' or 'fine'."
            raise ValueError(msg)
        if n == "fine":
            return most
        agreement = model.module.prior.agreement[2 : most + 1]
        return int(agreement.argmax()) + 2 if len(agreement) else most
    whole(n=n)
    if n > most:
        msg = (
            f"`n={n}` is more than the {most} components that the tree of clusters has. Pass at most {most}."
        )
        raise ValueError(msg)
    return n


def merges_of(model: ModelOf[HasClusters]) -> np.ndarray:
    """Return the merges of the tree of clusters, as in :class:`scalloy.blocks.cluster_tree.Merges`.

    Parameters
    ----------
    model
        Model with clusters.
    """
    prior = model.module.prior
    merges = prior.merged
    if len(merges) + 1 != int(prior.used.sum()):
        msg = (
            "The model has no tree of clusters: it is not trained, or was saved by a version that made none. "
            "Train it, or call `get_clusters()` without `n`."
        )
        raise ValueError(msg)
    return merges


@torch.no_grad()
def get_cluster_probabilities(
    model: ModelOf[HasClusters],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    *,
    n: Number | None = None,
) -> pd.DataFrame:
    """Return the probability of each cluster, cells x clusters, from the counts and not the label.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    batch_size
        Number of cells that are encoded at a time.
    n
        Number of clusters, as in :meth:`get_clusters`.

    Examples
    --------
    >>> bool(model.get_cluster_probabilities().sum(axis=1).round(3).eq(1).all())
    True
    """
    clusters = cut_at(model, n)
    batches = model.reader.batches(adata, indices, batch_size)
    values = torch.cat([_look(model, batch, cut=clusters)["clusters"].cpu() for batch in batches]).numpy()
    return pd.DataFrame(values, index=model.reader.names(adata, indices), columns=clusters.names)


def get_clusters(
    model: ModelOf[HasClusters],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    *,
    n: Number | None = None,
) -> pd.Series:
    """Return the most probable cluster of each cell.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    batch_size
        Number of cells that are encoded at a time.
    n
        Number of clusters at which the tree of clusters is cut, without training again. The clusters are
        nested, and they keep their numbers: where a cluster is divided, its larger part has the number that
        it had. ``"coarse"`` is the number at which methods agree most on how to divide the cells, ``"fine"``
        makes each component a cluster. ``None`` is the number that the model was made with, or else the
        one that the methods agree on.

    Examples
    --------
    >>> adata.obs["found"] = model.get_clusters()
    >>> int(model.get_clusters(n=3).nunique()) <= 3
    True
    """
    probabilities = get_cluster_probabilities(model, adata, indices, batch_size, n=n)
    found = probabilities.to_numpy().argmax(1)
    values = pd.Categorical.from_codes(found, categories=list(probabilities.columns))
    return pd.Series(values, index=probabilities.index, name="cluster")


def get_usage(model: ModelOf[HasClusters], by: str | None = None) -> pd.Series | pd.DataFrame:
    """Return the expected number of the model's cells in each cluster.

    Parameters
    ----------
    by
        Column of ``.obs``; the result then has one row for each of its categories.

    Examples
    --------
    >>> float(model.get_usage().sum().round(2))
    200.0
    """
    probabilities = get_cluster_probabilities(model)
    if by is None:
        return probabilities.sum().rename("cells")
    assert model.adata is not None
    return probabilities.groupby(model.adata.obs[by].to_numpy(), observed=True).sum()


def n_alive(model: ModelOf[HasClusters], least: float = 0.001) -> int:
    """Return the number of clusters with at least a given share of the model's cells.

    Parameters
    ----------
    least
        Smallest share of the cells with which a cluster is counted.

    Examples
    --------
    >>> model.n_alive() >= 1
    True
    """
    usage = np.asarray(get_usage(model))
    return int((usage >= least * usage.sum()).sum())


def _look(
    model: ModelOf[HasClusters], batch: Batch, q: Distributions | None = None, *, cut: Cut | None = None
) -> dict[str, torch.Tensor]:
    """Return the probability of each cluster for the cells of a batch; ``None`` is the model's own cut."""
    r = model.module.assignment(batch, q=q)
    return {"clusters": model.module.prior.of_clusters(r, None if cut is None else cut.cluster_of)}


def _write(
    model: ModelOf[HasClusters], key: str, found: Found, names: pd.Index, *, cut: Cut | None = None
) -> Written:
    """Return clusters and their probabilities under their keys; ``None`` is the model's own cut."""
    p, clusters = found["clusters"], cluster_names(model) if cut is None else cut.names
    obs = {
        _keys.cluster(key): pd.Categorical.from_codes(p.argmax(1), categories=clusters),
        _keys.cluster_probability(key): p.max(1),
    }
    frame = pd.DataFrame(p, index=names, columns=clusters)
    about = {_keys.settings(key): {"clusters": list(clusters)}}
    return {"obsm": {_keys.probabilities(key): frame}, "obs": obs, "uns": about}


def _cut_into(model: ModelOf[HasClusters], n: Number) -> Annotator:
    """Return the annotator of clusters at a number of them."""
    cut = cut_at(model, n)  # raises an error before anything is read
    return Annotator(partial(_look, cut=cut), partial(_write, cut=cut))


CLUSTERS = Annotator(_look, _write, option="n_clusters", asked=_cut_into)
