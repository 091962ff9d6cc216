"""What is wrong with a user's AnnData is found here, before anything is trained, and named.

Each message says what was given, what was expected and what to do.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData


def few(names: Iterable[Any], n: int = 10) -> str:
    """At most ``n`` of the names, and how many more there are."""
    names = [str(name) for name in names]
    more = f", and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def check_object(adata: Any) -> AnnData:
    """An AnnData in memory, not a view, with at least two cells and two genes of different names."""
    if not isinstance(adata, AnnData):
        msg = (
            f"`adata` is a {type(adata).__name__}. Expected an AnnData of raw counts, cells x genes; "
            "make one with `anndata.AnnData(counts)`."
        )
        raise TypeError(msg)
    if adata.isbacked:
        msg = f"`adata` is backed by {adata.filename}. Load it first: `adata = adata.to_memory()`."
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
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()].unique()
        msg = (
            f"Names of genes occur more than once in `adata.var_names`: {few(twice)}. "
            "Call `adata.var_names_make_unique()`."
        )
        raise ValueError(msg)
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()].unique()
        warnings.warn(
            f"Names of cells occur more than once in `adata.obs_names`: {few(twice)}. Results are "
            "indexed by them; `adata.obs_names_make_unique()` makes them distinct.",
            stacklevel=3,
        )
    return adata


CATEGORICAL = ("batch_key", "condition_key", "labels_key", "categorical_covariate_keys")
CONTINUOUS = ("size_factor_key", "continuous_covariate_keys")


def columns(
    given: dict[str, Any], arguments: Sequence[str] = (*CATEGORICAL, *CONTINUOUS)
) -> list[tuple[str, str]]:
    """Argument and column, for each column of ``.obs`` that the arguments of a set-up name."""
    return [
        (name, key)
        for name in arguments
        if (keys := given.get(name)) is not None
        for key in ([keys] if isinstance(keys, str) else keys)
    ]


def check_keys(adata: AnnData, given: dict[str, Any]) -> None:
    """Every column that a set-up names exists without missing values; continuous ones are finite numbers."""
    for argument, key in columns(given, CATEGORICAL):
        complete_column(adata.obs, argument, key)
    for argument, key in columns(given, CONTINUOUS):
        column = complete_column(adata.obs, argument, key)
        if not pd.api.types.is_numeric_dtype(column):
            msg = f"`{argument}={key!r}` has dtype {column.dtype}; expected numbers."
            raise TypeError(msg)
        bad = ~np.isfinite(column.to_numpy(dtype=float))
        if argument == "size_factor_key":
            bad |= ~(column.to_numpy(dtype=float) > 0)
        if bad.any():
            kind = "positive and finite" if argument == "size_factor_key" else "finite"
            msg = (
                f"`{argument}={key!r}` must be {kind}, but is not in {bad.sum()} cell(s): "
                f"{few(adata.obs_names[bad])}. Fix or remove these cells."
            )
            raise ValueError(msg)


def find_column(obs: pd.DataFrame, argument: str, key: str, nor: str = "") -> pd.Series:
    """A column by its name; ``nor`` is what else the name might have been of."""
    if key not in obs:
        close = difflib.get_close_matches(str(key), [str(c) for c in obs.columns], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        msg = (
            f"`{argument}={key!r}` is not a column of `adata.obs`{nor}. "
            f"Columns: {few(obs.columns) or 'none'}. Pass one of these.{hint}"
        )
        raise KeyError(msg)
    return obs[key]


def complete_column(obs: pd.DataFrame, argument: str, key: str) -> pd.Series:
    """A column without missing values."""
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
    """New cells have no category that the model has never seen, in any of its columns."""
    for key, categories in known.items():
        new = pd.Index(adata.obs[key].astype(str).unique()).difference(categories)
        if len(new):
            msg = (
                f"`adata.obs[{key!r}]` holds categories that the model has never seen: {few(new)}. "
                f"It knows: {few(categories)}. Rename them, or leave these cells out."
            )
            raise ValueError(msg)


def check_layer(adata: AnnData, layer: str | None) -> Any:
    """The matrix to model, and that it is a matrix of numbers."""
    if layer is not None and layer not in adata.layers:
        msg = (
            f"`layer={layer!r}` is not in `adata.layers`. "
            f"Layers: {few(adata.layers.keys()) or 'none'}. Pass one of these, or `None` for `.X`."
        )
        raise KeyError(msg)
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        msg = "`adata.X` is empty (None). Pass `layer=` with the counts, or put them in `.X`."
        raise ValueError(msg)
    if not (sp.issparse(x) or isinstance(x, np.ndarray)) or x.dtype.kind not in "iufb":
        where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        msg = (
            f"`{where}` is a {type(x).__name__} of {getattr(x, 'dtype', 'unknown type')}. Expected a "
            "numpy array or a scipy sparse matrix (CSR is fastest) of numbers."
        )
        raise TypeError(msg)
    return x


def check_counts(
    adata: AnnData,
    layer: str | None = None,
    *,
    allow_non_counts: bool = False,
    genes: bool = True,
    known: np.ndarray | None = None,
) -> None:
    """All entries are finite, non-negative and whole, and every cell has at least one count.

    With ``genes`` there is a warning about genes that have none. Cells that are ``known`` by something else
    need no counts.
    """
    x = check_layer(adata, layer)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    values = x.data if sp.issparse(x) else x
    if not np.isfinite(values).all():
        cells = _cells_with(adata, x, np.isfinite)
        msg = f"`{where}` holds NaN or infinite values in {cells}. Replace or remove them."
        raise ValueError(msg)
    if allow_non_counts:
        return
    if (values < 0).any():
        msg = (
            f"`{where}` holds negative values in {_cells_with(adata, x, lambda v: v >= 0)}. Expected "
            "raw counts; were the data scaled? Pass the raw counts with `layer=`, or "
            "`allow_non_counts=True` with `gene_likelihood='normal'`."
        )
        raise ValueError(msg)
    if values.dtype.kind == "f" and not _whole(values).all():
        example = values[~_whole(values)].flat[0]
        msg = (
            f"`{where}` holds values that are not whole numbers, such as {example:.4g}, in "
            f"{_cells_with(adata, x, _whole)}. Expected raw counts; were the data normalised? Pass the "
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
    silent = np.asarray(x.sum(axis=0)).ravel() == 0
    if genes and silent.any():
        warnings.warn(
            f"{silent.sum()} gene(s) have no counts in `{where}`: {few(adata.var_names[silent])}. They "
            "cost time and teach nothing; `sc.pp.filter_genes(adata, min_counts=1)` removes them.",
            stacklevel=4,
        )


def check_second(
    adata: AnnData, argument: str, key: str | None, *, allow_non_counts: bool = False
) -> np.ndarray:
    """Values of a second modality in ``.obsm``: numbers, whole and not negative, NaN where not measured.

    Returns whether each cell has any.
    """
    if key is None or key not in adata.obsm:
        msg = (
            f"`{argument}={key!r}` is not in `adata.obsm`. It holds: {few(adata.obsm.keys()) or 'nothing'}. "
            "Pass the key of the second modality, such as the counts of proteins."
        )
        raise KeyError(msg)
    given = adata.obsm[key]
    values = given.to_numpy() if isinstance(given, pd.DataFrame) else given
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iufb":
        kind = f"{type(given).__name__} of {getattr(values, 'dtype', 'mixed types')}"
        msg = (
            f"`adata.obsm[{key!r}]` is a {kind}. "
            "Expected a DataFrame or an array of numbers, cells x variables."
        )
        raise TypeError(msg)
    values = values.astype(float)
    there = ~np.isnan(values)
    wrong = np.isinf(values)
    if not allow_non_counts:
        wrong |= there & ((values < 0) | ~_whole(values))
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


def _whole(values: np.ndarray) -> np.ndarray:
    return np.floor(values) == values


def _cells_with(adata: AnnData, x: Any, good: Any) -> str:
    """How many cells have an entry which is not good, and the names of some."""
    if sp.issparse(x):
        coo = x.tocoo()
        rows = np.unique(coo.coords[0][~good(coo.data)])
    else:
        rows = np.flatnonzero(~good(x).all(axis=1))
    return f"{len(rows)} cell(s) ({few(adata.obs_names[rows], 5)})"


def check_same_genes(expected: Sequence[str], adata: AnnData) -> None:
    """A new AnnData has the genes of the model, in the same order."""
    wanted, given = pd.Index(expected, dtype=str), pd.Index(adata.var_names, dtype=str)
    if wanted.equals(given):
        return
    missing = wanted.difference(given, sort=False)
    if len(missing):
        msg = (
            f"`adata` lacks {len(missing)} of the {len(expected)} genes of the model: {few(missing)}. "
            "Give it the genes that the model was trained on."
        )
    else:
        msg = (
            "`adata` has the genes of the model in another order or beside others. Pass "
            "`adata[:, model.get_var_names()].copy()`."
        )
    raise ValueError(msg)
