"""Batches straight from one CSR matrix in memory.

:class:`Cells` holds the matrix and the registered columns of an AnnData as plain arrays (without a copy
where the matrix is a float32 CSR already). :class:`CellLoader` gathers the rows of several batches at
once and yields them as sparse tensors; of a store on the disk (:mod:`scalloy.data.disk`) it reads the next
ones in a second thread meanwhile. :class:`CellSplitter` is what ``train`` uses: it keeps everything on a GPU
where it fits. Batches have equal sizes up to one cell, so that none is left with a single cell.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata.abc import CSRDataset
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from torch import Tensor

from scalloy._keys import CONDITION_KEY
from scalloy._seeds import resolved
from scalloy.blocks import on_gpu
from scalloy.data.disk import DiskRows, ahead
from scalloy.data.shards import Shard
from scalloy.data.splits import split

INTEGER_KEYS = {
    REGISTRY_KEYS.BATCH_KEY,
    REGISTRY_KEYS.LABELS_KEY,
    REGISTRY_KEYS.CAT_COVS_KEY,
    CONDITION_KEY,
}
GATHER_ENTRIES = 1_000_000  # of the matrix, gathered at once

with warnings.catch_warnings():  # torch says once per process that its CSR layout is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.long), [], size=(1, 1))


@dataclass
class Cells:
    """Counts (CSR, or dense where most entries are not zero, or on the disk) and columns of some cells."""

    x: sp.csr_matrix | np.ndarray | DiskRows
    columns: dict[str, Tensor]

    @classmethod
    def of(cls, manager: AnnDataManager) -> Cells:
        columns = {}
        for key in manager.data_registry:
            if key == REGISTRY_KEYS.X_KEY:
                continue
            values = np.asarray(manager.get_from_registry(key))
            dtype = np.int64 if key in INTEGER_KEYS else np.float32
            columns[key] = torch.from_numpy(values.astype(dtype)).reshape(len(values), -1)
        return cls(as_rows(manager.get_from_registry(REGISTRY_KEYS.X_KEY)), columns)

    @property
    def log_ell(self) -> Tensor:
        """Logarithm of the library size, given or observed, ``(n, 1)``."""
        given = self.columns.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if given is None:
            given = torch.from_numpy(np.asarray(self.x.sum(axis=1), dtype=np.float32).reshape(-1, 1))
        return given.clamp_min(1e-6).log()

    @property
    def entries(self) -> int:
        return int(self.x.size if isinstance(self.x, np.ndarray) else self.x.nnz)

    @property
    def on_disk(self) -> bool:
        """Whether the counts are read when they are needed."""
        return isinstance(self.x, DiskRows)

    def gather(self, rows: np.ndarray) -> sp.csr_matrix | Tensor:
        return torch.from_numpy(self.x[rows]) if isinstance(self.x, np.ndarray) else self.x[rows]


def as_rows(x: Any) -> sp.csr_matrix | np.ndarray | DiskRows:
    """Canonical float32 CSR without explicit zeros; the input is never changed, and stays where it is."""
    if isinstance(x, CSRDataset):
        return DiskRows(x)
    if not sp.issparse(x):
        x = np.asarray(x, dtype=np.float32)
        if np.count_nonzero(x) > 0.5 * x.size:
            return x
    rows = sp.csr_matrix(x, dtype=np.float32)
    if rows.has_canonical_format and (rows.data != 0).all():
        return rows
    rows = rows.copy()
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


class CellLoader:
    """Yields batches of the given cells, in a new order each time if ``shuffle``.

    With a ``shard`` it yields one part of each of them, and ``batch_size`` is that of the part.
    """

    batch_sampler = None  # Lightning looks here as well, since there is a `sampler`

    def __init__(
        self,
        cells: Cells | AnnDataManager,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        batch_size: int = 512,
        shuffle: bool = False,
        n_samples_per_label: int | None = None,
        n_labels: int = 0,
        shard: Shard | None = None,
        **_: Any,
    ) -> None:
        self.sampler = shard  # where Lightning looks for what wants to know the epoch
        self.cells = cells if isinstance(cells, Cells) else Cells.of(cells)
        n = self.cells.x.shape[0]
        self.indices = np.arange(n) if indices is None else as_positions(indices, n)
        self.batch_size, self.shuffle = batch_size, shuffle
        self.rare = self._rare(n_samples_per_label, n_labels) if n_samples_per_label else []
        self.n_rows = len(self.indices) + sum(n for _, n in self.rare)

    def _rare(self, wanted: int, n_labels: int) -> list[tuple[np.ndarray, int]]:
        """Rows of each label with fewer cells than wanted, and how many lack."""
        y = self.cells.columns[REGISTRY_KEYS.LABELS_KEY][:, 0].numpy()[self.indices]
        rows = [self.indices[y == label] for label in range(n_labels)]
        return [(own, wanted - len(own)) for own in rows if 0 < len(own) < wanted]

    def __len__(self) -> int:
        if self.sampler is not None:
            return self.sampler.steps(self.n_rows, self.batch_size)
        return -(-self.n_rows // self.batch_size)

    def order(self) -> np.ndarray:
        if not self.shuffle:
            return self.indices
        drawn = {"generator": None if self.sampler is None else self.sampler.generator()}
        more = [own[torch.randint(len(own), (n,), **drawn).numpy()] for own, n in self.rare]
        rows = np.concatenate([self.indices, *more])
        if isinstance(self.cells.x, DiskRows):
            return self.cells.x.shuffled(rows, self.bounds()[self.cuts()], **drawn)
        return rows[torch.randperm(len(rows), **drawn).numpy()]

    def cuts(self) -> np.ndarray:
        """Batches with which a gathering of several begins, and the number of batches."""
        per_batch = self.cells.entries / max(1, self.cells.x.shape[0]) * self.batch_size
        at_once = int(GATHER_ENTRIES / max(1.0, per_batch))
        if isinstance(self.cells.x, DiskRows):
            at_once = self.cells.x.per_buffer // self.batch_size
        return np.unique(np.r_[0 : len(self) : max(1, at_once), len(self)])

    def bounds(self) -> np.ndarray:
        """Where each batch begins and ends, in equal parts."""
        return np.linspace(0, self.n_rows, len(self) + 1).round().astype(int)

    def own(self) -> tuple[np.ndarray, np.ndarray]:
        """The cells to yield, and where each batch begins and ends."""
        order, bounds = self.order(), self.bounds()
        return (order, bounds) if self.sampler is None else self.sampler.own(order, bounds)

    def weights(self) -> np.ndarray | None:
        """Of each batch in the mean over processes; ``None`` where there is one."""
        return None if self.sampler is None else self.sampler.weights(self.bounds())

    def whole(self) -> CellLoader:
        """The same cells, all of them in one process."""
        alone = copy(self)
        if self.sampler is not None:
            alone.sampler = replace(self.sampler, rank=0, world=1)
        return alone

    def gathered(self, order: np.ndarray, bounds: np.ndarray) -> Iterator[tuple]:
        """Rows of several batches at once: first and last batch, rows, their counts."""
        for first, last in pairwise(self.cuts()):
            rows = order[bounds[first] : bounds[last]]
            yield first, last, rows, self.cells.gather(rows)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order, bounds = self.own()
        gathered = self.gathered(order, bounds)
        for first, last, rows, x in ahead(gathered) if self.cells.on_disk else gathered:
            positions = torch.from_numpy(rows)
            columns = {k: v[positions] for k, v in self.cells.columns.items()}
            for i in range(first, last):
                part = slice(bounds[i] - bounds[first], bounds[i + 1] - bounds[first])
                batch = {k: v[part] for k, v in columns.items()}
                batch[REGISTRY_KEYS.INDICES_KEY] = positions[part]
                yield {REGISTRY_KEYS.X_KEY: rows_of(x, part), **batch}


def rows_of(x: sp.csr_matrix | Tensor, part: slice) -> Tensor:
    """Consecutive rows as a tensor which shares memory with ``x``."""
    if isinstance(x, Tensor):
        return x[part]
    crow = x.indptr[part.start : part.stop + 1].astype(np.int64)
    entries = slice(crow[0], crow[-1])
    return torch.sparse_csr_tensor(
        torch.from_numpy(crow - crow[0]),
        torch.from_numpy(x.indices[entries].astype(np.int64)),
        torch.from_numpy(x.data[entries]),
        size=(part.stop - part.start, x.shape[1]),
    )


def as_positions(indices: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """Row numbers from row numbers (negative ones count from the end) or a boolean mask."""
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


class DeviceCells:
    """The same matrix and columns, living on a device, which fills dense batches itself where it can."""

    def __init__(self, cells: Cells, device: torch.device) -> None:
        assert sp.issparse(cells.x)
        self.device, self.shape = device, cells.x.shape
        self.lengths = np.diff(cells.x.indptr)  # stays on the host: sizes are known without waiting
        self.indptr = torch.from_numpy(cells.x.indptr.astype(np.int64)).to(device)
        self.col = torch.from_numpy(cells.x.indices.astype(np.int32)).to(device)
        self.values = torch.from_numpy(cells.x.data).to(device)
        self.columns = {k: v.to(device) for k, v in cells.columns.items()}

    def gather(self, rows: Tensor, n_entries: int) -> Tensor:
        if on_gpu.serves(self.values):
            return on_gpu.rows_of(self.indptr, self.col, self.values, rows, self.shape[1])
        start, length = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        crow = torch.zeros(len(rows) + 1, dtype=torch.long, device=self.device)
        torch.cumsum(length, 0, out=crow[1:])
        shift = torch.repeat_interleave(start - crow[:-1], length, output_size=n_entries)
        entry = torch.arange(n_entries, device=self.device) + shift
        size = (len(rows), self.shape[1])
        return torch.sparse_csr_tensor(crow, self.col[entry].long(), self.values[entry], size=size)


class DeviceLoader(CellLoader):
    """The batches of :class:`CellLoader` gathered on the device, which nothing waits for."""

    def __init__(self, cells: Cells, *args: Any, store: DeviceCells, **kwargs: Any) -> None:
        super().__init__(cells, *args, **kwargs)
        self.store = store

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order, bounds = self.own()
        on_device = torch.from_numpy(order).to(self.store.device)
        for first, last in pairwise(bounds):
            rows = on_device[first:last]
            x = self.store.gather(rows, int(self.store.lengths[order[first:last]].sum()))
            columns = {k: v[rows] for k, v in self.store.columns.items()}
            yield {REGISTRY_KEYS.X_KEY: x, REGISTRY_KEYS.INDICES_KEY: rows, **columns}


class CellSplitter(pl.LightningDataModule):
    """Training, validation and test cells of a model, with the call of scvi-tools' ``DataSplitter``.

    Several devices each take a part of every batch, whatever ``distributed_sampler``. ``batch_size`` is per
    device, or with ``divide`` of all of them together.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        *,
        batch_size: int = 512,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        distributed_sampler: bool = False,
        external_indexing: Sequence[np.ndarray] | None = None,
        resident: bool | None = None,
        divide: bool = False,
        n_samples_per_label: int | None = None,
        n_labels: int = 0,
        kept: np.ndarray | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.manager, self.batch_size, self.resident = adata_manager, batch_size, resident
        self.divide = divide
        self.repeats = {"n_samples_per_label": n_samples_per_label, "n_labels": n_labels}
        n = adata_manager.adata.n_obs
        self.train_idx, self.val_idx, self.test_idx = (
            [np.asarray(part) for part in external_indexing]
            if external_indexing is not None
            else split(
                n, train_size, validation_size, shuffle=shuffle_set_split, seed=resolved(seed), kept=kept
            )
        )
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.data_loader_kwargs = {"batch_size": batch_size}
        self.cells: Cells | None = None
        self.store: DeviceCells | None = None
        self.loaders: list[CellLoader] = []

    def setup(self, stage: str | None = None) -> None:
        if self.cells is None:
            self.cells = Cells.of(self.manager)

    def shard(self) -> Shard | None:
        """Of this process, where several train."""
        if self.trainer is None or self.trainer.world_size == 1:
            return None
        seed = self.trainer.strategy.broadcast(torch.initial_seed())
        return Shard(self.trainer.global_rank, self.trainer.world_size, seed)

    def loader(self, indices: np.ndarray, batch_size: int, **kwargs: Any) -> CellLoader:
        assert self.cells is not None
        if (shard := self.shard()) is not None and self.divide:
            batch_size = -(-batch_size // shard.world)
        kwargs |= {"shard": shard, "batch_size": batch_size}
        device = self.trainer.strategy.root_device if self.trainer is not None else None
        if device is not None and self.stays_on(device):
            self.store = self.store or DeviceCells(self.cells, device)
            self.loaders.append(DeviceLoader(self.cells, indices, store=self.store, **kwargs))
        elif device is not None and device.type == "cuda":
            from scalloy.data.staging import StagedLoader

            self.loaders.append(StagedLoader(self.cells, indices, device=device, **kwargs))
        else:
            self.loaders.append(CellLoader(self.cells, indices, **kwargs))
        return self.loaders[-1]

    def teardown(self, stage: str | None = None) -> None:
        """Let go of the data, which scvi-tools would keep with the trainer of the model."""
        self.cells = self.store = None
        for loader in self.loaders:
            vars(loader).update(cells=None, store=None)
        self.loaders = []

    def stays_on(self, device: torch.device) -> bool:
        """Whether the whole matrix lives on the device: asked for, or a GPU with ample memory."""
        assert self.cells is not None
        if not sp.issparse(self.cells.x):
            return False
        if self.resident is not None or device.type != "cuda":
            return bool(self.resident)
        free, _ = torch.cuda.mem_get_info(device)
        return self.cells.entries * 8 < 0.4 * free

    def train_dataloader(self) -> CellLoader:
        return self.loader(self.train_idx, batch_size=self.batch_size, shuffle=True, **self.repeats)

    def val_dataloader(self) -> CellLoader | list:
        size = max(self.batch_size, 512)
        return self.loader(self.in_order(self.val_idx), batch_size=size) if self.n_val else []

    def test_dataloader(self) -> CellLoader | list:
        rows = self.in_order(self.test_idx)
        return self.loader(rows, batch_size=self.batch_size) if len(rows) else []

    def in_order(self, rows: np.ndarray) -> np.ndarray:
        """On the disk, neighbours are read together."""
        return np.sort(rows) if self.cells is not None and self.cells.on_disk else rows
