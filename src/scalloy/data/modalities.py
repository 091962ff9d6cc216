"""Joining of two modalities of the same cells in one AnnData.

The first modality is ``.X``, the second a DataFrame in ``.obsm``. Cells of a MuData need not have both: where
the first was not measured the row is zero, where the second was not measured it is NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy._arguments import LARGEST, few
from scalloy._by_name import twice_in
from scalloy.data.checks import check_layer, is_whole
from scalloy.data.genes import shallow

logger = logging.getLogger("scalloy")


def joined(
    mdata: Any,
    modalities: Sequence[str],
    layers: Sequence[str | None] = (None, None),
    *,
    keys: Iterable[str] = (),
    names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> AnnData:
    """Join all cells of a MuData in one AnnData.

    Parameters
    ----------
    mdata
        MuData with one or both of the modalities.
    modalities
        Names of the first and the second modality.
    layers
        Layer of each modality that holds its values; ``None`` is ``.X``.
    keys
        Columns wanted in ``.obs``; those that the MuData itself lacks are taken from the modalities.
    names
        Variable names of each modality, used if the MuData lacks it; with ``None`` it must be present.
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
    """Return the cells with these columns of ``.obsm[key]`` in this order; missing columns are NaN.

    An array has no column names; its columns are taken to be in this order already.
    """
    given, known = adata.obsm[key], [str(name) for name in names]
    if isinstance(given, np.ndarray) and given.ndim == 2 and given.shape[1] != len(known):
        msg = (
            f"`adata.obsm[{key!r}]` has {given.shape[1]} columns without names. Expected those of the model, "
            f"in its order: {few(known)}. Pass a DataFrame, whose columns are matched by name."
        )
        raise ValueError(msg)
    numbered = isinstance(names, np.ndarray)  # an array only if the model was trained on one
    if not isinstance(given, pd.DataFrame) or (not numbered and list(given.columns) == list(names)):
        return adata
    columns = given.columns.astype(str)
    if not columns.is_unique or not columns.isin(known).any():
        msg = (
            f"`adata.obsm[{key!r}]` has the columns {few(columns)}, of which the model knows none, or one "
            f"twice. It knows: {few(known)}. Rename them."
        )
        raise ValueError(msg)
    if len(lacks := pd.Index(known).difference(columns, sort=False)):
        logger.warning("`adata.obsm[%r]` lacks %s, taken as not measured.", key, few(lacks))
    out = shallow(adata)
    frame = given.set_axis(columns, axis=1).reindex(columns=known).set_axis(list(names), axis=1)
    out.obsm[key] = frame.to_numpy() if numbered else frame
    return out


class _Modality:
    """Values of one modality for all cells, ``sparse`` or dense, with zeros where it was not measured."""

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
    """Return a column of ``.obs`` combined over the modalities; earlier modalities take precedence."""
    found = None
    for name in modalities:
        if name in mdata.mod and key in mdata.mod[name].obs:
            own = mdata.mod[name].obs[key].astype(object).reindex(mdata.obs_names)
            found = own if found is None else found.combine_first(own)
    return None if found is None else found.infer_objects()  # from objects back to numbers


def check_second(
    adata: AnnData, argument: str, key: str | None, *, allow_non_counts: bool = False
) -> np.ndarray:
    """Check a second modality in ``.obsm``: raw counts (or other numbers if allowed), NaN where not measured.

    Returns a mask of the cells with at least one measured value.
    """
    if key is None or key not in adata.obsm:
        msg = (
            f"`{argument}={key!r}` is not in `adata.obsm`. It holds: {few(adata.obsm.keys()) or 'nothing'}. "
            "Pass the key of the second modality, such as the counts of proteins."
        )
        raise KeyError(msg)
    given = adata.obsm[key]
    values = given.to_numpy() if isinstance(given, pd.DataFrame) else given
    masked = isinstance(values, np.ma.MaskedArray)
    if masked or not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iufb":
        kind = f"{type(given).__name__} of {getattr(values, 'dtype', 'mixed types')}"
        msg = (
            f"`adata.obsm[{key!r}]` is a {kind}. "
            "Expected a DataFrame or an array of numbers, cells x variables."
        )
        raise TypeError(msg)
    twice = twice_in(given.columns) if isinstance(given, pd.DataFrame) else ()
    if len(twice) or values.shape[1] == 0:
        what = f"has variables of the same name: {few(twice)}" if len(twice) else "has no variables"
        msg = f"`adata.obsm[{key!r}]` {what}. Expected cells x variables, each with a name of its own."
        raise ValueError(msg)
    values = values.astype(float)
    there = ~np.isnan(values)
    wrong = np.abs(values) > LARGEST
    if not allow_non_counts:
        wrong |= there & ((values < 0) | ~is_whole(values))
    if wrong.any():
        kind = "finite" if allow_non_counts else "raw counts (whole, not negative)"
        cells = few(adata.obs_names[wrong.any(1)], 5)
        msg = (
            f"`adata.obsm[{key!r}]` holds {values[wrong][0]:.4g} in {wrong.any(1).sum()} cell(s) ({cells}). "
            f"Expected values that are {kind}, or NaN where not measured; other data need "
            "`allow_non_counts=True` and `protein_likelihood='normal'`."
        )
        raise ValueError(msg)
    return there.any(1)
