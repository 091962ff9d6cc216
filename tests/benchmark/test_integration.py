"""The benchmark of integration: its cells, its scores beside their definitions, and what is kept."""

from __future__ import annotations

import sys
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import silhouette_score

import scalloy as sa
from scalloy.benchmark.labels import UNKNOWN

task = import_module("scalloy.benchmark.integration")  # as an attribute it is the function
N = 240


@pytest.fixture(scope="module")
def cells():
    """Cells of the shipped set."""
    return task.prepared("kang_subset", N, 60)


def coded(batch_effect: float, seed: int = 0) -> tuple[AnnData, np.ndarray]:
    """Cells of three types in two batches, and a code in which batches are so far apart."""
    rng = np.random.default_rng(seed)
    kind, batch = np.arange(360) % 3, np.arange(360) // 180
    z = rng.normal(size=(360, 5))
    z[:, :3] += 5 * np.eye(3)[kind]
    x = z.copy()
    x[:, 4] += 6 * batch
    z[:, 4] += batch_effect * batch
    obs = pd.DataFrame({"batch": batch, "cell_type": kind}, index=[f"c{i}" for i in range(360)])
    return AnnData(obs=obs.astype(str).astype("category"), obsm={"X_pca": x}), z


def test_scores_are_those_of_their_definitions():
    pytest.importorskip("scib_metrics", reason="the extra `bench` is not installed")
    adata, mixed = coded(0)
    apart, noise = coded(6)[1], np.random.default_rng(1).normal(size=mixed.shape)
    found = task.scored(adata, {"mixed": mixed, "apart": apart, "noise": noise})
    assert list(found) == list(task.SCORES.values())
    np.testing.assert_allclose(found["total"], 0.6 * found["bio"] + 0.4 * found["batch"])
    bio = ["isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette", "clisi"]
    np.testing.assert_allclose(found["bio"], found[bio].mean(1))
    mixing = ["bras", "ilisi", "kbet", "graph_connectivity", "pcr"]
    np.testing.assert_allclose(found["batch"], found[mixing].mean(1))
    truth = [(silhouette_score(z, adata.obs["cell_type"]) + 1) / 2 for z in (mixed, apart, noise)]
    np.testing.assert_allclose(found["silhouette"], truth, atol=1e-4)
    assert found["batch"]["mixed"] > found["batch"]["apart"] + 0.3
    assert found["bio"]["mixed"] > found["bio"]["noise"] + 0.3
    assert found["pcr"]["apart"] == pytest.approx(0, abs=1e-6)  # the batch explains as much as before


def test_cells_are_always_the_same_ones_with_genes_that_vary_within_batches(cells):
    again = task.prepared("kang_subset", N, 60)
    assert cells.obs_names.equals(again.obs_names)
    assert cells.n_vars == 60
    assert N - 5 < cells.n_obs <= N  # without those that have no counts in these genes
    assert list(cells.obs) == ["batch", "cell_type", "n_counts"]
    full = sa.datasets.kang()[cells.obs_names, cells.var_names]
    assert (cells.obs["batch"].astype(str) == full.obs["batch"].astype(str)).all()
    assert (cells.X != full.X).nnz == 0
    assert (full.X.sum(1) > 0).all()
    assert cells.obsm["X_pca"].shape == (cells.n_obs, task.N_PCS)
    other = task.prepared("kang_subset", N, 60, "condition")
    assert set(other.obs["batch"]) == {"control", "stimulated"}
    assert set(other.var_names) != set(cells.var_names)


def test_a_share_of_each_type_is_told(cells):
    run = task.Run(cells, seed=3, share=0.2)
    given, truth = run.told.obs["given"].astype(str), cells.obs["cell_type"].astype(str)
    told = given != UNKNOWN
    assert (given[told] == truth[told]).all()
    n = truth.value_counts()
    expected = n.map(lambda k: min(k, max(2, round(0.2 * k))))
    assert told.groupby(truth).sum().to_dict() == expected.to_dict()
    assert "given" not in cells.obs
    other = task.Run(cells, seed=4, share=0.2)
    assert (other.told.obs["given"].astype(str) != given).any()


def test_each_method_gets_what_it_is_to_have(cells, monkeypatch):
    """With labels and without, the batch, the seed and the arguments of the model."""
    made = []

    class Model:
        def __init__(self, adata, **settings):
            made.append(settings)

        @classmethod
        def setup_anndata(cls, adata, **setup):
            made.append(setup)

        def train(self, **given):
            made.append(given)

        def get_latent_representation(self):
            return np.zeros((N, 2))

    run = task.Run(cells, 5, max_epochs=7, model={"n_latent": 3})
    z, seconds = task._ours(Model, labels=True)(run)
    assert z.shape == (N, 2)
    assert seconds >= 0
    setup, settings, given = made
    assert setup == {"batch_key": "batch", "labels_key": "given", "unlabeled_category": UNKNOWN}
    assert settings == {"seed": 5, "n_latent": 3}
    assert given["max_epochs"] == 7
    made.clear()
    task._ours(Model)(run)
    assert made[0] == {"batch_key": "batch"}


