"""Plots of predictions under another condition, gene by gene, type by type, and cell by cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scalloy import metrics
from scalloy._by_name import Values, in_one_order, names_of
from scalloy.data.checks import check_counts, check_type
from scalloy.data.genes import aligned
from scalloy.metrics._given import numbers
from scalloy.pl.latent import latent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes


ROOM = np.array([0.13, 0.035])  # width and height of a name as fractions of the axes


def transfer(
    predicted: Values,
    truth: Values,
    control: Values,
    *,
    genes: Sequence[str] | None = None,
    change: bool = True,
    n_named: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Draw predicted against true changes of genes, or their means, which flatter any prediction.

    Parameters
    ----------
    predicted, truth, control
        Mean log-normalised expression, one value for each gene. Series are matched by their names.
    genes
        Names of the genes, to label those that change most; ``None`` takes the names from Series.
    change
        Whether to draw changes against ``control``; otherwise means are drawn.
    n_named
        Maximum number of genes to label.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> control, truth = np.array([1.0, 2.0, 0.5]), np.array([1.5, 2.0, 2.0])
    >>> ax = sa.pl.transfer(0.9 * truth, truth, control, genes=["CD3E", "ACTB", "ISG15"])
    """
    given = {"genes": genes, "predicted": predicted, "truth": truth, "control": control}
    names, predicted, truth, control = _by_gene(given)
    ax = plt.subplots(figsize=(4.4, 4.4), layout="constrained")[1] if ax is None else ax
    base = control if change else np.zeros_like(control)
    x, y = truth - base, predicted - base
    ax.scatter(x, y, s=6, linewidths=0, color="tab:blue", alpha=0.6, rasterized=True)
    span = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(span, span, color="0.6", linewidth=0.8, zorder=0)
    for i in apart(
        np.stack([x, y]), np.argsort(-np.abs(truth - control)), n_named if names is not None else 0
    ):
        assert names is not None
        ax.annotate(names[i], (x[i], y[i]), xytext=(3, 3), textcoords="offset points", fontsize="x-small")
    skill, r = metrics.skill(predicted, truth, control), metrics.pearson_delta(predicted, truth, control)
    what = "change" if change else "mean expression"
    ax.set(xlabel=f"true {what}", ylabel=f"predicted {what}")
    ax.set_title(f"skill {skill:.2f}, correlation of the change {r:.2f}", fontsize="medium")
    return ax


def _by_gene(given: dict[str, Any]) -> tuple[Any, ...]:
    """Return the names of genes, or ``None``, and the values of all arguments in the same order."""
    axes, names = dict.fromkeys(given, ("genes",)), given["genes"]
    known = names_of("genes", given, axes)
    if names is None or (known is not None and set(map(str, names)) == set(map(str, known.index))):
        given.pop("genes")
        names = None if known is None else known.index
    matched = in_one_order(given, axes)
    names = matched.pop("genes", names)
    values = [v.astype(float) for v in numbers(1, **matched)]
    if names is not None and len(names) != len(values[0]):
        msg = f"`genes` has {len(names)} names, and there are {len(values[0])} genes. Pass one name for each."
        raise ValueError(msg)
    return None if names is None else np.asarray(names), *values


def apart(xy: np.ndarray, order: np.ndarray, n: int) -> list[int]:
    """Choose up to ``n`` points, the first in ``order`` whose names do not overlap."""
    extent, chosen = np.ptp(xy, axis=1) * ROOM, list[int]()
    for i in order:
        if len(chosen) == n:
            break
        if not any((np.abs(xy[:, i] - xy[:, j]) < extent).all() for j in chosen):
            chosen.append(int(i))
    return chosen


