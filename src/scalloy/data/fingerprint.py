"""Which data a model was trained on, in a few digits."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
import scipy.sparse as sp
from scvi.data import AnnDataManager

from scalloy.data.loader import Cells


def of_names(names: Iterable[Any]) -> str:
    """Digest of names in their order."""
    found = blake2b(digest_size=8)
    for name in names:
        found.update(str(name).encode() + b"\0")
    return found.hexdigest()


def of_data(manager: AnnDataManager) -> dict[str, Any]:
    """Sizes and digests of the names and the counts, the same for each way of storing them."""
    found, x, adata = blake2b(digest_size=8), Cells.of(manager).x, manager.adata
    if not sp.issparse(x):
        x = sp.csr_matrix(x)
    for values, kind in ((x.indptr, "<i8"), (x.indices, "<i4"), (x.data, "<f4")):
        found.update(np.ascontiguousarray(values, dtype=kind).data)
    names = {"cells": of_names(adata.obs_names), "genes": of_names(adata.var_names)}
    return {"n_cells": adata.n_obs, "n_genes": adata.n_vars, **names, "counts": found.hexdigest()}
