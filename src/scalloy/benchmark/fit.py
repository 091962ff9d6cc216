"""Held-out fit of our VAE and ``scvi.model.SCVI``, with the same sizes, likelihood and held-out cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import scvi
from anndata import AnnData
from scvi.model import SCVI

from scalloy import datasets
from scalloy._arguments import one_of
from scalloy.baselines.predictors import log_scaled, normalised
from scalloy.benchmark.evidence import evidence, keeps_seed, spread, three_parts
from scalloy.models import BetaVAE

QUIET: dict[str, Any] = {"enable_progress_bar": False}


@keeps_seed()
def fit(
    data: Sequence[str] = ("kang", "pbmc3k"),
    *,
    gene_likelihood: str = "nb",
    seeds: Sequence[int] = (0, 1, 2),
    betas: Sequence[float] = (1.0,),
    n_genes: int = 2000,
    max_epochs: int | None = None,
    scvi_epochs: int | None = None,
    n_mc_samples: int = 50,
) -> pd.DataFrame:
    """Compare held-out reconstruction, ELBO and marginal log-likelihood of our VAE and SCVI.

    Each model is trained as its users would train it (SCVI: its default epochs, early stopping on, batches of
    128; ours: all defaults) with the same sizes, likelihood and split: 80 % of the cells to train, 10 % to
    validate (early stopping, best weights), and 10 % that neither has seen to score on.

    Parameters
    ----------
    data
        Names of data sets, such as ``"kang"``, ``"pbmc3k"`` or ``"kang_subset"`` (ships with the package);
        see :func:`load`.
    gene_likelihood
        ``"nb"`` or ``"zinb"``.
    seeds
        Random seeds of the split, the weights and the training.
    betas
        Weights of the KL term in training our model; 1 is the VAE.
    n_genes
        Number of most variable genes that are kept.
    max_epochs, scvi_epochs
        Maximum number of epochs of our models and of SCVI; ``None`` uses the default of each.
    n_mc_samples
        Number of samples for the marginal log-likelihood.

    Examples
    --------
    >>> short = {"n_genes": 100, "max_epochs": 1, "scvi_epochs": 1, "n_mc_samples": 2}
    >>> table = sa.benchmark.fit(["kang_subset"], seeds=[0], **short)
    >>> table["model"].tolist()
    ['VAE', 'SCVI']
    """
    one_of("gene_likelihood", gene_likelihood, ("nb", "zinb"))
    rows: list[dict[str, Any]] = []
    for name in data:
        adata = load(name, n_genes)
        for seed in seeds:
            parts = three_parts(adata.n_obs, seed)
            for beta in (*betas, None):
                model: Any = SCVI if beta is None else BetaVAE
                scvi.settings.seed = seed
                model.setup_anndata(adata)
                settings = {} if beta is None else {"beta": beta}
                made = model(adata, gene_likelihood=gene_likelihood, **settings)
                made.train(
                    max_epochs=scvi_epochs if beta is None else max_epochs,
                    early_stopping=True,
                    datasplitter_kwargs={"external_indexing": parts},
                    **QUIET,
                )
                found = evidence(made, parts[2], n_mc_samples=n_mc_samples, seed=seed)
                named = "SCVI" if beta is None else "VAE" if beta == 1 else f"BetaVAE {beta:g}"
                n = len(made.history["elbo_train"])
                rows.append({"data": name, "model": named, "seed": seed, "epochs": n, **found})
    return pd.DataFrame(rows)


def load(name: str, n_genes: int | None) -> AnnData:
    """Load a data set by name and keep its most variable genes; ``n_genes=None`` keeps all."""
    sets = {
        "kang": lambda: datasets.kang(full=True),
        "kang_subset": datasets.kang,
    }
    files = (k for k in datasets.DOWNLOADS if k.endswith(".h5ad"))
    names = [*sets, *(k.removesuffix(".h5ad") for k in files)]
    one_of("data", name, names)
    adata = sets[name]() if name in sets else datasets.labelled(name)
    if n_genes and n_genes < adata.n_vars:
        normed = normed_copy(adata, None)
        sc.pp.highly_variable_genes(normed, n_top_genes=n_genes)
        adata = adata[:, normed.var["highly_variable"]].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    sc.pp.filter_genes(adata, min_counts=1)
    return adata


def normed_copy(adata: AnnData, total: float | None = 1e4) -> AnnData:
    """Return a copy with ``log1p`` of counts scaled to ``total`` per cell; ``None`` is the median total."""
    normed = adata.copy()
    sc.pp.normalize_total(normed, target_sum=total)
    sc.pp.log1p(normed)
    return normed


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of a table of :func:`fit`."""
    return spread(frame, ["data", "model"], ["epochs", "reconstruction", "kl", "elbo", "marginal_ll"])


def log_normalised(counts: Any, target_sum: float = 1e4) -> np.ndarray:
    """Return ``log1p`` of counts scaled to the same total in each cell, as a dense array."""
    x = np.asarray(counts.todense() if sp.issparse(counts) else counts, dtype=float)
    return log_scaled(normalised(x), target_sum)
