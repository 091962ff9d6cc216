"""Clusters of cells: components of a mixture prior, or several of them merged.

Each public function is a method of the models with a mixture, :class:`scalloy.GMVAE` and
:class:`scalloy.CGMDVAE`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy.models._core.annotations import Annotator, Found, Written
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions, HasClusters


def cluster_names(model: ModelOf[HasClusters]) -> list[str]:
    """Names of the clusters: the labels of those that are bound to one, then the numbers of the free ones.

    If a label is such a number itself, such as ``"3"``, free clusters are called ``"free 3"`` and so on.

    Examples
    --------
    >>> model.cluster_names[:5] == model.labels
    True
    """
    prior = model.module.prior
    n = int(prior.cluster_of[prior.used].max()) + 1
    bound = model.reader.labels[: prior.n_labels]
    return [*bound, *_keys.unique((str(k) for k in range(len(bound), n)), bound)]


@torch.no_grad()
def get_cluster_probabilities(
    model: ModelOf[HasClusters],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
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

    Examples
    --------
    >>> bool(model.get_cluster_probabilities().sum(axis=1).round(3).eq(1).all())
    True
    """
    batches = model.reader.batches(adata, indices, batch_size)
    rows = [_probabilities(model, batch)["clusters"].cpu() for batch in batches]
    values = torch.cat(rows).numpy()
    return pd.DataFrame(values, index=model.reader.names(adata, indices), columns=cluster_names(model))


def get_clusters(
    model: ModelOf[HasClusters],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
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

    Examples
    --------
    >>> adata.obs["found"] = model.get_clusters()
    """
    probabilities = get_cluster_probabilities(model, adata, indices, batch_size)
    found = probabilities.to_numpy().argmax(1)
    values = pd.Categorical.from_codes(found, categories=cluster_names(model))
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


def _probabilities(
    model: ModelOf[HasClusters], batch: Batch, q: Distributions | None = None
) -> dict[str, torch.Tensor]:
    """Return the probability of each cluster for the cells of a batch."""
    module = model.module
    return {"clusters": module.prior.of_clusters(module.assignment(batch, q=q))}


def _write(model: ModelOf[HasClusters], key: str, found: Found, names: pd.Index) -> Written:
    """Return clusters and their probabilities under their keys."""
    p, clusters = found["clusters"], cluster_names(model)
    obs = {
        _keys.cluster(key): pd.Categorical.from_codes(p.argmax(1), categories=clusters),
        _keys.cluster_probability(key): p.max(1),
    }
    frame = pd.DataFrame(p, index=names, columns=clusters)
    about = {_keys.settings(key): {"clusters": list(clusters)}}
    return {"obsm": {_keys.probabilities(key): frame}, "obs": obs, "uns": about}


CLUSTERS = Annotator(_probabilities, _write)
