"""Speed of our VAE compared with ``scvi.model.SCVI`` in one run, each training in a fresh process.

    equal       same layers, likelihood, batch size, normalisation, epochs: cells per second, peak memory,
                and the validation ELBO of both by the same function
    defaults    each with its own defaults: seconds of training until the validation ELBO that SCVI reaches
    inference   cells per second of ``get_latent_representation``

Speed and memory are reported only as ratios, because machines are noisy; repetitions alternate between the
two models.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd

from scalloy.train.malloc import give_back

MODELS = ("VAE", "SCVI")


def speed(
    data: str = "kang",
    *,
    n_genes: Sequence[int | None] = (2000, None),
    gene_likelihood: Sequence[str] = ("nb", "zinb"),
    batch_size: int = 128,
    max_epochs: int = 4,
    repeats: int = 3,
    equal: bool = True,
    defaults: bool = True,
    scvi_epochs: int | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """Compare speed, memory and ELBO of our VAE with SCVI's, one row per setting and quantity.

    Parameters
    ----------
    data
        Name of a data set, see :func:`scalloy.benchmark.fit.load`.
    n_genes
        Numbers of most variable genes that are kept; ``None`` in the list keeps all.
    gene_likelihood
        ``"nb"``, ``"zinb"`` or both.
    batch_size, max_epochs
        Number of cells per step and of epochs in the comparison at equal settings.
    repeats
        Number of measurements of each; ratios are of medians, with the range of the pairs.
    equal
        Whether to measure at equal settings.
    defaults
        Whether to measure the time to SCVI's validation ELBO as well (takes long).
    scvi_epochs
        Number of epochs of SCVI in that measurement; ``None`` uses SCVI's default.
    device
        ``"cpu"`` or ``"cuda"``.

    Examples
    --------
    >>> short = {"n_genes": [500], "max_epochs": 1, "repeats": 1, "defaults": False}
    >>> table = sa.benchmark.speed("kang_subset", **short)  # doctest: +SKIP
    """
    rows = []
    for genes, lik in product(n_genes, gene_likelihood) if equal else ():
        job = {"data": data, "n_genes": genes, "likelihood": lik, "device": device, "kind": "equal"}
        runs = _alternate({**job, "batch_size": batch_size, "max_epochs": max_epochs}, repeats)
        label = {"genes": genes or "all", "likelihood": lik}
        for quantity in ("train_cells_per_s", "peak_mb", "latent_cells_per_s"):
            setting = "defaults" if quantity.startswith("latent") else "equal"
            rows.append({**label, "setting": setting, **_ratio(runs, quantity)})
        elbo = {m: float(np.median([r["elbo"] for r in runs[m]])) for m in MODELS}
        rows.append({**label, "setting": "equal", "quantity": "elbo", **elbo})
    if defaults:
        job = {"data": data, "n_genes": n_genes[0], "device": device, "kind": "defaults"}
        rows += _to_the_same_elbo(job, repeats, scvi_epochs)
    return pd.DataFrame(rows)


def _alternate(job: dict[str, Any], repeats: int) -> dict[str, list[dict]]:
    """Run a job for both models in turn, once per seed."""
    runs: dict[str, list[dict]] = {m: [] for m in MODELS}
    for seed in range(repeats):
        for model in MODELS:
            runs[model].append(in_process({**job, "model": model, "seed": seed}))
    return runs


def _ratio(runs: dict[str, list[dict]], quantity: str) -> dict[str, Any]:
    """Return the ratio of ours to SCVI's: of the medians, and the lowest and highest of the pairs."""
    ours, theirs = ([r[quantity] for r in runs[m]] for m in MODELS)
    pairs = np.array(ours) / np.array(theirs)
    ratio = float(np.median(ours) / np.median(theirs))
    return {"quantity": quantity, "ratio": ratio, "lowest": pairs.min(), "highest": pairs.max()}


