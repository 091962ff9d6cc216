"""Two modalities of the same cells in one AnnData, which is what the loader reads.

The first modality is ``.X``, the second a frame in ``.obsm``. Cells of a MuData need not have both: where the
first was not measured the row is zero, where the second was not it is NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scalloy.data.checks import check_layer, few

logger = logging.getLogger("scalloy")


def is_mudata(data: Any) -> bool:
    """Whether this is a MuData."""
    return isinstance(data, MuData)


def joined(
    mdata: Any,
    modalities: Sequence[str],
    layers: Sequence[str | None] = (None, None),
    *,
    keys: Iterable[str] = (),
    names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> AnnData:
    """One AnnData of all cells of a MuData.

    Parameters
    ----------
    mdata
        With one or both of the modalities.
    modalities
        Names of the first and the second.
    layers
        Layer of each with the values; ``None`` is ``.X``.
    keys
        Columns that are wanted in ``.obs``, taken from the modalities where the MuData itself lacks them.
    names
        Variables of each, for a modality that the MuData lacks; ``None``: it must be there.
    """
    for name, known in zip(modalities, names, strict=True):
        if name not in mdata.mod and known is None:
            msg = f"`modalities` names {name!r}, but the MuData has {few(mdata.mod)}. Pass `modalities=`."
            raise KeyError(msg)
    cells = mdata.obs_names
    first, second = (
        _values(mdata, cells, name, layer, known)
        for name, layer, known in zip(modalities, layers, names, strict=True)
    )
    obs = mdata.obs.copy()
    for key in keys:
        if key not in obs and (found := _column(mdata, modalities, key)) is not None:
            obs[key] = found
    x = sp.csr_matrix(first.values) if first.sparse is None else first.sparse
    out = AnnData(x, obs=obs, var=pd.DataFrame(index=first.names))
    dense = second.values if second.sparse is None else second.sparse.toarray().astype(np.float32)
    dense[~second.there] = np.nan
    out.obsm[modalities[1]] = pd.DataFrame(dense, index=cells, columns=second.names)
    return out


def with_columns(adata: AnnData, key: str, names: Sequence[str]) -> AnnData:
    """The cells with these columns of ``.obsm[key]`` in this order, NaN where they lack one.

    An array has no names, and is taken to have them in this order.
    """
    given = adata.obsm[key]
    if not isinstance(given, pd.DataFrame) or list(given.columns.astype(str)) == list(names):
        return adata
    columns = given.columns.astype(str)
    if not columns.is_unique or not columns.isin(names).any():
        msg = (
            f"`adata.obsm[{key!r}]` has the columns {few(columns)}, of which the model knows none, or one "
            f"twice. It knows: {few(names)}. Rename them."
        )
        raise ValueError(msg)
    if len(lacks := pd.Index(names).difference(columns, sort=False)):
        logger.warning("`adata.obsm[%r]` lacks %s, taken as not measured.", key, few(lacks))
    out = AnnData(adata.X, obs=adata.obs, var=adata.var, layers=dict(adata.layers), obsm=dict(adata.obsm))
    out.obsm[key] = given.set_axis(columns, axis=1).reindex(columns=list(names)).astype(np.float32)
    return out


class _Modality:
    """Values of all cells, ``sparse`` or dense, zero where there are none."""

    def __init__(self, names: pd.Index, there: np.ndarray, x: Any, position: np.ndarray) -> None:
        self.names, self.there = names, there
        self.sparse = self.values = None
        if sp.issparse(x):
            place = sp.csr_matrix(
                (np.ones(there.sum(), x.dtype), (np.flatnonzero(there), position[there])),
                shape=(len(there), x.shape[0]),
            )
            self.sparse = sp.csr_matrix(place @ x)
        else:
            self.values = np.zeros((len(there), x.shape[1]), dtype=np.float32)
            self.values[there] = x[position[there]]


def _values(
    mdata: Any, cells: pd.Index, name: str, layer: str | None, known: Sequence[str] | None
) -> _Modality:
    if name not in mdata.mod:
        x = np.zeros((0, len(known or ())), dtype=np.float32)
        nowhere = np.zeros(len(cells), dtype=bool)
        return _Modality(pd.Index(known), nowhere, x, np.zeros(len(cells), dtype=int))
    modality = mdata.mod[name]
    if not modality.obs_names.is_unique:
        msg = (
            f"Names of cells occur more than once in `mdata[{name!r}]`, so that modalities cannot be matched."
        )
        raise ValueError(msg)
    position = modality.obs_names.get_indexer(cells)
    return _Modality(modality.var_names, position >= 0, check_layer(modality, layer), position)


def _column(mdata: Any, modalities: Sequence[str], key: str) -> pd.Series | None:
    """A column of the modalities, each filling in where those before lack a value."""
    found = None
    for name in modalities:
        if name in mdata.mod and key in mdata.mod[name].obs:
            own = mdata.mod[name].obs[key].astype(object).reindex(mdata.obs_names)
            found = own if found is None else found.combine_first(own)
    return found
