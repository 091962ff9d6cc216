"""Labels and donors of new cells that a model does not know.

A column of labels may be missing, or hold other labels: the encoder does not need them. A donor who is new
has the effect of the average donor (:class:`scalloy.blocks.networks.Covariates`). For the registration by
scvi-tools, both are replaced by known ones, and a mask says where.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import Tensor

from scalloy._arguments import few, warn
from scalloy.models._core.setup import known_categories

# keys of masks in ``.uns`` while cells are read
UNLABELLED, NEW = "_scalloy_unlabelled", "_scalloy_new_donors"
AVERAGE = -1  # code of the average donor


def complete_labels(cells: AnnData, key: str, state: dict[str, Any]) -> None:
    """Give new cells a known label if theirs is missing or new.

    Parameters
    ----------
    cells
        New cells, which are changed.
    key
        Column of ``.obs`` with the labels.
    state
        Registry of the labels that the model knows.
    """
    known = np.asarray(state["categorical_mapping"])
    given = cells.obs[key] if key in cells.obs else pd.Series("", index=range(cells.n_obs))
    position = pd.Index(known.astype(str)).get_indexer(given.astype(str))
    unknown = pd.Index(known.astype(str)).get_indexer([str(state.get("unlabeled_category"))])[0]
    cells.obs[key] = known[np.where(position < 0, max(unknown, 0), position)]
    if unknown < 0:  # there is no label for "unknown", so `masked` sets a code beyond the known ones
        cells.uns[UNLABELLED] = position < 0


def complete_donors(cells: AnnData, key: str, known: np.ndarray, told: set[str]) -> None:
    """Give cells of new donors a known one, and warn once of each.

    Parameters
    ----------
    cells
        New cells, which are changed.
    key
        Column of ``.obs`` with the donors.
    known
        Donors that the model knows.
    told
        Donors of whom the user was warned, to which new ones are added.
    """
    given = cells.obs[key]
    if not (new := _are_new(given, known)).any():
        return
    if names := sorted(set(given[new].astype(str)) - told):
        told.update(names)
        warn(
            f"`adata.obs[{key!r}]` has donors that the model has never seen: {few(names)}. They are taken to "
            "be like the average donor. Under another condition, their groups start at the cells that are "
            "passed.",
        )
    cells.obs[key] = given.astype(object).where(~new, known[0])
    cells.uns[NEW] = new


def new_donors(cells: AnnData, key: str | None, registry: dict[str, Any]) -> frozenset[str]:
    """Return the donors of these cells that the model does not know."""
    if key is None or key not in cells.obs:
        return frozenset()
    given = cells.obs[key]
    return frozenset(given[_are_new(given, known_categories(registry)[key])].astype(str))


def _are_new(given: pd.Series, known: np.ndarray) -> np.ndarray:
    """Return a mask of the donors that are not among the known ones; a missing one is not new."""
    return given.notna().to_numpy() & ~given.astype(str).isin(known.astype(str)).to_numpy()


def masked(tensors: dict[str, Tensor], masks: dict[str, Tensor], n_labels: int) -> dict[str, Tensor]:
    """Return tensors of some cells with the codes of what is unknown.

    Parameters
    ----------
    tensors
        Tensors of the cells, under the keys of scvi-tools.
    masks
        Masks of the same cells, by their keys in ``.uns``.
    n_labels
        Number of labels that the model knows, with all of a tree.
    """
    changed = {}
    if (lacks := masks.get(UNLABELLED)) is not None:
        y = tensors[REGISTRY_KEYS.LABELS_KEY]
        changed[REGISTRY_KEYS.LABELS_KEY] = y.masked_fill(lacks.unsqueeze(-1), n_labels)
    if (new := masks.get(NEW)) is not None:  # donors are the first of the covariates
        cats = tensors[REGISTRY_KEYS.CAT_COVS_KEY].clone()
        cats[:, 0].masked_fill_(new, AVERAGE)
        changed[REGISTRY_KEYS.CAT_COVS_KEY] = cats
    return {**tensors, **changed}


def masks_of(cells: AnnData, order: np.ndarray) -> dict[str, Tensor]:
    """Return the masks of cells in the order in which they are read."""
    return {k: torch.from_numpy(cells.uns[k][order]) for k in (UNLABELLED, NEW) if k in cells.uns}
