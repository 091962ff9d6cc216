"""Integration of batches, scored by scib-metrics as the field does: ours beside Harmony, SCVI and SCANVI."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData

from scalloy import datasets, pl
from scalloy._arguments import one_of
from scalloy.benchmark.clustering import principal_components
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, normed_copy
from scalloy.benchmark.labels import UNKNOWN, some_of_each
from scalloy.models import CGMDVAE, VAE

SETS = ("pbmc_4study", "mixology_3tech", "kang_pbmc")
N_PCS = 50
FIELD: dict[str, Any] = {"n_layers": 2, "n_latent": 30, "gene_likelihood": "nb"}  # what the field gives SCVI
FEW_EPOCHS, OF_EACH_LABEL = 20, 100  # of SCANVI after SCVI, as in scvi-tools' tutorials
SCORES = {
    "Total": "total",
    "Bio conservation": "bio",
    "Batch correction": "batch",
    "isolated_labels": "isolated_labels",
    "nmi_ari_cluster_labels_kmeans_nmi": "kmeans_nmi",
    "nmi_ari_cluster_labels_kmeans_ari": "kmeans_ari",
    "silhouette_label": "silhouette",
    "clisi_knn": "clisi",
    "bras": "bras",
    "ilisi_knn": "ilisi",
    "kbet_per_label": "kbet",
    "graph_connectivity": "graph_connectivity",
    "pcr_comparison": "pcr",
}


@dataclass
class Run:
    """Cells to integrate with one random seed, and what methods have in common.

    Parameters
    ----------
    cells
        Raw counts with the columns ``batch`` and ``cell_type``, and principal components in ``"X_pca"``.
    seed
        Random seed.
    share
        Share of the cells of each type that methods with labels are told.
    max_epochs, scvi_epochs
        Maximum number of epochs of our models and of SCVI.
    model
        Arguments of our models.
    """

    cells: AnnData
    seed: int = 0
    share: float = 0.1
    max_epochs: int | None = None
    scvi_epochs: int | None = None
    model: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def told(self) -> AnnData:
        """Copy of the cells with the known labels in the column ``given``."""
        cells, y = self.cells.copy(), self.cells.obs["cell_type"].astype(str).to_numpy()
        given = np.where(some_of_each(y, self.share, self.seed), y, UNKNOWN)
        cells.obs["given"] = pd.Categorical(given)
        return cells

    @cached_property
    def scvi(self) -> tuple[Any, float]:
        """Trained SCVI, and the processor time that it took."""
        scvi.settings.seed, begun = self.seed, time.process_time()
        scvi.model.SCVI.setup_anndata(self.told, batch_key="batch")
        made = scvi.model.SCVI(self.told, **FIELD)
        made.train(max_epochs=self.scvi_epochs, **QUIET)
        return made, time.process_time() - begun


Coded = tuple[np.ndarray, float]


def _pca(run: Run) -> Coded:
    """Return the principal components of the cells."""
    return run.cells.obsm["X_pca"], np.nan


def _harmony(run: Run) -> Coded:
    """Return principal components after Harmony's correction."""
    try:
        from harmonypy import run_harmony
    except ImportError as error:
        msg = "This also runs Harmony, which is not installed: pip install 'scalloy[bench]'."
        raise ImportError(msg) from error
    begun, x = time.process_time(), run.cells.obsm["X_pca"]
    found = run_harmony(x, run.cells.obs, "batch", random_state=run.seed, ncores=1, verbose=False)
    return np.asarray(found.Z_corr), time.process_time() - begun


def _scvi(run: Run) -> Coded:
    """Return the code of SCVI."""
    made, seconds = run.scvi
    return made.get_latent_representation(), seconds


def _scanvi(run: Run) -> Coded:
    """Return the code of SCANVI, which begins with SCVI's training."""
    base, seconds = run.scvi
    begun = time.process_time()
    made = scvi.model.SCANVI.from_scvi_model(base, UNKNOWN, labels_key="given", adata=run.told)
    made.train(max_epochs=FEW_EPOCHS, n_samples_per_label=OF_EACH_LABEL, **QUIET)
    return made.get_latent_representation(), seconds + time.process_time() - begun


