"""Labels, donors and conditions of new cells that a model does not know.

A column of labels may be missing, or hold other labels: the encoder does not need them. A donor who is new
has the effect of the average donor (:class:`scalloy.blocks.networks.Covariates`). A condition that is new is
read as what it is made of, if conditions have structure and all of its parts are known
(:mod:`scalloy.blocks.composed`). For the registration by scvi-tools, all of these are replaced by known ones,
and a mask says where.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from scalloy._arguments import few, warn
from scalloy._keys import CONDITION_KEY
from scalloy.blocks.composed import with_categories
from scalloy.data.asked_conditions import design_in
from scalloy.data.cell_table import as_positions
from scalloy.data.conditions import Conditions
from scalloy.models._core.setup import known_categories
from scalloy.models._core.structure import contents_in, rows_of

# keys of masks in ``.uns`` while cells are read
UNLABELLED, NEW = "_scalloy_unlabelled", "_scalloy_new_donors"
COMPOSED, PARTS = "_scalloy_new_conditions", "_scalloy_parts"  # position among new conditions, their parts
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


def complete_conditions(
    cells: AnnData, adata: AnnData, structure: Conditions, told: set[str], *, composes: bool
) -> None:
    """Give cells under a new condition a known one, and warn once of each.

    Parameters
    ----------
    cells
        New cells, which are changed.
    adata
        The same cells as the user has passed them.
    structure
        Conditions of the model.
    told
        Conditions of which the user was warned, to which new ones are added.
    composes
        Whether new conditions are allowed.
    """
    key, design = structure.key_added, design_in(structure)
    given, known = cells.obs[key].astype(str), design.names
    if given.isin(known).all():
        return
    new = {name: content for name, content in contents_in(structure, adata).items() if name not in known}
    parts = {part for content in new.values() for part, _ in content.parts}
    if odd := sorted(parts.difference(design.parts)):
        msg = (
            f"`adata` has cells under conditions with {few(map(repr, odd))}, which the model has neither "
            f"seen nor described. Known: {few(design.parts)}. Leave these cells out, or learn from them with "
            "`load_query_data`."
        )
        raise ValueError(msg)
    if not composes or not given.isin([*known, *new]).all():
        return  # which is refused as any other category
    if names := sorted(new.keys() - told):
        told.update(names)
        warn(
            f"`adata.obs[{key!r}]` has conditions that the model has never seen: {few(map(repr, names))}. "
            "Their cells are read with the effects of their parts.",
        )
    cells.uns[COMPOSED] = pd.Index(new).get_indexer(given)
    cells.uns[PARTS] = rows_of(design, list(new.values()))
    cells.obs[key] = given.astype(object).where(given.isin(known), known[0])
    for factor in structure.factors:  # from which the new names can be read again
        if factor not in cells.obs and factor in adata.obsm:
            cells.obsm[factor] = adata.obsm[factor]


@contextmanager
def with_conditions(module: nn.Module, cells: AnnData) -> Iterator[int]:
    """Let the module know the new conditions of these cells for a while, and yield the code of the first.

    Parameters
    ----------
    module
        Module of the model.
    cells
        Cells that were registered.
    """
    if PARTS not in cells.uns:
        yield 0
        return
    with with_categories(module, cells.uns[PARTS]) as first:
        yield first


def masked(
    tensors: dict[str, Tensor], masks: dict[str, Tensor], n_labels: int, first: int
) -> dict[str, Tensor]:
    """Return tensors of some cells with the codes of what is unknown.

    Parameters
    ----------
    tensors
        Tensors of the cells, under the keys of scvi-tools.
    masks
        Masks of the same cells, by their keys in ``.uns``.
    n_labels
        Number of labels that the model knows, with all of a tree.
    first
        Code of the first new condition.
    """
    changed = {}
    if (lacks := masks.get(UNLABELLED)) is not None:
        y = tensors[REGISTRY_KEYS.LABELS_KEY]
        changed[REGISTRY_KEYS.LABELS_KEY] = y.masked_fill(lacks.unsqueeze(-1), n_labels)
    if (new := masks.get(NEW)) is not None:  # donors are the first of the covariates
        cats = tensors[REGISTRY_KEYS.CAT_COVS_KEY].clone()
        cats[:, 0].masked_fill_(new, AVERAGE)
        changed[REGISTRY_KEYS.CAT_COVS_KEY] = cats
    if (at := masks.get(COMPOSED)) is not None:
        at = at.unsqueeze(-1)
        changed[CONDITION_KEY] = torch.where(at < 0, tensors[CONDITION_KEY], first + at)
    return {**tensors, **changed}


def masks_of(cells: AnnData, rows: Any) -> dict[str, Tensor]:
    """Return the masks of these rows of cells (``None``: of all), in the order in which they are read."""
    order = np.arange(cells.n_obs) if rows is None else as_positions(rows, cells.n_obs)
    return {k: torch.from_numpy(cells.uns[k][order]) for k in (UNLABELLED, NEW, COMPOSED) if k in cells.uns}
