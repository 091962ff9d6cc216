"""Mini-batches made directly from one matrix of counts.

:class:`CellLoader` gathers the rows of several batches at once and yields CSR counts as sparse tensors. With
a store on disk (:mod:`scalloy.data.disk`), a second thread reads the next rows meanwhile. The sizes of the
batches differ by at most one cell, so that no batch is left with a single cell.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from torch import Tensor

from scalloy.data.cell_table import Cells, as_positions
from scalloy.data.disk import DiskRows, ahead
from scalloy.data.shards import Shard

GATHER_ENTRIES = 1_000_000  # stored entries of the matrix gathered at once

with warnings.catch_warnings():  # torch warns once per process that its CSR layout is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.long), [], size=(1, 1))


class CellLoader:
    """Loader of batches of the given cells, in a new order at each pass if ``shuffle`` is set.

    With a ``shard`` it yields one part of each batch, and ``batch_size`` is the size of that part.
    """

    batch_sampler = None  # Lightning reads this too, since there is a `sampler`

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
        self.sampler = shard  # Lightning calls `set_epoch` of the sampler
        self.cells = cells if isinstance(cells, Cells) else Cells.of(cells)
        n = self.cells.x.shape[0]
        self.indices = np.arange(n) if indices is None else as_positions(indices, n)
        self.batch_size, self.shuffle = batch_size, shuffle
        self.rare = self._rare(n_samples_per_label, n_labels) if n_samples_per_label else []
        self.n_rows = len(self.indices) + sum(n for _, n in self.rare)

    def _rare(self, wanted: int, n_labels: int) -> list[tuple[np.ndarray, int]]:
        """Return, for each label with too few cells, its rows and the number of additional draws needed."""
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
        """Return the number of the first batch of each gathered group, then the number of batches."""
        per_batch = self.cells.entries_of_all / max(1, self.cells.x.shape[0]) * self.batch_size
        at_once = int(GATHER_ENTRIES / max(1.0, per_batch))
        if isinstance(self.cells.x, DiskRows):
            at_once = self.cells.x.per_buffer // self.batch_size
        return np.unique(np.r_[0 : len(self) : max(1, at_once), len(self)])

    def bounds(self) -> np.ndarray:
        """Return the boundaries of the batches, which divide the rows equally."""
        return np.linspace(0, self.n_rows, len(self) + 1).round().astype(int)

    def own(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that this process yields and the boundaries of its batches."""
        order, bounds = self.order(), self.bounds()
        return (order, bounds) if self.sampler is None else self.sampler.own(order, bounds)

    def weights(self) -> np.ndarray | None:
        """Return the weight of each batch in the mean over processes, or ``None`` with a single process."""
        return None if self.sampler is None else self.sampler.weights(self.bounds())

    def whole(self) -> CellLoader:
        """Return a loader of the same cells in which one process yields all of them."""
        alone = copy(self)
        if self.sampler is not None:
            alone.sampler = replace(self.sampler, rank=0, world=1)
        return alone

    def gathered(self, order: np.ndarray, bounds: np.ndarray) -> Iterator[tuple]:
        """Gather several batches at once: yield the first, the one after the last, rows and counts."""
        for first, last in pairwise(self.cuts()):
            rows = order[bounds[first] : bounds[last]]
            yield first, last, rows, self.cells.gather(rows)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order, bounds = self.own()
        gathered = self.gathered(order, bounds)
        for first, last, rows, x in ahead(gathered) if self.cells.on_disk else gathered:
            positions = torch.from_numpy(rows)
            columns = {k: v[positions] for k, v in self.cells.columns.items()}
            sparse = {k: v[rows] for k, v in self.cells.sparse.items()}
            for i in range(first, last):
                part = slice(bounds[i] - bounds[first], bounds[i + 1] - bounds[first])
                batch = {k: v[part] for k, v in columns.items()} | {
                    k: rows_of(v, part) for k, v in sparse.items()
                }
                batch[REGISTRY_KEYS.INDICES_KEY] = positions[part]
                yield {REGISTRY_KEYS.X_KEY: rows_of(x, part), **batch}


def rows_of(x: sp.csr_matrix | Tensor, part: slice) -> Tensor:
    """Return consecutive rows as a tensor; values share memory with ``x``."""
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
