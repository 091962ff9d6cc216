"""Cells to score transfer on: data sets by name, cells with counts, and the most variable genes."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
from anndata import AnnData

from scalloy import datasets
from scalloy._arguments import one_of
from scalloy.benchmark.fit import normed_copy

DONORS = ("donor_101", "donor_107", "donor_1015")
KANG = ("kang", "kang_all", "kang_subset")
RARE = "Megakaryocytes"  # too few to be scored


def cells_of(data: str | Path | AnnData, condition_key: str, labels_key: str) -> AnnData:
    """Return the cells to score on, from a name, a file or an AnnData."""
    if isinstance(data, str) and data in KANG:
        return load(data)
    if isinstance(data, str) and f"{data}.h5ad" in datasets.DOWNLOADS:
        data = datasets.fetch(f"{data}.h5ad")
    adata = data.copy() if isinstance(data, AnnData) else ad.read_h5ad(data)
    for name, key in {"condition_key": condition_key, "labels_key": labels_key}.items():
        one_of(name, key, list(adata.obs))
    adata.obs_names_make_unique()
    sc.pp.filter_genes(adata, min_cells=3)
    return with_counts(adata)


def load(data: str) -> AnnData:
    """Load the cells of Kang et al. to score on, by the name of the selection."""
    adata = datasets.kang(full=one_of("data", data, KANG) != "kang_subset")
    keep = adata.obs["cell_type"] != RARE
    if data == "kang":
        keep &= (adata.obs["label_source"] == "author") & adata.obs["batch"].isin(DONORS)
    adata = adata[keep.to_numpy()].copy()
    sc.pp.filter_genes(adata, min_cells=3)
    return adata


def with_counts(adata: AnnData) -> AnnData:
    """Return a copy of the cells that have any counts."""
    return adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()


def variable_genes(adata: AnnData, n_genes: int) -> np.ndarray:
    """Return the names of the most variable genes."""
    if n_genes >= adata.n_vars:
        return np.asarray(adata.var_names)
    normed = normed_copy(adata)
    sc.pp.highly_variable_genes(normed, n_top_genes=n_genes)
    return np.asarray(normed.var_names[normed.var["highly_variable"]])
