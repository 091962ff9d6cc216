"""Plot of the distances between donors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from scipy.cluster.hierarchy import dendrogram

from scalloy._arguments import one_of
from scalloy.pl._legend import legend
from scalloy.pl.latent import MOST, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scalloy.compare.donors import DonorMap

LEAST, MOST_WIDE, EACH = 3.0, 6.0, 0.3  # inches of the matrix at least and at most, and for a donor
SMALLEST, LARGEST = 4.5, 9.0  # points of names; smaller ones are left out
LONG = 24  # letters of a name that are drawn
PLAIN = "tab:blue"
NEAR, STEPS = 8.0, 7  # points above a point where its name needs no line, and places for names further away
SAID = {"energy": "energy distance (root)", "mmd": "maximum mean discrepancy"}


def donors(found: DonorMap, color: str | None = None, *, ax: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw the distances between donors as a matrix in the order of their tree, and as a map.

    Parameters
    ----------
    found
        Distances that :func:`scalloy.compare.donors` returned.
    color
        Covariate (of those that were passed to ``compare.donors``) that colours the donors; ``None`` has one
        colour.
    ax
        Two axes to draw into, for the matrix and for the map; ``None`` makes new ones.

    Returns
    -------
    The two axes.

    Examples
    --------
    >>> adata.obs["lane"] = [f"lane {i % 6}" for i in range(adata.n_obs)]
    >>> adata.obs["run"] = [f"run {i % 2}" for i in range(adata.n_obs)]
    >>> found = sa.compare.donors(model, donor_key="lane", covariates="run")
    >>> matrix, map_of_donors = sa.pl.donors(found, "run")
    """
    if color is not None:
        one_of("color", color, list(found.covariates))
    n = len(found.distances)
    if ax is None:
        wide = float(np.clip(EACH * n, LEAST, MOST_WIDE))
        widths = [wide + 1.4, wide + (2.0 if color else 0.6)]
        figure = plt.figure(figsize=(sum(widths), wide + 1.3), layout="constrained")
        ax = figure.subplots(1, 2, width_ratios=widths)
    axes = np.asarray(ax, dtype=object).ravel()
    if len(axes) != 2:
        msg = f"`ax` has {len(axes)} axes. Pass two: for the matrix and for the map."
        raise ValueError(msg)
    shades, key = _colors(found, color)
    _matrix(axes[0], found, shades, color)
    _map(axes[1], found, shades, key, color)
    return axes


def _colors(found: DonorMap, color: str | None) -> tuple[np.ndarray, Any]:
    """Return the colour of each donor, and what explains it: names with colours, or a scale of numbers."""
    if color is None:
        return np.tile(plt.matplotlib.colors.to_rgb(PLAIN), (len(found.distances), 1)), None
    values = found.covariates[color]
    if pd.api.types.is_numeric_dtype(values):
        scale = ScalarMappable(Normalize(values.min(), values.max()), "viridis")
        return scale.to_rgba(values.to_numpy())[:, :3], scale
    code, names = pd.factorize(values, sort=True)
    shades = palette(len(names))
    return shades[code], (list(names), shades)


