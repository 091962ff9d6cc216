"""Comparison of the latent codes of plain, variational and sparse autoencoders under equal conditions.

This is the comparison that the AE / VSC source makes on PBMC3k, but all models have the same networks,
likelihoods and use of the code's mean, and 10 % of the cells are held out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score

from scalloy import metrics, pl
from scalloy._arguments import one_of
from scalloy.benchmark.clustering import leiden
from scalloy.benchmark.evidence import keeps_seed, three_parts
from scalloy.benchmark.fit import QUIET, load, normed_copy
from scalloy.models import AE, VAE, BetaVAE, BetaVSC
from scalloy.models._core.base import ScalloyModel

SETS = ("pbmc3k", "pbmc4k_dcc", "mouse_bladder_2746", "zeisel_cortex", "paul15")
FEW = 10  # number of latents up to which half of a sparse code is on, as in the source
MODELS: dict[str, tuple[type[ScalloyModel], dict[str, Any]]] = {
    "AE": (AE, {}),
    "VAE": (VAE, {}),
    "BetaVAE": (BetaVAE, {"beta": 2.0}),
    "BetaVSC": (BetaVSC, {}),
    "BetaVSC, mlp": (BetaVSC, {"decoder": "mlp"}),
}
LIKELIHOODS = ("nb", "mse")


@keeps_seed()
def latent(
    data: Sequence[str] = SETS,
    *,
    n_latent: Sequence[int] = (6, 10, 30),
    gene_likelihood: Sequence[str] = LIKELIHOODS,
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 2000,
    max_epochs: int | None = None,
    bio: bool = False,
) -> pd.DataFrame:
    """Compare label recovery, reconstruction, sparsity and time of AE, VAE, BetaVAE, BetaVSC and PCA.

    Parameters
    ----------
    data
        Names of data sets with cell types, see :func:`scalloy.benchmark.fit.load`.
    n_latent
        Numbers of latent dimensions; BetaVSC aims to have half of them on if there are at most 10
        (``alpha=0.5``), otherwise a tenth.
    gene_likelihood
        ``"nb"`` of counts, ``"mse"`` of log-normalised expression as in the source, or both.
    seeds
        Random seeds of the split, the weights, the training and the neighbours.
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    bio
        Whether to compute the bio-conservation score of scib-metrics too (needs the extra ``bench``).

    Returns
    -------
    One row per data set, seed, size, likelihood and model: ``knn`` (accuracy of 15 neighbours, five-fold),
    ``leiden_ari`` (resolution 1), ``silhouette`` (of types), ``r2`` (of held-out log-normalised expression,
    after a line through each gene), ``elbo`` (held-out, nats per cell), ``hoyer`` (sparsity of the code in
    [0, 1]), ``off`` (share of latents that are off), ``seconds`` per epoch, and ``time`` as a ratio to the AE
    with the same likelihood, size and seed.

    Examples
    --------
    >>> table = sa.benchmark.latent(["pbmc3k"], n_latent=[10], seeds=[0])  # doctest: +SKIP
    >>> table[["model", "likelihood", "knn", "hoyer"]]  # doctest: +SKIP
    """
    for name in gene_likelihood:
        one_of("gene_likelihood", name, LIKELIHOODS)
    rows: list[dict[str, Any]] = []
    for name in data:
        adata = load(name, n_genes)
        types, x = adata.obs["cell_type"].astype(str).to_numpy(), normed_copy(adata).X.toarray()
        for seed in seeds:
            parts = three_parts(adata.n_obs, seed)
            for size in n_latent:
                known = {"data": name, "seed": seed, "n_latent": size}
                z, r2 = _components(x, parts, size)
                rows.append(
                    {**known, "model": "PCA", "likelihood": "mse", **_scores(z, types, seed, bio), "r2": r2}
                )
                for lik in gene_likelihood:
                    for model in MODELS:
                        z, row = _one(adata, model, lik, size, parts, x, seed, max_epochs)
                        found = _scores(z, types, seed, bio)
                        rows.append({**known, "model": model, "likelihood": lik, **found, **row})
    frame = pd.DataFrame(rows)
    same = ["data", "seed", "n_latent", "likelihood"]
    plain = frame[frame["model"] == "AE"].set_index(same)["seconds"].rename("plain")
    frame["time"] = frame["seconds"] / frame.join(plain, on=same)["plain"]
    return frame


def _one(
    adata: AnnData,
    model: str,
    likelihood: str,
    n_latent: int,
    parts: Sequence[np.ndarray],
    x: np.ndarray,
    seed: int,
    max_epochs: int | None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Train one model; return the code of all cells, and its figures on the held-out ones."""
    scvi.settings.seed = seed
    cls, settings = MODELS[model]
    sparse = issubclass(cls, BetaVSC)
    more = {"alpha": 0.5} if sparse and n_latent <= FEW else {}
    cls.setup_anndata(adata)
    made = cls(adata, n_latent=n_latent, gene_likelihood=likelihood, **settings, **more)
    begin = time.perf_counter()
    made.train(max_epochs=max_epochs, datasplitter_kwargs={"external_indexing": list(parts)}, **QUIET)
    epochs, held = len(made.history["elbo_train"]), parts[2]
    row = {"epochs": epochs, "seconds": (time.perf_counter() - begin) / epochs}
    row |= {"r2": _r2(_decoded(made, held), x[held])}
    if cls is not AE:
        row |= {"elbo": made.get_elbo(indices=held)}
    if sparse:
        row |= {"off": float(made.get_sparsity().mean())}
    return made.get_latent_representation(), row


