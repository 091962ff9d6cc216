"""Plot of the tree of clusters of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from scalloy.models._core.clusters import cut_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scalloy.models._core.base import ScalloyModel

ROW, LEVEL, BESIDE = 0.34, 0.42, 2.2  # inches for a cluster, for a division, and for names
THICKEST = 9.0  # points, of a line for all cells


@dataclass
class _Node:
    """A cluster between the division that makes it and the one that ends it, in numbers of clusters."""

    name: str
    cells: float
    begin: int
    end: int
    parts: list[_Node] = field(default_factory=list)
    y: float = 0.0


def cluster_tree(
    model: ScalloyModel, n: int | str | None = None, *, markers: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw how clusters are divided, from one cluster on the left to ``n`` on the right.

    The width of a line shows the number of cells. The colour of a division shows which share of the votes of
    several methods put its parts apart; a dashed line is the number of clusters that the model has.

    Parameters
    ----------
    model
        Trained model with clusters.
    n
        Number of clusters on the right, ``"coarse"`` or ``"fine"``, as in ``model.get_clusters``; ``None`` is
        the number that the model has.
    markers
        Number of marker genes that are written at each part of a division.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> ax = sa.pl.cluster_tree(model)
    """
    last, own = len(cut_at(model, n).names), len(model.cluster_names)
    tree = model.get_cluster_tree(markers).loc[:last]
    root = _nodes(tree, model, last)
    if ax is None:
        wide, high = (1.9, 1.5) if markers else (1.0, 1.0)
        size = (BESIDE + LEVEL * last * wide, 1.2 + ROW * last * high)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    _place(root, iter(range(last)))
    _draw(ax, root, root)
    colors = plt.get_cmap("viridis")
    for row, node in zip(tree.itertuples(), _divided(root), strict=True):
        ys = [part.y for part in node.parts]
        ax.plot([node.end] * 2, ys, color=colors(row.apart), linewidth=3, zorder=3)
        for part, text in zip(node.parts, (getattr(row, f"{p}_markers", "") for p in ("larger", "smaller"))):
            above = 1 + _width(part, root) / 2
            ax.annotate(text, (node.end, part.y), (4, above), textcoords="offset points", fontsize=6)
    bar = ax.figure.colorbar(plt.cm.ScalarMappable(plt.Normalize(0, 1), colors), ax=ax, shrink=0.6)
    bar.set_label("share of votes that put the parts apart")
    if own < last:
        ax.axvline(own + 0.5, color="0.5", linestyle="--", linewidth=1)
    ax.set(xlabel="number of clusters", xlim=(0.7, last + 1), ylim=(last - 0.5, -0.5), yticks=[])
    ax.set_xticks(np.unique(np.linspace(1, last, min(last, 10)).round()))
    ax.spines[["left", "right", "top"]].set_visible(False)
    return ax


def _nodes(tree: Any, model: ScalloyModel, last: int) -> _Node:
    """Return the root of the tree, with the nodes below it."""
    total = float(tree[["larger_cells", "smaller_cells"]].iloc[0].sum()) if len(tree) else 1.0
    first = tree["divided"].iloc[0] if len(tree) else model.cluster_names[0]
    root = _Node(str(first), total, 1, last + 1)
    now = {root.name: root}
    for row in tree.itertuples():
        node = now.pop(row.divided)
        node.end = row.Index
        for name, cells in ((row.larger, row.larger_cells), (row.smaller, row.smaller_cells)):
            now[name] = _Node(name, cells, row.Index, last + 1)
            node.parts.append(now[name])
    return root


def _place(node: _Node, places: Any) -> None:
    """Put the final clusters below each other, and each other one in the middle of its parts."""
    for part in node.parts:
        _place(part, places)
    node.y = float(np.mean([part.y for part in node.parts])) if node.parts else float(next(places))


def _width(node: _Node, root: _Node) -> float:
    """Return the width of the line of a cluster, in points."""
    return max(0.8, THICKEST * float(np.sqrt(node.cells / root.cells)))


def _draw(ax: Axes, node: _Node, root: _Node) -> None:
    """Draw the line of a cluster and of those that it is divided into."""
    ax.plot(
        [node.begin, node.end],
        [node.y, node.y],
        color="0.35",
        linewidth=_width(node, root),
        solid_capstyle="butt",
    )
    if not node.parts:
        text = f"{node.name}  ({node.cells:,.0f})"
        ax.annotate(text, (node.end, node.y), (6, -3), textcoords="offset points", fontsize=8)
    for part in node.parts:
        _draw(ax, part, root)


def _divided(root: _Node) -> list[_Node]:
    """Return the clusters that are divided, in the order of the divisions."""
    found, todo = [], [root]
    while todo:
        node = todo.pop()
        todo += node.parts
        found += [node] if node.parts else []
    return sorted(found, key=lambda node: node.end)
