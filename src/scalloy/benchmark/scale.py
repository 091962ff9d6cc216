"""Growth of time and memory with cells, genes, components and latent dimensions, in memory and from a store.

Cells are rows of a data set (the Kang data by default) drawn with replacement; genes beyond those of the data
are columns drawn in the same way. This gives any number of cells with realistic sparsity, but nothing new to
learn. Each measurement runs in its own process, after training a small model: memory is the highest resident
size above that of the process at this point.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.speed import PeakMemory, in_process
from scalloy.data import disk, open_store, write_store
from scalloy.data.batches import CellLoader
from scalloy.data.split import split
from scalloy.models import CGMDVAE, GMVAE, VAE

USUAL = {"cells": 10_000, "genes": 2000, "components": 0, "latents": 10}
QUANTITIES = ("epoch_s", "latent_s", "train_mb", "latent_mb")
PER_FILE = 100_000  # cells per h5ad file from which a store is made
BATCH = 512


def scale(
    data: str = "kang",
    *,
    cells: Sequence[int] = (10_000, 100_000, 1_000_000),
    genes: Sequence[int] = (2000, 8000, 30_000),
    components: Sequence[int] = (5, 20, 80),
    latents: Sequence[int] = (10, 40, 160),
    max_epochs: int = 2,
) -> pd.DataFrame:
    """Measure time (s) and memory above the model (MB) of an epoch and of the latent representation.

    Time is that of the processor: it counts all threads of the process, but no other work on the machine. One
    size varies at a time; the others are 10,000 cells, 2,000 genes and 10 latent dimensions. The model is
    VAE, or GMVAE where components vary. With a million cells or more there is only one epoch.

    Parameters
    ----------
    data
        Name of the data set from which cells are drawn, see :func:`scalloy.benchmark.fit.load`.
    cells
        Numbers of cells, each measured in memory and from a store.
    genes, components, latents
        Numbers of genes, mixture components and latent dimensions, measured in memory.
    max_epochs
        Number of epochs of each measurement; if there are several, the first is not counted.

    Examples
    --------
    >>> small = {"genes": [500], "components": [5], "latents": [10]}
    >>> table = sa.benchmark.scale("kang_subset", cells=[1000], **small)  # doctest: +SKIP
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in cells:
            store = f"{folder}/{n}.zarr"
            job = {**USUAL, "data": data, "cells": n, "max_epochs": 1 if n >= 1_000_000 else max_epochs}
            written = in_process({**job, "kind": "write", "path": store}, __name__)
            for where, path in (("memory", None), ("store", store)):
                found = in_process({**job, "kind": "train", "path": path}, __name__)
                more = written if path else {}
                rows.append({"of": "cells", "n": n, "from": where, **found, **more})
    for of, numbers in (("genes", genes), ("components", components), ("latents", latents)):
        for n in numbers:
            job = {**USUAL, "data": data, of: n, "max_epochs": max_epochs, "kind": "train", "path": None}
            rows.append({"of": of, "n": n, "from": "memory", **in_process(job, __name__)})
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame, beyond: int = 10_000_000) -> pd.DataFrame:
    """Summarise growth: slope on logarithmic axes, ratio of largest to smallest, and an extrapolation.

    A slope of 1 means proportional growth; ``last_slope`` is that of the last two sizes. ``beyond_over_last``
    is the value at ``beyond`` cells over the last measured one, extrapolated along the line through the last
    two values.

    Parameters
    ----------
    frame
        Table returned by :func:`scale`.
    beyond
        Number of cells to which the growth is extrapolated.
    """
    rows = []
    for (of, where), part in frame.sort_values("n").groupby(["of", "from"], sort=False):
        if len(part) < 2:
            continue
        n = part["n"].to_numpy(dtype=float)
        for quantity in QUANTITIES:
            y = part[quantity].to_numpy(dtype=float).clip(1e-3)
            row = {"of": of, "from": where, "quantity": quantity, "ratio": y[-1] / y[0]}
            row["slope"], row["last_slope"] = (
                float(np.polyfit(np.log(n[k:]), np.log(y[k:]), 1)[0]) for k in (0, -2)
            )
            if of == "cells":
                row["beyond_over_last"] = (y[-1] + (y[-1] - y[-2]) / (n[-1] - n[-2]) * (beyond - n[-1])) / y[
                    -1
                ]
            rows.append(row)
    return pd.DataFrame(rows)


