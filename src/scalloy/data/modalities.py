"""Joining of several modalities of the same cells in one AnnData.

The first modality is ``.X``, the others are in ``.obsm``: DataFrames, or sparse arrays whose names are in
``.uns``. Cells of a MuData need not have all: where the first or a sparse one was not measured the row is
zero, where a dense one was not measured it is NaN.
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


LARGEST_PANEL = 1000  # number of variables up to which a sparse modality of a MuData is made dense


def joined(
    mdata: Any,
    modalities: Sequence[str],
    layers: Sequence[str | None] | None = None,
    *,
    keys: Iterable[str] = (),
    names: Sequence[Sequence[str] | None] | None = None,
) -> AnnData:
    """Join all cells of a MuData in one AnnData.

    Parameters
    ----------
    mdata
        MuData with some of the modalities.
    modalities
        Names of the first modality and the others.
    layers
        Layer of each modality that holds its values; ``None`` is ``.X``.
    keys
        Columns wanted in ``.obs``; those that the MuData itself lacks are taken from the modalities.
    names
        Variable names of each modality, used if the MuData lacks it; with ``None`` it must be present.
    """
    names = names or [None] * len(modalities)
    layers = _padded(layers, len(modalities))
    for name, known in zip(modalities, names, strict=True):
        if name not in mdata.mod and known is None:
            msg = f"`modalities` names {name!r}, but the MuData has {few(mdata.mod)}. Pass `modalities=`."
            raise KeyError(msg)
    cells = mdata.obs_names
    first, *others = (
        _values(mdata, cells, name, layer, known)
        for name, layer, known in zip(modalities, layers, names, strict=True)
    )
    obs = mdata.obs.copy()
    for key in keys:
        if key not in obs and (found := _column(mdata, modalities, key)) is not None:
            obs[key] = found
    x = sp.csr_matrix(first.values) if first.sparse is None else first.sparse
    out = AnnData(x, obs=obs, var=pd.DataFrame(index=first.names))
    for name, other in zip(modalities[1:], others, strict=True):
        if other.sparse is not None and len(other.names) > LARGEST_PANEL:
            out.obsm[name], out.uns[names_key(name)] = other.sparse, other.names.to_numpy(str)
            continue
        dense = other.values if other.sparse is None else other.sparse.toarray().astype(np.float32)
        dense[~other.there] = np.nan
        out.obsm[name] = pd.DataFrame(dense, index=cells, columns=other.names)
    return out


def _padded(layers: Sequence[str | None] | None, n: int) -> Sequence[str | None]:
    """Return one layer for each modality; ``.X`` for all if none are given."""
    layers = [None] * n if layers is None or not any(layers) else list(layers)
    if len(layers) != n:
        msg = f"`layers` has {len(layers)} entries for {n} modalities. Pass one for each, `None` for `.X`."
        raise ValueError(msg)
    return layers


def names_key(key: str) -> str:
    """Return the key of ``.uns`` with the names of the variables of a sparse array in ``.obsm``."""
    return f"{key}_names"


def column_names(adata: AnnData, key: str) -> Any:
    """Return the names of the variables of ``.obsm[key]``; ``None`` if they have no names."""
    given = adata.obsm[key]
    return given.columns if isinstance(given, pd.DataFrame) else adata.uns.get(names_key(key))


def columns_of(adata: AnnData, key: str) -> Any:
    """Return the names of the variables of ``.obsm[key]``, or their numbers if they have no names."""
    names = column_names(adata, key)
    return np.arange(adata.obsm[key].shape[1]) if names is None else list(names)


def with_columns(adata: AnnData, key: str, names: Sequence[str], *, sparse: bool = False) -> AnnData:
    """Return the cells with these columns of ``.obsm[key]`` in this order, sparse or dense as the model's.

    Missing columns are NaN, or zero in a sparse array. An array without names of its columns is taken to
    have them in this order already. Without the key, nothing was measured of any cell.

    Parameters
    ----------
    adata
        Cells.
    key
        Key of ``.obsm``.
    names
        Names of the columns; numbers if the model was trained on an array without names.
    sparse
        Whether the model reads a sparse array.
    """
    numbered = isinstance(names, np.ndarray) and names.dtype.kind in "iu"
    if key not in adata.obsm:
        logger.info("`adata.obsm` has no %r: cells of which %r was not measured.", key, key)
        values, place = sp.csr_matrix((adata.n_obs, len(names)), dtype=np.float32), np.arange(len(names))
    else:
        values, columns = adata.obsm[key], column_names(adata, key)
        place = _places(values, key, columns, names)
        same = len(place) == values.shape[1] and (place == np.arange(len(place))).all()
        frame = isinstance(values, pd.DataFrame)
        if same and sp.issparse(values) == sparse and (sparse or not (frame and numbered)):
            return adata
    out = shallow(adata)
    if sparse:
        out.obsm[key] = _as_sparse(values, place)
        out.uns[names_key(key)] = np.asarray([str(name) for name in names])
    else:
        dense = _as_dense(values, place)
        out.obsm[key] = dense if numbered else pd.DataFrame(dense, adata.obs_names, list(names))
    return out


def _places(given: Any, key: str, columns: Any, names: Sequence[str]) -> np.ndarray:
    """Return where each column of the model is among the given ones, -1 if it is missing."""
    known = [str(name) for name in names]
    if columns is None:
        if getattr(given, "ndim", 0) == 2 and given.shape[1] != len(known):
            msg = (
                f"`adata.obsm[{key!r}]` has {given.shape[1]} columns without names. Expected those of the "
                f"model, in its order: {few(known)}. Pass a DataFrame, whose columns are matched by name."
            )
            raise ValueError(msg)
        return np.arange(len(known))
    columns = pd.Index(columns).astype(str)
    if not columns.is_unique or not columns.isin(known).any():
        msg = (
            f"`adata.obsm[{key!r}]` has the columns {few(columns)}, of which the model knows none, or one "
            f"twice. It knows: {few(known)}. Rename them."
        )
        raise ValueError(msg)
    if len(lacks := pd.Index(known).difference(columns, sort=False)):
        logger.warning("`adata.obsm[%r]` lacks %s, taken as not measured.", key, few(lacks))
    return columns.get_indexer(known)


def _as_sparse(given: Any, place: np.ndarray) -> sp.csr_matrix:
    """Return the columns at these places as sparse rows, zero where not measured."""
    values = given if sp.issparse(given) else np.nan_to_num(np.asarray(given, dtype=np.float32))
    there = np.flatnonzero(place >= 0)
    ones, shape = np.ones(len(there), np.float32), (values.shape[1], len(place))
    return sp.csr_matrix(sp.csr_matrix(values) @ sp.csr_matrix((ones, (place[there], there)), shape=shape))


def _as_dense(given: Any, place: np.ndarray) -> np.ndarray:
    """Return the columns at these places, NaN where not measured."""
    values = given.toarray() if sp.issparse(given) else np.asarray(given)
    values = values.astype(values.dtype if values.dtype.kind == "f" else float)
    if sp.issparse(given):
        values[np.diff(sp.csr_matrix(given).indptr) == 0] = np.nan
    return np.where(place >= 0, values[:, place], np.nan)


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
        shape = (0, len(known or ()))
        large = shape[1] > LARGEST_PANEL
        x = sp.csr_matrix(shape, dtype=np.float32) if large else np.zeros(shape, np.float32)
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


def check_modality(adata: AnnData, argument: str, key: str, *, allow_non_counts: bool = False) -> np.ndarray:
    """Check a modality in ``.obsm``: raw counts (or other numbers if allowed), NaN where not measured.

    Returns a mask of the cells with at least one measured value.
    """
    if key not in adata.obsm:
        msg = (
            f"`{argument}={key!r}` is not in `adata.obsm`. It holds: {few(adata.obsm.keys()) or 'nothing'}. "
            "Pass the key of a modality, such as the counts of proteins."
        )
        raise KeyError(msg)
    given = adata.obsm[key]
    if sp.issparse(given):
        return _check_sparse(adata, key, sp.csr_matrix(given), allow_non_counts=allow_non_counts)
    values = given.to_numpy() if isinstance(given, pd.DataFrame) else given
    masked = isinstance(values, np.ma.MaskedArray)
    if masked or not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iufb":
        kind = f"{type(given).__name__} of {getattr(values, 'dtype', 'mixed types')}"
        msg = (
            f"`adata.obsm[{key!r}]` is a {kind}. "
            "Expected a DataFrame or an array of numbers, cells x variables."
        )
        raise TypeError(msg)
    _check_names(adata, key, values.shape[1])
    values = values.astype(float)
    there = ~np.isnan(values)
    wrong = np.abs(values) > LARGEST
    if not allow_non_counts:
        wrong |= there & ((values < 0) | ~is_whole(values))
    if wrong.any():
        raise _wrong_values(adata, key, values[wrong][0], wrong.any(1), allow_non_counts=allow_non_counts)
    return there.any(1)


def _check_sparse(adata: AnnData, key: str, rows: sp.csr_matrix, *, allow_non_counts: bool) -> np.ndarray:
    """Check a sparse modality; a cell without any entries is one of which it was not measured."""
    _check_names(adata, key, rows.shape[1])
    if rows.dtype.kind not in "iufb":
        msg = f"`adata.obsm[{key!r}]` is a sparse array of {rows.dtype}. Expected numbers, cells x variables."
        raise TypeError(msg)
    values = rows.data.astype(float)
    wrong = ~(np.abs(values) <= LARGEST)
    if not allow_non_counts:
        wrong |= (values < 0) | ~is_whole(values)
    if wrong.any():
        cells = np.zeros(rows.shape[0], dtype=bool)
        cells[np.searchsorted(rows.indptr, np.flatnonzero(wrong), side="right") - 1] = True
        raise _wrong_values(adata, key, values[wrong][0], cells, allow_non_counts=allow_non_counts)
    return np.asarray(abs(rows).sum(1)).ravel() > 0


def _check_names(adata: AnnData, key: str, n: int) -> None:
    """Check that each variable of a modality has a name of its own, if they have names."""
    names = column_names(adata, key)
    twice = () if names is None else twice_in(pd.Index(names))
    if names is not None and len(names) != n:
        msg = (
            f"`adata.obsm[{key!r}]` has {n} columns, but `adata.uns[{names_key(key)!r}]` has {len(names)} "
            "names. Expected a name for each column, or no names."
        )
        raise ValueError(msg)
    if len(twice) or n == 0:
        what = f"has variables of the same name: {few(twice)}" if len(twice) else "has no variables"
    else:
        return
    msg = f"`adata.obsm[{key!r}]` {what}. Expected cells x variables, each with a name of its own."
    raise ValueError(msg)


def _wrong_values(
    adata: AnnData, key: str, value: float, cells: np.ndarray, *, allow_non_counts: bool
) -> ValueError:
    """Return the error about values that a modality cannot have."""
    kind = "finite" if allow_non_counts else "raw counts (whole, not negative)"
    names = few(adata.obs_names[cells], 5)
    msg = (
        f"`adata.obsm[{key!r}]` holds {value:.4g} in {cells.sum()} cell(s) ({names}). "
        f"Expected values that are {kind}, or NaN where not measured; other data need "
        "`allow_non_counts=True` and a likelihood such as 'normal'."
    )
    return ValueError(msg)