@torch.inference_mode()
def _decoded(made: ScalloyModel, rows: np.ndarray) -> np.ndarray:
    """Return the log-normalised expression that is decoded from the mean of the code."""
    module, parts = made.module, []
    for batch in made.reader.batches(None, rows, decodes=True):
        p_x = module.decode(batch, {k: q.mean for k, q in module.encode(batch).items()})["x"]
        parts.append(module.likelihood.predicted(p_x).numpy())
    return np.concatenate(parts)


def _components(x: np.ndarray, parts: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, float]:
    """Fit principal components to the training cells; return the code of all cells, and held-out R2."""
    pca, held = PCA(n, random_state=0).fit(x[parts[0]]), parts[2]
    back = pca.inverse_transform(pca.transform(x[held]))
    return pca.transform(x), _r2(back, x[held])


def _scores(z: np.ndarray, types: np.ndarray, seed: int, bio: bool) -> dict[str, float]:
    """Return label recovery from a code, and its sparsity."""
    out = {
        "knn": metrics.knn_accuracy(z, types),
        "leiden_ari": float(adjusted_rand_score(types, leiden(z, seed))),
        "silhouette": float(silhouette_score(z, types)),
        "hoyer": metrics.hoyer(z),
    }
    return out | ({"bio_conservation": metrics.bio_conservation(z, types)} if bio else {})


def _r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of variance that is explained after a linear fit per gene.

    Without this fit, models of counts would lose for a reason that has nothing to do with their codes: the
    logarithm of an expected count lies above the mean of the logarithms of counts.
    """
    p, t = predicted - predicted.mean(0), truth - truth.mean(0)
    slope = (p * t).sum(0) / np.maximum(np.square(p).sum(0), 1e-12)
    return float(1 - np.square(t - slope * p).sum() / np.square(t).sum())


@keeps_seed()
def pictures(
    folder: Path, name: str, *, n_latent: int = 10, n_genes: int = 2000, max_epochs: int | None = None
) -> list[Path]:
    """Draw the codes of all models in one picture, and the most used latents of BetaVSC in another.

    Parameters
    ----------
    folder
        Folder in which ``codes_<data>.png`` and ``latents_<data>.png`` are written.
    name
        Name of the data set.
    n_latent
        Number of latent dimensions of all models but BetaVSC, which uses its default.
    n_genes, max_epochs
        Most variable genes that are kept, and maximum number of epochs, as in :func:`latent`.
    """
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    adata = load(name, n_genes)
    adata.obsm["PCA"] = PCA(n_latent, random_state=0).fit_transform(normed_copy(adata).X.toarray())
    for model in ("AE", "VAE", "BetaVAE", "BetaVSC"):
        scvi.settings.seed = 0
        cls, settings = MODELS[model]
        cls.setup_anndata(adata)
        sizes = {} if cls is BetaVSC else {"n_latent": n_latent}
        made = cls(adata, gene_likelihood="nb", **settings, **sizes)
        made.train(max_epochs=max_epochs, **QUIET)
        adata.obsm[model] = made.get_latent_representation()
    adata.obsm["BetaVSC, which are on"] = made.get_active().to_numpy()
    shown = list(adata.obsm)
    codes, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    for key, ax in zip(shown, axes.ravel(), strict=True):
        pl.latent(adata, "cell_type", use_rep=key, ax=ax, legend="right" if key == shown[2] else "on data")
        ax.set_title(key)
    latents, axes = plt.subplots(2, 3, figsize=(14, 6.4), layout="constrained")
    table = made.get_latent_summary()
    for j, ax in zip(table.index, axes.ravel(), strict=False):
        pl.traversal(made, int(j), ax=ax)
        on = made.get_active().iloc[:, j] > 0.5
        share = on.groupby(adata.obs["cell_type"], observed=True).mean().nlargest(2)
        ax.set_title(", ".join(f"{k} {v:.0%}" for k, v in share.items()), fontsize="small")
    written = [folder / f"codes_{name}.png", folder / f"latents_{name}.png"]
    for path, figure in zip(written, (codes, latents), strict=True):
        figure.savefig(path, dpi=100)
        plt.close(figure)
    return written


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, with the standard deviation of label recovery."""
    by = frame.groupby(["data", "n_latent", "likelihood", "model"], sort=False)
    columns = ["knn", "leiden_ari", "silhouette", "bio_conservation", "r2", "elbo", "hoyer", "off", "time"]
    out = by[[c for c in columns if c in frame]].mean()
    out.insert(1, "knn_sd", by["knn"].std())
    out.insert(3, "leiden_sd", by["leiden_ari"].std())
    return out.round(3)
