"""A latent space in two dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def latent(
    adata: AnnData,
    color: str,
    *,
    basis: str = "X_umap",
    ax: Axes | None = None,
    size: float | None = None,
) -> Axes:
    """Cells in an embedding, coloured by a column of ``.obs``.

    Parameters
    ----------
    adata
        With the embedding in ``.obsm[basis]``.
    color
        Column of ``.obs``, categories or numbers. Colours of categories come from
        ``.uns["<color>_colors"]`` where scanpy has put them.
    basis
        Key of ``.obsm``; its first two columns are drawn.
    ax
        Axes to draw into.
    size
        Of the points.
    """
    if color not in adata.obs:
        msg = f"`color={color!r}` is not a column of `adata.obs`: {', '.join(adata.obs.columns[:10])}."
        raise KeyError(msg)
    if basis not in adata.obsm:
        keys = ", ".join(adata.obsm.keys())
        msg = f"`basis={basis!r}` is not in `adata.obsm`: {keys}. Run `sc.tl.umap(adata)` first."
        raise KeyError(msg)
    ax = plt.subplots(layout="constrained")[1] if ax is None else ax
    xy, values = np.asarray(adata.obsm[basis])[:, :2], adata.obs[color]
    size = 60_000 / len(xy) ** 1.15 if size is None else size
    style = {"s": min(size, 20), "linewidths": 0, "rasterized": True}
    order = np.random.default_rng(0).permutation(len(xy))  # so that no group hides another
    if pd.api.types.is_numeric_dtype(values):
        points = ax.scatter(*xy[order].T, c=values.to_numpy()[order], **style)
        ax.figure.colorbar(points, ax=ax, label=color)
    else:
        groups = values.astype("category").cat
        default = plt.get_cmap("tab20" if len(groups.categories) > 10 else "tab10").colors
        colors = adata.uns.get(f"{color}_colors")
        colors = default if colors is None or len(colors) < len(groups.categories) else colors
        table = np.array([plt.matplotlib.colors.to_rgb(c) for c in colors])
        codes = groups.codes.to_numpy()
        ax.scatter(*xy[order].T, c=table[codes[order] % len(table)], **style)
        for i, name in enumerate(groups.categories):
            ax.scatter([], [], color=table[i % len(table)], s=30, label=name)
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    ax.set(xticks=[], yticks=[], title=color)
    ax.set_xlabel(f"{basis.removeprefix('X_')} 1", fontsize="small")
    ax.set_ylabel(f"{basis.removeprefix('X_')} 2", fontsize="small")
    return ax
