"""Counts and registered columns of cells, as plain arrays.

:class:`Cells` holds what a model reads from an AnnData. A matrix that is already float32 CSR is not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata.abc import CSRDataset
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from torch import Tensor

from scalloy._keys import CONDITION_KEY
from scalloy.data.disk import DiskRows

INTEGER_KEYS = {
    REGISTRY_KEYS.BATCH_KEY,
    REGISTRY_KEYS.LABELS_KEY,
    REGISTRY_KEYS.CAT_COVS_KEY,
    CONDITION_KEY,
}


@dataclass
class Cells:
    """Counts and registered columns of cells; counts are CSR, dense if mostly non-zero, or on disk.

    ``sparse`` holds further modalities that are sparse.
    """

    x: sp.csr_matrix | np.ndarray | DiskRows
    columns: dict[str, Tensor]
    sparse: dict[str, sp.csr_matrix] = field(default_factory=dict)

    @classmethod
    def of(cls, manager: AnnDataManager) -> Cells:
        columns, sparse = {}, {}
        for key in manager.data_registry:
            if key == REGISTRY_KEYS.X_KEY:
                continue
            given = manager.get_from_registry(key)
            if sp.issparse(given):
                sparse[key] = _canonical(given)
                continue
            values = np.asarray(given)
            dtype = np.int64 if key in INTEGER_KEYS else np.float32
            columns[key] = torch.from_numpy(values.astype(dtype)).reshape(len(values), -1)
        return cls(as_rows(manager.get_from_registry(REGISTRY_KEYS.X_KEY)), columns, sparse)

    @property
    def log_ell(self) -> Tensor:
        """Logarithm of the library size ``(n, 1)``: the registered size factor if any, else the total."""
        given = self.columns.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if given is None:
            given = torch.from_numpy(np.asarray(self.x.sum(axis=1), dtype=np.float32).reshape(-1, 1))
        return given.clamp_min(1e-6).log()

    @property
    def entries(self) -> int:
        return int(self.x.size if isinstance(self.x, np.ndarray) else self.x.nnz)

    @property
    def on_disk(self) -> bool:
        """`True` if the counts stay on disk and are read when needed."""
        return isinstance(self.x, DiskRows)

    @property
    def entries_of_all(self) -> int:
        """Number of stored entries of the counts and of all sparse modalities."""
        return self.entries + sum(x.nnz for x in self.sparse.values())

    def gather(self, rows: np.ndarray) -> sp.csr_matrix | Tensor:
        return torch.from_numpy(self.x[rows]) if isinstance(self.x, np.ndarray) else self.x[rows]


def as_rows(x: Any) -> sp.csr_matrix | np.ndarray | DiskRows:
    """Return counts as canonical float32 CSR without explicit zeros, as a dense array, or as rows on disk.

    The input is never changed.
    """
    if isinstance(x, CSRDataset):
        return DiskRows(x)
    if not sp.issparse(x):
        x = np.asarray(x, dtype=np.float32)
        if np.count_nonzero(x) > 0.5 * x.size:
            return x
    return _canonical(x)


def _canonical(x: Any) -> sp.csr_matrix:
    """Return float32 CSR without explicit zeros; the same object if it is that already."""
    rows = sp.csr_matrix(x, dtype=np.float32)
    if rows.has_canonical_format and (rows.data != 0).all():
        return rows
    rows = rows.copy()
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def as_positions(indices: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """Return row numbers, given row numbers (negative ones count from the end) or a boolean mask."""
    index = np.asarray(indices) if hasattr(indices, "dtype") else np.array(indices, dtype=object)
    kind = pd.api.types.infer_dtype(index) if index.ndim == 1 else f"{index.ndim} axes"
    if kind == "boolean" and index.shape != (n,):
        msg = f"`indices` is a mask of {len(index)} for {n} cells. Pass one value per cell."
        raise ValueError(msg)
    index = np.flatnonzero(index) if kind == "boolean" else index
    if index.size == 0:
        msg = "`indices` selects no cells. Pass at least one row."
        raise ValueError(msg)
    if kind not in {"integer", "boolean"} or index.min() < -n or index.max() >= n:
        msg = (
            f"`indices` must be whole numbers from {-n} to {n - 1}, rows of the {n} cells, or a mask; "
            f"given: {type(indices).__name__} ({kind})."
        )
        raise IndexError(msg)
    return index.astype(np.int64) % n
