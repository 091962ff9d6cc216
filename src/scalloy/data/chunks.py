"""Reading and writing of cells piece by piece, for data larger than memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import write_elem
from mudata import MuData
from pandas.api.types import union_categoricals

from scalloy.data.cell_table import as_positions
from scalloy.data.checks import check_type
from scalloy.data.disk import DiskRows
from scalloy.data.genes import named_layers, shallow
from scalloy.files import anndata_files, atomic_write
from scalloy.files.anndata_files import is_on_disk, whole_of
from scalloy.files.staging import recovered

PIECE = 65_536  # maximum number of cells of an on-disk object in memory at once
CHUNK, SHARD = 32_768, 128  # entries per compressed chunk, and chunks per zarr shard
SUFFIXES = (".h5ad", ".zarr")


def in_memory(data: Any, indices: Any = None, most: int = PIECE) -> Iterator[tuple[Any, Any]]:
    """Yield in-memory objects with the wanted rows of each; an on-disk object is read in pieces.

    An object in memory is yielded whole, with ``indices``.
    """
    if data is not None and not isinstance(data, MuData):
        check_type(data)
    if indices is not None:
        indices = as_positions(indices, data.n_obs) if isinstance(data, AnnData) else indices
    data, viewed = whole_of(data)
    if viewed is not None:
        indices = viewed if indices is None else viewed[indices]
    stored = is_on_disk(data)
    if not stored and not (isinstance(data, AnnData) and data.isbacked):
        yield data, indices
        return
    x = DiskRows(data.X) if stored else None
    size = most if x is None else min(x.per_buffer, most)
    rows = np.arange(data.n_obs) if indices is None else indices
    for first in range(0, len(rows), size):
        wanted, position = np.unique(rows[first : first + size], return_inverse=True)
        if x is None:
            yield some_of_file(data, wanted), position
        else:
            yield AnnData(x[wanted], obs=data.obs.iloc[wanted], var=data.var), position


def some_of_file(data: AnnData, rows: np.ndarray) -> AnnData:
    """Read some rows of a backed object, or of a view of one; anndata itself cannot read a view of a view."""
    if not data.is_view:
        return data[rows].to_memory()
    whole = data._adata_ref
    genes = np.arange(whole.n_vars)[data._vidx]
    wanted, back = np.unique(np.arange(whole.n_obs)[data._oidx][rows], return_inverse=True)
    return whole[wanted].to_memory()[back, genes].copy()


def pieces_of(data: AnnData, most: int = PIECE) -> Iterator[AnnData]:
    """Yield all cells in order, in pieces of at most ``most`` cells, whether on disk or in memory."""
    if check_type(data).isbacked or is_on_disk(whole_of(data)[0]):
        yield from (piece for piece, _ in in_memory(data, most=most))
        return
    for first in range(0, data.n_obs, most):
        yield data[first : first + most].copy()


# writing ----------------------------------------------------------------------------------------


def writable(data: Any, *, copy: bool) -> Any:
    """Return an object into which columns can be written: the cells themselves, or a copy of them."""
    if not isinstance(data, MuData):
        check_type(data)
    backed = isinstance(data, AnnData) and data.isbacked
    if copy:
        return shallow(data) if is_on_disk(data) else data.to_memory() if backed else data.copy()
    if backed and data.is_view:
        msg = (
            f"`adata` is a view of cells in the file {data.filename}: nothing can be written into it. Pass "
            "`copy=True`, or `adata.to_memory()`."
        )
        raise ValueError(msg)
    return data


class Growing:
    """Array in an open h5ad or zarr file to which rows are appended; it is written in whole shards."""

    def __init__(self, group: Any, name: str, like: np.ndarray) -> None:
        self.rest: list[np.ndarray] = []
        self.n, self.held = 0, 0
        width = int(np.prod(like.shape[1:], dtype=int))
        rows = max(1, CHUNK // max(1, width))
        self.at_once, shape, tail = rows * SHARD, (0, *like.shape[1:]), like.shape[1:]
        about: dict[str, Any] = {"shape": shape, "dtype": like.dtype, "chunks": (rows, *tail)}
        if isinstance(group, h5py.Group):
            self.array = group.create_dataset(name, maxshape=(None, *tail), **about)
        else:
            from zarr.codecs import BloscCodec

            packed = BloscCodec(cname="lz4", clevel=3, shuffle="shuffle")
            shards = (self.at_once, *tail)
            self.array = group.create_array(name, shards=shards, compressors=packed, **about)
        self.array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def append(self, rows: np.ndarray) -> None:
        self.rest.append(rows)
        self.held += len(rows)
        if self.held >= self.at_once:
            self._write(self.held - self.held % self.at_once)

    def close(self) -> None:
        self._write(self.held)

    def _write(self, n: int) -> None:
        """Write the first ``n`` held rows; no shard is written twice."""
        if n:
            rows = np.concatenate(self.rest)
            self.array.resize((self.n + n, *rows.shape[1:]))
            self.array[self.n : self.n + n] = rows[:n]
            self.rest, self.held, self.n = [rows[n:].copy()], self.held - n, self.n + n


class GrowingRows:
    """CSR matrix in an open file to which rows are appended."""

    def __init__(self, group: Any, name: str, like: sp.csr_matrix) -> None:
        self.group, self.n_columns = group.create_group(name), like.shape[1]
        self.data = Growing(self.group, "data", like.data)
        self.indices = Growing(self.group, "indices", like.indices.astype(np.int32))
        self.lengths: list[np.ndarray] = []

    def append(self, rows: sp.csr_matrix) -> None:
        self.data.append(rows.data)
        self.indices.append(rows.indices.astype(np.int32))
        self.lengths.append(np.diff(rows.indptr))

    def close(self) -> None:
        self.data.close()
        self.indices.close()
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(self.lengths), dtype=np.int64)])
        write_elem(self.group, "indptr", indptr)
        about = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        self.group.attrs.update({**about, "shape": [len(indptr) - 1, self.n_columns]})


class GrowingFrame:
    """Numeric table in an open file to which rows are appended; each column is an array."""

    def __init__(self, group: Any, name: str, like: pd.DataFrame) -> None:
        self.group, self.names = group.create_group(name), [str(c) for c in like.columns]
        self.columns = [Growing(self.group, c, v) for c, v in zip(self.names, like.to_numpy().T)]
        self.index: list[np.ndarray] = []

    def append(self, rows: pd.DataFrame) -> None:
        for column, values in zip(self.columns, rows.to_numpy().T):
            column.append(np.ascontiguousarray(values))
        self.index.append(rows.index.to_numpy())

    def close(self) -> None:
        for column in self.columns:
            column.close()
        write_elem(self.group, "_index", np.concatenate(self.index).astype(object))
        about = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
        self.group.attrs.update({**about, "column-order": self.names})


def growing(group: Any, name: str, like: Any) -> Growing | GrowingRows | GrowingFrame:
    """Return an appendable array, CSR matrix or table for values such as ``like``."""
    if isinstance(like, pd.DataFrame):
        return GrowingFrame(group, name, like)
    return GrowingRows(group, name, like) if sp.issparse(like) else Growing(group, name, like)


def write_pieces(
    path: Path, pieces: Iterable[AnnData], *, overwrite: bool = False, source: Any = None
) -> None:
    """Write the cells of several objects in turn into one h5ad file or zarr store, in bounded memory.

    ``.var`` and ``.uns`` are those of the first piece. An existing file is replaced only once the new one is
    complete. It must not be the ``source`` from which the pieces are read.
    """
    if recovered(path).exists() and not overwrite:
        msg = f"`{path}` exists. Pass `overwrite=True`, or another name."
        raise FileExistsError(msg)
    if path.suffix not in SUFFIXES:
        msg = f"`{path}` has an unknown ending. Pass a name that ends in one of: {', '.join(SUFFIXES)}."
        raise ValueError(msg)
    anndata_files.check_place(path)
    anndata_files.check_apart(path, source)
    nullable = anndata.settings.override(allow_write_nullable_strings=True)
    with atomic_write.explained(path), nullable, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autosharding.*")  # zarr warns about small arrays
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".h5ad":
            atomic_write.put(path, lambda part: _write_h5ad(part, pieces))
        else:
            atomic_write.put_folder(path, lambda part: _write_zarr(part, pieces))


def _write_h5ad(part: Path, pieces: Iterable[AnnData]) -> None:
    with h5py.File(part, "w") as file:
        _write_into(file, pieces)


def _write_zarr(part: Path, pieces: Iterable[AnnData]) -> None:
    import zarr

    _write_into(zarr.open_group(part, mode="w", zarr_format=3), pieces)


def _write_into(group: Any, pieces: Iterable[AnnData]) -> None:
    parts: dict[str, Any] = {}
    tables, var, uns = [], None, None
    for piece in pieces:
        held = {} if piece.X is None or piece.n_vars == 0 else {"X": piece.X}
        held |= {f"layers/{k}": v for k, v in named_layers(piece).items()}
        held |= {f"obsm/{k}": v for k, v in piece.obsm.items()}
        if var is None:
            var, uns = piece.var, dict(piece.uns)
            for key in ("layers", "obsm", "obsp", "varm", "varp"):
                write_elem(group, key, {})
            parts = {k: growing(*_place(group, k), v) for k, v in held.items()}
        for key, values in held.items():
            parts[key].append(values)
        tables.append(piece.obs)
    for part in parts.values():
        part.close()
    for key, value in (("obs", occurring(joined(tables))), ("var", var), ("uns", uns)):
        write_elem(group, key, value)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def occurring(values: Any) -> Any:
    """Remove unused categories from a categorical or the columns of a table; leave other values as they are.

    scanpy treats a category without cells as a group, and fails.
    """
    if isinstance(values, pd.Categorical):
        return values.remove_unused_categories()
    if isinstance(values, pd.DataFrame) and len(values.columns):
        values = values.copy()
        for name in values.columns[[isinstance(kind, pd.CategoricalDtype) for kind in values.dtypes]]:
            values[name] = values[name].cat.remove_unused_categories()
    return values


def _place(group: Any, key: str) -> tuple[Any, str]:
    *above, name = key.split("/")
    return (group[above[0]] if above else group), name


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables by rows, uniting the categories of each categorical column."""
    if len(tables) == 1:
        return tables[0]
    out = pd.concat(tables)
    for name in out.columns:
        each = [t[name] for t in tables if name in t]
        kinds = {
            str(c.cat.categories.dtype) if isinstance(c.dtype, pd.CategoricalDtype) else "" for c in each
        }
        if len(each) == len(tables) and len(kinds) == 1 and kinds != {""}:
            out[name] = union_categoricals(each, ignore_order=True)
    return out
