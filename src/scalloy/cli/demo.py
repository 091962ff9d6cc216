"""Demonstration of the package on the real data that ship with it, behind ``scalloy demo``."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalloy import metrics

if TYPE_CHECKING:
    from anndata import AnnData
    from rich.console import Console

    from scalloy.models import VAE


HELD_OUT = "B cells"


def demo(folder: Path, console: Console, *, max_epochs: int | None = None, seed: int = 0) -> list[Path]:
    """Train on the Kang data that ship with the package, print tables and save pictures and cells.

    Parameters
    ----------
    folder
        Folder for the pictures and the annotated cells.
    console
        Console to print on.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    seed
        Random seed of the weights, the split and the training.

    Returns
    -------
    Paths of the files that were written.
    """
    from scalloy import datasets
    from scalloy.models import VAE

    adata = datasets.kang()
    console.print(
        f"[bold]Kang et al. 2018[/]: {adata.n_obs:,} PBMC x {adata.n_vars:,} genes, raw counts; "
        f"{adata.obs['cell_type'].nunique()} cell types, control and stimulated, "
        f"{adata.obs['batch'].nunique()} donors"
    )
    VAE.setup_anndata(adata, batch_key="batch")
    model = VAE(adata, seed=seed)
    begun = time.perf_counter()
    model.train(max_epochs=max_epochs)
    minutes = (time.perf_counter() - begun) / 60
    model.annotate(adata)
    console.print(table(model, adata, minutes))
    folder.mkdir(parents=True, exist_ok=True)
    paths = pictures(model, adata, folder)
    console.print(held_out(HELD_OUT, seed, max_epochs))
    for path in paths:
        console.print(f"saved {path}")
    return paths


def held_out(name: str, seed: int, max_epochs: int | None) -> Any:
    """Make the table of predictions for a held-out cell type by CGMDVAE and simple baselines."""
    from rich.table import Table

    from scalloy.benchmark import transfer

    shown = ["no change", "mean shift", "kernel ridge", "learned pooling", "CGMDVAE"]
    frame = transfer("kang_subset", shown, hold_out=[name], seeds=[seed], max_epochs=max_epochs)
    frame = frame[frame["method"].isin(shown)]
    out = Table(title=f"{name}, never seen stimulated, predicted from their controls")
    columns = {"skill": "skill", "pearson_delta": "correlation of the change", "r2_mean": "R2 of means"}
    for title in ("", *columns.values()):
        out.add_column(title, justify="left" if not title else "right")
    for row in frame.to_dict("records"):
        out.add_row(str(row["method"]), *[f"{row[c]:.3f}" for c in columns])
    return out


def table(model: VAE, adata: AnnData, minutes: float) -> Any:
    """Make the table of scores of the VAE, beside as many principal components."""
    import scanpy as sc
    from rich.table import Table

    from scalloy.benchmark.fit import normed_copy

    held = model.validation_indices
    pca = sc.pp.pca(normed_copy(adata).X, n_comps=model.module.n_latent)
    latent = adata.obsm["X_vae"]
    out = Table(title=f"VAE, {len(model.history['elbo_train'])} epochs in {minutes:.1f} min")
    for column in ("", "VAE latent", f"PCA, {pca.shape[1]} components"):
        out.add_column(column, justify="left" if not column else "right")
    for name, key in (("cell type", "cell_type"), ("condition", "condition"), ("donor", "batch")):
        scores = [metrics.knn_accuracy(z, adata.obs[key].to_numpy()) for z in (latent, pca)]
        out.add_row(f"{name} by 15 neighbours (5-fold accuracy)", *[f"{s:.3f}" for s in scores])
    out.add_row("held-out ELBO (nats per cell)", f"{model.get_elbo(indices=held):.1f}", "")
    recon = model.get_reconstruction_error(indices=held)["reconstruction_loss"]
    out.add_row("held-out reconstruction (nats per cell)", f"{recon:.1f}", "")
    return out


def pictures(model: VAE, adata: AnnData, folder: Path) -> list[Path]:
    """Save training curves by term, the latent space by cell type, condition and donor, and the cells."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import scanpy as sc

    from scalloy import pl
    from scalloy.files import anndata_files as files

    terms = ("elbo", "reconstruction_loss", "kl_z")
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for ax, term in zip(axes, terms, strict=True):
        pl.history(model, term, ax=ax)
    curves = folder / "training.png"
    figure.savefig(curves, dpi=130)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(adata, use_rep="X_vae")
        sc.tl.umap(adata, random_state=0)
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.4), layout="constrained")
    for ax, key in zip(axes, ("cell_type", "condition", "batch"), strict=True):
        pl.latent(adata, key, ax=ax)
    umap = folder / "umap.png"
    figure.savefig(umap, dpi=130)
    plt.close("all")
    cells = folder / "kang_vae.h5ad"
    files.write(adata, cells)
    return [curves, umap, cells]
