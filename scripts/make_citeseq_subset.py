"""Make the subset of 10x PBMC with RNA and protein that ships with scalloy.

    python scripts/make_citeseq_subset.py path/to/pbmc10k_citeseq.h5ad

Cells are drawn at random; all of its genes and proteins are kept, as raw counts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np

N_CELLS = 2500

if __name__ == "__main__":
    whole = ad.read_h5ad(sys.argv[1])
    rows = np.sort(np.random.default_rng(0).choice(whole.n_obs, N_CELLS, replace=False))
    some = whole[rows].copy()
    some.uns["source"] = f"{N_CELLS} cells chosen at random of: {whole.uns['source']}"
    path = Path(__file__).parents[1] / "src" / "scalloy" / "data" / "citeseq_subset.h5ad"
    some.write_h5ad(path, compression="gzip", compression_opts=9)
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {some.shape}")
