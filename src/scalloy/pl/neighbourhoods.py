"""Plots of neighbourhoods of cells that are more or less frequent in one group of donors than in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm

from scalloy._arguments import few
from scalloy.data.arrays import check_obsm
from scalloy.data.checks import check_type, complete_column
from scalloy.pl._tables import comparison, donors_of, effect_name

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scalloy.models._core.base import ScalloyModel

NEEDED = ("cell", "n_cells", "effect", "padj")
COLORS = "RdBu_r"
GREY, CELLS = "0.72", "0.88"
SHOWN = 0.98  # share of the effects within which colours differ
LARGEST = 45.0  # area of the largest neighbourhood in square points
DOTS, STEP = 70, 0.12  # dots that fit side by side along the axis, and the step to the next line of dots
HALF = 0.4  # half of the height of a row that dots fill


def neighbourhoods(
    found: pd.DataFrame,
    data: AnnData | ScalloyModel,
    *,
    groupby: str | None = None,
    basis: str | None = None,
    groups: Sequence[str] | None = None,
    level: float = 0.1,
    ax: Axes | None = None,
) -> Axes:
    """Draw the change of each neighbourhood, by label of its centre or in an embedding.

    Each dot is a neighbourhood. It has a colour if its change is significant, and is grey otherwise. Pass
    ``groupby`` or ``basis``.

    Parameters
    ----------
    found
        Table that :func:`scalloy.compare.abundance` returned with ``by="neighbourhoods"``.
    data
        Cells that were compared, or the trained model with them.
    groupby
        Column of ``.obs`` with labels, such as cell types. Each label is a row of dots, and the number of
        significant neighbourhoods stands on the right.
    basis
        Key of ``.obsm`` with an embedding, such as ``"X_umap"``. Neighbourhoods are drawn at their centres,
        with an area in proportion to their number of cells.
    groups
        Names of both groups, in the order of the table; needed if it has more than one pair.
    level
        Largest adjusted p-value that counts as significant.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> cells = sa.datasets.trial(600, 20, n_donors=6)
    >>> cells.obsm["X_pca"] = sa.pl.embedding(np.log1p(cells.X.toarray()), method="pca")
    >>> asked = {"groupby": "condition", "by": "neighbourhoods", "donor_key": "donor"}
    >>> found = sa.compare.abundance(cells, use_rep="X_pca", **asked)
    >>> ax = sa.pl.neighbourhoods(found, cells, groupby="cell_type")
    >>> ax = sa.pl.neighbourhoods(found, cells, basis="X_pca")
    """
    if (groupby is None) == (basis is None):
        msg = "Pass either `groupby=`, a column of labels, or `basis=`, an embedding such as 'X_umap'."
        raise ValueError(msg)
    rows = comparison(found, groups, NEEDED, "compare.abundance(..., by='neighbourhoods')")
    rows = rows[rows["effect"].notna()]
    adata = data.reader.manager().adata if hasattr(data, "get_latent_representation") else check_type(data)
    centre = _centres(rows, adata)
    significant = (rows["padj"] <= level).to_numpy()
    order = np.lexsort([rows["effect"].abs(), significant])  # the clearest on top
    rows, centre, significant = rows.iloc[order], centre[order], significant[order]
    size = np.abs(rows["effect"].to_numpy(float))
    most = max(float(np.quantile(size, SHOWN)), 1e-6) if len(size) else 1.0
    style = {"cmap": COLORS, "norm": TwoSlopeNorm(0.0, -most, most)}
    if groupby is not None:
        labels = complete_column(adata.obs, "groupby", groupby).astype(str).to_numpy()[centre]
        ax = _swarm(ax, rows, labels, significant, style)
        ax.set_ylabel(groupby, parse_math=False)
    else:
        xy = check_obsm(adata, "basis", basis, " Run `sc.tl.umap(adata)` first, for instance.")
        ax = _embedded(ax, rows, xy[:, :2], centre, significant, style)
        name = str(basis).removeprefix("X_")
        ax.set(xlabel=f"{name} 1", ylabel=f"{name} 2", xticks=[], yticks=[])
    said = f"{significant.sum():,} of {len(rows):,} neighbourhoods change (FDR {level:.0%})"
    said = f"{said}\n{donors_of(rows)}" if len(rows) else said
    ax.set_title(said, fontsize="small", loc="left", parse_math=False)
    return ax


def _centres(rows: pd.DataFrame, adata: AnnData) -> np.ndarray:
    """Return the positions of the centre cells."""
    names = adata.obs_names.astype(str)
    if not names.is_unique:
        msg = "Names of cells occur more than once, so no centre is found. Call `obs_names_make_unique()`."
        raise ValueError(msg)
    centre = names.get_indexer(rows["cell"].astype(str))
    if (centre < 0).any():
        lacking = rows["cell"][centre < 0]
        msg = (
            f"{len(lacking)} centre(s) of neighbourhoods are not among the cells: {few(lacking)}. Pass the "
            "cells that were compared."
        )
        raise ValueError(msg)
    return centre


def _swarm(
    ax: Axes | None, rows: pd.DataFrame, labels: np.ndarray, significant: np.ndarray, style: dict[str, Any]
) -> Axes:
    """Draw a row of dots for each label, those with the largest mean effect at the top."""
    effect = rows["effect"].to_numpy(float)
    mean = {name: effect[labels == name].mean() for name in np.unique(labels)}
    names = sorted(mean, key=lambda name: mean[name])
    if ax is None:
        wide = 4.6 + 0.075 * max(map(len, names), default=0)
        ax = plt.subplots(figsize=(wide, 1.2 + 0.48 * len(names)), layout="constrained")[1]
    place = np.empty(len(effect))
    for y, name in enumerate(names):
        inside = labels == name
        place[inside] = y + _side_by_side(effect[inside], np.ptp(effect))
        said = f"{(significant & inside).sum():,} of {inside.sum():,}"
        at = {"xytext": (5, 0), "textcoords": "offset points", "annotation_clip": False, "va": "center"}
        ax.annotate(said, (1, y), xycoords=ax.get_yaxis_transform(), fontsize="x-small", color="0.3", **at)
    ax.scatter(effect[~significant], place[~significant], s=11, color=GREY, linewidths=0)
    shown = {"s": 16, "linewidths": 0.4, "edgecolors": "0.25"}
    ax.scatter(effect[significant], place[significant], c=effect[significant], **shown, **style)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel(effect_name(rows), parse_math=False)
    return ax


def _side_by_side(x: np.ndarray, width: float) -> np.ndarray:
    """Return how far dots move aside so that none hides another: each to the nearest place that is free."""
    moved, ends = np.zeros(len(x)), list[float]()  # the last dot of each line of dots
    for i in np.argsort(x, kind="stable"):
        free = next((k for k, end in enumerate(ends) if x[i] - end >= width / DOTS), len(ends))
        ends[free : free + 1] = [float(x[i])]
        moved[i] = (free + 1) // 2 * (1 if free % 2 else -1)
    return moved * min(STEP, HALF / max(np.abs(moved).max(initial=0.0), 1.0))


def _embedded(
    ax: Axes | None,
    rows: pd.DataFrame,
    xy: np.ndarray,
    centre: np.ndarray,
    significant: np.ndarray,
    style: dict[str, Any],
) -> Axes:
    """Draw cells in light grey, and neighbourhoods at their centres."""
    ax = plt.subplots(figsize=(5.6, 4.4), layout="constrained")[1] if ax is None else ax
    dot = min(60_000 / len(xy) ** 1.15, 12)
    ax.scatter(*xy.T, s=dot, color=CELLS, linewidths=0, rasterized=True, zorder=0)
    area = LARGEST * (rows["n_cells"] / rows["n_cells"].max()).to_numpy(float)
    at, effect = xy[centre], rows["effect"].to_numpy(float)
    ring = {"linewidths": 0.5, "edgecolors": "0.55", "facecolors": "none"}
    ax.scatter(*at[~significant].T, s=area[~significant] * 0.6, **ring)
    shown = {"c": effect[significant], "linewidths": 0.5, "edgecolors": "0.2"}
    points = ax.scatter(*at[significant].T, s=area[significant], **shown, **style)
    if significant.any():
        bar = ax.figure.colorbar(points, ax=ax, shrink=0.8, extend="both")
        bar.set_label(effect_name(rows), fontsize="small", parse_math=False)
    return ax
