"""Benchmarks on RNA and protein: cross-prediction, joint code, incomplete panels and speed, beside totalVI.

All models train on the same cells, with one exception: totalVI can predict proteins only of cells that it was
trained with, as a batch without proteins, so it alone sees the RNA of the test cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import KFold

from scalloy import datasets, metrics
from scalloy._arguments import one_of
from scalloy.baselines import CROSS_METHODS, CrossModal
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, normed_copy
from scalloy.models import POISEVAE

KEY = "protein_counts"
JOINTS = {"POISEVAE": "poise", "POISE, Gaussian prior": "gaussian", "product of experts": "product"}
JOINTS |= {"mixture of experts": "mixture", "independent": "independent"}
MODELS = (*JOINTS, *CROSS_METHODS)
COLUMNS = ["r", "r_clr", "rmse", "coverage", "r_rna", "ari", "marginal_ll", "seconds"]
Row = dict[str, Any]


@keeps_seed()
def multimodal(
    data: str = "citeseq",
    models: Sequence[str] = MODELS,
    *,
    folds: int = 5,
    n_folds: int | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    totalvi_epochs: int | None = None,
) -> pd.DataFrame:
    """Predict each modality from the other in held-out cells, and score the joint code against cell types.

    Parameters
    ----------
    data
        ``"citeseq"`` (6,661 PBMC, see :func:`scalloy.datasets.fetch`) or ``"citeseq_subset"`` (ships with the
        package).
    models
        Names of our models and of the baselines; ``"totalVI"`` runs only if it is named.
    folds, n_folds
        Number of parts into which the cells are divided, and how many of them are held out in turn (``None``
        holds out each).
    seed
        Random seed of the folds and the training.
    max_epochs, totalvi_epochs
        Maximum number of epochs of our models and of totalVI; ``None`` uses the defaults.

    Examples
    --------
    >>> table = sa.benchmark.multimodal("citeseq_subset", ["mean", "ridge"], n_folds=1)
    >>> table["model"].tolist()
    ['mean', 'ridge']
    """
    adata = load(data)
    rows: list[Row] = []
    for fold, (train, test) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(adata.X)):
        if fold == (n_folds or folds):
            break
        for name in models:
            one_of("models", name, (*MODELS, "totalVI"))
            scvi.settings.seed = seed
            row = run(name, adata, train, test, totalvi_epochs if name == "totalVI" else max_epochs)
            rows.append({"data": data, "fold": fold, "model": name, **row})
    return pd.DataFrame(rows)


def load(name: str) -> AnnData:
    """Load a data set by name."""
    return datasets.citeseq(full=one_of("data", name, ("citeseq", "citeseq_subset")) == "citeseq")


def run(name: str, adata: AnnData, train: np.ndarray, test: np.ndarray, max_epochs: int | None) -> Row:
    """Train and score one model on one split."""
    if name == "totalVI":
        return totalvi(adata, train, test, max_epochs)
    known, new = adata[train].copy(), adata[test].copy()
    began = time.perf_counter()
    if name in CROSS_METHODS:
        baseline = CrossModal(known, name)
        baseline.train()
        seconds = time.perf_counter() - began
        found = {side: baseline.predict(side, other, new) for side, other in SIDES}
        return {**scores(adata, train, test, found["prot"], found["rna"]), "seconds": seconds}
    model = ours(known, JOINTS[name], max_epochs)
    seconds = time.perf_counter() - began
    protein, low, high = model.predict("prot", from_="rna", adata=new, scale="log1p", interval=0.9)
    genes = model.predict("rna", from_="prot", adata=new, scale="log1p", n_samples=20)
    truth = np.log1p(new.obsm[KEY].to_numpy(float))
    code = model.get_latent_representation(new)
    return {
        **scores(adata, train, test, protein, genes),
        "coverage": metrics.within(low.to_numpy(), high.to_numpy() + 1e-6, truth),
        "ari": recovered(code, new),
        "marginal_ll": model.get_marginal_ll(new, n_mc_samples=50),
        "seconds": seconds,
        "epochs": len(model.history["elbo_train"]),
    }


SIDES = (("prot", "rna"), ("rna", "prot"))


def ours(adata: AnnData, joint: str, max_epochs: int | None, **more: Any) -> POISEVAE:
    """Set up and train our model with one of its joint distributions."""
    POISEVAE.setup_anndata(adata, protein_obsm_key=KEY, **more)
    model = POISEVAE(adata, joint=joint)
    model.train(max_epochs, **QUIET)
    return model


def recovered(code: np.ndarray, cells: AnnData) -> float:
    """Return the adjusted Rand index of k-means clusters of a code against the cell types."""
    types = cells.obs["cell_type"].astype(str)
    clusters = KMeans(types.nunique(), n_init=10, random_state=0).fit_predict(code)
    return float(adjusted_rand_score(types, clusters))


def scores(
    adata: AnnData, train: np.ndarray, test: np.ndarray, protein: pd.DataFrame, genes: pd.DataFrame | None
) -> Row:
    """Score predictions of ``log1p`` of counts, of all proteins and of the 200 most variable genes."""
    truth, predicted = np.log1p(adata.obsm[KEY].to_numpy(float)), protein.to_numpy(float)
    out: Row = {
        "r": metrics.variable_correlation(predicted, truth[test]).mean(),
        "r_clr": metrics.variable_correlation(metrics.clr(predicted), metrics.clr(truth[test])).mean(),
        "rmse": metrics.rmse_z(predicted, truth[test], truth[train].std(0)),
    }
    if genes is not None:
        x = normed_copy(adata).X.toarray()
        top = np.argsort(-x[train].var(0))[:200]
        out["r_rna"] = np.nanmean(
            metrics.variable_correlation(genes.to_numpy(float)[:, top], x[test][:, top])
        )
    return out


def totalvi(adata: AnnData, train: np.ndarray, test: np.ndarray, max_epochs: int | None) -> Row:
    """Train and score totalVI with its defaults; the test cells are a batch without proteins."""
    cells = adata[np.r_[train, test]].copy()
    cells.obs["seen"] = ["train"] * len(train) + ["test"] * len(test)
    cells.obsm[KEY] = cells.obsm[KEY].astype(np.float32)
    cells.obsm[KEY].iloc[len(train) :] = 0.0
    rows = np.arange(len(train), len(cells))
    predicted, model, seconds = imputed(cells, "seen", "train", rows, max_epochs)
    return {
        **scores(adata, train, test, predicted, None),
        "ari": recovered(model.get_latent_representation(indices=rows), adata[test]),
        "seconds": seconds,
        "epochs": len(model.history["elbo_train"]),
    }


def imputed(
    cells: AnnData, batch_key: str, like: str, rows: np.ndarray, max_epochs: int | None
) -> tuple[pd.DataFrame, Any, float]:
    """Impute missing proteins of ``rows`` by totalVI as in batch ``like``; return them, model and seconds."""
    from scvi.model import TOTALVI

    began = time.perf_counter()
    TOTALVI.setup_anndata(cells, protein_expression_obsm_key=KEY, batch_key=batch_key)
    model = TOTALVI(cells)
    model.train(max_epochs, **QUIET)
    seconds = time.perf_counter() - began
    _, protein = model.get_normalized_expression(
        indices=rows, transform_batch=like, n_samples=25, return_mean=True, include_protein_background=True
    )
    return np.log1p(protein), model, seconds


@keeps_seed()
def panel(
    data: str = "citeseq",
    models: Sequence[str] = ("POISEVAE", "product of experts", "totalVI"),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    max_epochs: int | None = None,
    totalvi_epochs: int | None = None,
) -> pd.DataFrame:
    """Impute half of the protein panel, missing in one of two batches, and correlate it with the truth.

    Parameters
    ----------
    data
        Name of the data set, as in :func:`multimodal`; two random halves of its cells are the batches.
    models
        Names of our models, or ``"totalVI"``.
    seeds
        Random seeds of the batches, the choice of missing proteins, and the training.
    max_epochs, totalvi_epochs
        Maximum number of epochs of our models and of totalVI; ``None`` uses the defaults.
    """
    whole, rows = load(data), []
    truth = whole.obsm[KEY].copy()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        second = rng.permutation(whole.n_obs) < whole.n_obs // 2
        missing = rng.choice(truth.columns, truth.shape[1] // 2, replace=False)
        for name in models:
            scvi.settings.seed = seed
            cells = whole.copy()
            cells.obs["panel"] = np.where(second, "half", "whole")
            masked = truth.astype(np.float32)
            masked.loc[second, missing] = 0.0 if name == "totalVI" else np.nan
            cells.obsm[KEY] = masked
            at = np.flatnonzero(second)
            began = time.perf_counter()
            if name == "totalVI":
                predicted, _, seconds = imputed(cells, "panel", "whole", at, totalvi_epochs)
            else:
                model = ours(cells, JOINTS[name], max_epochs, batch_key="panel")
                seconds = time.perf_counter() - began
                predicted = model.predict("prot", indices=at, scale="log1p", transform_batch="whole")
            expected = np.log1p(truth.loc[second, missing].to_numpy(float))
            r = metrics.variable_correlation(predicted[missing].to_numpy(float), expected).mean()
            rows.append({"data": data, "seed": seed, "model": name, "r_missing": r, "seconds": seconds})
    return pd.DataFrame(rows)


@keeps_seed()
def speed(
    data: str = "citeseq", *, max_epochs: int = 5, repeats: int = 3, batch_size: int = 256
) -> pd.DataFrame:
    """Measure how many times faster an epoch of POISEVAE is than one of totalVI, at their default sizes.

    Processor time is measured from the second to the last epoch, with equal batches.

    Parameters
    ----------
    data
        Name of the data set, as in :func:`multimodal`.
    max_epochs
        Number of epochs that are measured.
    repeats
        Number of measurements.
    batch_size
        Number of cells per step of both models; 256 is totalVI's default.
    """
    from scvi.model import TOTALVI

    adata, rows = load(data), []

    def seconds(make: Callable[[], Any]) -> float:
        times = []
        for epochs in (1, 1 + max_epochs):
            scvi.settings.seed = 0
            model = make()
            began = time.process_time()
            model.train(epochs, batch_size=batch_size, early_stopping=False, accelerator="cpu", **QUIET)
            times.append(time.process_time() - began)
        return (times[1] - times[0]) / max_epochs

    cells, rival = adata.copy(), adata.copy()
    POISEVAE.setup_anndata(cells, protein_obsm_key=KEY)
    TOTALVI.setup_anndata(rival, protein_expression_obsm_key=KEY)
    seconds(lambda: POISEVAE(cells))  # warm up: compilation is not timed
    for repeat in range(repeats):
        own = {name: seconds(lambda j=joint: POISEVAE(cells, joint=j)) for name, joint in JOINTS.items()}
        theirs = seconds(lambda: TOTALVI(rival))
        rows += [
            {"data": data, "repeat": repeat, "model": k, "times_faster": theirs / v} for k, v in own.items()
        ]
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over folds of a table of :func:`multimodal`."""
    return spread(frame, ["data", "model"], [c for c in COLUMNS if c in frame], digits=3)
