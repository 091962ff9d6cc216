"""Plots of effects of conditions with structure: dose curves, and combinations beside their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from scalloy._arguments import few
from scalloy.pl._legend import legend

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

MOST_GENES = 4  # largest number of genes that are drawn, unless they are named


def dose_response(
    frame: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    groups: Sequence[str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw dose curves with their intervals, one panel for each gene and one colour for each group.

    Curves are dashed beyond the doses that were seen.

    Parameters
    ----------
    frame
        Result of ``model.dose_response(...)``.
    genes
        Names of genes; ``None`` is those that change most.
    groups
        Names of groups; ``None`` is all.
    axes
        Axes to draw into, one for each gene; ``None`` makes new ones.

    Examples
    --------
    >>> curves = screened.dose_response("drug_1", doses=[0.1, 1.0, 10.0])
    >>> axes = sa.pl.dose_response(curves, ["gene_3"])
    """
    known = list(dict.fromkeys(frame["gene"]))
    if genes is None:
        size = frame["log_fold_change"].abs().groupby(frame["gene"]).max()
        genes = size.sort_values(ascending=False, kind="stable").index[:MOST_GENES].tolist()
    if lacks := [gene for gene in genes if gene not in known]:
        msg = f"`genes` names {few(map(repr, lacks))}, which the table lacks. It has: {few(known)}."
        raise ValueError(msg)
    groups = list(dict.fromkeys(frame["group"])) if groups is None else list(groups)
    if axes is None:
        size = (3.2 * len(genes) + 1.2, 3.0)
        _, made = plt.subplots(1, len(genes), figsize=size, layout="constrained", squeeze=False, sharex=True)
        axes = list(made[0])
    colors = plt.get_cmap("tab20" if len(groups) > 10 else "tab10").colors
    positive = frame["dose"][frame["dose"] > 0]
    log = len(positive) > 0 and positive.max() / positive.min() > 8
    lines = []
    for ax, gene in zip(axes, genes, strict=True):
        lines = [_curve(ax, frame, gene, g, colors[i % len(colors)]) for i, g in enumerate(groups)]
        if log:
            ax.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.6)
            ends = np.log10([positive.min(), positive.max()])
            decades = 10.0 ** np.arange(np.ceil(ends[0]), np.floor(ends[1]) + 1)
            ax.set_xticks([0.0, *decades], ["0", *(f"{dose:g}" for dose in decades)])
            ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.set_title(gene, fontsize="medium", parse_math=False)
        ax.set_xlabel("dose")
    axes[0].set_ylabel("log fold change")
    if len(groups) > 1:
        legend(axes[-1], lines, groups, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return list(axes)


def _curve(ax: Axes, frame: pd.DataFrame, gene: str, group: str, color: tuple[float, ...]) -> object:
    """Draw the curve of a gene in a group, and return its line."""
    here = frame[(frame["gene"] == gene) & (frame["group"] == group)].sort_values("dose")
    dose, beyond = here["dose"].to_numpy(), here["beyond"].to_numpy(dtype=bool)
    ax.fill_between(dose, here["low"], here["high"], color=color, alpha=0.15, linewidth=0)
    seen = np.flatnonzero(~beyond)
    inner = slice(seen[0], seen[-1] + 1) if len(seen) else slice(0, 0)
    ax.plot(dose, here["log_fold_change"], color=color, linestyle=":", linewidth=1.2)
    (line,) = ax.plot(dose[inner], here["log_fold_change"].to_numpy()[inner], color=color, marker="o", ms=3)
    return line


def interactions(
    frame: pd.DataFrame,
    combination: str | None = None,
    *,
    group: str | None = None,
    false_discoveries: float = 0.05,
    n_named: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Draw what a combination does to each gene beside the sum of what its parts do.

    Parameters
    ----------
    frame
        Result of ``model.interactions(...)``.
    combination, group
        Names of a combination and a group; ``None`` is the first of the table.
    false_discoveries
        Largest false discovery rate of genes that are drawn in colour.
    n_named
        Largest number of genes to name.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> ax = sa.pl.interactions(screened.interactions())
    """
    for name, wanted in {"combination": combination, "group": group}.items():
        if wanted is not None and wanted not in set(frame[name]):
            msg = f"`{name}={wanted!r}` is not in the table. It has: {few(sorted(set(frame[name])))}."
            raise ValueError(msg)
    frame = frame if combination is None else frame[frame["combination"] == combination]
    frame = frame if group is None else frame[frame["group"] == group]
    combination, group = frame["combination"].iloc[0], frame["group"].iloc[0]
    here = frame[(frame["combination"] == combination) & (frame["group"] == group)]
    ax = plt.subplots(figsize=(4.2, 4.0), layout="constrained")[1] if ax is None else ax
    found = here["q_value"] <= false_discoveries
    for rows, style in ((here[~found], {"color": "0.6"}), (here[found], {"color": "tab:red"})):
        ax.scatter(rows["additive"], rows["observed"], s=9, linewidths=0, **style)
    ends = np.array([here[["additive", "observed"]].min().min(), here[["additive", "observed"]].max().max()])
    ax.plot(ends, ends, color="0.3", linewidth=0.8, zorder=0)
    most = here[found].sort_values("p_value", kind="stable").head(n_named)
    for row in most.itertuples():
        at = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": "x-small"}
        ax.annotate(row.gene, (row.additive, row.observed), parse_math=False, **at)
    ax.set_xlabel("sum of the parts")
    ax.set_ylabel("combination")
    ax.set_title(f"{combination}, {group}", fontsize="medium", parse_math=False)
    return ax
