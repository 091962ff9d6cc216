"""All that is to be known of a GPU, in one run: ``scalloy benchmark gpu``.

    cells per second   VAE and CGMDVAE beside SCVI at its defaults and at batches of 4,096
    a large epoch      VAE on a million cells, drawn again and again from a data set
    floors             what an epoch takes at least: bytes over bandwidth, operations over rate, both measured
    where time goes    share of the device's time in matrix products; how often a step waits for the device

Each row stands for itself: one that fails is NaN, and says why.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model import SCVI

from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.speed import Clock, synchronise
from scalloy.models import CGMDVAE, VAE

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_addmm_activation")
WAITS = "called a synchronizing CUDA operation"
HIDDEN, PASSES = (
    128,
    5,
)  # cells x genes in float32: logits out and in, their slope out, and in for two products
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
    """One row per quantity: ``value``, its ``unit``, the ratio to SCVI's defaults, and a ``note``.

    Parameters
    ----------
    data
        Whose cells are drawn with replacement, see :func:`scalloy.benchmark.fit.load`.
    device
        ``"cuda"``, or ``"cpu"`` to try whether it runs.
    n_genes
        Most variable genes that are kept; the embedded data have fewer than 2,000.
    n_cells, n_large
        Of the comparison, and of the large epoch.
    steps
        Most steps of an epoch in the comparison, which bound its time.
    batch_size
        Of the larger batches.
    """
    adata = drawn(load(data, n_genes), n_cells)
    rows = Rows(device, steps)
    small = {"SCVI, defaults": (SCVI, {}, 128), "VAE, zinb": (VAE, {"gene_likelihood": "zinb"}, 128)}
    nb = {"gene_likelihood": "nb"}
    kinds: dict[str, tuple[Any, dict, int]] = {
        **small,
        "SCVI, nb, large batches": (SCVI, nb, batch_size),
        "VAE, nb": (VAE, nb, 512),
        "VAE, nb, large batches": (VAE, nb, batch_size),
        "CGMDVAE, nb, large batches": (CGMDVAE, nb, batch_size),
    }
    for name, (cls, settings, size) in kinds.items():
        rows.add(name, "cells/s", lambda c=cls, s=settings, b=size: rows.rate(c, adata, s, b))
    low = {"precision": "bf16-mixed"}
    rows.add("VAE, nb, bfloat16", "cells/s", lambda: rows.rate(VAE, adata, nb, batch_size, **low))
    for cls in (VAE, CGMDVAE):
        rows.add(
            f"{cls.__name__}, matrix products", "share", lambda c=cls: rows.products(c, adata, batch_size)
        )
        rows.add(f"{cls.__name__}, waits", "per step", lambda c=cls: rows.waits(c, adata, batch_size))
    many = drawn(adata, n_large)
    rows.add("VAE, large epoch", "s", lambda: rows.epoch(VAE, many, nb, batch_size))
    for name, seconds in floors(many, rows.device).items():
        rows.add(f"VAE, large epoch, at least by {name}", "s", lambda s=seconds: s)
    return rows.frame()


def drawn(adata: AnnData, n: int) -> AnnData:
    """Cells with replacement."""
    rows = np.random.default_rng(0).integers(adata.n_obs, size=n)
    return AnnData(adata.X[rows], obs=pd.DataFrame(index=np.arange(n).astype(str)), var=adata.var[[]])


class Rows:
    """The table as it grows."""

    def __init__(self, device: str, steps: int) -> None:
        self.device, self.steps = torch.device(device), steps
        self.run = {"accelerator": "gpu" if device == "cuda" else device, **QUIET, "early_stopping": False}
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, unit: str, measure: Callable[[], float]) -> None:
        """Measure, or say why not."""
        value, note = np.nan, ""
        try:
            value = measure()
        except (RuntimeError, ValueError, TypeError, NotImplementedError, MemoryError) as error:
            note = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        self.rows.append({"quantity": name, "value": value, "unit": unit, "note": note})

    def frame(self) -> pd.DataFrame:
        """All of it, rates as ratios to SCVI's too."""
        out = pd.DataFrame(self.rows)
        rates = out["unit"] == "cells/s"
        out.insert(3, "of SCVI", out["value"].where(rates) / out["value"][0])
        return out

    def train(self, cls: Any, adata: AnnData, settings: dict, size: int, epochs: int, **more: Any) -> Any:
        """A model, trained for so many epochs."""
        cls.setup_anndata(adata)
        model = cls(adata, **settings)
        if cls is CGMDVAE:
            model.module.place_at = 0.0
        # `max_epochs` of our plans follow the epochs; validation would count as time
        more = {"check_val_every_n_epoch": 10**6, **self.run, **more}
        model.train(max_epochs=epochs, batch_size=size, train_size=0.95, **more)
        return model

    def rate(self, cls: Any, adata: AnnData, settings: dict, size: int, **more: Any) -> float:
        """Cells per second of the median of two epochs, after one that warms up."""
        clock = Clock()
        bound = {"limit_train_batches": self.steps, "callbacks": [clock], **more}
        self.train(cls, adata, settings, size, 3, **bound)
        n = int(0.95 * adata.n_obs)
        return min(n, self.steps * size) / float(np.median(clock.seconds[1:]))

    def epoch(self, cls: Any, adata: AnnData, settings: dict, size: int) -> float:
        """Seconds of an epoch over all cells, as if all were trained on."""
        clock = Clock()
        self.train(cls, adata, settings, size, 2, callbacks=[clock])
        return clock.seconds[-1] / 0.95

    def products(self, cls: Any, adata: AnnData, size: int) -> float:
        """Share of the time of the device in matrix products."""
        watch = Profile(self.device)
        self.train(cls, adata, {}, size, 2, callbacks=[watch], limit_train_batches=self.steps)
        return watch.share

    def waits(self, cls: Any, adata: AnnData, size: int) -> float:
        """How often a step waits for the device."""
        if self.device.type != "cuda":
            raise NotImplementedError(NO_GPU)
        watch = Waits()
        self.train(cls, adata, {}, size, 2, callbacks=[watch], limit_train_batches=self.steps)
        return float(np.median(watch.counts))


