"""The picture of the README, `docs/_static/front.png`, from the embedded cells in about two minutes.

    python scripts/make_front_picture.py

Left: clusters that are found without labels. Middle: labels of one cell in twenty, carried to the others.
Right: stimulated B cells, predicted by a model that has seen none, against those that were measured.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from anndata import AnnData

import scalloy as sa
from scalloy.benchmark.fit import normed_copy

mpl.use("Agg")
FRONT = Path(__file__).parents[1] / "docs" / "_static" / "front.png"
KNOWN, HELD_OUT = 0.05, "B cells"


def trained(cells: AnnData, **columns: str) -> sa.CGMDVAE:
    """A model of the cells; its code and a UMAP of it are written into them."""
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition", batch_key="batch", **columns)
    model = sa.CGMDVAE(cells)
    model.train(enable_progress_bar=False)
    model.annotate()
    sc.pp.neighbors(cells, use_rep="X_cgmdvae")
    sc.tl.umap(cells)
    return model


def clusters(ax: plt.Axes) -> None:
    """No label is used."""
    cells = sa.datasets.kang()
    trained(cells)
    sa.pl.latent(cells, "cgmdvae_cluster", ax=ax, legend="on data")
    n = cells.obs["cgmdvae_cluster"].nunique()
    ax.set_title(f"Clusters, found without labels: {n}")


def labels(ax: plt.Axes) -> None:
    """Of a few cells the type is told."""
    cells = sa.datasets.kang()
    told = np.random.default_rng(0).random(cells.n_obs) < KNOWN
    cells.obs["label"] = np.where(told, cells.obs["cell_type"].astype(str), "Unknown")
    trained(cells, labels_key="label", unlabeled_category="Unknown")
    right = (cells.obs["cgmdvae_label"].astype(str) == cells.obs["cell_type"].astype(str))[~told].mean()
    sa.pl.latent(cells, "cgmdvae_label", ax=ax, legend="on data")
    ax.set_title(f"Labels, carried from {told.mean():.0%} of the cells: {right:.0%} right")


def prediction(ax: plt.Axes) -> None:
    """A cell type that was never seen under the condition."""
    cells = sa.datasets.kang()
    of_type, stimulated = cells.obs["cell_type"] == HELD_OUT, cells.obs["condition"] == "stimulated"
    seen, truth = cells[~(of_type & stimulated)].copy(), cells[of_type & stimulated].copy()
    sa.CGMDVAE.setup_anndata(seen, condition_key="condition", labels_key="cell_type")
    model = sa.CGMDVAE(seen)
    model.train(enable_progress_bar=False)
    controls = cells[of_type & ~stimulated].copy()
    predicted = model.transfer(controls, to="stimulated")
    mean = [np.asarray(normed_copy(c).X.mean(axis=0)).ravel() for c in (truth, controls)]
    sa.pl.transfer(np.asarray(predicted.X.mean(axis=0)).ravel(), *mean, genes=list(cells.var_names), ax=ax)
    skill = sa.metrics.skill(np.asarray(predicted.X.mean(axis=0)).ravel(), *mean)
    ax.set_title(f"Response of {HELD_OUT}, never seen stimulated: skill {skill:.2f}")
    ax.set(xlabel="measured change of each gene", ylabel="predicted change")


if __name__ == "__main__":
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    for draw, ax in zip((clusters, labels, prediction), axes, strict=True):
        draw(ax)
    figure.savefig(FRONT, dpi=110)
    print(f"saved {FRONT}")