@keeps_seed()
def shuffling(
    data: str = "kang",
    *,
    key: str = "batch",
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 2000,
    max_epochs: int = 15,
    buffers: int = 30,
) -> pd.DataFrame:
    """Compare training from memory and from a store: validation loss, and mixing of mini-batches.

    The same cells, sorted by ``key``, are in memory, in a store that is shuffled, and in one that is not. As
    the data are small, the loader's buffer is made so small that an epoch fills it ``buffers`` times, about
    as often as with a million cells.

    Parameters
    ----------
    data, n_genes
        Name of a data set, see :func:`scalloy.benchmark.fit.load`, and number of most variable genes that are
        kept.
    key
        Column of ``.obs`` whose entropy in mini-batches is measured, in nats.
    seeds
        Random seeds of the weights, the split and the order of cells.
    max_epochs
        Number of epochs of each training.
    buffers
        Number of times that the buffer is filled in an epoch.
    """
    adata = load(data, n_genes)
    adata = adata[np.argsort(adata.obs[key].to_numpy(), kind="stable")].copy()
    was, rows = disk.BUFFER, []
    with tempfile.TemporaryDirectory() as folder:
        stores = {"memory": adata}
        for name, shuffle in (("store", True), ("store, not shuffled", False)):
            stores[name] = write_store(adata, f"{folder}/{shuffle}.zarr", shuffle=shuffle)
        disk.BUFFER = adata.X.nnz // buffers
        try:
            for seed, (name, cells) in product(seeds, stores.items()):
                parts = [adata.obs_names[part] for part in split(adata.n_obs, seed=seed)]
                same = [cells.obs_names.get_indexer(part) for part in parts]
                rows.append({"from": name, "seed": seed, **_curve(cells, key, seed, same, max_epochs)})
        finally:
            disk.BUFFER = was
    return pd.DataFrame(rows)


