"""Cells that models generate, beside real ones that they have not seen and simple ways of making cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
from anndata import AnnData

from scalloy import metrics
from scalloy._arguments import whole
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, load, log_normalised
from scalloy.models import CGMDVAE, GMVAE, TRVAE, VAE, BetaVAE, BetaVSC

SETS = ("kang_subset", "pbmc3k")
HELD_OUT, VALIDATION = 0.25, 0.1
CORRELATED = 100  # most variable genes, whose correlations are compared
FIGURES = ("auc", "accuracy", "means", "variances", "zeros", "correlations")
MODELS: dict[str, Callable[[int], tuple[Any, dict[str, Any]]]] = {
    "VAE": lambda k: (VAE, {}),
    "BetaVAE": lambda k: (BetaVAE, {}),
    "BetaVSC": lambda k: (BetaVSC, {}),
    "GMVAE": lambda k: (GMVAE, {"n_clusters": k}),
    "TRVAE": lambda k: (TRVAE, {}),
    "CGMDVAE": lambda k: (CGMDVAE, {}),
}


@keeps_seed()
def generation(
    data: Sequence[str] = SETS,
    *,
    seeds: Sequence[int] = (0, 1),
    n_genes: int = 500,
    n_cells: int = 600,
    max_epochs: int | None = None,
    n_trees: int = 50,
) -> pd.DataFrame:
    """Compare generated cells with real ones that no model has seen.

    A quarter of the cells is left out. Each model is trained on the others and makes as many cells as were
    left out, from its prior and from its aggregate posterior. They are judged beside real cells that were
    trained on (the best that can be), cells with each gene shuffled among all cells, and draws from a
    negative binomial for each known type and condition, with the moments of that group and the library sizes
    of its cells.

    Parameters
    ----------
    data
        Names of data sets with cell types, see :func:`scalloy.benchmark.fit.load`.
    seeds
        Random seeds of the split, the models and the draws.
    n_genes
        Number of most variable genes that are kept.
    n_cells
        Maximum number of cells that are left out, and that are generated.
    max_epochs
        Maximum number of epochs of our models; ``None`` uses their default.
    n_trees
        Number of trees in :func:`scalloy.metrics.two_sample`.

    Returns
    -------
    One row for each data set, method, source of the latents and seed. ``auc`` and ``accuracy`` are those of a
    classifier that tells the made cells from the real ones (0.5: it cannot). ``means``, ``variances`` and
    ``zeros`` are mean absolute differences over genes of log-normalised expression. ``correlations`` says how
    well the correlations of pairs of the most variable genes agree: it is the correlation of the made cells'
    with those of the real ones. Real cells show what chance leaves of each.

    Examples
    --------
    >>> short = {"n_genes": 60, "n_cells": 60, "max_epochs": 1, "n_trees": 5}
    >>> table = sa.benchmark.generation(["kang_subset"], seeds=[0], **short)
    >>> table["method"].unique().tolist()[:3]
    ['real cells', 'shuffled genes', 'NB per type']
    """
    whole(n_cells=n_cells, n_genes=n_genes)
    rows: list[dict[str, Any]] = []
    for name in data:
        adata = load(name, n_genes)
        for seed in seeds:
            order = np.random.default_rng(seed).permutation(adata.n_obs)
            n_out = min(n_cells, int(HELD_OUT * adata.n_obs))
            unseen, cells = adata[order[:n_out]], adata[order[n_out:]].copy()
            truth = log_normalised(unseen.X)
            for method, source, counts in _made(cells, n_out, seed, max_epochs):
                found = figures(truth, log_normalised(counts), n_trees=n_trees, seed=seed)
                rows.append({"data": name, "method": method, "source": source, "seed": seed, **found})
    return pd.DataFrame(rows)


def _made(cells: AnnData, n: int, seed: int, max_epochs: int | None) -> Iterator[tuple[str, str, Any]]:
    """Yield the counts that each method makes from the cells that are not left out."""
    rng = np.random.default_rng(seed)
    x = np.asarray(cells.X.todense() if sp.issparse(cells.X) else cells.X, dtype=float)
    has_condition = "condition" in cells.obs
    groups = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    k = len(np.unique(groups))
    if has_condition:
        groups = groups + " " + cells.obs["condition"].astype(str).to_numpy(dtype=object)
    rows = rng.choice(len(x), n, replace=False)
    yield "real cells", "", x[rows]
    yield "shuffled genes", "", rng.permuted(x[rows], axis=0)
    yield "NB per type", "", negative_binomials(x, groups, rows, rng)
    for name, made in MODELS.items():
        cls, settings = made(k)
        if cls is TRVAE and not has_condition:
            continue
        scvi.settings.seed = seed
        takes = has_condition and cls in (TRVAE, CGMDVAE)
        cls.setup_anndata(cells, **({"condition_key": "condition"} if takes else {}))
        model = cls(cells, **settings)
        model.train(max_epochs=max_epochs, train_size=1 - VALIDATION, **QUIET)
        for source in ("prior", "posterior"):
            yield name, source, model.generate(n, from_=source, seed=seed).X


def negative_binomials(
    x: np.ndarray, groups: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw each gene from a negative binomial with the moments of the group of each template.

    Parameters
    ----------
    x
        Counts, cells x genes.
    groups
        Group of each cell.
    rows
        Templates, whose groups and library sizes the new cells have.
    rng
        Random generator.
    """
    total, out = x.sum(1, keepdims=True), np.zeros((len(rows), x.shape[1]))
    for group in np.unique(groups[rows]):
        own, new = groups == group, groups[rows] == group
        share = x[own].sum(0) / x[own].sum()
        expected = total[own] * share
        excess = (np.square(x[own] - expected) - expected).sum(0)
        dispersion = np.clip(excess / np.maximum(np.square(expected).sum(0), 1e-12), 1e-6, 1e2)
        mean = total[rows[new]] * share
        out[new] = rng.poisson(rng.gamma(1 / dispersion, mean * dispersion))
    return out


def figures(truth: np.ndarray, made: np.ndarray, *, n_trees: int, seed: int) -> dict[str, float]:
    """Compare made cells with real ones, both log-normalised.

    Parameters
    ----------
    truth
        Real cells, cells x genes.
    made
        Made cells.
    n_trees, seed
        Arguments of :func:`scalloy.metrics.two_sample`.
    """
    some = np.argsort(-truth.var(0), kind="stable")[:CORRELATED]
    some = some[(truth[:, some].std(0) > 0) & (made[:, some].std(0) > 0)]
    both = [np.corrcoef(v[:, some], rowvar=False) for v in (truth, made)]
    upper = np.triu_indices(len(some), 1)
    return {
        **metrics.two_sample(truth, made, n_trees=n_trees, seed=seed),
        "means": float(np.abs(truth.mean(0) - made.mean(0)).mean()),
        "variances": float(np.abs(truth.var(0) - made.var(0)).mean()),
        "zeros": float(np.abs((truth == 0).mean(0) - (made == 0).mean(0)).mean()),
        "correlations": float(np.corrcoef(both[0][upper], both[1][upper])[0, 1]),
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of a table of :func:`generation`."""
    return spread(frame, ["data", "method", "source"], list(FIGURES), digits=3)
