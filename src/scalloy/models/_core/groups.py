"""Groups of cells within which a change of condition is taken to be alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy.models._core.protocols import Conditioned, ModelOf
from scalloy.vae.base import HasConditions

UNGROUPED = "cells"  # name of the group of all cells, if the model knows no groups


def get_transfer_groups(model: Conditioned[HasConditions], adata: AnnData | None = None) -> pd.Series:
    """Return the group of each cell within which ``transfer`` takes a change of condition to be alike.

    It is the label if that is known, of a tree a leaf. Otherwise it is the predicted label (below the known
    one, if that is an inner node), or the cluster if the model has no labels; a model that finds neither puts
    all these cells into one group.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.

    Examples
    --------
    >>> len(model.get_transfer_groups())
    200
    """
    cells = None if adata is None else model.reader.fitting(adata)
    return pd.Series(groups_of(model, cells), index=model.reader.names(cells), name="group")


def groups_of(model: Conditioned[HasConditions], adata: AnnData | None = None) -> np.ndarray:
    """Return the groups of :func:`get_transfer_groups` without the names of the cells."""
    obs, key = model.reader.cells(adata).obs, model.reader.set_up_with.get("labels_key")
    given = obs[key].astype(str).to_numpy() if key in obs else np.full(len(obs), "")
    labels = model.reader.labels
    known = np.isin(given, labels) if labels else np.zeros(len(obs), dtype=bool)
    if known.all():
        return given
    return np.where(known, given, _below(model, adata, given) if labels else model._group_unlabelled(adata))


def _below(model: Any, adata: AnnData | None, given: np.ndarray) -> np.ndarray:
    """Return the predicted label of each cell; if it is known as an inner node of a tree, one below that."""
    tree = model.reader.tree
    if tree is None or not np.isin(given, tree.inner).any():
        return model._group_unlabelled(adata)
    p, code = model.predict_labels(adata, soft=True)[list(tree.leaves)].to_numpy(), list(tree.nodes)
    allowed = np.ones_like(p, dtype=bool)
    for name in tree.inner:
        allowed[given == name] = tree.hierarchy.below[code.index(name)].numpy()
    return np.array(tree.leaves, dtype=object)[np.where(allowed, p, -1.0).argmax(1)].astype(str)


def donors_of(model: Conditioned[HasConditions], adata: AnnData | None = None) -> np.ndarray:
    """Return the donor (or else the batch) of each cell; an empty name if it is not known.

    Parameters
    ----------
    model
        A model with conditions.
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    """
    obs, given = model.reader.cells(adata).obs, model.reader.set_up_with
    key = given.get("donor_key") or given.get("batch_key")
    return obs[key].astype(str).to_numpy() if key in obs else np.full(len(obs), "")


def all_alike(model: ModelOf[HasConditions], adata: AnnData | None) -> np.ndarray:
    """Return the same group for all cells, for a model that knows no groups.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    """
    return np.full(model.reader.cells(adata).n_obs, UNGROUPED)


def as_predicted(model: Any, adata: AnnData | None) -> np.ndarray:
    """Return the predicted label of each cell, or its cluster if there are no labels.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    """
    found = model.predict_labels(adata) if model.reader.labels else model.get_clusters(adata)
    return found.astype(str).to_numpy()
