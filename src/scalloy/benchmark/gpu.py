"""Benchmark of a GPU in a single run: ``scalloy benchmark gpu``.

    cells per second   our models beside SCVI: its defaults, and its best (large batches, data on the device)
    what gains what    our VAE without CUDA graphs or our kernels, in bfloat16 or TensorFloat-32, and with
                       data that are not on the device
    a large epoch      VAE and CGMDVAE on a million cells, drawn with replacement from a data set
    floors             least time of an epoch: bytes / bandwidth and operations / rate, both measured
    where time goes    share of the device's time in matrix products, share of the time in which it is busy,
                       how often a step waits for it, and its memory

Rows are measured independently: one that fails holds NaN, and its note says why.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model import SCVI
from torch import Tensor

from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.speed import Clock, PeakMemory, synchronise
from scalloy.data.splitter import CellSplitter
from scalloy.kernels.csr import dense
from scalloy.models import CGMDVAE, GMVAE, TRVAE, VAE, BetaVSC

PRODUCTS = ("gemm", "cutlass", "xmma", "cublas", "aten::mm", "aten::addmm", "aten::bmm")
WAITS = "called a synchronizing CUDA operation"
HIDDEN = 128
# passes over a cells x genes array in float32 that cannot be avoided: logits written and read, their gradient
# written, and read by two matrix products
PASSES = 5
NO_GPU = "only on a GPU"


@keeps_seed()
def gpu(
    data: str = "kang_subset",
    *,
    device: str = "cuda",
    n_genes: int = 2000,
    n_cells: int = 100_000,
    n_large: int = 1_000_000,
    steps: int = 100,
    batch_size: int = 4096,
) -> pd.DataFrame:
    """Measure speed, its least possible time, and the use of a GPU.

    Parameters
    ----------
    data
        Name of the data set from which cells are drawn with replacement, see
        :func:`scalloy.benchmark.fit.load`.
    device
        ``"cuda"``, or ``"cpu"`` to check that the benchmark runs.
    n_genes
        Number of most variable genes that are kept; ``"kang_subset"`` has fewer than 2,000.
    n_cells, n_large
        Number of cells in the comparison, and in the large epoch.
    steps
        Maximum number of steps per epoch in the comparison, which bounds its time.
    batch_size
        Number of cells per step in the rows with large batches.

    Returns
    -------
    One row per quantity: its ``value`` and ``unit``, the ratio of a rate to that of SCVI with its defaults
    (``of SCVI``), and a ``note`` if the measurement failed.
    """
    adata = drawn(load(data, n_genes), n_cells)
    rows, nb = Rows(device, steps), {"gene_likelihood": "nb"}
    zinb = {"gene_likelihood": "zinb"}

    def rate(name: str, cls: Any, settings: dict, size: int | None, **more: Any) -> None:
        rows.add(name, "cells/s", lambda: rows.rate(cls, adata, settings, size, **more))

    rate("SCVI, defaults", SCVI, {}, 128)
    rate("SCVI, nb, large batches", SCVI, nb, batch_size)
    rate("SCVI, nb, large batches, resident", ResidentSCVI, nb, batch_size)
    rate("VAE, defaults", VAE, {}, None)
    rate("VAE, zinb, as SCVI", VAE, zinb, 128)
    for cls in (VAE, GMVAE, CGMDVAE, TRVAE, BetaVSC):
        rate(f"{cls.__name__}, nb, large batches", cls, nb, batch_size)
    rate("VAE, zinb, large batches", VAE, zinb, batch_size)
    rate("VAE, nb, bfloat16", VAE, nb, batch_size, precision="bf16-mixed")
    with products("high"):
        rate("VAE, nb, TensorFloat-32", VAE, nb, batch_size)
    rate("VAE, nb, not resident", VAE, nb, batch_size, datasplitter_kwargs={"resident": False})
    plain = {"plan_kwargs": {"graphs": False}}
    rate("VAE, nb, without graphs", VAE, nb, batch_size, **plain)
    with operations_of_torch():
        rate("VAE, nb, without graphs and kernels", VAE, nb, batch_size, **plain)
    for cls in (VAE, CGMDVAE):
        watched = rows.watched(cls, adata, nb, batch_size)
        for quantity, unit in (("matrix products", "share"), ("device works", "share"), ("memory", "MB")):
            rows.add(f"{cls.__name__}, {quantity}", unit, lambda q=quantity, w=watched: w()[q])
        rows.add(f"{cls.__name__}, waits", "per step", lambda c=cls: rows.waits(c, adata, nb, batch_size))
    for cls in (SCVI, VAE, CGMDVAE):
        rows.add(f"{cls.__name__}, latent", "cells/s", lambda c=cls: rows.latent(c, adata, batch_size))
    many = drawn(adata, n_large)
    for cls in (VAE, CGMDVAE):
        rows.add(f"{cls.__name__}, large epoch", "s", lambda c=cls: rows.epoch(c, many, nb, batch_size))
    for name, seconds in floors(many, rows.device).items():
        rows.add(f"VAE, large epoch, at least by {name}", "s", lambda s=seconds: s)
    return rows.frame()


class Resident(CellSplitter):
    """Splitter that keeps cells on the device and hands them on as dense tensors, as SCVI expects."""

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return {k: dense(v) for k, v in batch.items()}


class ResidentSCVI(SCVI):
    """SCVI with data that stay on the device, which scvi-tools itself does not offer."""

    _data_splitter_cls = Resident


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Set torch's precision of float32 matrix products, such as ``"high"``, within a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def operations_of_torch() -> Iterator[None]:
    """Replace our Triton kernels by torch's own operations within a block."""
    before = os.environ.get("SCALLOY_TRITON")
    os.environ["SCALLOY_TRITON"] = "0"
    try:
        yield
    finally:
        os.environ.pop("SCALLOY_TRITON")
        if before is not None:
            os.environ["SCALLOY_TRITON"] = before