@pytest.mark.slow
def test_rivals_are_trained_as_the_field_trains_them(cells):
    pytest.importorskip("harmonypy", reason="the extra `bench` is not installed")
    run = task.Run(cells, scvi_epochs=1)
    (z, first), (labelled, both) = task.METHODS["SCVI"](run), task.METHODS["SCANVI, labels"](run)
    assert z.shape == labelled.shape == (cells.n_obs, 30)
    assert both > first > 0
    assert (run.scvi[0].module.n_latent, run.scvi[0].module.gene_likelihood) == (30, "nb")
    harmony, _ = task.METHODS["Harmony"](run)
    x, batch = cells.obsm["X_pca"], cells.obs["batch"]
    assert harmony.shape == x.shape
    apart = [pd.DataFrame(one).groupby(batch.to_numpy()).mean().var().sum() for one in (x, harmony)]
    assert apart[1] < apart[0]


def test_codes_of_rivals_are_kept_for_the_same_cells(cells, monkeypatch, tmp_path):
    calls = []

    def method(name):
        def code(run):
            calls.append(name)
            return np.full((run.cells.n_obs, 2), len(calls), dtype=float), 1.5

        return code

    for name in ("SCVI", "VAE"):
        monkeypatch.setitem(task.METHODS, name, method(name))
    run = task.Run(cells)
    first, second = (task._kept(run, "SCVI", tmp_path / "a") for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[1], second[1], calls) == (1.5, 1.5, ["SCVI"])
    task._kept(task.Run(cells[:, :50]), "SCVI", tmp_path / "a")  # other genes
    task._kept(task.Run(cells[:100]), "SCVI", tmp_path / "a")  # other cells
    task._kept(task.Run(cells[:100], scvi_epochs=3), "SCVI", tmp_path / "a")
    assert calls == ["SCVI"] * 4
    for _ in range(2):  # ours is never kept, and nothing is without a folder
        task._kept(run, "VAE", tmp_path / "a")
        task._kept(run, "SCVI", None)
    assert calls[4:] == ["VAE", "SCVI"] * 2


def test_table_has_each_method_and_a_picture(tmp_path, monkeypatch):
    pytest.importorskip("scib_metrics", reason="the extra `bench` is not installed")
    monkeypatch.setitem(task.METHODS, "SCVI", lambda run: (run.cells.obsm["X_pca"][:, :5], 4.0))
    monkeypatch.setitem(task.METHODS, "VAE", lambda run: (run.cells.obsm["X_pca"][:, :3], 1.0))
    few = {"methods": ["PCA", "SCVI", "VAE"], "seeds": [0], "n_cells": N, "n_genes": 60}
    table = sa.benchmark.integration(["kang_subset"], folder=tmp_path, **few)
    assert table["method"].tolist() == few["methods"]
    assert table[["total", "bio", "batch"]].apply(lambda c: c.between(0, 1)).all(axis=None)
    assert table.set_index("method")["time"].to_dict() == pytest.approx(
        {"PCA": np.nan, "SCVI": 1, "VAE": 0.25}, nan_ok=True
    )
    assert table.set_index("method").loc["PCA", "pcr"] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "integration_kang_subset.png").stat().st_size > 10_000
    short = task.summary(table)
    assert set(short.index.get_level_values("data")) == {"kang_subset", "all"}
    row = table[table["method"] == "VAE"].iloc[0]
    assert short.loc[("all", "VAE"), ("total", "mean")] == pytest.approx(row["total"], abs=1e-3)


def test_what_is_not_known_is_named():
    with pytest.raises(ValueError, match="`methods='scVI'` is not known"):
        sa.benchmark.integration(["kang_subset"], methods=["scVI"])
    with pytest.raises(ValueError, match="`data='kang'` is not known"):
        sa.benchmark.integration(["kang"], methods=["PCA"])
    with pytest.raises(ValueError, match="`batch_key='donor'` is not known"):
        sa.benchmark.integration(["kang_subset"], methods=["PCA"], batch_key="donor")


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("scib_metrics.benchmark", r"needs scib-metrics: pip install 'scalloy\[bench\]'"),
        ("harmonypy", r"also runs Harmony, which is not installed: pip install 'scalloy\[bench\]'"),
    ],
)
def test_what_is_not_installed_is_named(cells, monkeypatch, package, message):
    monkeypatch.setitem(sys.modules, package, None)
    asked = (
        (lambda: task.METHODS["Harmony"](task.Run(cells)))
        if package == "harmonypy"
        else (lambda: task.scored(cells, {"PCA": cells.obsm["X_pca"]}))
    )
    with pytest.raises(ImportError, match=message):
        asked()
