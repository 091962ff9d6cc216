"""Plots of a latent space in two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
from matplotlib import patheffects
from matplotlib.lines import Line2D

from scalloy._arguments import LARGEST, one_of
from scalloy.data.arrays import check_obsm
from scalloy.data.checks import check_layer, check_type, find_column
from scalloy.pl._legend import legend as named_legend

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scalloy.models._core.base import ScalloyModel

METHODS = ("umap", "tsne", "pca")
LEGENDS = ("right", "on data", "none")
MISSING = (0.8, 0.8, 0.8)
LONG = 16  # categories up to which a legend has a single column
MOST = 45  # categories that a legend has room for


def latent(
    data: AnnData | ScalloyModel,
    color: str | Sequence[str],
    *,
    basis: str | None = None,
    use_rep: str | None = None,
    method: Literal["umap", "tsne", "pca"] = "umap",
    perplexity: float = 30.0,
    n_dims: Literal[2, 3] = 2,
    seed: int = 0,
    legend: Literal["right", "on data", "none"] = "right",
    ax: Axes | Sequence[Axes] | None = None,
    size: float | None = None,
) -> Any:
    """Draw cells in an embedding, coloured by columns of ``.obs`` or by genes.

    Parameters
    ----------
    data
        Cells, or a trained model, whose latent space is embedded.
    color
        Column of ``.obs`` (categories or numbers), or name of a gene, whose values in ``.X`` are drawn; or a
        list of these. Colours of categories come from ``.uns["<color>_colors"]`` if scanpy has stored them.
    basis
        Key of ``.obsm`` that is drawn as it is; ``None`` uses ``"X_umap"``.
    use_rep
        Key of ``.obsm`` that is first embedded by ``method``. The embedding is not stored.
    method
        Embedding of ``use_rep`` or of a model's latent space: ``"umap"``, ``"tsne"`` or ``"pca"``.
    perplexity
        Perplexity of t-SNE.
    n_dims
        Number of dimensions: 2, or 3 for axes in perspective.
    seed
        Random seed of the embedding.
    legend
        ``"right"`` of the axes (at most the 45 largest categories), ``"on data"``, or ``"none"``.
    ax
        Axes to draw into, one for each colouring; ``None`` makes new ones.
    size
        Size of the points; ``None`` chooses it by the number of cells.

    Returns
    -------
    The axes, or an array of axes if ``color`` is a list.

    Examples
    --------
    >>> axes = sa.pl.latent(model, ["cluster", "gene_0"], method="pca")
    """
    one_of("legend", legend, LEGENDS)
    colors = [color] if isinstance(color, str) else color
    if not isinstance(colors, list | tuple) or not all(isinstance(c, str) for c in colors) or not colors:
        msg = f"`color={color!r}` is a {type(color).__name__}. Expected a column, a gene, or a list of these."
        raise TypeError(msg)
    adata = data.reader.manager().adata if hasattr(data, "get_latent_representation") else data
    if adata is not data and (basis, use_rep) != (None, None):
        msg = "`basis` and `use_rep` are for cells; for a model its own latent space is drawn."
        raise ValueError(msg)
    values = {c: _values(adata, c) for c in colors}
    xy, name = _places(data, basis, use_rep, method, perplexity, n_dims, seed)
    if ax is None:
        projection = {"projection": "3d"} if n_dims == 3 else {}
        n_columns = min(3, len(colors))
        n_rows = -(-len(colors) // n_columns)
        shape = (5.4 * n_columns, 4.2 * n_rows)
        figure = plt.figure(figsize=shape if len(colors) > 1 else None, layout="constrained")
        ax = [figure.add_subplot(n_rows, n_columns, i + 1, **projection) for i in range(len(colors))]
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(axes) != len(colors):
        msg = f"`ax` has {len(axes)} axes for {len(colors)} colourings. Pass one for each."
        raise ValueError(msg)
    for c, one in zip(colors, axes, strict=True):
        _draw(one, xy, values[c], c, adata, legend, size)
        one.set_xlabel(f"{name} 1", fontsize="small")
        one.set_ylabel(f"{name} 2", fontsize="small")
    return axes[0] if isinstance(color, str) else axes


def embedding(
    z: np.ndarray, method: str = "umap", *, n_dims: int = 2, perplexity: float = 30.0, seed: int = 0
) -> np.ndarray:
    """Embed the cells of a latent space in two or three dimensions.

    Parameters
    ----------
    z
        Latent space, cells x latents.
    method
        ``"umap"``, ``"tsne"`` or ``"pca"``.
    n_dims
        Number of dimensions of the embedding.
    perplexity
        Perplexity of t-SNE.
    seed
        Random seed of the embedding.

    Examples
    --------
    >>> z = model.get_latent_representation()
    >>> sa.pl.embedding(z, method="pca").shape
    (200, 2)
    """
    one_of("method", method, METHODS)
    z = np.asarray(z, dtype=np.float32)
    if min(z.shape) < n_dims:
        msg = f"`n_dims={n_dims}` is more than there are cells or latents, {z.shape}. Pass more, or `basis=`."
        raise ValueError(msg)
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(n_dims, random_state=seed).fit_transform(z)
    if method == "tsne":
        if not 1 <= perplexity < len(z):
            msg = f"`perplexity={perplexity}` must be at least 1 and below the {len(z)} cells."
            raise ValueError(msg)
        from sklearn.manifold import TSNE

        return TSNE(n_dims, perplexity=perplexity, init="pca", random_state=seed).fit_transform(z)
    from umap import UMAP

    return UMAP(n_components=n_dims, random_state=seed, n_jobs=1).fit_transform(z)


def _places(
    data: Any, basis: str | None, use_rep: str | None, method: str, perplexity: float, n_dims: int, seed: int
) -> tuple[np.ndarray, str]:
    """Return the position of each cell and the name of the axes."""
    is_model = hasattr(data, "get_latent_representation")
    if is_model or use_rep is not None:
        z = data.get_latent_representation() if is_model else check_obsm(data, "use_rep", use_rep)
        names = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PC"}
        return embedding(z, method, n_dims=n_dims, perplexity=perplexity, seed=seed), names[method]
    basis = basis or "X_umap"
    hint = " Run `sc.tl.umap(adata)` first, or pass `use_rep=` with the key of a latent space."
    xy = check_obsm(data, "basis", basis, hint)
    if xy.shape[1] < n_dims:
        msg = f"`n_dims={n_dims}`, but `adata.obsm[{basis!r}]` has {xy.shape[1]} columns."
        raise ValueError(msg)
    return xy[:, :n_dims], basis.removeprefix("X_")


def _values(adata: AnnData, color: str) -> pd.Series:
    """Return a column of ``.obs``, or else the values of a gene, ready to be drawn."""
    check_type(adata)
    if color in adata.obs or color not in adata.var_names:
        return drawable(find_column(adata.obs, "color", color, nor=", nor a gene"))
    x = check_layer(adata, None)
    if len(position := np.flatnonzero(adata.var_names == color)) > 1:
        msg = f"`color={color!r}` is the name of {len(position)} genes. Call `adata.var_names_make_unique()`."
        raise ValueError(msg)
    values = x.tocsc()[:, position].toarray() if sp.issparse(x) else np.asarray(x)[:, position]
    return pd.Series(values.ravel().astype(float), index=adata.obs_names)


def drawable(column: pd.Series) -> pd.Series:
    """Make a column drawable: keep numbers (not finite or huge ones become NaN), turn all else into names."""
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if number and not pd.api.types.is_complex_dtype(column):
        values = column.to_numpy(dtype=float, na_value=np.nan)
        return pd.Series(np.where(np.abs(values) <= LARGEST, values, np.nan), index=column.index)
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.rename_categories([str(k) for k in column.cat.categories])
    return column.astype(object).map(str, na_action="ignore")


def _draw(
    ax: Any, xy: np.ndarray, values: pd.Series, color: str, adata: AnnData, legend: str, size: float | None
) -> None:
    """Draw the points, with a colour bar for numbers or a legend for categories."""
    size = min(60_000 / len(xy) ** 1.15, 20) if size is None else size
    style = {"s": size, "linewidths": 0, "rasterized": True}
    order = np.random.default_rng(0).permutation(len(xy))  # so that no group hides another
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        points = ax.scatter(*xy[order].T, c=values.to_numpy()[order], **style)
        ax.figure.colorbar(points, ax=ax, label=color)
    else:
        groups = values.astype("category").cat
        table = category_colors(adata, color, len(groups.categories))
        codes = groups.codes.to_numpy()
        points = np.where(codes[order, None] < 0, MISSING, table[codes[order]])
        ax.scatter(*xy[order].T, c=points, **style)
        if legend == "right":
            shown = largest(np.bincount(codes[codes >= 0], minlength=len(groups.categories)))
            handles = [Line2D([], [], linestyle="", marker="o", color=table[i]) for i in shown]
            names = [groups.categories[i] for i in shown]
            if left := len(groups.categories) - len(shown):
                handles.append(Line2D([], [], linestyle=""))
                names.append(f"and {left:,} more")
            columns = 1 + (len(groups.categories) > LONG)
            place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "ncols": columns}
            style = {"fontsize": "small", "handletextpad": 0.2, "columnspacing": 0.8}
            named_legend(ax, handles, names, **style, **place)
        elif legend == "on data":
            for i, name in enumerate(groups.categories):
                if (codes == i).any():
                    text = ax.text(*np.median(xy[codes == i], 0), str(name), ha="center", va="center")
                    text.set_parse_math(False)
                    text.set(
                        fontsize="small", path_effects=[patheffects.withStroke(linewidth=2.5, foreground="w")]
                    )
    ax.set(xticks=[], yticks=[], title=color)
    if xy.shape[1] == 3:
        ax.set_zticks([])


def largest(sizes: np.ndarray) -> np.ndarray:
    """Return the positions of the categories to name, in their order: all, or those with the most cells."""
    return np.sort(np.argsort(-sizes, kind="stable")[:MOST])


def category_colors(adata: AnnData, color: str, n: int) -> np.ndarray:
    """Return colours of categories: scanpy's if it has stored them, otherwise a palette of enough colours."""
    given = adata.uns.get(f"{color}_colors")
    if given is None or len(given) < n:
        return palette(n)
    return np.array([plt.matplotlib.colors.to_rgb(c) for c in given])


def palette(n: int) -> np.ndarray:
    """Return at least ``n`` colours, distinct ones as far as there are."""
    if n <= 10:
        given = plt.get_cmap("tab10").colors
    else:
        from scanpy.plotting import palettes

        known = (palettes.default_20, palettes.default_28, palettes.default_102)
        given = next((p for p in known if len(p) >= n), known[-1] * (1 + n // len(known[-1])))
    return np.array([plt.matplotlib.colors.to_rgb(c) for c in given])
