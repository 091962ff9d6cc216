"""Genes by their names: the matrix of other cells in the order of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy.data.checks import few

logger = logging.getLogger("scalloy")


def aligned(adata: AnnData, genes: Sequence[str], max_missing: float = 0.0) -> AnnData:
    """The cells with these genes in this order; ``adata`` itself where it has just them.

    Parameters
    ----------
    adata
        Cells, which stay as they are.
    genes
        Of the model.
    max_missing
        Share of them that may lack; they are taken as zero.
    """
    wanted, given = pd.Index(genes, dtype=str), pd.Index(adata.var_names.astype(str), dtype=str)
    if wanted.equals(given):
        return adata
    if not given.is_unique:
        msg = (
            f"Names of genes occur more than once in `adata.var_names`: "
            f"{few(given[given.duplicated()].unique())}. Call `adata.var_names_make_unique()`."
        )
        raise ValueError(msg)
    position = given.get_indexer(wanted)
    missing = wanted[position < 0]
    if len(missing) > max_missing * len(wanted) or len(missing) == len(wanted):
        limit = f" (at most {max_missing:.0%} may lack)" if max_missing else ""
        msg = (
            f"`adata` lacks {len(missing)} of the {len(wanted)} genes of the model{limit}: {few(missing)}. "
            "Give it the genes that the model was trained on; are the names of the same kind (symbols, IDs)?"
        )
        raise ValueError(msg)
    if len(missing):
        logger.warning(
            "`adata` lacks %d of the %d genes of the model, which are taken as zero: %s.",
            *(len(missing), len(wanted), few(missing)),
        )
    var = pd.DataFrame(index=wanted)
    layers = {k: _columns(v, position) for k, v in named_layers(adata).items()}
    x = None if adata.X is None else _columns(adata.X, position)
    return AnnData(x, obs=adata.obs.copy(), var=var, layers=layers, obsm=dict(adata.obsm))


def shallow(adata: AnnData) -> AnnData:
    """The same matrices and arrays in an object with columns of its own."""
    var = adata.var.set_axis(adata.var_names.astype(str))
    held = {"layers": named_layers(adata), "obsm": dict(adata.obsm)}
    return AnnData(adata.X, obs=adata.obs.copy(), var=var, **held)


def named_layers(adata: AnnData) -> dict[str, Any]:
    """The layers; newer anndata lists ``.X`` among them, without a name."""
    return {k: v for k, v in adata.layers.items() if k is not None}


def _columns(x: Any, position: np.ndarray) -> Any:
    """Columns by their position, zero where it is negative."""
    if sp.issparse(x):
        rows, columns = position[position >= 0], np.flatnonzero(position >= 0)
        chosen = sp.csr_matrix(
            (np.ones(len(rows), dtype=x.dtype), (rows, columns)), shape=(x.shape[1], len(position))
        )
        return sp.csr_matrix(x) @ chosen
    out = np.asarray(x)[:, position]
    out[:, position < 0] = 0
    return out
