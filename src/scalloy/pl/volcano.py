"""Volcano plot of the genes that differ between groups of donors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.transforms import Bbox

from scalloy._arguments import few, one_of
from scalloy.pl._tables import DOWN, UP, comparison

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.text import Text

NEEDED = ("gene", "log2_fold_change", "shrunken", "pvalue", "padj")
GREY = "0.72"
ROOM = 1.12  # share of the height that the highest point leaves for the numbers above it
RADII = (5.0, 10.0, 17.0, 26.0, 38.0, 52.0)  # points from a gene to its name that are tried
ANGLES = np.deg2rad([0, 180, 90, 270, 35, 145, 325, 215, 60, 120, 300, 240])
NEAR = 6.0  # points within which a name needs no line to its gene
STEPS = 12  # places along a line that are looked at
# cost of a name: a gene that it hides, a point of distance, a named gene or its line, another name
COVERS, FAR, NAMED, OVERLAPS = 2.5, 0.12, 8.0, 100.0
SMALLEST = 1e-300  # p-value of zero


def volcano(
    found: pd.DataFrame,
    population: str | None = None,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.05,
    n_labels: int = 10,
    shrunken: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the fold change of each gene against its p-value, and name the clearest genes.

    Significant genes are red if they are higher in the second group and blue if they are lower. Their numbers
    stand in the corners.

    Parameters
    ----------
    found
        Table that :func:`scalloy.compare.expression` returned.
    population
        Name of a population; needed if the table has more than one.
    groups
        Names of both groups, in the order of the table; needed if it has more than one pair.
    level
        Largest adjusted p-value that counts as significant.
    n_labels
        Largest number of genes to name.
    shrunken
        Whether to draw the fold changes that are expected given those of all genes, which are less noisy.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> cells = sa.datasets.trial(600, 20, n_types=2, n_donors=6)
    >>> found = sa.compare.expression(cells, groupby="condition", by="cell_type", donor_key="donor")
    >>> ax = sa.pl.volcano(found, "type_0")
    """
    rows = _chosen(comparison(found, groups, NEEDED, "compare.expression"), population)
    rows = rows[rows["pvalue"].notna() & rows["log2_fold_change"].notna()]
    x = rows["shrunken" if shrunken else "log2_fold_change"].to_numpy(float)
    y = -np.log10(np.maximum(rows["pvalue"].to_numpy(float), SMALLEST))
    significant = (rows["padj"] <= level).to_numpy()
    ax = plt.subplots(figsize=(4.8, 4.2), layout="constrained")[1] if ax is None else ax
    sides = {UP: significant & (x > 0), DOWN: significant & (x < 0)}
    ax.scatter(x[~significant], y[~significant], s=8, color=GREY, linewidths=0, rasterized=True)
    for color, inside in sides.items():
        ax.scatter(x[inside], y[inside], s=12, color=color, alpha=0.75, linewidths=0, rasterized=True)
    wide = 1.08 * max(np.abs(x).max(), 0.1)
    ax.set(xlim=(-wide, wide), ylim=(0, ROOM * max(y.max(), 1.0)), ylabel="-log10 p")
    if significant.any():
        ax.axhline(y[significant].min(), color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(_axis(rows.iloc[0], shrunken), parse_math=False)
    by = _population_column(found)
    if by is not None:
        ax.set_title(str(rows[by].iloc[0]), fontsize="medium", parse_math=False)
    corners = []
    for color, side, word in ((UP, 1, "up"), (DOWN, 0, "down")):
        style = {"ha": "right" if side else "left", "va": "top", "fontsize": "small", "color": color}
        place = {"xycoords": "axes fraction", "xytext": (4 - 8 * side, -3), "textcoords": "offset points"}
        corners.append(ax.annotate(f"{sides[color].sum():,} {word}", (side, 1), **place, **style))
    named = np.flatnonzero(significant)[:n_labels]
    names = rows["gene"].astype(str).to_numpy()
    colors = np.where(x > 0, UP, DOWN)
    _name(ax, x, y, [(int(i), names[i], colors[i]) for i in named], corners)
    return ax


def _population_column(found: pd.DataFrame) -> str | None:
    """Return the name of the column with populations, which stands before the groups."""
    at = found.columns.get_loc("group_a")
    return found.columns[0] if at else None


def _chosen(rows: pd.DataFrame, population: str | None) -> pd.DataFrame:
    """Return the rows of one population, which must have p-values."""
    by = _population_column(rows)
    known = [] if by is None else list(dict.fromkeys(rows[by].astype(str)))
    if by is None and population is not None:
        msg = f"`population={population!r}`, but the table has no populations. Leave it out."
        raise ValueError(msg)
    if len(known) > 1 and population is None:
        msg = f"`found` holds {len(known)} populations: {few(known)}. Pass one of them as `population=`."
        raise ValueError(msg)
    if population is not None:
        rows = rows[rows[by].astype(str) == one_of("population", str(population), known)]
    if "level" in rows and rows["level"].nunique() > 1:
        first = rows["level"].iloc[0]
        msg = (
            f"`found` holds {rows['level'].nunique()} levels of an interaction. Pass the rows of one, "
            f"such as `found[found['level'] == {first!r}]`."
        )
        raise ValueError(msg)
    if not rows["pvalue"].notna().any():
        note = str(rows["note"].iloc[0]) if "note" in rows else ""
        msg = f"There are no p-values to draw: {note or 'none was computed'}. See the column `note`."
        raise ValueError(msg)
    return rows.sort_values("pvalue", kind="stable")


def _axis(row: pd.Series, shrunken: bool) -> str:
    """Return the title of the axis of fold changes."""
    kind = "shrunken log2 fold change" if shrunken else "log2 fold change"
    if "level" in row:
        kind = f"difference in {kind}, {row['level']} from {row['against']}"
    return f"{kind}, {row['group_b']} over {row['group_a']}"


def _name(
    ax: Axes, x: np.ndarray, y: np.ndarray, named: list[tuple[int, str, str]], corners: Sequence[Text]
) -> None:
    """Write names of genes where they hide neither each other nor, if possible, points.

    Places around each gene are tried in turn, the clearest gene first.
    """
    if not named:
        return
    ax.figure.get_figure(root=True).draw_without_rendering()  # so that axes have their final place
    points = ax.transData.transform(np.column_stack([x, y]))
    taken, lines = [text.get_window_extent() for text in corners], np.empty((0, 2))
    important = points[[i for i, _, _ in named]]
    style = {"textcoords": "offset points", "fontsize": "x-small", "ha": "center", "va": "center"}
    for i, name, color in named:
        text = ax.annotate(name, (x[i], y[i]), xytext=(0, 0), color="0.1", parse_math=False, **style)
        box = text.get_window_extent()
        size, pixel = np.array([box.width, box.height]), ax.figure.dpi / 72
        places = [p for p in _places(points[i], size, pixel) if _holds(ax.get_window_extent(), p[0])]
        places = places or list(_places(points[i], size, pixel))[:1]
        costs = [
            FAR * radius
            + COVERS * _inside(box, points, pixel)
            + NAMED * (_inside(box, important, pixel) + _inside(box, lines, pixel))
            + NAMED * sum(_inside(other, line, 0) for other in taken)
            + OVERLAPS * sum(box.overlaps(other) for other in taken)
            for box, line, radius in places
        ]
        best, line, radius = places[int(np.argmin(costs))]
        taken.append(best)
        middle = np.array([best.x0 + best.x1, best.y0 + best.y1]) / 2
        text.set_position(tuple((middle - points[i]) / pixel))
        if radius > NEAR:
            lines = np.vstack([lines, line])
            ends = ax.transData.inverted().transform(line[[0, -1]])
            ax.plot(*ends.T, color=color, linewidth=0.5, zorder=0.5)


def _places(point: np.ndarray, size: np.ndarray, pixel: float) -> Iterator[tuple[Bbox, np.ndarray, float]]:
    """Yield boxes around a point, the line from the point to each, and their distance, the nearest first."""
    for radius in RADII:
        for angle in ANGLES:
            way = np.array([np.cos(angle), np.sin(angle)])
            middle = point + way * (radius * pixel + np.abs(way) * size / 2)
            low, high = middle - size / 2, middle + size / 2
            edge = np.clip(point, low, high)
            yield Bbox([low, high]), np.linspace(point, edge, STEPS), radius


def _holds(outer: Bbox, inner: Bbox) -> bool:
    """Return whether a box lies within another."""
    return all((outer.x0 <= inner.x0, inner.x1 <= outer.x1, outer.y0 <= inner.y0, inner.y1 <= outer.y1))


def _inside(box: Bbox, points: np.ndarray, margin: float) -> int:
    """Return how many points a box covers."""
    low, high = np.array([box.x0, box.y0]) - margin, np.array([box.x1, box.y1]) + margin
    return int(((points >= low) & (points <= high)).all(1).sum())
