"""Probabilities of the nodes of a tree of labels, for a module that learns from labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scalloy.vae.base import Batch, Distributions, HasLabels

KNOWN = 0.5  # a cell with a smaller score of being of a known type is of none


@torch.no_grad()
def of_nodes(
    module: HasLabels, batch: Batch, p: Tensor, known: Tensor, q: Distributions
) -> tuple[Tensor, Tensor]:
    """Return the calibrated probability of each node, and whether the cell may be of it.

    A cell of none of the known types is of no leaf. It may be of an inner node if it lies no farther from the
    leaves below it than the children of the node lie from one another.

    Parameters
    ----------
    module
        Module that learns from labels.
    batch
        Some cells.
    p
        Probability of each leaf.
    known
        Probability of each cell to be of a known type.
    q
        Posterior of the latents.
    """
    tree, prior, readers = module.prior.hierarchy, module.prior, module.readers
    assert readers is not None
    p_z = prior(batch.condition, q["w"].mean if "w" in q else None)
    near = torch.maximum(prior.near(p_z, q["z"].mean), known.unsqueeze(-1))
    may = torch.cat([known.unsqueeze(-1).expand(-1, tree.n_leaves), near], -1) >= KNOWN
    for node in sorted(range(len(tree)), key=lambda node: -tree.depth[node]):
        if (above := tree.parents[node]) >= 0:
            may[:, above] |= may[:, node]
    return tree.of_nodes(readers.calibrated(p)), may
