"""Interpretation of latents by the genes that change with them.

The functions for users are methods of :class:`scalloy.models._core.base.ScalloyModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy._arguments import check_latent, whole
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Latents, VAEModule

EDGE = 0.02  # share of the cells that lie beyond each end of a traversal
CELLS = 500  # largest number of cells over which a mean is taken


def get_traversal(
    model: ModelOf[VAEModule],
    latent: int,
    values: Sequence[float] | None = None,
    *,
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    n_steps: int = 7,
) -> pd.DataFrame:
    """Return mean expression along one latent, while everything else of each cell stays as it is.

    Parameters
    ----------
    latent
        Number of the latent, from 0.
    values
        Values that the latent takes; ``None`` is ``n_steps`` values from low to high among the cells.
    adata
        New cells to begin from; ``None`` is the model's own.
    indices
        Row numbers or a mask of the cells to begin from; the mean is over at most 500 of them.
    n_steps
        Number of values.

    Returns
    -------
    One row for each value (the index), one column for each gene: ``log1p`` of expression scaled to 10,000 per
    cell. For likelihoods of data as given these are values like the data, for ``"bernoulli"`` probabilities.

    Examples
    --------
    >>> model.get_traversal(0, n_steps=3).shape
    (3, 40)
    """
    whole(n_steps=n_steps)
    codes, rows = _codes(model, adata, indices)
    check_latent(latent, codes.shape[1])
    at = np.linspace(*span(codes[:, latent]), n_steps) if values is None else np.asarray(values, float)
    return _traversed(model, {latent: at}, adata, rows)[latent]


def get_latent_genes(
    model: ModelOf[VAEModule],
    n_genes: int | None = 10,
    *,
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return the genes that change most from the low to the high end of each latent.

    Parameters
    ----------
    n_genes
        Number of genes of each latent; ``None`` is all genes.
    adata
        New cells to begin from; ``None`` is the model's own.
    indices
        Row numbers or a mask of the cells to begin from; the mean is over at most 500 of them.

    Returns
    -------
    Columns ``latent``, ``gene`` and ``change`` (on the scale of :meth:`get_traversal`), strongest first.

    Examples
    --------
    >>> list(model.get_latent_genes(n_genes=2))
    ['latent', 'gene', 'change']
    """
    if n_genes is not None:
        whole(n_genes=n_genes)
    codes, rows = _codes(model, adata, indices)
    ends = {j: np.asarray(span(codes[:, j])) for j in range(codes.shape[1])}
    parts = []
    for j, frame in _traversed(model, ends, adata, rows).items():
        change = frame.iloc[1] - frame.iloc[0]
        change = change.iloc[np.argsort(-change.abs().to_numpy(), kind="stable")[:n_genes]]
        parts.append(pd.DataFrame({"latent": j, "gene": change.index, "change": change.to_numpy()}))
    return pd.concat(parts, ignore_index=True)


def _codes(model: Any, adata: AnnData | None, indices: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of the cells, and the rows of those to begin from."""
    codes = model.get_latent_representation(adata, indices, which="z")
    rows = model.reader.rows(adata, indices)
    some = rows[np.linspace(0, len(rows) - 1, min(CELLS, len(rows))).astype(int)]
    return codes, some


@torch.inference_mode()
def _traversed(
    model: ModelOf[VAEModule], at: dict[int, np.ndarray], adata: AnnData | None, rows: np.ndarray
) -> dict[int, pd.DataFrame]:
    """Return the mean expression of the cells for each value of each latent."""
    names, module = model.reader.var_names, model.module
    sums = {j: np.zeros((len(values), len(names))) for j, values in at.items()}
    for batch in model.reader.batches(adata, rows, decodes=True):
        latents: Latents = {k: q.mean for k, q in module.encode(batch).items()}
        for j, values in at.items():
            for i, value in enumerate(values):
                z = latents["z"].clone()
                z[:, j] = float(value)
                p_x = module.decode(batch, {**latents, "z": z})["x"]
                sums[j][i] += module.likelihood.predicted(p_x).sum(0).cpu().numpy()
    return {j: pd.DataFrame(v / len(rows), index=at[j], columns=names) for j, v in sums.items()}


def span(code: np.ndarray) -> tuple[float, float]:
    """Return the low and the high end of a latent; if it does not vary, 0 and 1."""
    low, high = np.quantile(code, (EDGE, 1 - EDGE))
    return (float(low), float(high)) if high - low > 1e-3 else (0.0, 1.0)
