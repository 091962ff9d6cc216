"""Data module with the training, validation and test loaders of a model.

The whole matrix is kept on the GPU if it fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import scipy.sparse as sp
import torch
from scvi.data import AnnDataManager

from scalloy._seeds import resolved
from scalloy.data.batches import CellLoader
from scalloy.data.cell_table import Cells
from scalloy.data.on_device import DeviceCells, DeviceLoader, StagedLoader
from scalloy.data.shards import Shard
from scalloy.data.split import split


class CellSplitter(pl.LightningDataModule):
    """Data module that splits cells and makes their loaders, called like the ``DataSplitter`` of scvi-tools.

    If there are several devices, each takes a part of every batch, whatever ``distributed_sampler`` says.
    ``batch_size`` is the size per device, or with ``divide`` that of all devices together.
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
        """Return the shard of this process, or ``None`` if it trains alone."""
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
            self.loaders.append(StagedLoader(self.cells, indices, device=device, **kwargs))
        else:
            self.loaders.append(CellLoader(self.cells, indices, **kwargs))
        return self.loaders[-1]

    def teardown(self, stage: str | None = None) -> None:
        """Release the data, which would otherwise stay in memory with the trainer that scvi-tools keeps."""
        self.cells = self.store = None
        for loader in self.loaders:
            vars(loader).update(cells=None, store=None)
        self.loaders = []

    def stays_on(self, device: torch.device) -> bool:
        """Return whether to keep the whole matrix on the device: on request or on a GPU with ample memory."""
        assert self.cells is not None
        if not sp.issparse(self.cells.x):
            return False
        if self.resident is not None or device.type != "cuda":
            return bool(self.resident)
        free, _ = torch.cuda.mem_get_info(device)
        return self.cells.entries_of_all * 8 < 0.4 * free

    def train_dataloader(self) -> CellLoader:
        return self.loader(self.train_idx, batch_size=self.batch_size, shuffle=True, **self.repeats)

    def val_dataloader(self) -> CellLoader | list:
        size = max(self.batch_size, 512)
        return self.loader(self.in_order(self.val_idx), batch_size=size) if self.n_val else []

    def test_dataloader(self) -> CellLoader | list:
        rows = self.in_order(self.test_idx)
        return self.loader(rows, batch_size=self.batch_size) if len(rows) else []

    def in_order(self, rows: np.ndarray) -> np.ndarray:
        """Sort the rows of a store on disk, so that neighbours are read together."""
        return np.sort(rows) if self.cells is not None and self.cells.on_disk else rows
