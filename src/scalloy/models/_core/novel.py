"""Groups of cells that are of none of the known types, with the genes by which they differ.

:func:`get_novel` is a method of :class:`scalloy.CGMDVAE`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import shares, whole
from scalloy.blocks.consensus_clustering import gaussian_groups
from scalloy.models._core.getters import get_latent_representation
from scalloy.models._core.label_tree import names_by_code
from scalloy.models._core.labels import told_of_labels

logger = logging.getLogger("scalloy")
GROUPS = ("cells", "unknown", "nearest", "share_nearest", "markers")
MARKERS = ("group", "gene", "score", "log_fold_change", "padj", "nearest", "score_nearest")
LEVEL = 0.05  # false discovery rate of the markers
OTHER = "other"
AT_LEAST = 3  # cells that are needed on each side of a test


@dataclass(frozen=True)
class Novel:
    """Groups of cells of none of the known types, as :meth:`scalloy.CGMDVAE.get_novel` finds them.

    Attributes
    ----------
    groups
        One row for each group, the largest first: number of ``cells``, mean ``unknown`` score, the known
        label that the model would give most of them (``nearest``) and the share that would get it, and the
        names of its first ``markers``.
    cells
        Group of each cell that was asked for, categorical; missing for cells of known types.
    markers
        Genes that are higher in a group than in all cells of known types and also than in those of the
        nearest label: ``score`` (standardised rank sum), ``log_fold_change`` (to base 2) and adjusted p-value
        ``padj`` (the larger one) against all of them, and ``score_nearest`` against the nearest label. Genes
        come in the order of the smaller of the two scores.

    Examples
    --------
    >>> novel = model.get_novel()
    >>> adata.obs["novel"] = novel.cells
    >>> novel.groups.columns.tolist()
    ['cells', 'unknown', 'nearest', 'share_nearest', 'markers']
    """

    groups: pd.DataFrame
    cells: pd.Series
    markers: pd.DataFrame


def get_novel(
    model: Any,
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    *,
    threshold: float = 0.5,
    min_cells: int = 10,
    n_markers: int = 10,
    batch_size: int | None = None,
) -> Novel:
    """Return groups of cells of none of the known types, with their markers.

    Cells without a known label (in a tree, of any depth) whose :meth:`get_unknown_score` is above the
    threshold are divided into groups by a Gaussian mixture in the latent space, whose components are merged
    where they overlap. Markers are found by Wilcoxon's rank sum test on log-normalised expression, among the
    cells that are asked for.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    threshold
        Unknown score from which a cell is taken for one of no known type.
    min_cells
        Smallest number of cells of a group; cells of smaller ones are in no group.
    n_markers
        Number of markers that are named in ``groups``; ``markers`` has all.
    batch_size
        Number of cells that are encoded at a time.

    Examples
    --------
    >>> novel = model.get_novel(threshold=0.8)
    >>> bool(novel.cells.isna().all() == novel.groups.empty)
    True
    """
    shares(threshold=threshold)
    whole(min_cells=min_cells, n_markers=n_markers)
    said = told_of_labels(model, adata, indices, batch_size)
    told, value = np.array(model.reader.labels)[said["labels"].argmax(1)], said["unknown"]
    known, observed = _seen(model, adata, indices, batch_size)
    types = np.where(np.isin(known, model.reader.labels), known, told)
    new = (known == "") & (value > threshold)
    found = np.full(len(new), -1)
    if new.sum() >= min_cells:
        z = get_latent_representation(model, adata, indices, batch_size=batch_size)
        found[new] = gaussian_groups(z[new], min_cells, model.seed)
    if (found < 0).all():
        logger.warning(
            "No group of %d cells or more has an unknown score above %g: all cells seem to be of known "
            "types. Lower `threshold` or `min_cells` to look at less certain ones.",
            min_cells,
            threshold,
        )
    numbered = [f"new {k + 1}" for k in range(found.max() + 1)]
    names = _keys.unique(numbered, names_by_code(model.reader), "group ")
    of_each = pd.Categorical.from_codes(found, categories=names)
    cells = pd.Series(of_each, index=model.reader.names(adata, indices), name="novel")
    rows, markers = {}, [pd.DataFrame(columns=list(MARKERS))]
    for k, name in enumerate(names):
        own = found == k
        labels, sizes = np.unique(told[own], return_counts=True)
        nearest = str(labels[sizes.argmax()])
        genes = _markers(observed, own, ~new, types == nearest).assign(group=name, nearest=nearest)
        markers.append(genes[list(MARKERS)])
        first = ", ".join(genes["gene"].iloc[:n_markers])
        rows[name] = dict(
            zip(GROUPS, (own.sum(), value[own].mean(), nearest, sizes.max() / own.sum(), first), strict=True)
        )
    groups = pd.DataFrame.from_dict(rows, orient="index", columns=list(GROUPS)).rename_axis("group")
    filled = [frame for frame in markers if not frame.empty] or markers[:1]
    return Novel(groups, cells, pd.concat(filled, ignore_index=True))


@torch.no_grad()
def _seen(
    model: Any, adata: AnnData | None, indices: Sequence[int] | None, batch_size: int | None
) -> tuple[np.ndarray, AnnData]:
    """Return the known label of each cell (empty if there is none), and log-normalised expression."""
    names, codes, values = np.array([*names_by_code(model.reader), ""], dtype=object), [], []
    for batch in model.reader.batches(adata, indices, batch_size):
        codes.append(batch.label.clamp_max(len(names) - 1).cpu().numpy())
        values.append(sp.csr_matrix(model.module.likelihood.observed(batch.x).cpu().numpy()))
    observed = AnnData(sp.vstack(values).tocsr(), var=pd.DataFrame(index=model.reader.var_names.astype(str)))
    return names[np.concatenate(codes)], observed


def _markers(observed: AnnData, own: np.ndarray, known: np.ndarray, alike: np.ndarray) -> pd.DataFrame:
    """Return the genes that are higher in a group than in cells of known types, and those of one of them."""
    every = _tested(observed, own, known)
    nearest = _tested(observed, own, known & alike)
    both = every.join(nearest.add_suffix("_nearest"), how="left" if nearest.empty else "inner")
    both["padj"] = both[["padj", "padj_nearest"]].max(axis=1)
    least = both[["score", "score_nearest"]].min(axis=1)
    both = both[(least > 0) & (both["padj"] < LEVEL)]
    order = least[both.index].sort_values(ascending=False, kind="stable").index
    return both.loc[order].rename_axis("gene").reset_index()


def _tested(observed: AnnData, own: np.ndarray, others: np.ndarray) -> pd.DataFrame:
    """Return score, fold change and adjusted p-value of each gene in a group against other cells."""
    columns = {"scores": "score", "logfoldchanges": "log_fold_change", "pvals_adj": "padj"}
    if min(own.sum(), others.sum()) < AT_LEAST:
        return pd.DataFrame(columns=list(columns.values()), dtype=float)
    cells = observed[own | others].copy()
    cells.obs["side"] = pd.Categorical(np.where(own[own | others], "own", OTHER))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # fold changes of genes without counts
        sc.tl.rank_genes_groups(
            cells, "side", groups=["own"], reference=OTHER, method="wilcoxon", tie_correct=True, use_raw=False
        )
        frame = sc.get.rank_genes_groups_df(cells, "own")
    return frame.set_index("names")[list(columns)].rename(columns=columns).astype(float)
