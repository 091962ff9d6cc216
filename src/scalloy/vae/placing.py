"""When the components of a mixture prior get their places: once, after the code has formed.

Until a fifth of training the prior of ``z`` is ``N(0, I)``, so that the code first learns what tells cells
apart. Then the components begin at groups of cells (:mod:`scalloy.blocks.partition`), each with the moments
of its cells: none begins empty or far from all cells, and nothing need be found by gradients from a random
start, which is how mixtures collapse. Where there are more than ``MANY`` cells, so many are looked at, and
further ones of labels that are rare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from scalloy.blocks.partition import MANY, MOST
from scalloy.vae.base import Batch, Sizes

RARE = 100  # cells of a label


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
    training, n_labels = module.training, module.prior.n_labels
    module.eval()
    n, n_of, found, observed = 0, torch.zeros(n_labels + 1, dtype=torch.long), [], list[Tensor]()
    for batch in cells():  # in random order
        n += len(batch.x)
        rows = torch.ones_like(batch.b, dtype=torch.bool)
        if n - len(batch.x) >= MANY:
            if not n_labels:
                continue
            rows = (n_of.to(batch.y.device)[batch.y] < RARE) & (batch.y < n_labels)
            if not rows.any():
                continue
        if module.plain and not n_labels and len(batch.x) * len(observed) < MOST:
            observed.append(module.likelihood.observed(batch.x))
        if n_labels:
            n_of += torch.bincount(batch.y[rows], minlength=n_labels + 1).cpu()
        q, y = module.encode(batch)["z"], batch.y if n_labels else torch.zeros_like(batch.b)
        found.append([v[rows] for v in (q.mean, q.variance, batch.condition, y)])
    module.train(training)
    mean, variance, c, y = (torch.cat(column) for column in zip(*found, strict=True))
    x = torch.cat(observed) if observed else None
    module.prior.place(mean, variance, c, y if n_labels else None, x, each=n / len(mean))
    return True


@torch.no_grad()
def merge_components(module: Any, cells: Callable[[], Iterable[Batch]]) -> None:
    """Make clusters of the components of ``module.prior``, by some of the cells; ``module`` as there."""
    n, found, observed = 0, [], list[Tensor]()
    for batch in cells():
        if n < MANY:
            if module.plain and n < MOST:
                observed.append(module.likelihood.observed(batch.x))
            q = module.encode(batch)["z"]
            found.append((module.assignment(batch), q.mean, q.variance, batch.condition))
        n += len(batch.x)
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    module.prior.merge(*columns, torch.cat(observed) if observed else None, each=n / len(columns[0]))
