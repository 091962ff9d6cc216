"""Evidence of a trained model: ELBO, reconstruction error, marginal likelihood, and statistics of genes.

The functions for users are methods of :class:`scalloy.models._core.base.ScalloyModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy._arguments import whole
from scalloy._seeds import seeded
from scalloy.kernels.csr import dense
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, VAEModule


def get_elbo(
    model: ModelOf[VAEModule],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int | None = None,
) -> float | np.ndarray:
    """Return the evidence lower bound in nats per cell, from one sample of the latents; higher is better.

    It is ``-(recon + sum(kl) + sum(kl_global) / N)``: terms of the whole data set, such as the divergence of
    the weights of a mixture, are shared by the N cells that are trained on. Up to noise it lies below
    :meth:`get_marginal_ll`, which uses the same cells by default.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask. With neither ``adata`` nor ``indices``, the cells that training left out are
        used (:meth:`held_out`).
    batch_size
        Number of cells that are decoded at a time.
    return_mean
        Whether to average over cells.
    seed
        Random seed; ``None`` is that of the model.

    Examples
    --------
    >>> model.get_elbo() < 0
    True
    """
    n_trained = _n_trained(model)

    def elbo(batch: Batch) -> torch.Tensor:
        t = model.module.objective(batch)
        return -(t.recon + sum(t.kl.values()) + sum(t.kl_global.values()) / n_trained)

    values = model.reader.per_cell(elbo, adata, or_held_out(model, adata, indices), batch_size, seed)
    return float(values.mean(dtype=np.float64)) if return_mean else values


def get_reconstruction_error(
    model: ModelOf[VAEModule],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int | None = None,
) -> dict[str, float | np.ndarray]:
    """Return ``-log p(x | latents)`` in nats per cell, from one sample of the latents; lower is better.

    For the same cells and seed it is the first term of :meth:`get_elbo`.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask. With neither ``adata`` nor ``indices``, the cells that training left out are
        used (:meth:`held_out`).
    batch_size
        Number of cells that are decoded at a time.
    return_mean
        Whether to average over cells.
    seed
        Random seed; ``None`` is that of the model.

    Examples
    --------
    >>> list(model.get_reconstruction_error())
    ['reconstruction_loss']
    """

    def recon(batch: Batch) -> torch.Tensor:
        return model.module.objective(batch).recon

    values = model.reader.per_cell(recon, adata, or_held_out(model, adata, indices), batch_size, seed)
    return {"reconstruction_loss": float(values.mean(dtype=np.float64)) if return_mean else values}


def get_marginal_ll(
    model: ModelOf[VAEModule],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    n_mc_samples: int = 1000,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_se: bool = False,
    seed: int | None = None,
) -> float | tuple[float, float] | np.ndarray:
    """Return the importance-weighted estimate of ``log p(x)`` in nats per cell.

    Its expectation is a lower bound that approaches ``log p(x)`` with more samples.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask. With neither ``adata`` nor ``indices``, the cells that training left out are
        used (:meth:`held_out`).
    n_mc_samples
        Number of samples of the latents per cell; the cost is proportional to it.
    batch_size
        Number of cells that are decoded at a time.
    return_mean
        Whether to average over cells.
    return_se
        Whether to return the standard error of that average as well, over cells and samples.
    seed
        Random seed; ``None`` is that of the model.

    Examples
    --------
    >>> value, se = model.get_marginal_ll(n_mc_samples=10, return_se=True)
    >>> value < 0 < se
    True
    """
    whole(n_mc_samples=n_mc_samples)
    rows = or_held_out(model, adata, indices)
    with torch.inference_mode(), seeded(seed, model.seed):
        each = [
            model.module.marginal_ll(tensors, n_mc_samples=n_mc_samples).cpu()
            for tensors in model.reader.tensors(adata, rows, batch_size, decodes=True)
        ]
    values = torch.cat(each).numpy().astype(np.float64)
    if not return_mean:
        return values
    if not return_se:
        return float(values.mean())
    if len(values) < 2:
        msg = f"`return_se=True` needs at least 2 cells, and there is {len(values)}."
        raise ValueError(msg)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def held_out(model: object) -> np.ndarray | None:
    """Return the rows of the model's cells that training left out: its test set, or else its validation set.

    If nothing was left out, the result is ``None``, which stands for all cells. The best weights are those
    with the lowest loss on the validation set, so a test set is fairer for comparing models:
    ``train(train_size=0.8, validation_size=0.1)``.

    Examples
    --------
    >>> len(model.held_out())
    20
    """
    sets = (getattr(model, name, None) for name in ("test_indices", "validation_indices"))
    return next((np.asarray(rows) for rows in sets if rows is not None and len(rows)), None)


def or_held_out(model: object, adata: Any, indices: Any) -> Any:
    """Return the rows that are given, or else those of the model's cells that training left out."""
    return held_out(model) if adata is None and indices is None else indices


def _n_trained(model: Any) -> float:
    """Return the number of cells among which terms of the whole data set are divided.

    It is infinite for a query, since the weights of its mixture are those that the reference has learned.
    """
    if model.module.free is not None:
        return np.inf
    rows = getattr(model, "train_indices_", None)
    return len(rows) if rows is not None and len(rows) else int(model.summary_stats["n_cells"])


@torch.inference_mode()
def get_gene_statistics(
    model: ModelOf[VAEModule],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Return mean, variance and share of zeros of each gene's counts, observed and expected by the model.

    Expectations are over the same cells, each with one sample of its latents. The expected variance is the
    variance within cells, given by the likelihood, plus the variance between the means of the cells.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    batch_size
        Number of cells that are decoded at a time.
    seed
        Random seed; ``None`` is that of the model.

    Examples
    --------
    >>> list(model.get_gene_statistics())[:2]
    ['mean_observed', 'mean_expected']
    """
    module = model.module
    if not module.likelihood.draws_counts:
        msg = f"{type(module.likelihood).__name__} is no likelihood of counts: train with 'nb', say."
        raise ValueError(msg)
    sums, n = [], 0
    with seeded(seed, model.seed):
        for batch in model.reader.batches(adata, indices, batch_size, decodes=True):
            p_x = module.decode(batch, module.draw(module.encode(batch)))["x"]
            x, mean = dense(batch.x), p_x.mean
            zeros = module.likelihood.log_prob_entries(p_x, torch.zeros_like(mean)).exp()
            parts = (x, x.square(), (x == 0).to(x), mean, p_x.variance + mean.square(), zeros)
            sums.append(torch.stack([v.double().sum(0) for v in parts]).cpu())
            n += len(x)
    first, second, zero = (torch.stack(sums).sum(0) / n).view(2, 3, -1).transpose(0, 1).numpy()
    values = np.concatenate([first, second - first**2, zero]).T
    names = [f"{of}_{by}" for of in ("mean", "variance", "zeros") for by in ("observed", "expected")]
    return pd.DataFrame(values, index=np.asarray(model.reader.var_names), columns=names)
