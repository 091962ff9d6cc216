"""What `train/test_devices.py` has two processes do: each writes what it saw into a file with its rank."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from scvi import REGISTRY_KEYS

import scalloy as sa
from scalloy.data.shards import Shard
from scalloy.data.splitter import CellSplitter
from scalloy.train.plan import NonFiniteLoss

TWO = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False}
RUN = {"max_epochs": 4, "batch_size": 16}
EVERY = ("AE", "VAE", "BetaVAE", "BetaVSC", "GMVAE", "TRVAE", "CGMDVAE", "POISEVAE")


def some_cells():
    return sa.datasets.simulate(203, 40, seed=1, n_proteins=3)


def a_model(name="AE", **settings):
    adata, cls = some_cells(), getattr(sa, name)
    given = {"labels_key": "cluster"} if name == "CGMDVAE" else {}
    if name == "POISEVAE":
        given["protein_obsm_key"] = "protein_counts"
    if name in {"CGMDVAE", "TRVAE"}:
        given["condition_key"] = "condition"
    cls.setup_anndata(adata, **given)
    return cls(adata, **{"n_hidden": 16, "n_latent": 3, "seed": 5, **settings})


class InTheSameOrder(CellSplitter):
    """One process with the order that several have."""

    def shard(self):
        return Shard(0, 1, torch.initial_seed())


def alone(**more):
    """The model without noise, by one process with the whole batches."""
    model = a_model(dropout_rate=0.0)
    model._data_splitter_cls = InTheSameOrder
    run = {**RUN, "batch_size": 2 * RUN["batch_size"], **more}
    model.train(**run, accelerator="cpu", enable_progress_bar=False)
    return model


class Dies(pl.Callback):
    """Once, in the second of the processes, after two epochs."""

    def __init__(self, folder):
        self.mark = Path(folder) / "died"

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.current_epoch == 2 and not self.mark.exists():
            self.mark.touch()
            os._exit(1)


class Seen(pl.Callback):
    """Rows of the training batches, epoch by epoch."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_start(self, *_):
        self.rows.append([])

    def on_train_batch_start(self, trainer, plan, batch, *_):
        self.rows[-1].append(batch[REGISTRY_KEYS.INDICES_KEY].tolist())


class PressesCtrlC(pl.Callback):
    """In one of the processes alone, in the middle of an epoch."""

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.current_epoch == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGINT)


def main(folder: Path) -> None:
    seen, said = Seen(), {}
    model = a_model(dropout_rate=0.0)
    model.train(**RUN, **TWO, callbacks=[seen])
    rank = model.trainer.global_rank
    said["rows"], said["train"] = seen.rows, model.train_indices.tolist()
    said["validation"] = model.validation_indices.tolist()
    keep(model, folder / f"exact-{rank}.safetensors")
    said["history"] = {k: v.iloc[:, 0].astype(float).tolist() for k, v in model.history.items()}
    for name in EVERY:
        model = a_model(name)
        model.train(**{**RUN, "max_epochs": 3}, **TWO)
        keep(model, folder / f"{name}-{rank}.safetensors")
    said["stopped"] = stops_early()
    model = a_model()
    model.train(**{**RUN, "max_epochs": 50}, **TWO, callbacks=[PressesCtrlC()])
    said["interrupted"] = model.trainer.current_epoch
    said["error"] = breaks(rank)
    said["shared"] = cannot_be_shared()
    resumes(folder, rank)
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


def keep(model, path):
    save_file({k: v.contiguous() for k, v in model.module.state_dict().items()}, path)


def stops_early():
    """At a rate at which the validation loss cannot fall for long."""
    model = a_model("VAE")
    fast = {"lr": 0.2, "lr_schedule": "constant"}
    model.train(max_epochs=60, batch_size=16, plan_kwargs=fast, early_stopping_patience=3, **TWO)
    return model.trainer.current_epoch


def breaks(rank):
    """A loss that is not a number in one process ends both, with the weights from before."""
    model = a_model("VAE")
    model.train(**{**RUN, "max_epochs": 1}, **TWO)
    good = {k: v.clone() for k, v in model.module.state_dict().items()}
    objective = model.module.objective

    def broken(batch):
        terms = objective(batch)
        if rank == 1:
            terms.kl["z"] = terms.kl["z"] * float("nan")
        return terms

    model.module.objective = broken
    try:
        model.train(**{**RUN, "max_epochs": 3}, **TWO)
    except NonFiniteLoss as error:
        same = all(torch.equal(v, good[k]) for k, v in model.module.state_dict().items())
        return {"message": str(error), "weights are those before": same}
    return {}


def cannot_be_shared():
    """One cell to validate on, for two devices."""
    try:
        a_model().train(train_size=0.995, **RUN, **TWO)
    except ValueError as error:
        return str(error)
    return ""


def resumes(folder, rank):
    """A run of four epochs, and one that goes on from its checkpoint after two."""
    whole = a_model("VAE")
    whole.train(**RUN, **TWO, checkpoint_dir=folder / "whole", checkpoint_every=2)
    keep(whole, folder / f"whole-{rank}.safetensors")
    again = a_model("VAE")
    again.train(**RUN, **TWO, checkpoint_dir=folder / "whole", checkpoint_every=2, resume=True)
    keep(again, folder / f"resumed-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