def _ours(
    cls: Any, *, labels: bool = False, trained: Mapping[str, Any] | None = None, **settings: Any
) -> Callable[[Run], Coded]:
    """Return a method that trains a model of ours, with or without the known labels.

    ``trained`` holds arguments of ``train``, and ``settings`` those of the model.
    """
    known = {"labels_key": "given", "unlabeled_category": UNKNOWN} if labels else {}

    def code(run: Run) -> Coded:
        begun = time.process_time()
        cls.setup_anndata(run.told, batch_key="batch", **known)
        made = cls(run.told, seed=run.seed, **{**settings, **run.model})
        made.train(
            **{**(trained or {}), **({"max_epochs": run.max_epochs} if run.max_epochs else {})}, **QUIET
        )
        return made.get_latent_representation(), time.process_time() - begun

    return code


MIXED: dict[str, Any] = {"mmd_weight": 200.0, "trained": {"batch_size": 256, "max_epochs": 100}}
METHODS: dict[str, Callable[[Run], Coded]] = {
    "PCA": _pca,
    "Harmony": _harmony,
    "SCVI": _scvi,
    "VAE": _ours(VAE),
    "CGMDVAE": _ours(CGMDVAE),
    "CGMDVAE, mmd": _ours(CGMDVAE, **MIXED),
    "SCANVI, labels": _scanvi,
    "CGMDVAE, labels": _ours(CGMDVAE, labels=True),
    "CGMDVAE, labels, mmd": _ours(CGMDVAE, labels=True, label_weight=10.0, **MIXED),
}
RIVALS = ("SCVI", "SCANVI, labels")  # take long; their codes may be kept


