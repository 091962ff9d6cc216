"""Comparison of count likelihoods by held-out evidence, for VAE and GMVAE, after the table of scVAE."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
import torch
from sklearn.metrics import adjusted_rand_score

from scalloy import pl
from scalloy._arguments import one_of
from scalloy.benchmark.evidence import keeps_seed, three_parts
from scalloy.benchmark.fit import QUIET, load
from scalloy.models import GMVAE, VAE

FREE = {"library": "none"}
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "poisson": {},
    "nb": {},
    "zip": {},
    "zinb": {},
    "pc-poisson": {"gene_likelihood": "poisson", "k_max": 3},
    "pc-nb": {"gene_likelihood": "nb", "k_max": 3},
    "nb, gene-cell": {"gene_likelihood": "nb", "dispersion": "gene-cell"},
    "poisson, free": {"gene_likelihood": "poisson", **FREE},
    "nb, free": {"gene_likelihood": "nb", "dispersion": "gene-cell", **FREE},
}
AGAINST = "nb"


@keeps_seed()
def likelihoods(
    data: Sequence[str] = ("kang", "pbmc3k", "zeisel_cortex"),
    likelihood: Sequence[str] | None = None,
    *,
    models: Sequence[str] = ("VAE", "GMVAE"),
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 2000,
    max_epochs: int | None = None,
    n_mc_samples: int = 100,
) -> pd.DataFrame:
    """Compare likelihoods by the marginal log-likelihood of held-out cells, with its error over cells.

    10 % of the cells are held out, 80 % train and 10 % validate; the split is the same for all models of a
    seed. Values are in nats per cell. ``gain`` is the paired difference from the NB of the same model, with
    its standard error, if NB is among them. In ``"poisson, free"`` and ``"nb, free"`` the rates of a cell
    (and its dispersions) are not tied to its library size, as in scVAE; ``pc-`` is the piecewise categorical
    distribution of scVAE,
    in which the counts 0, 1 and 2 are categories of their own.

    Parameters
    ----------
    data
        Names of data sets, see :func:`scalloy.benchmark.fit.load`.
    likelihood
        Names of likelihoods, the keys of ``scalloy.benchmark.likelihoods.LIKELIHOODS``; ``None`` runs all.
    models
        ``"VAE"``, ``"GMVAE"`` (with as many components as there are cell types), or both.
    seeds
        Random seeds of the split, the weights and the training.
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    n_mc_samples
        Number of samples of the importance-weighted estimate.

    Examples
    --------
    >>> short = {"models": ["VAE"], "seeds": [0], "n_genes": 100, "max_epochs": 1}
    >>> table = sa.benchmark.likelihoods(["kang_subset"], ["poisson", "nb"], **short)
    >>> table["likelihood"].tolist()
    ['nb', 'poisson']
    """
    chosen = list(likelihood or LIKELIHOODS)
    for name in chosen:
        one_of("likelihood", name, LIKELIHOODS)
    rows: list[dict[str, Any]] = []
    for name in data:
        adata = load(name, n_genes)
        types = adata.obs["cell_type"].astype(str) if "cell_type" in adata.obs else None
        for seed in seeds:
            parts = three_parts(adata.n_obs, seed)
            for model in models:
                found: dict[str, np.ndarray] = {}
                for kind in sorted(chosen, key=lambda k: k != AGAINST):
                    settings = {"gene_likelihood": kind, **LIKELIHOODS[kind]}
                    row, found[kind] = _one(
                        adata, model, settings, types, parts, seed, max_epochs, n_mc_samples
                    )
                    more = {}
                    if AGAINST in found:
                        gain = found[kind] - found[AGAINST]
                        more = {"gain": gain.mean(), "gain_se": _error(gain)}
                    rows.append(
                        {"data": name, "model": model, "likelihood": kind, "seed": seed, **row, **more}
                    )
    return pd.DataFrame(rows)


def _one(
    adata: Any,
    model: str,
    settings: Mapping[str, Any],
    types: pd.Series | None,
    parts: Sequence[np.ndarray],
    seed: int,
    max_epochs: int | None,
    n_mc_samples: int,
) -> tuple[dict[str, float], np.ndarray]:
    """Train one model; return its figures, and the evidence of each held-out cell."""
    scvi.settings.seed = seed
    mixture, k = model == "GMVAE", 10 if types is None else types.nunique()
    cls = GMVAE if mixture else VAE
    cls.setup_anndata(adata)
    made = cls(adata, **settings, **({"n_clusters": k} if mixture else {}))
    begin = time.perf_counter()
    split = {"external_indexing": list(parts)}
    made.train(max_epochs=max_epochs, datasplitter_kwargs=split, **QUIET)
    epochs = len(made.history["elbo_train"])
    row = {"epochs": epochs, "seconds_per_epoch": (time.perf_counter() - begin) / epochs}
    torch.manual_seed(seed)
    values = made.get_marginal_ll(indices=parts[2], n_mc_samples=n_mc_samples, return_mean=False)
    row |= {"marginal_ll": values.mean(), "se": _error(values), "elbo": made.get_elbo(indices=parts[2])}
    row["finite"] = bool(np.isfinite(made.history["elbo_train"].astype(float)).all().all())
    if mixture and types is not None:
        row |= {"ari": adjusted_rand_score(types, made.get_clusters()), "alive": made.n_alive()}
    return row, values


@keeps_seed()
def pictures(
    folder: Path,
    frame: pd.DataFrame,
    *,
    likelihood: Sequence[str] = ("poisson", "nb", "zinb"),
    n_genes: int = 2000,
    max_epochs: int | None = None,
) -> list[Path]:
    """Draw, for each data set, the evidence and the zeros and variances of genes that a VAE expects.

    Parameters
    ----------
    folder
        Folder in which ``evidence_<data>.png`` and ``counts_<data>.png`` are written.
    frame
        Table returned by :func:`likelihoods`.
    likelihood
        Likelihoods whose expected zeros and variances are drawn.
    n_genes, max_epochs
        Most variable genes that are kept, and maximum number of epochs, as in :func:`likelihoods`.
    """
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in frame.groupby("data", sort=False):
        evidence = pl.likelihoods(table).figure
        adata = load(str(name), n_genes)
        counts, axes = plt.subplots(
            2, len(likelihood), figsize=(4 * len(likelihood), 6.4), layout="constrained"
        )
        for column, kind in zip(axes.T, likelihood, strict=True):
            scvi.settings.seed = 0
            VAE.setup_anndata(adata)
            made = VAE(adata, **{"gene_likelihood": kind, **LIKELIHOODS[kind]})
            made.train(max_epochs=max_epochs, **QUIET)
            statistics = made.get_gene_statistics()
            for ax, of in zip(column, ("zeros", "variance"), strict=True):
                pl.counts(statistics, of, ax=ax, title=kind)
        for figure, of in ((evidence, "evidence"), (counts, "counts")):
            written.append(folder / f"{of}_{name}.png")
            figure.savefig(written[-1], dpi=100)
            plt.close(figure)
    return written


def _error(values: np.ndarray) -> float:
    """Return the standard error of the mean over cells."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds, best first within each data set."""
    by = frame.groupby(["data", "model", "likelihood"], sort=False)
    columns = ["marginal_ll", "se", "gain", "gain_se", "elbo", "ari", "alive"]
    columns = [c for c in columns if c in frame]
    out = by[columns].mean()
    out.insert(1, "sd", by["marginal_ll"].std())
    if "gain" in frame:
        out["gain_sd"] = by["gain"].std()
    out["finite"] = by["finite"].all()
    return out.sort_values(["data", "marginal_ll"], ascending=[True, False]).round(2)
