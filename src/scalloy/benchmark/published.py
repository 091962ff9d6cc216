"""Experiments of Kolb's thesis (2023) on digits and on the style latent, repeated with our model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from scalloy import datasets, metrics, pl
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load
from scalloy.models import CGMDVAE

UNKNOWN = "?"


@keeps_seed()
def digits(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    n: int = 20_000,
    n_clusters: int = 20,
    share: float = 0.05,
    max_epochs: int | None = 60,
    **model: Any,
) -> pd.DataFrame:
    """Score clusters and labels of handwritten digits, without labels and with a share of them.

    Scores are the purity of the clusters, their accuracy after one-to-one matching, and, with labels, the
    accuracy of the predicted labels.

    Parameters
    ----------
    seeds
        Random seeds of the choice of images and of labelled ones, the weights, the split and the training.
    n
        Number of images.
    n_clusters
        Number of clusters when there are no labels.
    share
        Share of images whose label is known; the accuracy of labels is that of the others.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    **model
        Arguments of CGMDVAE.
    """
    settings = {"gene_likelihood": "bernoulli_given", "n_hidden": 512, "n_layers": 2, **model}
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        adata = datasets.digits(n, seed=seed)
        truth = adata.obs["digit"].astype(str).to_numpy()
        known = np.random.default_rng(seed).random(len(truth)) < share
        adata.obs["given"] = np.where(known, truth, UNKNOWN)
        for labels in (None, "given"):
            scvi.settings.seed = seed
            unknown = labels and UNKNOWN
            CGMDVAE.setup_anndata(adata, labels_key=labels, unlabeled_category=unknown, allow_non_counts=True)
            made = CGMDVAE(adata, n_clusters=None if labels else n_clusters, **settings)
            made.train(max_epochs=max_epochs, **QUIET)
            clusters = made.get_clusters().astype(str).to_numpy()
            row = {"regime": f"{share:.0%} of labels" if labels else f"{n_clusters} clusters", "seed": seed}
            row |= {"purity": metrics.purity(truth, clusters)}
            row |= {"matched": metrics.hungarian_accuracy(truth, clusters)}
            if labels:
                told = made.predict_labels().astype(str).to_numpy()
                row["accuracy"] = float(accuracy_score(truth[~known], told[~known]))
            rows.append(row)
    return pd.DataFrame(rows)


@keeps_seed()
def style(
    data: str = "kang_subset",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 2000,
    n_w: int = 2,
    max_epochs: int | None = None,
    folder: Path | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Measure how much the style latent ``w`` knows of conditions, with a standard and a learned prior.

    The table gives the cross-validated accuracy with which 15 nearest neighbours tell the condition from
    samples of ``w`` and of ``z`` and from their means (``chance`` is the share of the largest condition), and
    the KL of ``w``.

    Parameters
    ----------
    data
        Name of a data set with columns ``condition`` and ``cell_type``.
    seeds
        Random seeds of the weights, the split and the training.
    n_genes
        Number of most variable genes that are kept.
    n_w
        Number of dimensions of ``w``.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    folder
        Folder in which pictures of ``w`` for the first seed are saved; ``None`` saves none.
    **model
        Arguments of CGMDVAE.
    """
    adata = load(data, n_genes)
    rows: list[dict[str, Any]] = []
    for prior in ("standard", "condition"):
        for seed in seeds:
            scvi.settings.seed = seed
            CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
            made = CGMDVAE(adata, n_w=n_w, w_prior=prior, **{"conditioning": "full", **model})
            made.train(max_epochs=max_epochs, **QUIET)
            row: dict[str, Any] = {"prior of w": prior, "seed": seed}
            for which in ("w", "z"):
                mean, variance = made.get_latent_representation(which=which, return_dist=True)
                noise = np.random.default_rng(seed).normal(size=mean.shape)
                sample = mean + np.sqrt(variance) * noise
                groups = adata.obs["condition"].to_numpy()
                row |= {f"told from {which}": told_from(sample, groups)}
                row |= {f"told from mean of {which}": told_from(mean, groups)}
                if which == "w" and folder is not None and seed == next(iter(seeds)):
                    picture(adata, sample, folder / f"style_{prior}.png", f"prior of w: {prior}")
            row["chance"] = float(adata.obs["condition"].value_counts(normalize=True).max())
            row["kl_w"] = float(made.history["kl_w_validation"].iloc[-1, 0])
            rows.append(row)
    return pd.DataFrame(rows)


def told_from(x: np.ndarray, groups: np.ndarray) -> float:
    """Return the cross-validated accuracy of 15 nearest neighbours."""
    return float(cross_val_score(KNeighborsClassifier(15), x, groups, cv=5).mean())


def picture(adata: AnnData, w: np.ndarray, path: Path, title: str) -> None:
    """Save a picture of the first two dimensions of ``w``, coloured by condition."""
    shown = AnnData(obs=adata.obs[["condition"]].copy(), obsm={"w": w})
    ax = pl.latent(shown, "condition", basis="w")
    ax.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(path, dpi=120)
