"""Make the subset of Kang et al. 2018 that ships with scalloy.

    python scripts/make_kang_subset.py path/to/kang_pbmc.h5ad

Cells are drawn from every cell type x condition x donor in proportion, but at least ten of each where there
are ten; genes are the 2,500 most variable ones of all cells (Seurat v3, on counts) and some markers, less
those without counts in the subset. Counts are raw; ``obs["n_counts"]`` keeps the total over all genes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc

N_CELLS, N_GENES, AT_LEAST, SEED = 6_000, 2_500, 10, 0
MARKERS = [
    "CD3D",
    "CD3E",
    "CD4",
    "CD8A",
    "CD8B",
    "IL7R",
    "CCR7",
    "MS4A1",
    "CD79A",
    "CD14",
    "LYZ",
    "FCGR3A",
    "MS4A7",
    "GNLY",
    "NKG7",
    "FCER1A",
    "CST3",
    "PPBP",
    "PF4",
    "ISG15",
    "IFI6",
    "IFIT1",
    "IFIT2",
    "IFIT3",
    "MX1",
    "OAS1",
    "CXCL10",
    "LY6E",
    "IFI27",
    "TNFSF10",
]


def main(source: Path) -> None:
    full = ad.read_h5ad(source)
    full.obs["n_counts"] = np.asarray(full.X.sum(axis=1)).ravel().astype(np.int32)
    sc.pp.highly_variable_genes(full, n_top_genes=N_GENES, flavor="seurat_v3")
    genes = full.var["highly_variable"] | full.var_names.isin(MARKERS)
    rng = np.random.default_rng(SEED)
    rows = []
    share = N_CELLS / full.n_obs
    for _, index in full.obs.groupby(["cell_type", "condition", "batch"], observed=True).indices.items():
        n = min(len(index), max(AT_LEAST, round(share * len(index))))
        rows.append(rng.choice(index, n, replace=False))
    subset = full[np.sort(np.concatenate(rows)), genes].copy()
    subset = subset[np.asarray(subset.X.sum(axis=1)).ravel() > 0].copy()
    subset = subset[:, np.asarray(subset.X.sum(axis=0)).ravel() > 0].copy()
    subset.X = subset.X.astype(np.float32)
    subset.obs = subset.obs[["cell_type", "condition", "batch", "label_source", "n_counts"]]
    subset.obs["condition"] = subset.obs["condition"].cat.rename_categories(
        {"ctrl": "control", "stim": "stimulated"}
    )
    subset.var = subset.var[[]]
    subset.uns = {"source": full.uns["source"]}
    subset.uns["subset"] = f"scripts/make_kang_subset.py, seed {SEED}: {subset.n_obs} of {full.n_obs} cells"
    target = Path(__file__).parents[1] / "src" / "scalloy" / "data" / "kang_subset.h5ad"
    subset.write_h5ad(target, compression="gzip", compression_opts=9)
    print(subset, f"{target.stat().st_size / 2**20:.2f} MiB", sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