def held_out(frame: pd.DataFrame, metric: str = "skill", *, ax: Axes | None = None) -> Axes:
    """Draw one metric of each model for each held-out type, with the ceiling as a line.

    Parameters
    ----------
    frame
        Table that :func:`scalloy.benchmark.transfer` returned.
    metric
        Column of the table to draw.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> table = sa.benchmark.transfer(adata, ["no change", "mean shift"], labels_key="cluster", min_cells=5)
    >>> ax = sa.pl.held_out(table)
    """
    if metric not in frame:
        known = [c for c in frame if c not in {"type", "condition", "method", "seed"}]
        msg = f"`metric={metric!r}` is not in the table. Pass one of: {', '.join(known)}."
        raise ValueError(msg)
    several = frame["condition"].nunique() > 1
    pair = frame["type"] + (", " + frame["condition"] if several else "")
    table = frame.assign(pair=pair).pivot_table(
        index="pair", columns="method", values=metric, sort=False, aggfunc=["mean", "std"]
    )
    mean = table["mean"]
    spread = table["std"].reindex_like(mean).fillna(0) if "std" in table else 0 * mean
    top = mean.pop("ceiling") if "ceiling" in mean else None
    ax = plt.subplots(figsize=(1.2 + 1.3 * len(mean), 3.8), layout="constrained")[1] if ax is None else ax
    width = 0.8 / len(mean.columns)
    colors = plt.get_cmap("tab20" if len(mean.columns) > 10 else "tab10").colors
    places = np.arange(len(mean))
    for i, name in enumerate(mean):
        at = places + (i - (len(mean.columns) - 1) / 2) * width
        ax.bar(at, mean[name], width, yerr=spread[name], color=colors[i % len(colors)], label=name)
    if top is not None:
        ax.hlines(top, places - 0.45, places + 0.45, colors="0.2", linewidth=1.0, label="ceiling")
    low = float(np.nanmin(mean.to_numpy()))
    ax.set_ylim(bottom=max(low, -0.5) if low < 0 else 0)  # cut off what is far below no change
    ax.set_xticks(places, mean.index, rotation=20, ha="right")
    ax.set_ylabel(metric)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return ax


def joint(
    control: AnnData,
    treated: AnnData,
    predicted: AnnData,
    *,
    n_pcs: int = 30,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw control, treated and predicted cells in one UMAP, on principal components of the real cells.

    Parameters
    ----------
    control, treated
        Control and treated cells with raw counts.
    predicted
        Result of ``model.transfer(...)``. Its sampled counts are drawn if there are any, otherwise ``.X``.
    n_pcs
        Number of principal components.
    seed
        Random seed of the UMAP.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> control, treated = (adata[adata.obs["condition"] == c].copy() for c in ("control", "treated_1"))
    >>> predicted = model.transfer(control, to="treated_1")
    >>> ax = sa.pl.joint(control, treated, predicted)  # doctest: +SKIP
    """
    import anndata as ad
    import scanpy as sc

    sampled = "counts" in predicted.layers
    parts = {"control": control, "treated": treated, "predicted": predicted}
    cells = []
    for name, part in parts.items():
        check_counts(check_type(part), genes=False, allow_non_counts=name == "predicted")
        part = aligned(part, list(control.var_names))
        x = part.layers["counts"] if name == "predicted" and sampled else part.X
        one = ad.AnnData(
            sp.csr_matrix(x, dtype=np.float32),
            obs=pd.DataFrame({"cells": name}, index=part.obs_names),
            var=part.var[[]],
        )
        if name != "predicted" or sampled:
            sc.pp.normalize_total(one, target_sum=1e4)
            sc.pp.log1p(one)
        cells.append(one)
    both = ad.concat(cells, index_unique="-")
    real = ad.concat(cells[:2], index_unique="-").X.toarray()
    axes = np.linalg.svd(real - real.mean(0), full_matrices=False)[2][:n_pcs]
    both.obsm["X_pca"] = (both.X.toarray() - real.mean(0)) @ axes.T
    sc.pp.neighbors(both, use_rep="X_pca", random_state=seed)
    sc.tl.umap(both, random_state=seed)
    both.obs["cells"] = pd.Categorical(both.obs["cells"], categories=list(parts))
    return latent(both, "cells", ax=ax)
