"""Conditions with structure in the set-up of a model.

A model with ``conditions=`` knows its conditions by name, as one with ``condition_key=`` does: the names are
in a column that is written at set-up. Their meaning is in the arguments of the set-up, which are saved with
the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy.blocks.composed import Rows
from scalloy.data.asked_conditions import design_in
from scalloy.data.conditions import Conditions
from scalloy.data.genes import with_values
from scalloy.perturbation.design import Content, Design


def with_column(adata: AnnData, given: dict[str, Any], *, extend: bool = False) -> dict[str, Any]:
    """Write the column with the names of the conditions, and return the arguments of the set-up with it.

    Parameters
    ----------
    adata
        Cells, to which the column is added.
    given
        Arguments of the set-up.
    extend
        Whether a trained model is extended by conditions that are new.
    """
    asked = given.get("conditions")
    if asked is None:
        return given
    first = isinstance(asked, Conditions)
    if not first and not (isinstance(asked, dict) and "design" in asked):  # as `plain` has it
        msg = (
            f"`conditions={asked!r}` is a {type(asked).__name__}. Expected `sa.Conditions(...)`; a single "
            "column of names is `condition_key=`."
        )
        raise TypeError(msg)
    conditions = asked if first else Conditions.from_plain(asked)
    key = conditions.key_added
    if first and given.get("condition_key") not in (None, key):
        msg = (
            f"`condition_key={given['condition_key']!r}` and `conditions=` both say what the conditions are. "
            "Leave `condition_key` out."
        )
        raise ValueError(msg)
    if first or extend:
        conditions, names = conditions.fitted(adata)
    else:
        names = pd.Categorical(names_in(conditions, adata))
    adata.obs[key] = names
    return {**given, "condition_key": key, "conditions": conditions.plain()}


def names_in(conditions: Conditions, adata: AnnData) -> np.ndarray:
    """Return the name of the condition of each cell, known or not."""
    codes, contents = conditions.of_cells(adata)
    return np.array(list(map(design_in(conditions).name_of, contents)), dtype=object)[codes]


def contents_in(conditions: Conditions, adata: AnnData) -> dict[str, Content]:
    """Return the conditions that cells are under by their names, known or not, as far as columns tell.

    Parameters
    ----------
    conditions
        Conditions of a model.
    adata
        Cells with the columns of the conditions, or with that of their names only.
    """
    design = design_in(conditions)
    if not has_columns(conditions, adata):
        return {
            name: design.by_name[name] for name in set(adata.obs[conditions.key_added]) & set(design.names)
        }
    return {design.name_of(content): content for content in conditions.of_cells(adata)[1]}


def has_columns(conditions: Conditions, adata: AnnData) -> bool:
    """Return whether cells have the columns of the conditions, and not just that of their names."""
    there = {*conditions.factors, *(conditions.dose or ()), *filter(None, [conditions.time])}
    return there <= {*adata.obs, *adata.obsm}


def condition_of_each(adata: AnnData, given: dict[str, Any]) -> np.ndarray:
    """Return the name of the condition of each of some new cells.

    Parameters
    ----------
    adata
        New cells.
    given
        Arguments of the set-up of the model.
    """
    if given.get("conditions") is not None and given["condition_key"] not in adata.obs:
        return names_in(Conditions.from_plain(given["conditions"]), adata)
    return adata.obs[given["condition_key"]].astype(str).to_numpy()


def with_names(adata: AnnData, given: dict[str, Any]) -> AnnData:
    """Return new cells with the column of conditions; the same object if it is there already.

    Parameters
    ----------
    adata
        New cells, which are not changed.
    given
        Arguments of the set-up of the model.
    """
    if given.get("conditions") is None:
        return adata
    conditions = Conditions.from_plain(given["conditions"])
    key = conditions.key_added
    if key in adata.obs and not has_columns(conditions, adata):
        return adata
    return with_values(adata, key, names_in(conditions, adata))


def rows_of(design: Design, contents: Sequence[Content]) -> Rows:
    """Return what each of some conditions is made of.

    Parameters
    ----------
    design
        Design of the conditions of a model.
    contents
        Contents of the conditions.
    """
    index, value = design.rows(contents)
    return Rows(index, value, design.n_columns)
