"""What `test_files.py` has processes do: several save models into one folder, or one saves and one loads."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import scalloy as sa


def two_models(stored):
    models = [sa.load(stored), sa.load(stored)]
    models[1].module.enc_z.head.loc.bias.data += 1
    return models


def which(folder, codes):
    """Which of the two models a folder holds."""
    z = sa.load(folder).get_latent_representation()
    return [bool(np.allclose(z, code, atol=1e-5)) for code in codes].index(True)


def in_child(do):
    pid = os.fork()
    if pid == 0:
        try:
            do()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def two_savers(models, codes, folder, rounds):
    """Both begin when a pipe is closed; what the folder holds afterwards."""
    lost, seen = [], []
    for k in range(rounds):
        wait, start = os.pipe()

        def save(model, wait=wait, start=start):
            os.close(start)
            os.read(wait, 1)
            model.save(folder, overwrite=True, save_anndata=True)

        pids = [in_child(lambda model=model: save(model)) for model in models]
        os.close(wait)
        os.close(start)
        failed = [os.waitpid(pid, 0)[1] for pid in pids]
        try:
            seen.append(which(folder, codes))
            n_files = len(list(folder.iterdir()))
            if any(failed) or n_files != 3:
                lost.append(f"{k}: {n_files} files, ended with {failed}")
        except Exception as error:  # noqa: BLE001 (whatever is wrong is counted)
            lost.append(f"{k}: {error}")
    return {"lost": lost, "seen": sorted(set(seen))}


def one_reader(models, codes, folder, rounds):
    """One process saves over and over while this one loads."""

    def save():
        while True:
            for model in models:
                model.save(folder, overwrite=True, save_anndata=True)

    models[0].save(folder, overwrite=True, save_anndata=True)
    pid, lost, seen = in_child(save), [], []
    for k in range(rounds):
        try:
            seen.append(which(folder, codes))
        except Exception as error:  # noqa: BLE001 (likewise)
            lost.append(f"{k}: {error}")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return {"lost": lost, "seen": sorted(set(seen))}


if __name__ == "__main__":
    stored, folder, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    models = two_models(stored)
    codes = [np.load(stored / "latent.npy") + shift for shift in (0, 1)]
    run = {"savers": two_savers, "reader": one_reader}[sys.argv[4]]
    print(json.dumps(run(models, codes, folder, rounds)))
