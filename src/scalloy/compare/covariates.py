"""Covariates of donors or of their samples, which have one value each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scalloy._arguments import few
from scalloy.data.checks import check_kind, check_numbers, complete_column


def names_of(given: str | Sequence[str] | None) -> list[str]:
    """Return the names of covariates as a list, each once."""
    keys = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        msg = (
            f"`covariates={given!r}` is a {type(given).__name__}. Expected a column of `adata.obs`, or a "
            "list of columns."
        )
        raise TypeError(msg)
    return list(dict.fromkeys(keys))


def covariates_of(
    obs: pd.DataFrame, keys: Sequence[str], unit: np.ndarray, names: np.ndarray, kind: str
) -> pd.DataFrame:
    """Return the covariates of each unit, as numbers or names; each unit must have one value.

    Parameters
    ----------
    obs
        Table of the cells.
    keys
        Columns of ``obs``.
    unit
        Position of each cell's unit; -1 for a cell that is left out.
    names
        Name of each unit, for messages.
    kind
        What a unit is, for messages, such as "donor".
    """
    used, out = np.flatnonzero(unit >= 0), {}
    for key in keys:
        found = complete_column(obs, "covariates", key)
        if pd.api.types.is_numeric_dtype(found) and not pd.api.types.is_bool_dtype(found):
            check_numbers(found, "covariates", key)
            values = found.to_numpy(dtype=float)
        else:
            check_kind(found, "covariates", key)
            values = found.astype(str).to_numpy()
        by_unit = pd.Series(values[used]).groupby(unit[used])
        several = by_unit.nunique()
        if (several > 1).any():
            msg = (
                f"`covariates={key!r}` has several values within the same {kind}: "
                f"{few(dict.fromkeys(names[several.index[several > 1]]))}. Pass a column with one value for "
                "each, or as `donor_key` the column of samples."
            )
            raise ValueError(msg)
        out[key] = by_unit.first().reindex(range(len(names)))
    return pd.DataFrame(out, index=range(len(names)))
