"""Placement of the components of a mixture prior: once, after the code has formed.

For the first fifth of training the prior of ``z`` is ``N(0, I)``, so that the code first learns what
distinguishes cells. Then each component starts at a group of cells, with the moments of these cells
(:mod:`scalloy.blocks.consensus_clustering`). So no component starts empty or far from all cells, and none has
to be found by gradients from a random start, which is how mixtures collapse. Of more than ``MANY`` cells only
that many are used, and further ones of rare labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from scalloy.blocks.consensus_clustering import MANY, MOST
from scalloy.vae.base import Batch, Sizes

RARE = 100  # cells; a label with fewer than this among those used is rare


def nothing_removed(sizes: Sizes) -> bool:
    """Return whether cells can be compared by expression: no batches, conditions or covariates."""
    return sizes.removed == (1,) and sizes.n_conditions == 1 and not sizes.n_cont


@torch.no_grad()
def place_once(module: Any, end: float, cells: Callable[[], Iterable[Batch]]) -> bool:
    """Place the components of ``module.prior`` where its cells are; return whether that happened now.

    Parameters
    ----------
    module
        Model with ``prior``, ``likelihood``, ``place_at`` (share of training) and ``plain`` (the result of
        :func:`nothing_removed`).
    end
        Share of training that will be done at the end of the next epoch.
    cells
        Function that goes once through the cells that are trained on.
    """
    if module.prior.is_placed or end <= module.place_at:
        return False
    training, n_labels = module.training, module.prior.n_labels
    n_codes = len(module.prior.hierarchy)  # of labels of any depth
    module.eval()
    n, n_of, found, observed = 0, torch.zeros(n_codes + 1, dtype=torch.long), [], list[Tensor]()
    for batch in cells():  # these come in random order
        n += len(batch.x)
        y = batch.label if n_labels else torch.zeros_like(batch.b)
        rows = torch.ones_like(batch.b, dtype=torch.bool)
        if n - len(batch.x) >= MANY:
            if not n_labels:
                continue
            rows = (n_of.to(y.device)[y] < RARE) & (y < n_labels)
            if not rows.any():
                continue
        if module.plain and not n_labels and len(batch.x) * len(observed) < MOST:
            observed.append(module.likelihood.observed(batch.x))
        if n_labels:
            n_of += torch.bincount(y[rows], minlength=n_codes + 1).cpu()
        q = module.encode(batch)["z"]
        found.append([v[rows] for v in (q.mean, q.variance, batch.condition, y)])
    module.train(training)
    mean, variance, c, y = (torch.cat(column) for column in zip(*found, strict=True))
    x = torch.cat(observed) if observed else None
    module.prior.place(mean, variance, c, y if n_labels else None, x, each=n / len(mean))
    return True


@torch.no_grad()
def grow_tree(module: Any, cells: Callable[[], Iterable[Batch]], *, places: bool = False) -> None:
    """Make a tree of clusters of the components of ``module.prior``.

    Parameters
    ----------
    module
        As in :func:`place_once`.
    cells
        Function that goes once through the cells that are trained on; about ``MANY`` are used.
    places
        Whether components may be placed again, as they may if their probabilities follow from their places.
    """
    if module.prior.settled:
        return
    n, found, observed = 0, [], list[Tensor]()
    for batch in cells():
        if n < MANY:
            if module.plain and n < MOST:
                observed.append(module.likelihood.observed(batch.x))
            q = module.encode(batch)["z"]
            found.append((module.assignment(batch), q.mean, q.variance, batch.condition))
        n += len(batch.x)
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    module.prior.grow(
        *columns, torch.cat(observed) if observed else None, each=n / len(columns[0]), places=places
    )