def _curve(adata: AnnData, key: str, seed: int, parts: list[np.ndarray], max_epochs: int) -> dict[str, float]:
    """Train a VAE; return its validation losses and the entropy of ``key`` in mini-batches."""
    scvi.settings.seed = seed
    VAE.setup_anndata(adata, batch_key=key)
    model = VAE(adata, seed=seed)
    same = {"datasplitter_kwargs": {"external_indexing": parts}}
    model.train(max_epochs, batch_size=256, early_stopping=False, **same, **QUIET)
    loss = model.history["validation_loss"].to_numpy().ravel().astype(float)
    found = []
    for batch in CellLoader(model.adata_manager, parts[0], batch_size=256, shuffle=True):
        p = np.bincount(batch["batch"].numpy().ravel(), minlength=1) / len(batch["batch"])
        found.append(float(-(p[p > 0] * np.log(p[p > 0])).sum()))
    early = loss[max_epochs // 3]
    return {"entropy": float(np.mean(found)), "early": early, "last": loss[-1], "best": loss.min()}


def reading(
    data: str = "kang", *, cells: int = 100_000, n_genes: int = 2000, repeats: int = 7
) -> pd.DataFrame:
    """Measure cells read per second from a store in shuffled mini-batches of 512, by us and by annbatch.

    Parameters
    ----------
    data, n_genes
        Name of the data set from which cells are drawn, see :func:`scalloy.benchmark.fit.load`, and number of
        genes.
    cells
        Number of cells that are drawn and read.
    repeats
        Number of measurements of each loader, taken in turn.
    """
    try:
        from annbatch import Loader
    except ImportError as error:
        msg = (
            "`reading` compares with annbatch, which is not installed. It needs Python 3.12 or later: "
            "`pip install 'scalloy[bench]'` there. Stores themselves need neither."
        )
        raise ImportError(msg) from error
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(resampled(load(data, n_genes), cells, n_genes), f"{folder}/cells.zarr")
        VAE.setup_anndata(store)
        manager = VAE(store).adata_manager
        for _ in range(repeats):
            ours = CellLoader(manager, batch_size=BATCH, shuffle=True)
            theirs = Loader(batch_size=BATCH, chunk_size=BATCH, preload_nchunks=64, shuffle=True)
            theirs.add_adata(AnnData(store.X))
            each = {}
            for name, loader in (("scalloy", ours), ("annbatch", theirs)):
                begun = time.perf_counter()
                n = sum(batch["X"].shape[0] for batch in loader)
                each[f"{name}_per_s"] = n / (time.perf_counter() - begun)
            rows.append({**each, "ratio": each["scalloy_per_s"] / each["annbatch_per_s"]})
    return pd.DataFrame(rows)


def inference(
    data: str = "kang",
    *,
    cells: Sequence[int] = (10_000, 100_000),
    n_genes: int = 2000,
    max_epochs: int = 5,
) -> pd.DataFrame:
    """Measure memory (MB) and processor time (s) of assigning clusters and of writing a prediction to a file.

    A CGMDVAE is trained on as many cells as the data have; the cells to infer are drawn from the same data
    and read from a store. Memory is that above the trained model. The prediction is dense: a file of
    ``cells`` x genes values.

    Parameters
    ----------
    data, n_genes
        Name of the data set from which cells are drawn, see :func:`scalloy.benchmark.fit.load`, and number of
        genes.
    cells
        Numbers of cells.
    max_epochs
        Number of epochs of the training.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in cells:
            job = {**USUAL, "data": data, "genes": n_genes, "cells": n, "path": f"{folder}/{n}.zarr"}
            in_process({**job, "kind": "write"}, __name__)
            found = in_process({**job, "kind": "infer", "max_epochs": max_epochs}, __name__)
            rows.append({"n": n, **found})
    return pd.DataFrame(rows)


def _infer(adata: AnnData, job: dict[str, Any]) -> dict[str, float]:
    """Train CGMDVAE, then time clusters and transfer of the cells in the store of the job."""
    few = resampled(adata, 1000, job["genes"])
    adata = resampled(adata, adata.n_obs, job["genes"])
    CGMDVAE.setup_anndata(adata, condition_key="condition")
    model, out = CGMDVAE(adata), dict[str, float]()
    model.train(job["max_epochs"], **QUIET)
    to = adata.obs["condition"].astype(str).max()
    calls = {
        "clusters": lambda cells: model.get_clusters(cells),
        "transfer": lambda cells: model.write_transfer(f"{job['path']}.h5ad", cells, to, overwrite=True),
    }
    for name, call in calls.items():
        call(few)
        with PeakMemory() as memory:
            before = memory.resident()
            begun = time.process_time()
            cells = open_store(job["path"])
            call(cells)
            out[f"{name}_s"] = time.process_time() - begun
        out[f"{name}_mb"] = memory.peak - before
    return out


def resampled(adata: AnnData, n_cells: int, n_genes: int, seed: int = 0) -> AnnData:
    """Draw cells with replacement, and extra genes if the data have fewer than ``n_genes``."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(adata.n_obs, size=n_cells)
    columns = np.arange(n_genes)
    columns[adata.n_vars :] = rng.integers(adata.n_vars, size=max(0, n_genes - adata.n_vars))
    obs = adata.obs.iloc[rows].set_axis([f"cell_{seed}_{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)])
    return AnnData(adata.X.tocsr()[:, columns][rows], obs=obs, var=var)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in this process and return its figures."""
    adata = load(job["data"], job["genes"])
    return {"write": _write, "train": _train, "infer": _infer}[job["kind"]](adata, job)


def _write(adata: AnnData, job: dict[str, Any]) -> dict[str, Any]:
    """Write files of resampled cells and join them into a store, which is timed."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, first in enumerate(range(0, job["cells"], PER_FILE)):
            files.append(Path(folder) / f"{i}.h5ad")
            n = min(PER_FILE, job["cells"] - first)
            resampled(adata, n, job["genes"], seed=i).write_h5ad(files[-1])
        begun = time.process_time()
        with PeakMemory() as memory:
            before = memory.resident()
            write_store(files, job["path"])
    return {"write_s": time.process_time() - begun, "write_mb": memory.peak - before}


def _train(adata: AnnData, job: dict[str, Any]) -> dict[str, Any]:
    """Train a model and compute its latent representation; return times and memory of both."""
    run = {"batch_size": BATCH, "early_stopping": False, "check_val_every_n_epoch": 10**6, **QUIET}
    _model(resampled(adata, 2000, job["genes"]), job).train(1, **run)
    clock = Work()
    with PeakMemory() as memory:
        before = memory.resident()
        cells = open_store(job["path"]) if job["path"] else resampled(adata, job["cells"], job["genes"])
        model = _model(cells, job)
        model.train(job["max_epochs"], callbacks=[clock], **run)
    out = {"epoch_s": float(np.median(clock.seconds[1:] or clock.seconds)), "train_mb": memory.peak - before}
    with PeakMemory() as memory:
        begun = time.process_time()
        model.get_latent_representation()
        out["latent_s"] = time.process_time() - begun
    return out | {"latent_mb": memory.peak - before}


class Work(pl.Callback):
    """Callback that records the processor time of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.begun = time.process_time()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time() - self.begun)


def _model(cells: AnnData, job: dict[str, Any]) -> VAE:
    """Make the VAE, or the GMVAE if components are asked for."""
    cls = GMVAE if job["components"] else VAE
    cls.setup_anndata(cells)
    model = cls(
        cells, n_latent=job["latents"], **({"n_clusters": job["components"]} if job["components"] else {})
    )
    if job["components"]:
        model.module.place_at = 0.0  # before the first epoch, which is not counted
    return model


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
