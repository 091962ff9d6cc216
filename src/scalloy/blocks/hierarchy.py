"""Tree of labels by their codes: leaves first, then inner nodes; any later code stands for an unknown label.

A cell that is known as an inner node is of one of the leaves below it. Without inner nodes, every label is a
root of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROOT = -1  # parent of a node that has none


class Hierarchy:
    """Tree of labels by their codes.

    Parameters
    ----------
    n_leaves
        Number of leaves.
    parents
        Code of the parent of each node, ``ROOT`` if it has none; ``None`` means that all nodes are roots.

    Attributes
    ----------
    below
        Whether each leaf is the node or below it, ``(nodes, leaves)``.
    """

    def __init__(self, n_leaves: int, parents: Sequence[int] | None = None) -> None:
        self.n_leaves = n_leaves
        self.parents = tuple([ROOT] * n_leaves if parents is None else parents)
        self.below = torch.zeros(len(self.parents), n_leaves, dtype=torch.bool, device="cpu")
        for leaf in range(n_leaves):
            self.below[self.path(leaf), leaf] = True

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def n_inner(self) -> int:
        """Number of inner nodes."""
        return len(self) - self.n_leaves

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root to a node, which is the last of them."""
        out = [node]
        while (parent := self.parents[out[-1]]) != ROOT:
            out.append(parent)
        return out[::-1]

    def children(self, node: int) -> list[int]:
        """Return the children of a node; those of ``ROOT`` are the roots."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def at_or_below(self, node: int) -> list[int]:
        """Return the codes of a node and of all nodes below it."""
        return [other for other in range(len(self)) if node in self.path(other)]

    @property
    def depth(self) -> list[int]:
        """Depth of each node; that of a root is 1."""
        return [len(self.path(node)) for node in range(len(self))]

    def splits(self) -> list[int]:
        """Return the nodes with several children, parents before their children; ``ROOT`` is the first."""
        inner = sorted(range(self.n_leaves, len(self)), key=lambda node: self.depth[node])
        return [node for node in (ROOT, *inner) if len(self.children(node)) > 1]

    def of_nodes(self, p: Tensor) -> Tensor:
        """Return the probability of each node, ``(..., leaves)`` to ``(..., nodes)``: a sum of leaves."""
        return torch.cat([p, p @ self.below[self.n_leaves :].T.to(p)], -1) if self.n_inner else p

    def deepest(self, p: Tensor, possible: Tensor, level: float) -> Tensor:
        """Return the deepest node of each cell with at least a probability; ``ROOT`` if there is none.

        Parameters
        ----------
        p
            Probability of each node, ``(n, nodes)``.
        possible
            Whether each node is possible for the cell, ``(n, nodes)``.
        level
            Smallest probability.
        """
        depth = torch.tensor(self.depth, dtype=p.dtype, device=p.device)
        rank = torch.where((p >= level) & possible, depth + p / 2, torch.zeros_like(p))
        best = rank.max(-1)
        return torch.where(best.values > 0, best.indices, ROOT)