def _matrix(ax: Axes, found: DonorMap, shades: np.ndarray, color: str | None) -> None:
    """Draw the matrix of distances, the covariate above it, and the tree above that."""
    tree = dendrogram(found.tree, no_plot=True)
    order, n = tree["leaves"], len(shades)
    root = np.sqrt(np.maximum(found.distances.to_numpy(), 0.0))[np.ix_(order, order)]
    picture = ax.imshow(root, cmap="magma_r", aspect="equal", interpolation="nearest", vmin=0)
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.6, pad=0.03)
    bar.set_label(SAID[found.distance], fontsize="small")
    bar.ax.tick_params(labelsize="x-small")
    bar.outline.set_visible(False)
    size = _size(ax, n)
    ax.set_xticks([])
    ax.set_yticks([])
    if size:
        names = [_short(found.distances.index[i]) for i in order]
        ax.set_yticks(range(n), names, fontsize=size, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    low = 1.015
    if color is not None:
        strip = ax.inset_axes([0, low, 1, 0.045])
        strip.imshow(shades[order][None], aspect="auto", interpolation="nearest")
        strip.set_xticks([])
        strip.set_yticks([0], [_short(color)], fontsize="small", parse_math=False)
        strip.tick_params(length=0)
        strip.spines[:].set_visible(False)
        low += 0.06
    above = ax.inset_axes([0, low, 1, 0.18])
    x = (np.array(tree["icoord"]) - 5) / 10
    lines = [np.column_stack(line) for line in zip(x, tree["dcoord"], strict=True)]
    above.add_collection(LineCollection(lines, colors="0.3", linewidths=1.0))
    top = max(float(np.max(tree["dcoord"])), 1e-12)
    above.set(xlim=(-0.5, n - 0.5), ylim=(-0.01 * top, 1.03 * top))
    above.axis("off")


def _map(ax: Axes, found: DonorMap, shades: np.ndarray, key: Any, color: str | None) -> None:
    """Draw donors in two dimensions, with their names."""
    xy, n = found.coordinates.to_numpy(), len(shades)
    ax.scatter(*xy.T, c=shades, s=42 if n <= 20 else 26, edgecolors="w", linewidths=0.6, zorder=3)
    share = found.coordinates.attrs.get("share", [np.nan] * 2)
    ax.set_xlabel(f"MDS 1 ({100 * share[0]:.0f} %)", fontsize="small")
    ax.set_ylabel(f"MDS 2 ({100 * share[1]:.0f} %)", fontsize="small")
    ax.tick_params(labelsize="x-small")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.18)
    if isinstance(key, tuple) and len(key[0]) <= MOST:
        dots = [plt.Line2D([], [], marker="o", linestyle="", color=shade) for shade in key[1][: len(key[0])]]
        style = {
            "loc": "upper left",
            "bbox_to_anchor": (1, 1),
            "fontsize": "small",
            "title_fontsize": "small",
        }
        legend(ax, dots, key[0], title=color, **style).get_title().set_parse_math(False)
    elif isinstance(key, ScalarMappable):
        bar = ax.figure.colorbar(key, ax=ax, shrink=0.6, pad=0.03)
        bar.set_label(color, fontsize="small", parse_math=False)
        bar.ax.tick_params(labelsize="x-small")
        bar.outline.set_visible(False)
    names = [_short(name) for name in found.coordinates.index]
    _name(ax, xy, names, 8.0 if n <= 20 else 6.0)


def _size(ax: Axes, n: int) -> float:
    """Return the size of the names of rows in points; 0 if they would not be legible."""
    points = 72 * ax.get_window_extent().height / ax.figure.dpi / n * 0.72
    return min(LARGEST, points) if points >= SMALLEST else 0.0


def _short(name: str) -> str:
    """Cut a long name."""
    return name if len(name) <= LONG else name[: LONG - 1] + "…"


def _name(ax: Axes, xy: np.ndarray, names: list[str], size: float) -> None:
    """Write names beside points, where they cover the fewest points and names, within the axes.

    Where points are crowded, a thin line leads from a point to its name.
    """
    ax.figure.canvas.draw()  # so that places of points are known
    at = ax.transData.transform(xy) * 72 / ax.figure.dpi
    inside = ax.bbox.extents * 72 / ax.figure.dpi
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in at]
    for (x, y), point, name in zip(at, xy, names, strict=True):
        wide, best = 0.56 * size * len(name), None
        for dx, dy in _places(wide, size):
            low = y + dy - size / 2
            box = (x + dx, low, x + dx + wide, low + size)
            covered = sum(_overlap(box, other) for other in taken) + wide * size - _overlap(box, inside)
            if best is None or covered < best[0] - 1e-9:
                best = covered, dx, dy, box
        _, dx, dy, box = best
        taken.append(box)
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6", "shrinkA": 0, "shrinkB": 3}
        text = ax.annotate(
            name,
            point,
            (dx + wide / 2, dy),
            textcoords="offset points",
            fontsize=size,
            ha="center",
            va="center",
            color="0.2",
            arrowprops=line if abs(dy) > NEAR else None,
        )
        text.set_parse_math(False)


def _places(wide: float, size: float) -> Iterator[tuple[float, float]]:
    """Yield places of a name relative to its point in points, the nearest first."""
    yield from ((5, 0), (-5 - wide, 0), (-wide / 2, NEAR), (-wide / 2, -NEAR))
    for step in range(1, STEPS):
        for dy in (step * size, -step * size):
            yield from (
                (4 + 2 * step, dy),
                (-4 - 2 * step - wide, dy),
                (-wide / 2, dy + np.copysign(NEAR, dy)),
            )


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
