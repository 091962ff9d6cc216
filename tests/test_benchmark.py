"""Benchmarks run from end to end on the embedded data, and their tables hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import scalloy as sa
from scalloy import cli
from scalloy.benchmark import clustering, labels


def test_held_out_pairs(tmp_path):
    out = tmp_path / "transfer.csv"
    args = ["transfer", "--data", "kang_subset", "--types", "B cells", "--genes", "200", "--seeds", "1"]
    done = CliRunner().invoke(cli.app, ["benchmark", *args, "--epochs", "20", "--out", str(out)])
    assert done.exit_code == 0, done.output
    import pandas as pd

    table = pd.read_csv(out).set_index("method")
    assert list(table.index) == ["no change", "mean shift", "kernel ridge", "CGMDVAE auto", "CGMDVAE decoder"]
    assert table.loc["no change", "skill"] == 0
    assert (table["skill"].drop("no change") > 0.2).all()
    assert table.loc["CGMDVAE auto", "skill"] > table.loc["mean shift", "skill"]
    with pytest.raises(ValueError, match="`types='B'` is not known"):
        sa.benchmark.transfer("kang_subset", types=["B"])


def test_labels_under_a_shift_and_a_type_left_out():
    frame = labels.shift("kang_subset", seeds=[0], leave_out=False, n_genes=300, max_epochs=20)
    assert set(frame["method"]) == {"logistic regression", "CGMDVAE"}
    ours = frame.set_index("method").loc["CGMDVAE"]
    assert ours["accuracy"] > 0.7
    assert labels.summary(frame).shape[0] == 2


def test_few_labels():
    frame = labels.few(["kang_subset"], shares=[0.05], seeds=[0], n_genes=300, max_epochs=15)
    assert frame.set_index("method").loc["CGMDVAE", "accuracy"] > 0.7
    y = np.repeat(["a", "b"], [990, 10])
    mask = labels.some_of_each(y, 0.01, 0)
    assert (mask[y == "a"].sum(), mask[y == "b"].sum()) == (10, 2)


def test_clusters_beside_rivals():
    from scalloy.benchmark.clustering import summary

    frame = sa.benchmark.clustering(["kang_subset"], seeds=[0], n_genes=100, max_epochs=2, scvi_epochs=1)
    assert set(frame["method"]) >= {
        "k-means on PCs",
        "CGMDVAE, k given",
        "CGMDVAE, k found",
        "SCVI + k-means",
    }
    assert frame.set_index("method").loc["CGMDVAE, k given", "clusters"] <= 8
    assert summary(frame)["mean_rank"].between(1, 8).all()
    assert callable(clustering)


def test_matching_of_clusters():
    from scalloy.benchmark.clustering import scores

    truth = np.repeat(["a", "b", "c"], [50, 30, 1])
    perfect = scores(truth, np.repeat([2, 0, 1], [50, 30, 1]))
    assert (perfect["ari"], perfect["macro_f1"], perfect["large_types_lost"]) == (1, 1, 0)
    assert scores(truth, np.zeros(81, dtype=int))["large_types_lost"] == 1  # "b"; "c" is too small to count
