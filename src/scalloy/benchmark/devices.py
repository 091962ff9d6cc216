"""Benchmark of distributed training: several processes train one model, compared with a single process.

All trainings have the same total batch size. Every process computes in one thread, as if it had one core to
itself. Each training starts in a fresh process, and repetitions alternate between the two.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pandas as pd

from scalloy.benchmark.speed import Clock, in_process

COUNTS = {"train_cells_per_s": "speed", "loss": "validation loss"}


def devices(
    data: str = "kang_subset",
    *,
    processes: int = 2,
    batch_size: int = 512,
    max_epochs: int = 6,
    repeats: int = 3,
) -> pd.DataFrame:
    """Measure cells per second and lowest validation loss of several processes, as ratios to one process.

    Parameters
    ----------
    data
        Name of a data set, see :func:`scalloy.benchmark.fit.load`.
    processes
        Number of processes that train together.
    batch_size
        Number of cells per step, over all processes together.
    max_epochs, repeats
        Number of epochs of each training, and number of trainings of each kind.
    """
    job = {
        "data": data,
        "model": "VAE",
        "kind": "devices",
        "batch_size": batch_size,
        "max_epochs": max_epochs,
    }
    runs: dict[int, list[dict[str, Any]]] = {1: [], processes: []}
    for seed in range(repeats):
        for n in runs:
            runs[n].append(in_process({**job, "processes": n, "seed": seed}, "scalloy.benchmark.devices"))
    rows = []
    for key, name in COUNTS.items():
        pairs = [b[key] / a[key] for a, b in zip(runs[1], runs[processes], strict=True)]
        ratio = {"ratio": np.median(pairs), "lowest": min(pairs), "highest": max(pairs)}
        rows.append({"processes": processes, "quantity": name, **ratio})
    return pd.DataFrame(rows)


def work(job: dict[str, Any]) -> dict[str, Any] | None:
    """Train once and return the figures, or ``None`` in every process but the first."""
    import scvi
    import torch

    from scalloy.benchmark.fit import QUIET, load
    from scalloy.models import VAE

    torch.set_num_threads(1)
    adata, scvi.settings.seed, n = load(job["data"], None), job["seed"], job["processes"]
    VAE.setup_anndata(adata)
    model, clock = VAE(adata), Clock()
    several: dict[str, Any] = {"devices": n, "strategy": "ddp"} if n > 1 else {"devices": 1}
    run = {"max_epochs": job["max_epochs"], "batch_size": job["batch_size"] // n, **several, **QUIET}
    model.train(accelerator="cpu", early_stopping=False, callbacks=[clock], **run)
    if not model.trainer.is_global_zero:
        return None
    rate = len(model.train_indices) / float(np.median(clock.seconds[1:]))
    return {"train_cells_per_s": rate, "loss": float(model.history["validation_loss"].iloc[:, 0].min())}


if __name__ == "__main__" and (found := work(json.loads(sys.argv[1]))):
    print(json.dumps(found))