class Profile(pl.Callback):
    """Profiles the steps of the second epoch."""

    def __init__(self, device: torch.device) -> None:
        kinds = torch.profiler.ProfilerActivity
        self.on_gpu = device.type == "cuda"
        self.profiler = torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if self.on_gpu else [])])
        self.share = np.nan

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            self.profiler.start()

    def on_train_batch_end(self, trainer: pl.Trainer, plan: Any, outputs: Any, batch: Any, i: int) -> None:
        if trainer.current_epoch == 1 and i == trainer.num_training_batches - 1:
            synchronise()
            self.profiler.stop()
            key = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
            spent = {e.key: getattr(e, key) for e in self.profiler.key_averages()}
            if self.on_gpu:  # operations, and not the kernels that are listed beside them
                spent = {k: v for k, v in spent.items() if k.startswith(("aten::", "Optimizer", "_"))}
            self.share = sum(spent.get(k, 0) for k in PRODUCTS) / max(1e-9, sum(spent.values()))


class Waits(pl.Callback):
    """Counts the operations of each step that wait for the GPU, as torch itself finds them."""

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
    """Seconds that an epoch of VAE takes at least on this device.

    By memory: the passes over cells x genes that cannot be left out, and the counts. By arithmetic: the
    products of the first and last layer, forward and backward.
    """
    n, g = adata.shape
    moved = PASSES * 4 * n * g + 3 * 8 * adata.X.nnz
    work = (
        2 * n * g * HIDDEN * (3 + 2)
    )  # the decoder's head thrice, the first layer forward and for its weights
    return {"memory": moved / bandwidth(device), "arithmetic": work / arithmetic(device)}


def bandwidth(device: torch.device, n: int = 1 << 26) -> float:
    """Bytes per second that are read and written."""
    x = torch.zeros(n if device.type == "cuda" else n >> 4, device=device)
    y = torch.empty_like(x)
    return 2 * 4 * len(x) / seconds(lambda: y.copy_(x))


def arithmetic(device: torch.device, n: int = 4096) -> float:
    """Operations per second of a product of matrices, as torch is set to take it."""
    size = n if device.type == "cuda" else n >> 3
    x = torch.randn(size, size, device=device)
    return 2 * size**3 / seconds(lambda: x @ x)


def seconds(call: Callable[[], Any], repeats: int = 10) -> float:
    """Of one call, the shortest of some."""
    found = []
    for _ in range(repeats):
        synchronise()
        begun = time.perf_counter()
        call()
        synchronise()
        found.append(time.perf_counter() - begun)
    return min(found)
