"""Benchmarks of devices at the smallest size: that they run at the first try where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scalloy.benchmark.cost import conditional, predictions
from scalloy.benchmark.devices import devices
from scalloy.benchmark.gpu import Rows, floors, gpu, seconds


@pytest.mark.slow
def test_gpu_runs_on_a_cpu_too():
    tiny = {"n_genes": 200, "n_cells": 700, "n_large": 1500, "steps": 2, "batch_size": 256}
    frame = gpu(device="cpu", **tiny).set_index("quantity")
    waits = [f"{m}, waits" for m in ("VAE", "CGMDVAE")]
    assert frame.loc[waits, "value"].isna().all()
    assert frame.loc[waits, "note"].str.contains("only on a GPU").all()
    others = frame.drop(index=waits)
    assert (others["note"] == "").all()
    assert (others["value"] > 0).all()
    assert frame.loc["SCVI, defaults", "of SCVI"] == 1
    shares = frame.loc[["VAE, matrix products", "CGMDVAE, matrix products"], "value"]
    assert shares.between(0.01, 0.99).all()


def test_a_row_that_fails_says_why_and_the_others_go_on():
    rows = Rows("cpu", 1)

    def fails():
        raise RuntimeError("out of memory\nand more")

    rows.add("a", "cells/s", lambda: 2.0)
    rows.add("b", "cells/s", fails)
    frame = rows.frame()
    assert frame["value"].tolist()[0] == 2
    assert np.isnan(frame["value"][1])
    assert frame["note"].tolist() == ["", "RuntimeError: out of memory"]


def test_floors_grow_with_the_data(cells):
    twice = cells[np.r_[0:200, 0:200]].copy()
    one, other = (floors(a, torch.device("cpu")) for a in (cells, twice))
    assert all(0 < one[k] < 5 * other[k] for k in one)  # measured apart, hence the margin
    assert seconds(lambda: sum(range(10**5))) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2])
def test_two_processes_beside_one(processes):
    frame = devices(processes=processes, max_epochs=2, repeats=1).set_index("quantity")
    assert 0.1 < frame.loc["speed", "ratio"] < 5
    assert frame.loc["validation loss", "ratio"] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_cost_of_predictions():
    """The first one learns from other types; later ones cost less for each cell of many than of few."""
    table = predictions("kang_subset", n_genes=150, max_epochs=2, repeats=1, few=20).set_index("what")
    assert table.loc["few", "cells"] == 20 < table.loc["all", "cells"]
    assert table.loc["first", "ratio"] > 3 * table.loc["few", "ratio"] > 3 * table.loc["all", "ratio"] > 0


def test_cost_of_cgmdvae():
    frame = conditional("kang_subset", batch_size=(128,), n_genes=100, max_epochs=2, repeats=1)
    assert list(frame["with"])[:2] == ["conditions", "conditions and labels"]
    assert frame["ratio"].between(0.2, 20).all()
