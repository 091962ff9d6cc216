"""Which cells of each batch one of several processes takes, when several devices train one model.

All processes draw the same order, cut it into the batches that one device would have, and each takes its part
of every batch. So no cell is lost or seen twice, all processes take the same number of steps, and the mean of
the gradients, weighted by the sizes of the parts, is the gradient of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

EPOCHS = 1_000_003  # a prime, so that seeds of neighbouring runs and epochs do not meet


@dataclass
class Shard:
    """Part ``rank`` of ``world``. Lightning calls :meth:`set_epoch`, as of a sampler."""

    rank: int
    world: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def generator(self) -> torch.Generator:
        """Of the order of this epoch, the same in all processes."""
        return torch.Generator().manual_seed(seed_of(self.seed, self.epoch))

    def steps(self, n: int, batch_size: int) -> int:
        """Batches of ``batch_size`` cells on each device, of which none is without a cell."""
        if n < self.world:
            msg = (
                f"{n} cell(s) cannot be shared by {self.world} devices, each of which needs one in each step "
                "of training and of validation. Pass fewer `devices`, or another `train_size`."
            )
            raise ValueError(msg)
        return min(-(-n // (batch_size * self.world)), n // self.world)

    def ends(self, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the own part of each batch begins and ends."""
        start, size = bounds[:-1], np.diff(bounds)
        return start + size * self.rank // self.world, start + size * (self.rank + 1) // self.world

    def own(self, order: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cells of the own parts, one part after the other, and where each begins and ends."""
        first, last = self.ends(bounds)
        rows = [order[a:b] for a, b in zip(first, last, strict=True)]
        return np.concatenate(rows), np.concatenate([[0], np.cumsum(last - first)])

    def weights(self, bounds: np.ndarray) -> np.ndarray:
        """Of the own part of each batch in the mean over processes, 1 where all are equal."""
        first, last = self.ends(bounds)
        return (last - first) * self.world / np.diff(bounds)


def seed_of(seed: int, epoch: int, rank: int = -1) -> int:
    """For what is drawn in an epoch, by all alike or by each process for itself."""
    return (seed * EPOCHS + epoch) * EPOCHS + rank + 1 & (2**63 - 1)
