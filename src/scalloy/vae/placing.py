"""When the components of a mixture prior get their places: once, after the code has formed.

Until a fifth of training the prior of ``z`` is ``N(0, I)``, so that the code first learns what tells cells
apart. Then the components begin at the groups of cells that several methods of clustering agree on
(:mod:`scalloy.blocks.partition`), each with the moments of its cells: none begins empty or far from all
cells, and nothing need be found by gradients from a random start, which is how mixtures collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from scalloy.blocks.partition import MOST
from scalloy.vae.base import Batch, Sizes


def nothing_removed(sizes: Sizes) -> bool:
    """Whether expression itself may be compared between cells."""
    return sizes.removed == (1,) and sizes.n_conditions == 1 and not sizes.n_cont


@torch.no_grad()
def place_once(module: Any, end: float, cells: Callable[[], Iterable[Batch]]) -> bool:
    """Place the components of ``module.prior`` where its cells are; whether that happened.

    Parameters
    ----------
    module
        With ``prior``, ``likelihood``, ``place_at`` (share of training), ``plain`` (:func:`nothing_removed`).
    end, cells
        As in :meth:`scalloy.vae.base.VAEModule.begin_epoch`.
    """
    if module.prior.is_placed or end <= module.place_at:
        return False
    training = module.training
    module.eval()
    found, observed = [], list[Tensor]()
    for batch in cells():  # in random order
        wanted = module.plain and not module.prior.n_labels and len(batch.x) * len(observed) < MOST
        if wanted:
            observed.append(module.likelihood.observed(batch.x))
        found.append((module.encode(batch)["z"], batch.condition, batch.y))
    module.train(training)
    mean, variance = (torch.cat([getattr(q, k) for q, *_ in found]) for k in ("mean", "variance"))
    y = None if module.prior.n_labels == 0 else torch.cat([y for *_, y in found])
    c, x = torch.cat([c for _, c, _ in found]), torch.cat(observed) if observed else None
    module.prior.place(mean, variance, c, y, x)
    return True
