"""Plots of clusters against labels, conditions or donors."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from scalloy._arguments import one_of
from scalloy.data.checks import check_type, find_column
from scalloy.pl._legend import legend
from scalloy.pl.latent import MISSING, category_colors, drawable, largest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

KINDS = ("confusion", "composition")
LETTER = 0.08  # width of a letter in inches
TICK = 6  # letters up to which names fit side by side
READABLE = 400  # table entries up to which each is drawn in full
WIDEST = 40.0  # largest width and height of a figure in inches


def clusters(
    adata: AnnData,
    key: str,
    by: str,
    *,
    kind: Literal["confusion", "composition"] = "confusion",
    ax: Axes | None = None,
) -> Axes:
    """Draw which labels the cells of each cluster have.

    Parameters
    ----------
    adata
        Cells with clusters, such as ``obs["cgmdvae_cluster"]``, and labels.
    key
        Column of ``.obs`` with clusters.
    by
        Column of ``.obs`` with labels, conditions or donors.
    kind
        ``"confusion"`` draws the share of each label's cells in each cluster, with the clusters in the order
        that puts most on the diagonal. ``"composition"`` draws the share of each label in each cluster;
        beyond 45 labels, the smaller ones are drawn together.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> model.annotate(adata)
    >>> ax = sa.pl.clusters(adata, "cgmdvae_cluster", by="cluster")
    """
    one_of("kind", kind, KINDS)
    check_type(adata)
    columns = [drawable(find_column(adata.obs, argument, k)) for argument, k in (("by", by), ("key", key))]
    table = pd.crosstab(*columns)
    if table.empty:
        msg = f"No cell has values (not NaN) in both `key={key!r}` and `by={by!r}`. Pass other columns."
        raise ValueError(msg)
    return _confusion(table, key, by, ax) if kind == "confusion" else _composition(adata, table, key, by, ax)


def _confusion(table: pd.DataFrame, key: str, by: str, ax: Axes | None) -> Axes:
    """Draw the share of each label's cells in each cluster."""
    share = table.div(table.sum(axis=1), axis=0)
    rows, columns = linear_sum_assignment(-share.to_numpy())
    matched = columns[np.argsort(rows)]
    rest = [j for j in np.argsort(-table.sum().to_numpy()) if j not in set(matched)]
    share = share.iloc[:, [*matched, *rest]]
    said = f"share of the cells of each {by}"
    if ax is None:
        beside, below = _letters(share.index), _letters(share.columns)
        tall = max(0.36 * share.shape[0], LETTER * _letters([by, "of the cells"]))
        said = _lines(said, tall + 0.5)  # with half of what is around the axes
        ax = _axes(
            1.6 + 0.2 * (1 + said.count("\n")) + LETTER * beside + 0.42 * share.shape[1],
            1.1 + LETTER * below + tall,
        )
    else:
        said = _lines(said, ax.bbox.height / ax.figure.dpi)
    _shares(ax, share, said)
    _name_columns(ax, share.columns, 8, "medium")
    ax.set(xlabel=key, ylabel=by)
    return ax


def _shares(ax: Axes, share: pd.DataFrame, said: str) -> None:
    """Draw a table of shares with their percentages, the names of its rows, and a bar of colours."""
    picture = ax.imshow(share.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if share.size <= READABLE:
        for (i, j), value in np.ndenumerate(share.to_numpy()):
            if value >= 0.005:
                shade = "w" if value > 0.6 else "0.15"
                ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    ax.set_yticks(range(share.shape[0]), share.index, fontsize=_size(ax, share.shape[0], 1, "medium"))
    ax.figure.colorbar(picture, ax=ax, label=said)


def _letters(names: Sequence[Any]) -> int:
    """Number of letters of the longest name."""
    return max((len(str(name)) for name in names), default=0)


def _lines(text: str, inches: float) -> str:
    """Break a text into lines that are no longer than this, if its words are not."""
    return textwrap.fill(text, max(1, round(inches / LETTER)), break_long_words=False)


def _name_columns(ax: Axes, names: Sequence[Any], most: int, fontsize: str) -> None:
    """Label the columns, upright if there are more than ``most`` or if they are too long side by side."""
    longest = _letters([line for name in names for line in str(name).splitlines()])
    turned = len(names) > most or (len(names) > 1 and longest > TICK)
    size = _size(ax, len(names), 0, fontsize)
    ax.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if turned else 0)


def _axes(width: float, height: float) -> Axes:
    """Make axes in a figure of this size in inches, unless that is too large."""
    shape = min(width, WIDEST), min(height, WIDEST)
    return plt.subplots(figsize=shape, layout="constrained")[1]


def _size(ax: Axes, n: int, side: int, usual: str) -> str | float:
    """Font size of names side by side: the usual one, or a smaller one if so many need it."""
    points = 72 * ax.figure.get_size_inches()[side] * 0.8 / max(n, 1)
    return usual if points > 10 else max(2.0, 0.8 * points)


def _lumped(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the labels with the most cells and add up the others, if there are too many to tell apart."""
    kept = largest(table.sum(axis=1).to_numpy())
    rest = table.drop(index=table.index[kept])
    if rest.empty:
        return table
    others = rest.sum().to_frame(f"{len(rest):,} others").T
    return pd.concat([table.iloc[kept], others])


def _composition(adata: AnnData, table: pd.DataFrame, key: str, by: str, ax: Axes | None) -> Axes:
    """Draw the share of each label in each cluster as stacked bars."""
    share = _lumped(table).div(table.sum(), axis=1)
    if ax is None:
        ax = _axes(
            2.1 + LETTER * _letters(share.index) + 0.4 * share.shape[1],
            3 + LETTER * _letters(share.columns),
        )
    names = list(drawable(adata.obs[by]).astype("category").cat.categories)  # colours count empty ones too
    colors, below = dict(zip(names, category_colors(adata, by, len(names)))), np.zeros(share.shape[1])
    bars = []
    for name, row in zip(share.index, share.to_numpy(), strict=True):
        at = np.flatnonzero(row) if share.size > READABLE else np.arange(len(row))
        shade = colors.get(name, MISSING)
        bars.append(ax.bar(at, row[at], bottom=below[at], width=0.85, color=shade, label=str(name)))
        below = below + row
    ticks = [f"{c}\n{n:,}" for c, n in table.sum().items()]
    _name_columns(ax, ticks, 12, "small")
    ax.set(xlabel=f"{key}, number of cells", ylabel=f"share of each {by}", ylim=(0, 1))
    ax.margins(x=0.01)
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    legend(ax, bars, list(share.index), fontsize="small", reverse=True, **place)
    return ax