def _to_the_same_elbo(job: dict[str, Any], repeats: int, scvi_epochs: int | None) -> list[dict]:
    """Compare training times until our VAE is as good as SCVI's best epoch, and as its last."""
    theirs = in_process({**job, "model": "SCVI", "seed": 0, "max_epochs": scvi_epochs})
    curve = np.array(theirs["curve"])  # seconds of training, validation -ELBO
    best, last = curve[curve[:, 1].argmin()], curve[-1]
    rows = []
    for seed in range(repeats):
        ours = np.array(in_process({**job, "model": "VAE", "seed": seed})["curve"])
        for name, (seconds, target) in (("scvi's best", best), ("scvi's last", last)):
            there = ours[ours[:, 1] <= target]
            rows.append(
                {
                    "genes": job["n_genes"] or "all",
                    "likelihood": "nb / zinb",
                    "setting": f"defaults, to {name} ELBO",
                    "quantity": f"seed {seed}: training time",
                    "ratio": seconds / there[0, 0] if len(there) else np.nan,
                    "VAE": -ours[:, 1].min(),
                    "SCVI": -target,
                }
            )
    return rows


def in_process(job: dict[str, Any], module: str = "scalloy.benchmark.speed") -> dict[str, Any]:
    """Run a job of a benchmark module in a fresh process and return the JSON that it prints last.

    The process imports nothing from the user's working directory (``-P``).
    """
    command = [sys.executable, "-P", "-W", "ignore", "-m", module, json.dumps(job)]
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if os.path.isabs(p))}
    done = subprocess.run(command, env=around, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        msg = f"the run of {job.get('model', module)} ({job['kind']}) failed: {last}"
        raise RuntimeError(msg)
    return json.loads(done.stdout.splitlines()[-1])


def synchronise() -> bool:
    """Wait for the GPU if there is one; return whether there is."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return torch.cuda.is_available()


class Clock(pl.Callback):
    """Callback that records the seconds of each training epoch without validation, and the validation -ELBO.

    Parameters
    ----------
    now
        Function that returns the current time; ``time.process_time`` leaves out other programs on the
        machine.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.time = now
        self.seconds: list[float] = []
        self.curve: list[tuple[float, float]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        synchronise()
        self.begun = self.time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.now = self.time()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._close()
        self.curve.append((sum(self.seconds), float(trainer.callback_metrics["elbo_validation"])))

    def on_train_epoch_end(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.now is not None:
            if synchronise():
                self.now = self.time()
            self.seconds.append(self.now - self.begun)
        self.now: float | None = None


class PeakMemory:
    """Context manager that records the highest resident memory of this process, in MB (Linux)."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        give_back()  # memory that loading the data left to the allocator
        self.highest, self.done = self.resident(), threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.done.set()
        self.watcher.join()
        self.peak = self.highest

    def watch(self) -> None:
        while not self.done.wait(0.01):
            self.highest = max(self.highest, self.resident())

    @staticmethod
    def resident() -> float:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmRSS:")[1].split()[0]) / 1024


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train one model in this process and return its figures."""
    import scvi
    from scvi.model import SCVI

    from scalloy.benchmark.evidence import evidence, three_parts
    from scalloy.benchmark.fit import QUIET, load
    from scalloy.models import VAE

    adata = load(job["data"], job["n_genes"])
    scvi.settings.seed = job["seed"]
    cls = VAE if job["model"] == "VAE" else SCVI
    cls.setup_anndata(adata)
    clock, split = Clock(), three_parts(adata.n_obs, 0)  # same split for every model and seed
    run: dict[str, Any] = {"callbacks": [clock], "accelerator": job["device"].replace("cuda", "gpu"), **QUIET}
    run["datasplitter_kwargs"] = {"external_indexing": split}
    if job["kind"] == "equal":
        same = {"norm": "batch"} if cls is VAE else {}
        model = cls(adata, gene_likelihood=job["likelihood"], **same)
        run |= {"batch_size": job["batch_size"], "max_epochs": job["max_epochs"], "early_stopping": False}
        model.train(check_val_every_n_epoch=10**6, **run)
        n = len(model.train_indices)
        out = {"train_cells_per_s": n / float(np.median(clock.seconds[1:] or clock.seconds))}
        passes = []
        for _ in range(4):
            begun = time.perf_counter()
            model.get_latent_representation()
            passes.append(adata.n_obs / (time.perf_counter() - begun))
        out["latent_cells_per_s"] = float(np.median(passes[1:]))
        out["elbo"] = evidence(model, split[1], n_mc_samples=0)["elbo"]
        with PeakMemory() as memory:  # in a run of its own: its thread would disturb the timing
            model.train(check_val_every_n_epoch=10**6, **{**run, "max_epochs": 1})
        return out | {"peak_mb": memory.peak}
    model = cls(adata)
    epochs = job.get("max_epochs")
    model.train(max_epochs=epochs, check_val_every_n_epoch=1, early_stopping=False, **run)
    return {"curve": clock.curve}


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
