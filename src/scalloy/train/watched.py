"""Values of the validation cells that the training history shows, besides the terms of the objective.

It is made of what the validation step has computed anyway:

    active_components    number of components with a share of more than ``LEAST`` of the cells
    label_accuracy       share of the labelled cells whose label the components predict, without seeing it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LEAST = 0.001


class Watched:
    """Sums over the validation cells of an epoch."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, watched: Mapping[str, Tensor]) -> None:
        """Add the cells of one step.

        Parameters
        ----------
        watched
            Probability ``r`` of each component, ``(n, K)``; with labels, masks of the cells that are
            ``labelled`` and of those for which the prediction is ``right``.
        """
        if "r" not in watched:
            return
        sums = {"r": watched["r"].detach().sum(0)}
        if "labelled" in watched:
            right = watched["right"] & watched["labelled"]
            sums["labels"] = torch.stack([right.sum(), watched["labelled"].sum()]).to(sums["r"])
        self.sums = {k: v + self.sums[k] if k in self.sums else v for k, v in sums.items()}

    def end(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return what to log of the epoch, and begin a new one.

        Parameters
        ----------
        reduce
            Function that adds up a tensor over all devices.
        """
        sums, self.sums = {k: reduce(v) for k, v in self.sums.items()}, {}
        out = {}
        if "r" in sums:
            out["active_components"] = float((sums["r"] > LEAST * sums["r"].sum()).sum())
        if "labels" in sums and sums["labels"][1] > 0:
            out["label_accuracy"] = float(sums["labels"][0] / sums["labels"][1])
        return out
