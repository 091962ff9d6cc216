"""Matching of genes by name: new cells in the gene order of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSRDataset

from scalloy._arguments import few

logger = logging.getLogger("scalloy")


def aligned(adata: AnnData, genes: Sequence[str], max_missing: float = 0.0) -> AnnData:
    """Return the cells with these genes in this order, or ``adata`` itself if it has exactly these.

    ``.obs``, ``.obsm``, ``.var`` and ``.varm`` are kept, matched by gene name. A new object shares no
    matrices or tables with ``adata``.

    Parameters
    ----------
    adata
        Cells, which are not changed.
    genes
        Names of the genes.
    max_missing
        Largest share of the genes that may be missing; counts of missing genes are set to zero.
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
        limit = f" (at most {max_missing:.0%} may be missing)" if max_missing else ""
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
    layers = {k: _columns(v, position) for k, v in named_layers(adata).items()}
    x = None if adata.X is None else _columns(adata.X, position)
    out = AnnData(x, obs=adata.obs.copy(), var=_rows(adata.var, position, wanted), layers=layers)
    out.obsm.update({k: v.copy() for k, v in adata.obsm.items()})
    out.varm.update({k: _rows(v, position, wanted) for k, v in adata.varm.items()})
    out.uns.update({k: v for k, v in adata.uns.items() if k.endswith("_colors")})
    return out


def _rows(of_genes: Any, position: np.ndarray, names: pd.Index) -> Any:
    """Take rows of a DataFrame or array by gene position; negative positions give missing values."""
    if isinstance(of_genes, pd.DataFrame):
        rows = of_genes.iloc[np.where(position < 0, 0, position)].set_axis(names)
        return rows if (position >= 0).all() else rows.loc[names[position >= 0]].reindex(names)
    out = of_genes[position]
    if (position < 0).any():
        out = np.array(out, dtype=np.result_type(out.dtype, np.float32))
        out[position < 0] = np.nan
    return out


def counted(adata: AnnData, layer: str | None) -> AnnData:
    """Return cells predicted by ``transfer`` with their counts in ``.X``, and other cells unchanged.

    ``transfer`` returns expected expression in ``.X`` and names in ``.uns`` the layer of the counts.

    Parameters
    ----------
    adata
        Cells, which are not changed.
    layer
        Layer from which the model reads counts; ``None`` is ``.X``.
    """
    said = adata.uns.get("transfer")
    counts = said.get("counts") if isinstance(said, Mapping) else None
    if layer is not None or not isinstance(counts, str) or counts not in named_layers(adata):
        return adata
    out = shallow(adata)
    out.X = adata.layers[counts]
    return out


def shallow(adata: AnnData) -> AnnData:
    """Return an AnnData that shares ``.X``, layers and ``.obsm``, with its own ``.obs`` and ``.var``."""
    var = adata.var.set_axis(adata.var_names.astype(str))
    held = {"layers": named_layers(adata), "obsm": dict(adata.obsm)}
    return AnnData(adata.X, obs=adata.obs.copy(), var=var, **held)


def with_values(adata: AnnData, key: str, values: np.ndarray) -> AnnData:
    """Return cells with a column of categories; the same object if it has these values already.

    Parameters
    ----------
    adata
        Cells, which are not changed.
    key
        Name of the column.
    values
        Value of each cell.
    """
    if key in adata.obs and (adata.obs[key].astype(str).to_numpy() == values.astype(str)).all():
        return adata
    cells = shallow(adata)
    cells.obs[key] = pd.Categorical(values)
    return cells


def named_layers(adata: AnnData) -> dict[str, Any]:
    """Return the layers without ``.X``, which newer anndata lists among them under ``None``."""
    return {k: v for k, v in adata.layers.items() if k is not None}


def _columns(x: Any, position: np.ndarray) -> Any:
    """Take columns by position; negative positions give zeros."""
    if isinstance(x, CSRDataset):
        msg = (
            "The counts of `adata` stay on the disk, and its genes are not those of the model in its order. "
            "Read some cells (`store[rows].to_memory()`), or write the store with the genes of the model: "
            "`sa.data.write_store(file, folder, genes=model.get_var_names())`."
        )
        raise ValueError(msg)
    if sp.issparse(x):
        rows, columns = position[position >= 0], np.flatnonzero(position >= 0)
        chosen = sp.csr_matrix(
            (np.ones(len(rows), dtype=x.dtype), (rows, columns)), shape=(x.shape[1], len(position))
        )
        return sp.csr_matrix(x) @ chosen
    out = np.asarray(x)[:, position]
    out[:, position < 0] = 0
    return out
