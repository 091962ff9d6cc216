"""Checks of a user's AnnData before anything is trained.

Each message says what was given, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSRDataset

from scalloy._arguments import LARGEST, few, warn
from scalloy._by_name import twice_in
from scalloy.data.is_anndata import check_type
from scalloy.files.sparse_check import within

KINDS = ("string", "integer", "floating", "boolean")  # accepted kinds of categories


def check_object(adata: Any) -> AnnData:
    """Check that an AnnData can be set up: not backed, no view, large enough and with unique gene names."""
    check_type(adata)
    if adata.isbacked:
        msg = (
            f"`adata` is backed by {adata.filename}. Load it first: `adata = adata.to_memory()`; or, where "
            "it does not fit, make a store of it: `adata = sa.data.write_store(file, folder)`."
        )
        raise ValueError(msg)
    if adata.is_view:
        msg = "`adata` is a view of another AnnData. Pass a copy: `adata = adata.copy()`."
        raise ValueError(msg)
    if adata.n_obs < 2 or adata.n_vars < 2:
        msg = (
            f"`adata` has {adata.n_obs} cell(s) and {adata.n_vars} gene(s); a model needs at least two "
            "of each. Was it transposed, or filtered too hard?"
        )
        raise ValueError(msg)
    if nameless := int(adata.var_names.isna().sum()):
        msg = f"{nameless} gene(s) have no name (None, NaN) in `adata.var_names`. Name or remove them."
        raise ValueError(msg)
    if len(twice := twice_in(adata.var_names)):
        msg = (
            f"Names of genes occur more than once in `adata.var_names`: {few(twice)}. "
            "Call `adata.var_names_make_unique()`."
        )
        raise ValueError(msg)
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()].unique()
        warn(
            f"Names of cells occur more than once in `adata.obs_names`: {few(twice)}. Results are "
            "indexed by them; `adata.obs_names_make_unique()` makes them distinct.",
        )
    return adata


CATEGORICAL = ("batch_key", "donor_key", "condition_key", "labels_key", "categorical_covariate_keys")
CONTINUOUS = ("size_factor_key", "continuous_covariate_keys")


SEVERAL = ("categorical_covariate_keys", "continuous_covariate_keys")
NAMES = ("layer", "protein_obsm_key", *CATEGORICAL, *CONTINUOUS)


def check_arguments(given: dict[str, Any]) -> None:
    """Check that keys are strings and named once; make lists, in place, where several keys are allowed."""
    for argument in NAMES:
        keys = given.get(argument)
        several = argument in SEVERAL
        if several and isinstance(keys, Iterable) and not isinstance(keys, str | bytes | dict):
            given[argument] = keys = list(keys)
        for key in keys if isinstance(keys, list) and several else [keys]:
            if not isinstance(key, str) and keys is not None:
                msg = (
                    f"`{argument}={keys!r}` is a {type(keys).__name__}. Expected "
                    f"{'a list of names' if several else 'one name'}, as str. Convert other names "
                    "of columns with `adata.obs.columns = adata.obs.columns.astype(str)`."
                )
                raise TypeError(msg)
        if several and isinstance(keys, str):
            given[argument] = [keys]
        if several and isinstance(keys, list) and len(set(keys)) < len(keys):
            msg = f"`{argument}={keys!r}` names a column more than once. Pass each once."
            raise ValueError(msg)
    unknown = given.get("unlabeled_category")
    if unknown is not None and not isinstance(unknown, str | bool | Real):
        msg = (
            f"`unlabeled_category={unknown!r}` is a {type(unknown).__name__}. Expected the one value that "
            "cells without a label have in the column `labels_key`."
        )
        raise TypeError(msg)


def columns(
    given: dict[str, Any], arguments: Sequence[str] = (*CATEGORICAL, *CONTINUOUS)
) -> list[tuple[str, str]]:
    """List argument and key for each column of ``.obs`` that the arguments of a set-up name."""
    return [
        (name, key)
        for name in arguments
        if (keys := given.get(name)) is not None
        for key in ([keys] if isinstance(keys, str) else keys)
    ]


def check_keys(adata: AnnData, given: dict[str, Any]) -> None:
    """Check that every column named in a set-up is complete and holds valid categories or numbers."""
    check_arguments(given)
    for argument, key in columns(given, CATEGORICAL):
        check_kind(complete_column(adata.obs, argument, key), argument, key)
    for argument, key in columns(given, CONTINUOUS):
        check_numbers(complete_column(adata.obs, argument, key), argument, key)


def check_kind(column: pd.Series, argument: str, key: str) -> None:
    """Check that categories are all strings, all integers, all floats or all booleans.

    In a mixture, ``1`` and ``"1"`` would be two categories of the same name.
    """
    if (kind := kind_of(column)) not in KINDS:
        msg = (
            f"`{argument}={key!r}` holds values of kind {kind}, such as {column[:3].tolist()}. Expected "
            f"strings, or numbers, or booleans: `adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)`."
        )
        raise TypeError(msg)
    if broken := [name for name in map(str, column.unique()) if "\0" in name]:
        msg = f"`{argument}={key!r}` holds names with a NUL character: {few(map(repr, broken))}. Rename them."
        raise ValueError(msg)


def kind_of(column: pd.Series) -> str:
    """Return the kind of the values of a column: strings, whole numbers, and so on."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories().cat.categories
    return pd.api.types.infer_dtype(column, skipna=True)


