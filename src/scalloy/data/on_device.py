"""Batches for a GPU, gathered on it if it holds the whole matrix, otherwise sent ahead from pinned memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor

from scalloy.data.batches import CellLoader
from scalloy.data.cell_table import Cells
from scalloy.kernels import gpu
from scalloy.kernels.csr import dense


class DeviceMatrix:
    """Copy of a sparse matrix on a device, from which rows are gathered."""

    def __init__(self, x: sp.csr_matrix, device: torch.device) -> None:
        self.device, self.shape = device, x.shape
        self.lengths = np.diff(x.indptr)  # on the host, so that sizes are known at once
        self.indptr = torch.from_numpy(x.indptr.astype(np.int64)).to(device)
        self.col = torch.from_numpy(x.indices.astype(np.int32)).to(device)
        self.values = torch.from_numpy(x.data).to(device)

    def gather(self, rows: Tensor, n_entries: int, *, to_dense: bool) -> Tensor:
        if to_dense and gpu.serves(self.values):
            return gpu.rows_of(self.indptr, self.col, self.values, rows, self.shape[1])
        start, length = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        crow = torch.zeros(len(rows) + 1, dtype=torch.long, device=self.device)
        torch.cumsum(length, 0, out=crow[1:])
        shift = torch.repeat_interleave(start - crow[:-1], length, output_size=n_entries)
        entry = torch.arange(n_entries, device=self.device) + shift
        size = (len(rows), self.shape[1])
        return torch.sparse_csr_tensor(crow, self.col[entry].long(), self.values[entry], size=size)


class DeviceCells:
    """Copy of the counts and columns on a device.

    Batches of counts are dense if the device supports that; further sparse modalities stay sparse, since a
    row of zeros says that a modality was not measured.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        assert sp.issparse(cells.x)
        self.device = device
        self.matrices = {
            k: DeviceMatrix(x, device) for k, x in {REGISTRY_KEYS.X_KEY: cells.x, **cells.sparse}.items()
        }
        self.columns = {k: v.to(device) for k, v in cells.columns.items()}

    def gather(self, rows: Tensor, on_host: np.ndarray) -> dict[str, Tensor]:
        """Return counts and columns of some rows, whose numbers are known on the host too."""
        batch = {
            k: of.gather(rows, int(of.lengths[on_host].sum()), to_dense=k == REGISTRY_KEYS.X_KEY)
            for k, of in self.matrices.items()
        }
        return batch | {k: v[rows] for k, v in self.columns.items()}


class DeviceLoader(CellLoader):
    """Loader that gathers the batches of :class:`CellLoader` on the device, without waiting for it."""

    def __init__(self, cells: Cells, *args: Any, store: DeviceCells, **kwargs: Any) -> None:
        super().__init__(cells, *args, **kwargs)
        self.store = store

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order, bounds = self.own()
        on_device = torch.from_numpy(order).to(self.store.device)
        for first, last in pairwise(bounds):
            rows = on_device[first:last]
            batch = self.store.gather(rows, order[first:last])
            yield {REGISTRY_KEYS.INDICES_KEY: rows, **batch}


AHEAD = 2  # batches that a second thread prepares while the device computes


class StagedLoader(CellLoader):
    """Loader that sends the batches of :class:`CellLoader` to a device through pinned memory."""

    def __init__(self, *args: Any, device: torch.device, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.device = device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = super().__iter__()

        def prepare() -> dict[str, Tensor] | None:
            batch = next(batches, None)
            return None if batch is None else {k: self.pinned(v) for k, v in batch.items()}

        with ThreadPoolExecutor(1) as thread:  # one thread keeps the batches in order
            ahead = deque(thread.submit(prepare) for _ in range(AHEAD))
            while (batch := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(prepare))
                yield {k: self.sent(v, to_dense=k == REGISTRY_KEYS.X_KEY) for k, v in batch.items()}

    def pinned(self, value: Tensor) -> Tensor:
        """Move a tensor to pinned memory, from which a GPU copies asynchronously."""
        return each_part(value, Tensor.pin_memory) if self.device.type == "cuda" else value

    def sent(self, value: Tensor, *, to_dense: bool) -> Tensor:
        """Start copying a tensor to the device, which makes sparse counts dense if it supports that."""
        there = each_part(value, lambda v: v.to(self.device, non_blocking=True))
        return dense(there) if to_dense and there.layout == torch.sparse_csr and gpu.serves(there) else there


def each_part(value: Tensor, function: Any) -> Tensor:
    """Apply a function to a dense tensor, or to each of the three parts of a CSR tensor."""
    if value.layout != torch.sparse_csr:
        return function(value)
    parts = (function(v) for v in (value.crow_indices(), value.col_indices(), value.values()))
    return torch.sparse_csr_tensor(*parts, size=value.shape)
