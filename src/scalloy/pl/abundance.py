"""Plots of populations that are more or less frequent in one group of donors than in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import transforms
from matplotlib.lines import Line2D

from scalloy.compare.populations import is_of_neighbourhoods
from scalloy.pl._legend import legend
from scalloy.pl._tables import DOWN, OTHER, UP, comparison, donors_of, effect_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEEDED = ("share_a", "share_b", "effect", "lower", "upper", "padj", "unchanged")
LETTER = 4.3  # points of a small letter
ROW = 0.27  # inches of a row
WIDEST = 1.6  # multiple of the largest effect beyond which intervals are cut off
BELOW = 34  # points from the axis to the legend below it


def abundance(
    found: pd.DataFrame,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.1,
    ax: Axes | None = None,
) -> Axes:
    """Draw the change of each population with its 95 % interval, as a forest plot.

    Populations that are significantly more frequent are red, and those that are significantly less frequent
    are blue. Open circles are populations that were taken not to change, with which the others are compared.
    Numbers on the right are mean shares of the donors' cells. Intervals that end in an arrow go on.

    Parameters
    ----------
    found
        Table that :func:`scalloy.compare.abundance` returned.
    groups
        Names of both groups, in the order of the table; needed if it has more than one pair.
    level
        Largest adjusted p-value that counts as significant.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> cells = sa.datasets.trial(600, 20, n_donors=6)
    >>> found = sa.compare.abundance(cells, groupby="condition", by="cell_type", donor_key="donor")
    >>> ax = sa.pl.abundance(found)
    """
    if is_of_neighbourhoods(found):
        msg = (
            "`found` holds neighbourhoods. Call `pl.neighbourhoods(found, adata, groupby=...)` to draw them."
        )
        raise ValueError(msg)
    rows = comparison(found, groups, NEEDED, "compare.abundance")
    rows = rows.sort_values("effect", kind="stable", na_position="first")
    names = population_names(rows)
    if ax is None:
        wide = 3.6 + LETTER / 72 * (1.5 * max(map(len, names)) + 2 * _wide(rows))
        ax = plt.subplots(figsize=(wide, 1.5 + ROW * len(rows)), layout="constrained")[1]
    colors = np.array([_color(row, level) for row in rows.itertuples()], dtype=object)
    _draw(ax, rows, colors)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), names, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel(effect_name(rows), parse_math=False)
    ax.set_title(donors_of(rows), fontsize="small", loc="left", parse_math=False)
    _shares(ax, rows)
    _legend(ax, rows, colors, level)
    return ax


def population_names(rows: pd.DataFrame) -> list[str]:
    """Return the name of each population; nodes of a tree are told apart by the number of clusters."""
    if "n_clusters" in rows:
        return [f"{row['cluster']} (of {row['n_clusters']})" for _, row in rows.iterrows()]
    return rows.iloc[:, 0].astype(str).tolist()


def _wide(rows: pd.DataFrame) -> int:
    """Return the number of letters of a column of shares."""
    return max(7, *(len(str(rows[name].iloc[0])) + 2 for name in ("group_a", "group_b")))


def _color(row: Any, level: float) -> str:
    """Return the colour of a population."""
    if not row.padj <= level:
        return OTHER
    return UP if row.effect > 0 else DOWN


def _draw(ax: Axes, rows: pd.DataFrame, colors: np.ndarray) -> None:
    """Draw effects and intervals, and choose the limits of the axis."""
    effect = rows["effect"].to_numpy(float)
    low, high = rows["lower"].to_numpy(float), rows["upper"].to_numpy(float)
    size = np.abs(effect[np.isfinite(effect)])
    most = WIDEST * max(size.max(initial=0.0), 0.25)
    edges = np.clip([np.nanmin([*low, *effect, -0.1]), np.nanmax([*high, *effect, 0.1])], -most, most)
    margin = 0.06 * np.ptp(edges)
    ax.set_xlim(edges[0] - margin, edges[1] + margin)
    for y, (x, a, b, color, same) in enumerate(
        zip(effect, low, high, colors, rows["unchanged"].astype(bool), strict=True)
    ):
        if not np.isfinite(x):
            note = str(rows["note"].iloc[y]) if "note" in rows else ""
            at = {"xytext": (3, 0), "textcoords": "offset points", "fontsize": "x-small", "va": "center"}
            ax.annotate(note, (0, y), color=OTHER, parse_math=False, **at)
            continue
        if np.isfinite(a) and np.isfinite(b):
            ax.plot(np.clip([a, b], *edges), [y, y], color=color, linewidth=1.6, zorder=1)
            for end, mark, beyond in ((edges[0], "<", a < edges[0]), (edges[1], ">", b > edges[1])):
                if beyond:
                    ax.plot([end], [y], mark, color=color, markersize=4)
        face = "w" if same else color
        ax.plot([x], [y], "o", color=color, markerfacecolor=face, markersize=6.5, markeredgewidth=1.4)


def _shares(ax: Axes, rows: pd.DataFrame) -> None:
    """Write the mean shares of both groups to the right of the axes."""
    step = LETTER * _wide(rows)
    style = {"textcoords": "offset points", "annotation_clip": False, "fontsize": "x-small", "color": "0.3"}
    style["parse_math"] = False
    corner = {"xy": (1, 1), "xycoords": "axes fraction"}
    ax.annotate("share of cells", xytext=(1.4 * step, 12), ha="center", **corner, **style)
    for i, side in enumerate("ab"):
        right, at = {"ha": "right", **style}, step * (i + 1)
        for y, share in enumerate(rows[f"share_{side}"]):
            text = "" if np.isnan(share) else f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
            place = {"xy": (1, y), "xycoords": ax.get_yaxis_transform(), "xytext": (at, 0)}
            ax.annotate(text, va="center", **place, **right)
        ax.annotate(str(rows[f"group_{side}"].iloc[0]), xytext=(at, 2), va="bottom", **corner, **right)


def _legend(ax: Axes, rows: pd.DataFrame, colors: np.ndarray, level: float) -> None:
    """Draw the legend of the marks that occur, below the axes."""
    name = str(rows["group_b"].iloc[0])
    known, same = rows["effect"].notna().to_numpy(), rows["unchanged"].to_numpy(bool)
    asked = {
        f"more in {name} (FDR {level:.0%})": (UP, UP, known & (colors == UP)),
        f"fewer in {name} (FDR {level:.0%})": (DOWN, DOWN, known & (colors == DOWN)),
        "not significant": (OTHER, OTHER, known & (colors == OTHER) & ~same),
        "taken not to change": (OTHER, "w", known & same),
    }
    shown = {label: style[:2] for label, style in asked.items() if style[2].any()}
    marks = [
        Line2D([], [], marker="o", color=color, markerfacecolor=face, linewidth=1.6)
        for color, face in shown.values()
    ]
    below = ax.transAxes + transforms.ScaledTranslation(0, -BELOW / 72, ax.figure.dpi_scale_trans)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    style = {"fontsize": "small", "ncols": 2, "columnspacing": 1.2, "borderaxespad": 0}
    if marks:
        legend(ax, marks, list(shown), **place, **style)
