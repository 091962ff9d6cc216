"""Checks of arrays other than counts: latent spaces and arguments of metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scalloy._arguments import LARGEST, few
from scalloy.data.checks import check_type


def check_obsm(adata: AnnData, argument: str, key: Any, hint: str = "") -> np.ndarray:
    """Return a latent space (cells x dimensions) from ``.obsm``, checking that it holds finite numbers."""
    check_type(adata)
    if key not in list(adata.obsm):
        known = few(adata.obsm.keys()) or "none"
        msg = f"`{argument}={key!r}` is not in `adata.obsm`. Pass one of: {known}.{hint}"
        raise KeyError(msg)
    return as_numbers(adata.obsm[key], f"`adata.obsm[{key!r}]`", 2)


def as_numbers(given: Any, name: str, n_axes: int) -> np.ndarray:
    """Return an array of finite numbers with ``n_axes`` axes, of which only the first may be empty."""
    masked = isinstance(given, np.ma.MaskedArray)
    values = as_array(None if masked or sp.issparse(given) else given)
    if values.dtype.kind not in "iufb" or values.ndim != n_axes or 0 in values.shape[1:]:
        shape = getattr(given, "shape", values.shape)
        msg = (
            f"{name} is a {type(given).__name__} of {values.dtype} with shape {shape}. Expected an "
            f"array of numbers with {n_axes} axes, the first of which is cells (or genes)."
        )
        raise TypeError(msg)
    good = np.abs(values) <= LARGEST
    if not good.all():
        broken = int((~good.reshape(len(values), -1)).any(1).sum())
        msg = (
            f"{name} has values that are not finite in {broken} cells (or rows), or beyond {LARGEST:.0e}. "
            "Leave these out."
        )
        raise ValueError(msg)
    return values if values.dtype.kind == "f" and values.itemsize >= 4 else values.astype(float)


def as_array(given: Any) -> np.ndarray:
    """Return an array, of a sequence too; one whose parts differ in length becomes an array of nothing."""
    try:
        return np.asarray(given)
    except ValueError:  # as NumPy says of parts that differ
        return np.full(len(given), None)
