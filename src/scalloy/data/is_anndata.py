"""Check that an object is an AnnData, with a message that says how to make one of it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData


def check_type(adata: Any) -> AnnData:
    """Check that an object is an AnnData with a pandas ``.obs`` and at least one cell."""
    if not isinstance(adata, AnnData):
        msg = (
            f"`adata` is a {type(adata).__name__}. Expected an AnnData of raw counts, cells x genes; "
            f"{_made_anndata(adata)}."
        )
        raise TypeError(msg)
    if not isinstance(adata.obs, pd.DataFrame):
        msg = (
            f"`adata` was opened lazily: its `.obs` is a {type(adata.obs).__name__}. Load it with "
            "`adata.to_memory()`, or, where it does not fit, open the file with `sa.data.open_store`."
        )
        raise TypeError(msg)
    if adata.n_obs == 0:
        msg = "`adata` has no cells. Was a mask or a filter empty? Pass at least one cell."
        raise ValueError(msg)
    return adata


def _made_anndata(data: Any) -> str:
    """Say how to make an AnnData of another object."""
    if isinstance(data, str | os.PathLike):
        return "read it with `anndata.read_h5ad(path)`, or open a store with `sa.data.open_store(path)`"
    if isinstance(data, np.ndarray | pd.DataFrame) or sp.issparse(data):
        return "make one with `anndata.AnnData(counts)`"
    if hasattr(data, "mod"):
        return "pass one of its modalities, such as `mdata['rna']`"
    return (
        "load the cells into one (`collection[:].to_adata()`), or make a store of the files with "
        "`sa.data.write_store(files, folder)`"
    )
