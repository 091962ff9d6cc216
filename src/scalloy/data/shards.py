"""Division of each batch among several processes that train one model on several devices.

All processes draw the same order and cut it into the same batches as a single device would, and each takes
its part of every batch. So no cell is lost or seen twice, all processes take the same number of steps, and
the mean of the gradients, weighted by the sizes of the parts, is the gradient of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

EPOCHS = 1_000_003  # a prime, so that the seeds of neighbouring runs and epochs do not coincide


@dataclass
class Shard:
    """Part ``rank`` of ``world`` parts of each batch; Lightning calls :meth:`set_epoch` as on a sampler."""

    rank: int
    world: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def generator(self) -> torch.Generator:
        """Return the generator of this epoch's order, which is the same in all processes."""
        return torch.Generator().manual_seed(seed_of(self.seed, self.epoch))

    def steps(self, n: int, batch_size: int) -> int:
        """Return the number of steps in which every device has at most ``batch_size`` and at least one cell.

        With too few cells for both, batches are larger than ``batch_size``.
        """
        if n < self.world:
            msg = (
                f"{n} cell(s) cannot be shared by {self.world} devices, each of which needs one in each step "
                "of training and of validation. Pass fewer `devices`, or another `train_size`."
            )
            raise ValueError(msg)
        return min(-(-n // (batch_size * self.world)), n // self.world)

    def ends(self, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where this process's part of each batch begins and ends."""
        start, size = bounds[:-1], np.diff(bounds)
        return start + size * self.rank // self.world, start + size * (self.rank + 1) // self.world

    def own(self, order: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of this process, part by part, and the boundaries of the parts."""
        first, last = self.ends(bounds)
        rows = [order[a:b] for a, b in zip(first, last, strict=True)]
        return np.concatenate(rows), np.concatenate([[0], np.cumsum(last - first)])

    def weights(self, bounds: np.ndarray) -> np.ndarray:
        """Return the weight of this process in the mean over processes for each batch, 1 for equal parts."""
        first, last = self.ends(bounds)
        return (last - first) * self.world / np.diff(bounds)


def seed_of(seed: int, epoch: int, rank: int = -1) -> int:
    """Return the seed of an epoch, shared by all processes unless a ``rank`` is given."""
    return (seed * EPOCHS + epoch) * EPOCHS + rank + 1 & (2**63 - 1)
