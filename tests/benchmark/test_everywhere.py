"""The table over all data sets: what is held out, and how it is summed up."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scalloy as sa
from scalloy.benchmark.everywhere import OF_DONORS, SETS, summary
from scalloy.benchmark.fit import log_normalised
from scalloy.benchmark.held_out_cells import cells_of
from scalloy.benchmark.rivals import Rival
from scalloy.benchmark.transfer import Protocol, _held_out
from scalloy.cli import main


def test_a_summary_has_mean_and_worst_and_counts_what_is_worse_than_no_change():
    rows = {
        "set": ["a", "a", "b", "b"] * 2,
        "method": ["one"] * 4 + ["other"] * 4,
        "skill": [0.5, 0.3, -0.01, -0.03, 0.1, 0.1, 0.1, 0.1],
        "skill_of_cells": [0.4, 0.2, -0.05, -0.03, 0.1, 0.1, 0.1, 0.1],
        "coverage_90": [0.9, 0.8, 1.0, 0.9, *[np.nan] * 4],
        "expected_skill": [0.6, 0.4, np.nan, 0.1, *[np.nan] * 4],
    }
    frame = pd.DataFrame(rows)
    ceiling = frame.iloc[:1].assign(method="ceiling", skill=0.99)
    found = summary(pd.concat([ceiling, frame], ignore_index=True))
    assert list(found.index) == ["one", "other"]
    assert found.loc["one", [("a", "mean"), ("a", "worst"), ("b", "worst")]].tolist() == [0.4, 0.3, -0.03]
    assert found["worse"].to_numpy().tolist() == [[1, 2], [0, 0]]
    assert found.loc["one", "all"].tolist() == [4, 0.9, 1.0]
    assert found.loc["other", "all"].isna().tolist() == [False, True, True]


def test_where_donors_are_held_out_models_may_know_that_they_are_donors(monkeypatch):
    asked = {}

    def transfer(data, models, **given):
        asked[given["labels_key"]] = (models, given, data)
        return pd.DataFrame({"method": ["ceiling"], "skill": [1.0]})

    monkeypatch.setattr(sys.modules["scalloy.benchmark.everywhere"], "transfer", transfer)
    table = sa.benchmark.everywhere(sets=["nothing", "few patients"], seeds=[3], max_epochs=7)
    assert table["set"].tolist() == ["nothing", "few patients"]
    of_types, of_donors = asked["cell_type"], asked["donor"]
    assert set(of_donors[0]) - set(of_types[0]) == set(OF_DONORS)
    assert set(of_types[0]) == {*sa.baselines.METHODS, "CGMDVAE"}
    sa.benchmark.everywhere(["mean shift", *OF_DONORS], sets=["nothing", "patients"], seeds=[3])
    assert (asked["cell_type"][0], asked["donor"][0]) == (["mean shift"], ["mean shift", *OF_DONORS])
    assert (of_types[1]["seeds"], of_types[1]["max_epochs"]) == ([3], 7)
    assert of_donors[2].obs["donor"].nunique() == 3
    simulated = sa.datasets.trial(effect=0.0, seed=3)
    assert (simulated.X != of_types[2].X).nnz == 0
    with pytest.raises(ValueError, match=r"`sets='Kangg'` is not known.*Did you mean 'Kang'"):
        sa.benchmark.everywhere(sets=["Kangg"])


def test_every_real_set_can_be_held_out(monkeypatch, benchmark_data):
    """The columns that settings name exist, and there is something to hold out in each set."""
    monkeypatch.setenv("SCALLOY_DATA", str(benchmark_data))
    contexts = {}
    for name in ("Papalexi", "embryo", "Norman, halves"):
        held = SETS[name]
        labels_key = held.asked.get("labels_key", "cell_type")
        cells = cells_of(held.cells(0), "condition", labels_key)
        control = "control" if name.startswith("Norman") else cells.obs["condition"].value_counts().index[0]
        found = _held_out(cells, Protocol("condition", labels_key, control), "each", 30)
        contexts[name] = sum(len(c) for c in found.values())
    assert contexts == {"Papalexi": 72, "embryo": 2, "Norman, halves": 66}


def test_the_command_runs_one_set(tmp_path):
    out = tmp_path / "table.csv"
    args = ["--everything", "--set", "nothing", "--model", "no change", "--model", "mean shift"]
    done = CliRunner().invoke(
        main.app, ["benchmark", "transfer", *args, "--seeds", "1", "--out", str(out)], color=False
    )
    assert done.exit_code == 0, done.output
    assert "worse" in done.output
    table = pd.read_csv(out)
    assert set(table["set"]) == {"nothing"}
    assert set(table["type"]) == {f"type_{k}" for k in range(6)}


def test_the_truth_of_a_simulated_cell_is_the_same_cell_under_treatment():
    """Models are not given it, and other shares of types under treatment are not counted as a change."""
    cells = SETS["few patients"].cells(0)
    seen = []

    class Oracle:
        def __init__(self, adata, *_):
            seen.append(adata)

        def train(self, **_):
            """Learn nothing."""

        def transfer(self, source, to, **_):
            seen.append(source)
            out = source.copy()
            out.X = log_normalised(cells[source.obs_names].layers[f"counts_if_{to}"], 1e4)
            return out

    models = {"oracle": Rival(Oracle, seeded=False)}
    asked = {"labels_key": "donor", "hold_out": "donor_0", "n_genes": 300}
    table = sa.benchmark.transfer(cells, models, **asked).set_index("method")
    assert table.loc["oracle", "skill"] == pytest.approx(1.0)
    assert [not adata.layers for adata in seen] == [True, True]
    assert table.loc["ceiling", "skill"] < 1
