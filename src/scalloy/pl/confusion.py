"""Plot of the labels in each cluster, where several clusters may belong to one label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalloy import metrics
from scalloy._by_name import by_name
from scalloy.pl.clusters import LETTER, _axes, _letters, _lines, _name_columns, _shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@by_name(labels="cells", clusters="cells")
def confusion(labels: Any, clusters: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the share of each label in the cells of each cluster, as :func:`scalloy.metrics.majority` counts.

    Labels are in order of size. Each cluster stands below the label that most of its cells have, the purest
    first, so that pure clusters make a staircase. :func:`clusters` draws the shares of each label instead.

    Parameters
    ----------
    labels, clusters
        Label and cluster of each cell.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> ax = sa.pl.confusion(adata.obs["cluster"], model.get_clusters())
    """
    found = metrics.majority(labels, clusters)
    table = pd.crosstab(np.asarray(labels), np.asarray(clusters))
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    place = {name: i for i, name in enumerate(table.index)}
    rank = found.assign(place=found["label"].map(place)).sort_values(
        ["place", "purity", "cells"], ascending=[True, False, False], kind="stable"
    )
    share = (table / table.sum())[rank.index]
    said = "share of the cells of each cluster"
    ticks = [f"{name}\n{n:,}" for name, n in zip(rank.index, rank["cells"], strict=True)]
    if ax is None:
        lines = [line for tick in ticks for line in tick.splitlines()]
        tall = max(0.36 * share.shape[0], LETTER * _letters([said]) / 2)
        said = _lines(said, tall)
        wide = 1.8 + LETTER * _letters(share.index) + 0.46 * share.shape[1]
        ax = _axes(wide, 1.1 + LETTER * _letters(lines) + tall)
    _shares(ax, share, said)
    _name_columns(ax, ticks, 12, "small")
    ax.set(xlabel="cluster, number of cells", ylabel="label")
    return ax
