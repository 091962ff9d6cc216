"""Which data a model was trained on, in a few digits."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
import scipy.sparse as sp
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager

from scalloy.data.loader import Cells

AT_ONCE = 4096  # cells


def of_names(names: Iterable[Any]) -> str:
    """Digest of names in their order."""
    found = blake2b(digest_size=8)
    for name in names:
        found.update(str(name).encode() + b"\0")
    return found.hexdigest()


def of_data(manager: AnnDataManager) -> dict[str, Any]:
    """Sizes and digests of the names and the counts, the same for each way of storing them."""
    found, x, adata = blake2b(digest_size=8), Cells.of(manager).x, manager.adata
    for first in range(0, x.shape[0], AT_ONCE):
        rows = sp.csr_matrix(x[first : first + AT_ONCE])
        for values, kind in ((np.diff(rows.indptr), "<i8"), (rows.indices, "<i4"), (rows.data, "<f4")):
            found.update(np.ascontiguousarray(values, dtype=kind).data)
    names = {"cells": of_names(adata.obs_names), "genes": of_names(adata.var_names)}
    return {"n_cells": adata.n_obs, "n_genes": adata.n_vars, **names, "counts": found.hexdigest()}


def of_set_up(manager: AnnDataManager) -> dict[str, Any]:
    """The fingerprint of :func:`of_data`, and a digest of what each registered column says of the cells."""
    columns = {}
    for field, about in manager.registry["field_registries"].items():
        if field == REGISTRY_KEYS.X_KEY or not about["data_registry"]:
            continue
        values = np.ascontiguousarray(manager.get_from_registry(field))
        known = about["state_registry"]
        named = known.get("categorical_mapping", known.get("mappings", known.get("column_names", ())))
        names = named.items() if hasattr(named, "items") else enumerate(named)
        said = (f"{k}: {list(v) if np.ndim(v) else v}" for k, v in names)
        columns[field] = blake2b(of_names(said).encode() + values.tobytes(), digest_size=8).hexdigest()
    return {**of_data(manager), "columns": columns}