def drawn(adata: AnnData, n: int) -> AnnData:
    """Draw ``n`` cells with replacement."""
    rows = np.random.default_rng(0).integers(adata.n_obs, size=n)
    obs = pd.DataFrame({"half": np.where(rows % 2, "a", "b")}, index=np.arange(n).astype(str))
    return AnnData(adata.X[rows], obs=obs, var=adata.var[[]])


class Rows:
    """Table of measurements, filled row by row."""

    def __init__(self, device: str, steps: int) -> None:
        self.device, self.steps = torch.device(device), steps
        self.run = {"accelerator": "gpu" if device == "cuda" else device, **QUIET, "early_stopping": False}
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, unit: str, measure: Callable[[], float]) -> None:
        """Append one measurement, or NaN and the reason if it fails."""
        value, note = np.nan, ""
        try:
            value = measure()
        except (RuntimeError, ValueError, TypeError, NotImplementedError, MemoryError) as error:
            note = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        self.rows.append({"quantity": name, "value": value, "unit": unit, "note": note})

    def frame(self) -> pd.DataFrame:
        """Return the whole table, with the ratio of each rate to that of its first row, SCVI."""
        out = pd.DataFrame(self.rows)
        rates = out["unit"] == "cells/s"
        out.insert(3, "of SCVI", out["value"].where(rates) / out["value"][0])
        return out

    def train(
        self, cls: Any, adata: AnnData, settings: dict, size: int | None, epochs: int, **more: Any
    ) -> Any:
        """Set up a model and train it for a number of epochs."""
        conditions = {"condition_key": "half"} if cls is TRVAE else {}
        cls.setup_anndata(adata, **conditions)
        model = cls(adata, **settings)
        if cls in (GMVAE, CGMDVAE):
            model.module.place_at = 0.0
        # no validation, which would count as training time
        more = {"check_val_every_n_epoch": 10**6, **self.run, **more}
        model.train(max_epochs=epochs, batch_size=size, train_size=0.95, **more)
        return model

    def rate(self, cls: Any, adata: AnnData, settings: dict, size: int | None, **more: Any) -> float:
        """Return cells per second of the fastest of three epochs, after a warm-up epoch."""
        clock = Clock()
        bound = {"limit_train_batches": self.steps, "callbacks": [clock], **more}
        model = self.train(cls, adata, settings, size, 4, **bound)
        seen = model.trainer.num_training_batches * (size or model.trainer.datamodule.batch_size)
        return min(int(0.95 * adata.n_obs), seen) / min(clock.seconds[1:])

    def epoch(self, cls: Any, adata: AnnData, settings: dict, size: int) -> float:
        """Return the seconds of an epoch, scaled from the 95 % of cells that train to all cells."""
        clock = Clock()
        self.train(cls, adata, settings, size, 3, callbacks=[clock])
        return clock.seconds[-1] / 0.95

    def latent(self, cls: Any, adata: AnnData, size: int) -> float:
        """Return cells per second of the latent representation, with data and result in host memory."""
        model = self.train(cls, adata, {}, size, 1, limit_train_batches=2)
        taken = seconds(lambda: model.get_latent_representation(batch_size=size), repeats=3)
        return adata.n_obs / taken

    def watched(self, *of: Any) -> Callable[[], dict[str, float]]:
        """Return a function that gives the figures of a profile, which is taken at its first call."""
        found: dict[str, float] = {}

        def ask() -> dict[str, float]:
            if not found:
                watch = Profile(self.device)
                self.train(*of, 2, callbacks=[watch], limit_train_batches=self.steps)
                found.update(watch.found)
            return found

        return ask

    def waits(self, cls: Any, adata: AnnData, settings: dict, size: int) -> float:
        """Return how often a training step waits for the device (median over steps)."""
        if self.device.type != "cuda":
            raise NotImplementedError(NO_GPU)
        watch = Waits()
        self.train(cls, adata, settings, size, 2, callbacks=[watch], limit_train_batches=self.steps)
        return float(np.median(watch.counts))


