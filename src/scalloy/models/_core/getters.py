"""Getters: latent codes, expression, samples and differential expression of cells; nothing is written.

Each function is a method of :class:`scalloy.models._core.base.ScalloyModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import RNASeqMixin

from scalloy._arguments import one_of, totals, whole
from scalloy._seeds import seeded
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, VAEModule


@torch.inference_mode()
def get_latent_representation(
    model: ModelOf[VAEModule],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    return_dist: bool = False,
    which: str = "z",
    seed: int | None = None,
) -> Any:
    """Return the latent code of each cell: its posterior mean, a sample of it, or mean and variance.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    give_mean
        Whether to return the mean of ``q(z | x)`` rather than a sample of it.
    batch_size
        Number of cells that are encoded at a time.
    return_dist
        Whether to return mean and variance of ``q(z | x)``.
    which
        Letter of the latent: ``"z"``, or another one that the model has, such as ``"w"``.
    seed
        Random seed of the sample; ``None`` is that of the model.

    Examples
    --------
    >>> model.get_latent_representation().shape
    (200, 10)
    """
    out: list[tuple[torch.Tensor, ...]] = []
    with seeded(seed, model.seed):
        for batch in model.reader.batches(adata, indices, batch_size):
            q = model.module.encode(batch)
            q_z = q[one_of("which", which, q)]
            if return_dist:
                out.append((q_z.mean.cpu(), q_z.variance.cpu()))
            else:
                out.append(((q_z.mean if give_mean else q_z.sample()).cpu(),))
    arrays = tuple(torch.cat(part).numpy() for part in zip(*out, strict=True))
    return arrays if return_dist else arrays[0]


@torch.inference_mode()
def get_normalized_expression(
    model: ModelOf[VAEModule],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    transform_batch: Any = None,
    gene_list: Sequence[str] | None = None,
    library_size: float | str = 1,
    n_samples: int = 1,
    n_samples_overall: int | None = None,
    weights: str | None = None,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    silent: bool = True,
    seed: int | None = None,
) -> np.ndarray | pd.DataFrame:
    """Return the expression of each gene that the decoder expects, which is free of counting noise.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    transform_batch
        Batch in which the cells are decoded; with several, the mean over them is returned.
    gene_list
        Names of the genes to return; ``None`` is all genes.
    library_size
        Total to which each cell is scaled; ``"latent"`` uses its own library size.
    n_samples
        Number of samples of the latent code per cell.
    n_samples_overall
        Number of cells to draw with replacement, with one sample each, instead of all cells.
    weights
        Weights of the samples: ``"uniform"`` or ``None``, which are the same; others are not supported.
    batch_size
        Number of cells that are decoded at a time.
    return_mean
        Whether to average over samples.
    return_numpy
        Whether to return an array instead of a frame with the names of cells and genes.
    silent
        No effect; kept for scvi-tools' call.
    seed
        Random seed; ``None`` is that of the model.

    Examples
    --------
    >>> model.get_normalized_expression(library_size=1e4, gene_list=["gene_0", "gene_1"]).shape
    (200, 2)
    """
    if weights not in (None, "uniform"):
        msg = f"`weights={weights!r}` is not supported; pass `'uniform'`."
        raise NotImplementedError(msg)
    whole(n_samples=n_samples)
    if n_samples_overall is not None:
        whole(n_samples_overall=n_samples_overall)
    totals("latent", library_size=library_size)
    reader, module = model.reader, model.module
    genes, parts = reader.genes(gene_list), []
    with seeded(seed, model.seed):
        if n_samples_overall is not None:
            rows = reader.rows(adata, indices)
            indices = rows[torch.randint(len(rows), (n_samples_overall,)).numpy()]
        codes = reader.batch_codes(transform_batch)
        for batch in reader.batches(adata, indices, batch_size, decodes=True):
            q, draws = module.encode(batch), []
            for _ in range(n_samples):
                latents = module.draw(q)
                ps = [module.generative(batch, latents, code)["p"]["x"] for code in codes]
                each = (_scaled(module, p_x, batch, library_size)[:, genes] for p_x in ps)
                draws.append(reduce(torch.add, each) / len(ps))
            parts.append((reduce(torch.add, draws) / n_samples if return_mean else torch.stack(draws)).cpu())
    several = n_samples > 1 and not return_mean
    out = torch.cat(parts, dim=1 if several else 0).numpy()
    if return_numpy or several or n_samples_overall is not None:
        return out
    return pd.DataFrame(out, index=reader.names(adata, indices), columns=np.asarray(reader.var_names)[genes])


def _scaled(module: VAEModule, p_x: Any, batch: Batch, library_size: float | str) -> torch.Tensor:
    """Return expected expression scaled to a total, or to the cell's own."""
    if library_size == "latent":
        return module.likelihood.expected(p_x, batch.log_ell)
    return module.likelihood.fraction(p_x) * float(library_size)


@torch.inference_mode()
def posterior_predictive_sample(
    model: ModelOf[VAEModule],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    n_samples: int = 1,
    gene_list: Sequence[str] | None = None,
    batch_size: int | None = None,
    transform_batch: Any = None,
    seed: int | None = None,
) -> np.ndarray:
    """Return counts drawn from the posterior predictive: ``(n, G)``, or ``(n, G, S)`` with several samples.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    n_samples
        Number of samples of each cell.
    gene_list
        Names of the genes to return; ``None`` is all genes.
    batch_size
        Number of cells that are decoded at a time.
    transform_batch
        Batch in which the cells are decoded; ``None`` is their own.
    seed
        Random seed; ``None`` is that of the model.

    Examples
    --------
    >>> model.posterior_predictive_sample(n_samples=3).shape
    (200, 40, 3)
    """
    whole(n_samples=n_samples)
    reader = model.reader
    genes, code = reader.genes(gene_list), reader.batch_code(transform_batch)
    with seeded(seed, model.seed):
        draws = [
            model.module.sample(tensors, n_samples, transform_batch=code)[:, genes].cpu()
            for tensors in reader.tensors(adata, indices, batch_size, decodes=True)
        ]
    return torch.cat(draws).numpy()


def differential_expression(
    model: Any, adata: AnnData | None = None, *args: Any, seed: int | None = None, **kwargs: Any
) -> pd.DataFrame:
    """Run scvi-tools' test of differential expression; new cells are left as they are.

    Parameters
    ----------
    adata
        New cells; ``None`` is the model's own.
    *args, **kwargs
        Arguments of :meth:`scvi.model.base.RNASeqMixin.differential_expression`.
    seed
        Random seed; ``None`` is that of the model.
    """
    compare, reader = RNASeqMixin.differential_expression, model.reader
    with seeded(seed, model.seed):
        if adata is None or adata is model.adata:
            reader.manager()
            return compare(model, model.adata, *args, **kwargs)
        cells = reader.fitting(adata)
        manager = reader.manager(cells, composes=True)
        if (key := reader.set_up_with.get("labels_key")) in cells.obs:
            manager.adata.obs[key] = cells.obs[key]  # cells may be grouped by labels that the model lacks
        model._register_manager_for_instance(manager)  # scvi-tools reads the cells by itself
        try:
            return compare(model, manager.adata, *args, **kwargs)
        finally:
            del model._per_instance_manager_store[model.id][manager.adata_uuid]