@keeps_seed()
def integration(
    data: Sequence[str] = SETS,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    share: float = 0.1,
    n_cells: int = 3000,
    n_genes: int = 2000,
    batch_key: str = "batch",
    max_epochs: int | None = None,
    scvi_epochs: int | None = None,
    cache: Path | None = None,
    folder: Path | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Score how well codes keep cell types and mix batches, by the default metrics of scib-metrics.

    All methods get the same cells and genes. SCVI and SCANVI have two layers and 30 latents, NB likelihood
    and their default number of epochs (20 of SCANVI after SCVI's), as in the tutorials of scvi-tools.

    Parameters
    ----------
    data
        Names of data sets with the columns ``batch`` and ``cell_type``: ``"pbmc_4study"`` (studies),
        ``"mixology_3tech"`` (technologies), ``"kang_pbmc"`` and its part ``"kang_subset"`` (donors).
    methods
        Names of methods in :data:`METHODS`; ``None`` is all.
    seeds
        Random seeds of the choice of labelled cells, the weights, the split and the training.
    share
        Share of the cells of each type, at least two cells, that methods with labels are told.
    n_cells
        Number of cells that are drawn from larger data sets, always the same ones.
    n_genes
        Number of genes that are most variable within batches.
    batch_key
        Column of the batch.
    max_epochs, scvi_epochs
        Maximum number of epochs of our models and of SCVI; ``None`` uses the default of each.
    cache
        Folder in which the codes of SCVI and SCANVI are kept, which are then trained once.
    folder
        Folder for a picture of each data set, ``integration_<data>.png``, with the first seed.
    **model
        Arguments of our models.

    Returns
    -------
    pd.DataFrame
        One row for each data set, seed and method: total (0.6 ``bio`` + 0.4 ``batch``), the means ``bio`` and
        ``batch``, the single scores, and the processor time of training relative to SCVI's (``time``).

    Examples
    --------
    >>> few = {"methods": ["PCA", "VAE"], "seeds": [0], "max_epochs": 1, "n_cells": 500, "n_genes": 100}
    >>> table = sa.benchmark.integration(["kang_subset"], **few)  # doctest: +SKIP
    """
    chosen = [one_of("methods", m, METHODS) for m in (METHODS if methods is None else methods)]
    rows = []
    for name in data:
        cells = prepared(name, n_cells, n_genes, batch_key)
        for seed in seeds:
            run = Run(cells, seed, share, max_epochs, scvi_epochs, model)
            place = None if cache is None else Path(cache) / f"{name}_{batch_key}_{seed}_{share}"
            coded = {m: _kept(run, m, place) for m in chosen}
            found = scored(cells, {m: z for m, (z, _) in coded.items()})
            slowest = coded["SCVI"][1] if "SCVI" in coded else np.nan
            for m, (_, seconds) in coded.items():
                about = {"data": name, "method": m, "seed": seed}
                rows.append({**about, **found.loc[m].to_dict(), "time": seconds / slowest})
            if folder is not None and seed == seeds[0]:
                _picture(Path(folder), name, cells, {m: z for m, (z, _) in coded.items()})
    return pd.DataFrame(rows)


def prepared(name: str, n_cells: int, n_genes: int, batch_key: str = "batch") -> AnnData:
    """Return cells of a data set with the genes that vary most within batches, and principal components.

    Parameters
    ----------
    name
        Name of the data set.
    n_cells
        Number of cells that are drawn, always the same ones; all if there are fewer.
    n_genes
        Number of genes.
    batch_key
        Column that becomes the column ``batch``.
    """
    own = ("kang_subset", *SETS)
    adata = datasets.kang() if one_of("data", name, own) == "kang_subset" else datasets.labelled(name)
    if n_cells < adata.n_obs:
        drawn = np.random.default_rng(0).choice(adata.n_obs, n_cells, replace=False)
        adata = adata[np.sort(drawn)].copy()
    columns = {"batch": adata.obs[one_of("batch_key", batch_key, list(adata.obs))], "cell_type": None}
    columns["cell_type"] = adata.obs["cell_type"]
    adata.obs = pd.DataFrame({k: pd.Categorical(v.astype(str)) for k, v in columns.items()}, adata.obs_names)
    sc.pp.filter_cells(adata, min_counts=1)
    sc.pp.filter_genes(adata, min_cells=3)
    if n_genes < adata.n_vars:
        normed = normed_copy(adata)
        sc.pp.highly_variable_genes(normed, n_top_genes=n_genes, batch_key="batch")
        adata = adata[:, normed.var["highly_variable"].to_numpy()].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    adata.obsm["X_pca"] = principal_components(adata, N_PCS)
    return adata


def _kept(run: Run, method: str, place: Path | None) -> Coded:
    """Return the code of a method and its processor time; those of rivals are kept at a place, if given."""
    if place is None or method not in RIVALS:
        return METHODS[method](run)
    cells, n_genes = np.asarray(run.cells.obs_names, dtype=str), run.cells.n_vars
    path = place / f"{method.split(',')[0]}_{run.scvi_epochs}.npz"
    if path.is_file():
        with np.load(path) as kept:
            if np.array_equal(kept["cells"], cells) and int(kept["n_genes"]) == n_genes:
                return kept["z"], float(kept["seconds"])
    z, seconds = METHODS[method](run)
    place.mkdir(parents=True, exist_ok=True)
    np.savez(path, z=z, seconds=seconds, cells=cells, n_genes=n_genes)
    return z, seconds


def scored(cells: AnnData, codes: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return the scores of scib-metrics, methods x scores.

    Parameters
    ----------
    cells
        Cells as :func:`prepared` returns them.
    codes
        Code of the cells by each method.
    """
    try:
        from scib_metrics.benchmark import Benchmarker
    except ImportError as error:
        msg = "`benchmark integration` needs scib-metrics: pip install 'scalloy[bench]'."
        raise ImportError(msg) from error
    both = AnnData(obs=cells.obs[["batch", "cell_type"]], obsm={"X_pca": cells.obsm["X_pca"]})
    for name, z in codes.items():
        both.obsm[name] = np.asarray(z, dtype=np.float32)
    made = Benchmarker(
        both,
        batch_key="batch",
        label_key="cell_type",
        embedding_obsm_keys=list(codes),
        pre_integrated_embedding_obsm_key="X_pca",
        progress_bar=False,
    )
    made.benchmark()
    return (
        made.get_results(clean_names=False)
        .loc[list(codes), list(SCORES)]
        .astype(float)
        .rename(columns=SCORES)
    )


def _picture(folder: Path, name: str, cells: AnnData, codes: dict[str, np.ndarray]) -> None:
    """Draw the UMAP of each code twice: by batch and by type."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    shown, n = AnnData(obs=cells.obs), len(codes)
    figure, axes = plt.subplots(2, n, figsize=(3 * n + 2, 6), layout="constrained", squeeze=False)
    for i, (method, z) in enumerate(codes.items()):
        shown.obsm["X_umap"] = pl.embedding(z)
        for color, ax in zip(("batch", "cell_type"), axes[:, i], strict=True):
            pl.latent(shown, color, ax=ax, legend="right" if i == n - 1 else "none")
            ax.set_title(method)
    figure.savefig(folder / f"integration_{name}.png", dpi=100)
    plt.close(figure)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of total, bio, batch and time; ``"all"`` is over sets."""
    every = pd.concat([frame, frame.assign(data="all")])
    return spread(every, ["data", "method"], ["total", "bio", "batch", "time"], digits=3)