class Profile(pl.Callback):
    """Callback that profiles the steps of the second epoch."""

    def __init__(self, device: torch.device) -> None:
        kinds = torch.profiler.ProfilerActivity
        self.on_gpu = device.type == "cuda"
        self.profiler = torch.profiler.profile(activities=[kinds.CUDA if self.on_gpu else kinds.CPU])
        self.found: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            synchronise()
            self.profiler.start()
            self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: Any, i: int) -> None:
        if trainer.current_epoch == 1 and i == trainer.num_training_batches - 1:
            synchronise()
            wall = time.perf_counter() - self.begun
            self.profiler.stop()
            spent = self.spent()
            products = sum(v for k, v in spent.items() if any(p in k for p in PRODUCTS))
            memory = torch.cuda.max_memory_allocated() if self.on_gpu else 0
            self.found = {
                "matrix products": products / max(1e-9, sum(spent.values())),
                "device works": sum(spent.values()) / 1e6 / wall,
                "memory": memory / 1e6 or PeakMemory.resident(),
            }

    def spent(self) -> dict[str, float]:
        """Return the microseconds spent in each kernel, or on a CPU in each operation."""
        key = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
        kind = torch.autograd.DeviceType.CUDA if self.on_gpu else torch.autograd.DeviceType.CPU
        rows = (e for e in self.profiler.key_averages() if e.device_type == kind)
        return {e.key: getattr(e, key) for e in rows}


class Waits(pl.Callback):
    """Callback that counts the operations of each step that wait for the GPU, as reported by torch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.caught = warnings.catch_warnings(record=True)
        self.seen = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.counts.append(sum(WAITS in str(w.message) for w in self.seen))
        self.caught.__exit__(None, None, None)


def floors(adata: AnnData, device: torch.device) -> dict[str, float]:
    """Return lower bounds on the seconds that an epoch of VAE takes on this device.

    The bound by memory counts the passes over cells x genes that cannot be avoided, and reading the counts.
    The bound by arithmetic counts the matrix products of the first and last layer, forward and backward.
    """
    n, g = adata.shape
    moved = PASSES * 4 * n * g + 3 * 8 * adata.X.nnz
    # three products in the decoder's head (forward, and gradients of input and weights), two in the first
    # layer (forward, and gradient of the weights)
    work = 2 * n * g * HIDDEN * (3 + 2)
    return {"memory": moved / bandwidth(device), "arithmetic": work / arithmetic(device)}


def bandwidth(device: torch.device, n: int = 1 << 26) -> float:
    """Measure the bandwidth of the memory, in bytes read and written per second."""
    x = torch.zeros(n if device.type == "cuda" else n >> 4, device=device)
    y = torch.empty_like(x)
    return 2 * 4 * len(x) / seconds(lambda: y.copy_(x))


def arithmetic(device: torch.device, n: int = 4096) -> float:
    """Measure the operations per second of a matrix product at torch's current precision."""
    size = n if device.type == "cuda" else n >> 3
    x = torch.randn(size, size, device=device)
    return 2 * size**3 / seconds(lambda: x @ x)


def seconds(call: Callable[[], Any], repeats: int = 10) -> float:
    """Return the shortest time of a call over some repetitions."""
    found = []
    for _ in range(repeats):
        synchronise()
        begun = time.perf_counter()
        call()
        synchronise()
        found.append(time.perf_counter() - begun)
    return min(found)
