"""Batches for a GPU whose memory does not hold the whole matrix: gathered ahead, and sent without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from scalloy.blocks import on_gpu
from scalloy.blocks.sparse import dense
from scalloy.data.loader import CellLoader

AHEAD = 2  # batches that another thread gathers while the device computes
Batch = dict[str, Tensor]


class StagedLoader(CellLoader):
    """The batches of :class:`~scalloy.data.loader.CellLoader` on a device, by way of pinned memory."""

    def __init__(self, *args: Any, device: torch.device, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.device = device

    def __iter__(self) -> Iterator[Batch]:
        batches = super().__iter__()

        def prepare() -> Batch | None:
            batch = next(batches, None)
            return None if batch is None else {k: self.pinned(v) for k, v in batch.items()}

        with ThreadPoolExecutor(1) as thread:  # one: batches come in their order
            ahead = deque(thread.submit(prepare) for _ in range(AHEAD))
            while (batch := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(prepare))
                yield {k: self.sent(v) for k, v in batch.items()}

    def pinned(self, value: Tensor) -> Tensor:
        """In memory that is not swapped, from which a GPU reads by itself."""
        return each_part(value, Tensor.pin_memory) if self.device.type == "cuda" else value

    def sent(self, value: Tensor) -> Tensor:
        """On its way to the device, which fills dense rows itself where it can."""
        there = each_part(value, lambda v: v.to(self.device, non_blocking=True))
        return dense(there) if there.layout == torch.sparse_csr and on_gpu.serves(there) else there


def each_part(value: Tensor, function: Any) -> Tensor:
    """A dense tensor, or the three parts of a sparse one, put through a function."""
    if value.layout != torch.sparse_csr:
        return function(value)
    parts = (function(v) for v in (value.crow_indices(), value.col_indices(), value.values()))
    return torch.sparse_csr_tensor(*parts, size=value.shape)