def check_numbers(column: pd.Series, argument: str, key: str) -> None:
    """Check that a column holds finite real numbers, and positive ones if it is a size factor."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        msg = f"`{argument}={key!r}` has dtype {column.dtype}; expected numbers."
        raise TypeError(msg)
    values, kind = column.to_numpy(dtype=float), f"finite and within {LARGEST:.0e}"
    good = np.abs(values) <= LARGEST
    if argument == "size_factor_key":
        good, kind = good & (values > 0), "positive and finite"
    if not good.all():
        msg = (
            f"`{argument}={key!r}` must be {kind}, but is not in {(~good).sum()} cell(s): "
            f"{few(column.index[~good])}. Fix or remove these cells."
        )
        raise ValueError(msg)


def find_column(obs: pd.DataFrame, argument: str, key: str, nor: str = "") -> pd.Series:
    """Return a column by its name; ``nor`` says in the error message what else was looked for."""
    if not isinstance(key, Hashable) or key not in obs:
        close = difflib.get_close_matches(str(key), [str(c) for c in obs.columns], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        msg = (
            f"`{argument}={key!r}` is not a column of `adata.obs`{nor}. "
            f"Columns: {few(obs.columns) or 'none'}. Pass one of these.{hint}"
        )
        raise KeyError(msg)
    column = obs[key]
    if isinstance(column, pd.DataFrame):
        msg = (
            f"`{argument}={key!r}` is the name of {column.shape[1]} columns of `adata.obs`. Rename them: "
            "each needs a name of its own."
        )
        raise ValueError(msg)
    return column


def complete_column(obs: pd.DataFrame, argument: str, key: str) -> pd.Series:
    """Return a column, checking that it has no missing values."""
    column = find_column(obs, argument, key)
    if column.isna().any():
        cells = obs.index[column.isna()]
        msg = (
            f"`{argument}={key!r}` is missing (NaN) in {len(cells)} cell(s): {few(cells)}. Fill them "
            f"(`adata.obs[{key!r}].astype(object).fillna('unknown')`) or remove these cells."
        )
        raise ValueError(msg)
    return column


def check_categories(adata: AnnData, known: dict[str, np.ndarray]) -> None:
    """Check that new cells have only categories that the model has seen."""
    for key, categories in known.items():
        names = pd.Index(categories).astype(str)
        new = pd.Index(adata.obs[key].astype(str).unique()).difference(names)
        if len(new):
            msg = (
                f"`adata.obs[{key!r}]` holds categories that the model has never seen: {few(new)}. "
                f"It knows: {few(names)}. Rename them, or leave these cells out."
            )
            raise ValueError(msg)


def check_same_kind(obs: pd.DataFrame, known: dict[str, np.ndarray]) -> None:
    """Check that newly registered categories have the type that the model knows, not ``"1"`` for ``1``."""
    for key, categories in known.items():
        kinds = [kind_of(find_column(obs, "key", key)), kind_of(pd.Series(categories))]
        if kinds[0] != kinds[1]:
            msg = (
                f"`adata.obs[{key!r}]` holds values of kind {kinds[0]}, but the model knows values of kind "
                f"{kinds[1]}: {few(categories)}. Convert them, as with `.astype({_type(categories)})`."
            )
            raise TypeError(msg)


def _type(categories: np.ndarray) -> str:
    return type(np.asarray(categories).tolist()[0]).__name__


def as_known(obs: pd.DataFrame, known: dict[str, np.ndarray]) -> None:
    """Replace categories, in place, by those of the same name that the model knows: ``"1"`` by ``1``."""
    for key, categories in known.items():
        position = pd.Index(categories).astype(str).get_indexer(obs[key].astype(str))
        obs[key] = np.asarray(categories)[position]


def check_layer(adata: AnnData, layer: str | None) -> Any:
    """Return the matrix of a layer or ``.X``, checking that it is a valid matrix of numbers."""
    known = [name for name in adata.layers if name is not None]  # newer anndata lists `.X` as None
    if layer is not None and layer not in known:
        msg = (
            f"`layer={layer!r}` is not in `adata.layers`. "
            f"Layers: {few(known) or 'none'}. Pass one of these, or `None` for `.X`."
        )
        raise KeyError(msg)
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        msg = "`adata.X` is empty (None). Pass `layer=` with the counts, or put them in `.X`."
        raise ValueError(msg)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    plain = isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray)
    sparse = sp.issparse(x) and x.format in {"csr", "csc", "coo"}
    if not (plain or sparse or isinstance(x, CSRDataset)) or x.dtype.kind not in "iufb":
        msg = (
            f"`{where}` is a {type(x).__name__} of {getattr(x, 'dtype', 'unknown type')}. Expected a "
            "numpy array or a scipy sparse matrix (CSR is fastest) of numbers, or a store of them as "
            "`sa.data.open_store` opens it."
        )
        raise TypeError(msg)
    if sparse and not within(x):
        msg = (
            f"`{where}` is a broken {x.format.upper()} matrix: its indices lie outside of its {x.shape[0]} x "
            f"{x.shape[1]} entries, or its rows do not follow each other. Make it anew from its source."
        )
        raise ValueError(msg)
    return x


def check_counts(
    adata: AnnData,
    layer: str | None = None,
    *,
    allow_non_counts: bool = False,
    genes: bool = True,
    known: np.ndarray | None = None,
) -> None:
    """Check that all entries are finite, non-negative and whole, and that every cell has a count.

    With ``allow_non_counts``, entries need only be finite. With ``genes``, genes without counts cause a
    warning. Cells marked in ``known`` are described by another modality and need no counts.
    """
    x = check_layer(adata, layer)
    if isinstance(x, CSRDataset):
        _check_store(adata, x, allow_non_counts=allow_non_counts, genes=genes)
        return
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    values = x.data if sp.issparse(x) else x
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not np.isfinite(low + high):
        cells = _cells_with(adata, x, np.isfinite)
        msg = f"`{where}` holds NaN or infinite values in {cells}. Replace or remove them."
        raise ValueError(msg)
    if max(-low, high) > LARGEST:
        cells = _cells_with(adata, x, lambda v: np.abs(v) <= LARGEST)
        msg = (
            f"`{where}` holds values up to {max(-low, high):.4g} in {cells}, more than {LARGEST:.0e}, "
            "which no assay counts. Replace or remove them."
        )
        raise ValueError(msg)
    if allow_non_counts:
        return
    if low < 0:
        msg = (
            f"`{where}` holds negative values in {_cells_with(adata, x, lambda v: v >= 0)}. Expected "
            "raw counts; were the data scaled? Pass the raw counts with `layer=`, or "
            "`allow_non_counts=True` with `gene_likelihood='normal'`."
        )
        raise ValueError(msg)
    if values.dtype.kind == "f" and not is_whole(values).all():
        example = values[~is_whole(values)].flat[0]
        msg = (
            f"`{where}` holds values that are not whole numbers, such as {example:.4g}, in "
            f"{_cells_with(adata, x, is_whole)}. Expected raw counts; were the data normalised? Pass the "
            "raw counts with `layer=` (often `layer='counts'`), or `allow_non_counts=True`."
        )
        raise ValueError(msg)
    totals = np.asarray(x.sum(axis=1)).ravel()
    nothing = totals == 0 if known is None else (totals == 0) & ~known
    if nothing.any():
        empty = adata.obs_names[nothing]
        msg = (
            f"{len(empty)} cell(s) have no counts in `{where}`: {few(empty)}. Remove them with "
            "`sc.pp.filter_cells(adata, min_counts=1)`."
        )
        raise ValueError(msg)
    if genes:
        _warn_of_silent(adata, np.asarray(x.sum(axis=0)).ravel() == 0, where)


def _warn_of_silent(adata: AnnData, silent: np.ndarray, where: str) -> None:
    if silent.any():
        warn(
            f"{silent.sum()} gene(s) have no counts in `{where}`: {few(adata.var_names[silent])}. They "
            "cost time and teach nothing; `sc.pp.filter_genes(adata, min_counts=1)` removes them.",
        )


def _check_store(adata: AnnData, x: CSRDataset, *, allow_non_counts: bool, genes: bool) -> None:
    """Check counts on disk, reading them once up to the first error."""
    from scalloy.data.disk import DiskRows

    rows, silent = DiskRows(x), np.ones(x.shape[1], dtype=bool)
    for part in rows.slices():
        piece = AnnData(rows[part], obs=adata.obs.iloc[part, :0], var=adata.var[[]])
        check_counts(piece, allow_non_counts=allow_non_counts, genes=False)
        silent &= np.asarray(piece.X.sum(axis=0)).ravel() == 0
    if genes and not allow_non_counts:
        _warn_of_silent(adata, silent, "adata.X")


def is_whole(values: np.ndarray) -> np.ndarray:
    return np.floor(values) == values


def _cells_with(adata: AnnData, x: Any, good: Any) -> str:
    """Describe the cells with an entry that is not ``good``: their number and some names."""
    if sp.issparse(x):
        coo = x.tocoo()
        rows = np.unique(coo.coords[0][~good(coo.data)])
    else:
        rows = np.flatnonzero(~good(x).all(axis=1))
    return f"{len(rows)} cell(s) ({few(adata.obs_names[rows], 5)})"
