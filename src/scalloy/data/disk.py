"""Cells that stay on disk: rows of a sparse matrix that are read when they are needed.

The AnnData that :func:`open_store` returns is like any other, except that its ``.X`` is anndata's view of a
CSR matrix in a file, from which :class:`DiskRows` reads rows. Since neighbouring rows share a chunk of the
file, a training epoch visits blocks of neighbours in random order, fills a buffer with many blocks and
shuffles the rows in the buffer (block shuffling, as in annbatch).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from anndata.abc import CSRDataset
from anndata.io import read_elem, sparse_dataset

from scalloy.files import reading
from scalloy.files.sparse_check import within
from scalloy.files.staging import recovered

BUFFER = 3_000_000  # stored entries of the matrix in memory at once
BLOCKS = 32  # blocks of neighbouring rows that fill a buffer
Item = TypeVar("Item")


class DiskRows:
    """CSR matrix in a file; indexing it reads rows into memory as a canonical CSR matrix."""

    def __init__(self, matrix: CSRDataset) -> None:
        self.shape: tuple[int, int] = matrix.shape
        self.indptr = np.asarray(matrix.group["indptr"][:], dtype=np.int64)
        self.indices, self.data = matrix.group["indices"], matrix.group["data"]
        self.nnz = int(self.indptr[-1])

    @property
    def per_buffer(self) -> int:
        """Number of rows held in memory at once."""
        return int(np.clip(BUFFER * self.shape[0] / max(1, self.nnz), BLOCKS, 2**16))

    def __getitem__(self, wanted: slice | np.ndarray) -> sp.csr_matrix:
        if isinstance(wanted, slice):
            first, last, _ = wanted.indices(self.shape[0])
            return self._between(first, last)
        rows, back = np.unique(wanted, return_inverse=True)
        return sp.vstack([self._some(part) for part in self._near(rows)], format="csr")[back]

    def _near(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Split ascending rows into runs of close neighbours, each to be read as one contiguous range."""
        block = max(1, self.per_buffer // BLOCKS)
        cuts = np.flatnonzero((np.diff(rows) > block) | (np.diff(rows // (8 * block)) > 0)) + 1
        yield from np.split(rows, cuts)

    def _some(self, rows: np.ndarray) -> sp.csr_matrix:
        """Read ascending rows by reading everything from the first to the last."""
        between = self._between(rows[0], rows[-1] + 1)
        return between if len(rows) == between.shape[0] else between[rows - rows[0]]

    def _between(self, first: int, last: int) -> sp.csr_matrix:
        starts = self.indptr[first : last + 1]
        entries = slice(int(starts[0]), int(starts[-1]))
        data = np.asarray(self.data[entries], dtype=np.float32)
        indices = np.asarray(self.indices[entries], dtype=np.int32)
        x = sp.csr_matrix((data, indices, starts - starts[0]), shape=(last - first, self.shape[1]))
        if not within(x):
            msg = f"the store is damaged: rows {first} to {last} point outside of its {self.shape[1]} genes"
            raise ValueError(msg)
        if not (x.has_canonical_format and (x.data != 0).all()):
            x.sum_duplicates()
            x.eliminate_zeros()
        return x

    def slices(self) -> Iterator[slice]:
        """Yield slices over all rows in order, each as large as a buffer."""
        for first in range(0, self.shape[0], self.per_buffer):
            yield slice(first, min(first + self.per_buffer, self.shape[0]))

    def shuffled(
        self, rows: np.ndarray, cuts: np.ndarray, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Shuffle rows so that those between two ``cuts`` come from few blocks of neighbours."""
        of = rows // max(1, self.per_buffer // BLOCKS)

        def order(n: int) -> np.ndarray:
            return torch.randperm(n, generator=generator).numpy()

        rows = rows[np.argsort(order(int(of.max()) + 1)[of], kind="stable")]
        return np.concatenate([rows[a:b][order(int(b - a))] for a, b in pairwise(cuts)])

    # summaries for initialising a model, in one pass -----------------------------------------------

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Lowest and highest value (or 0), row totals, and column sums of values and of their squares."""
        totals, sums, low, high = [], np.zeros((2, self.shape[1])), 0.0, 0.0
        for rows in self.slices():
            x = self[rows]
            low, high = min(low, float(x.min())), max(high, float(x.max()))
            totals.append(np.asarray(x.sum(axis=1), dtype=np.float32).ravel())
            values = x.data.astype(np.float64)
            sums += [np.bincount(x.indices, v, self.shape[1]) for v in (values, values**2)]
        return {"low": low, "high": high, "totals": np.concatenate(totals), "sums": sums}

    def min(self) -> float:
        return self.summary["low"]

    def max(self) -> float:
        return self.summary["high"]

    def sum(self, axis: int) -> np.ndarray:
        """Return the totals of rows (``axis=1``) or columns."""
        return self.summary["totals"] if axis == 1 else self.summary["sums"][0]


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, computing each in a second thread while the previous one is used."""
    end: Any = object()
    made = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, made, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, made, end)
            yield item


def open_store(path: str | Path) -> AnnData:
    """Open a store as an AnnData whose counts stay on disk; models accept it like any other AnnData.

    ``.obs`` and ``.var`` are in memory. ``store[rows].to_memory()`` reads the counts of some cells.

    Parameters
    ----------
    path
        Folder of a store that :func:`write_store` wrote, or of another AnnData in zarr whose ``.X`` is CSR.

    Examples
    --------
    >>> store = sa.data.write_store(adata, folder / "cells.zarr")
    >>> sa.data.open_store(folder / "cells.zarr").shape
    (200, 40)
    """
    import zarr

    if not recovered(Path(path)).is_dir():
        msg = f"There is no store `{path}`. Write one with `sa.data.write_store(adata, {str(path)!r})`."
        raise FileNotFoundError(msg)
    with reading.refused(Path(path), "zarr store"):
        reading.check_codecs(Path(path))
    try:
        group = zarr.open_group(path, mode="r")
        kinds = [dict(part.attrs).get("encoding-type") for part in (group, group["X"])]
    except (FileNotFoundError, KeyError):
        kinds = ["no zarr group", "no matrix"]
    if kinds != ["anndata", "csr_matrix"]:
        msg = (
            f"`{path}` holds {kinds[0]} with {kinds[1]} as `.X`. Expected an AnnData with a CSR matrix, as "
            "`sa.data.write_store` writes it."
        )
        raise ValueError(msg)
    return AnnData(sparse_dataset(group["X"]), obs=read_elem(group["obs"]), var=read_elem(group["var"]))
