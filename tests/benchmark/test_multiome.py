"""Benchmarks of generated pairs and of RNA and ATAC, quickly, and what their scores are of known answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scalloy import metrics
from scalloy.benchmark import coherence as joint
from scalloy.benchmark import multiome as atac
from scalloy.cli.main import app

pytest.importorskip("mudata", reason="the extra `multimodal` is not installed")


@pytest.fixture(scope="module")
def whole():
    return atac.load("simulated", 400)


def test_what_is_known_of_simulated_cells(whole):
    assert whole.counts["rna"].shape == (400, 200)
    assert whole.counts["atac"].shape == (400, 800)
    assert set(whole.truth) == {"open", "open_probability", "mean_rna", "mean_atac"}
    assert not list(whole.mdata.obsm)  # so that no model sees them
    some = whole.take(np.array([5, 2]))
    assert list(some.mdata.obs_names) == ["cell_5", "cell_2"]
    np.testing.assert_array_equal(some.counts["atac"], whole.counts["atac"][[5, 2]])
    np.testing.assert_array_equal(some.mdata["atac"].X.toarray(), some.counts["atac"])
    assert list(some.types) == list(whole.types.iloc[[5, 2]])


def test_scores_of_the_truth_and_of_nothing(whole):
    truth = {"rna": whole.truth["mean_rna"], "atac": whole.truth["open_probability"]}
    best = atac.scores(whole, truth)
    assert best["r_rna_truth"] == pytest.approx(1)
    assert best["r_atac_truth"] > 0.9  # but for the logarithm
    assert best["auroc_open"] > best["auroc_atac"] > 0.55  # fragments are missing in open peaks
    seen = atac.scores(whole, whole.counts)
    assert seen["r_rna"] == pytest.approx(1)
    assert seen["r_atac"] == pytest.approx(1)
    assert seen["auroc_atac"] == pytest.approx(1)
    rng = np.random.default_rng(0)
    none = atac.scores(whole, {k: rng.random(v.shape) for k, v in whole.counts.items()})
    assert max(abs(none[k]) for k in ("r_rna", "r_atac", "r_rna_truth", "r_atac_truth")) < 0.02
    assert none["auroc_open"] == pytest.approx(0.5, abs=0.02)
    deeper = {k: v * rng.lognormal(0, 1, (len(v), 1)) for k, v in truth.items()}
    assert atac.scores(whole, deeper)["r_rna_truth"] == pytest.approx(1)


def test_peaks_that_hardly_vary_have_no_area_under_the_curve(whole):
    counts = {"rna": whole.counts["rna"], "atac": np.zeros_like(whole.counts["atac"])}
    counts["atac"][:20, 0] = counts["atac"][:2, 1] = 1.0
    found = atac.scores(whole._replace(counts=counts, truth={}), {"atac": counts["atac"]})
    assert found["auroc_atac"] == 1.0
    score = np.zeros_like(counts["atac"])
    score[:20, 0], score[:2, 1] = 1.0, -1.0
    assert atac.scores(whole._replace(counts=counts, truth={}), {"atac": score.clip(0)})["auroc_atac"] == 1.0


def test_share_of_cells_that_are_closer_than_the_true_match():
    rng = np.random.default_rng(0)
    z, apart = rng.normal(size=(2, 600, 3))
    assert atac.foscttm(z, z) == 0
    assert atac.foscttm(z, apart) == pytest.approx(0.5, abs=0.06)
    z = z[:60]
    other = z + rng.normal(size=z.shape)
    naive = []
    for i in range(60):
        for a, b in ((z, other), (other, z)):
            away = np.linalg.norm(a[i] - b, axis=1)
            naive.append((away < away[i]).sum() / 59)
    assert atac.foscttm(z, other) == pytest.approx(np.mean(naive))


def test_table_of_rna_and_atac():
    frame = atac.multiome("simulated", ["POISEVAE", "ridge", "mean"], n_obs=400, n_folds=1, max_epochs=2)
    assert list(frame["model"]) == [atac.TRUTH, "POISEVAE", "ridge", "mean"]
    row = frame.set_index("model")
    assert row.loc["mean", "r_rna"] == 0
    assert row.loc["mean", "auroc_atac"] == 0.5
    assert row.loc[atac.TRUTH, "auroc_open"] > row.loc["ridge", "auroc_open"] > 0.52
    assert row.loc["ridge", "r_rna_truth"] > 0.15
    assert 0 <= row.loc["POISEVAE", "foscttm"] < 0.5
    assert np.isfinite(row.loc["POISEVAE", ["r_rna", "r_atac", "ari", "knn"]].astype(float)).all()
    table = atac.summary(frame)
    assert "times" not in table.columns.get_level_values(0)
    rival = frame[frame["model"] == "ridge"].assign(model="MULTIVI", seconds=8.0)
    frame.loc[frame["model"] == "POISEVAE", "seconds"] = 2.0
    times = atac.summary(pd.concat([frame, rival]))["times", "mean"]
    assert times["simulated", "POISEVAE"] == 4
    with pytest.raises(ValueError, match="`models='magic'` is not known"):
        atac.multiome("simulated", ["magic"], n_obs=100, n_folds=1)


def test_real_cells_of_a_multiome(benchmark_data, monkeypatch):
    monkeypatch.setenv("SCALLOY_DATA", str(benchmark_data))
    frame = atac.multiome("multiome_test", ["mean", "ridge"], n_folds=1)
    row = frame.set_index("model")
    assert list(row.index) == ["mean", "ridge"]
    assert row.loc["ridge", "r_rna"] > 0.1
    assert "r_rna_truth" not in frame


@pytest.mark.slow
def test_multivi_in_the_same_table():
    frame = atac.multiome("simulated", ["MULTIVI"], n_obs=200, n_folds=1, multivi_epochs=2)
    row = frame.set_index("model").loc["MULTIVI"]
    assert np.isfinite(
        row[["r_rna", "r_atac", "auroc_open", "foscttm", "ari", "seconds"]].astype(float)
    ).all()


def test_generated_pairs_beside_real_ones():
    models = ["POISEVAE"]
    frame = joint.coherence("citeseq_subset", models, n_folds=1, max_epochs=2, n_trees=20)
    assert list(frame["model"]) == [joint.REAL, "POISEVAE", "POISEVAE"]
    assert list(frame["from"]) == ["", "mixture", "prior"]
    real, mixed, ours = (row for _, row in frame.iterrows())
    assert mixed["ratio"] == mixed["made"] / mixed["real"] != ours["ratio"]
    assert real["ratio"] == pytest.approx(1, abs=0.05)
    assert real["composition"] < 0.1
    assert real["auc"] == pytest.approx(0.5, abs=0.08)
    assert real["auc_torn"] > real["auc"] + 0.2  # that modalities belong together can be seen
    assert ours["auc"] > 0.8  # after two epochs
    assert ours["ratio"] == ours["made"] / ours["real"] < real["ratio"]
    assert ("ratio", "mean") in joint.summary(frame).columns
    with pytest.raises(ValueError, match="`models='totalVI'` is not known"):
        joint.coherence("citeseq_subset", ["totalVI"], n_folds=1)


def test_torn_cells_are_torn_and_scored_with_the_same_function():
    adata = joint.load("citeseq_subset")[:600].copy()
    made, held_out = joint.values(adata[:200]), joint.values(adata[200:400])
    found = joint.scores(adata[400:].copy(), held_out, made, 20, 0)
    rows = np.random.default_rng(0).permutation(200)
    both = [np.hstack([v["rna"], v["prot"]]) for v in (held_out, {**made, "prot": made["prot"][rows]})]
    assert found["auc_torn"] == metrics.two_sample(*both, n_trees=20)["auc"]
    alone = metrics.two_sample(held_out["prot"], made["prot"], n_trees=20)["auc"]
    assert found["auc_prot"] == alone


@pytest.mark.slow
@pytest.mark.parametrize("what", ["coherence", "multiome"])
def test_command_line(tmp_path, what):
    out = tmp_path / "table.csv"
    given = {"coherence": ("--data", "citeseq_subset"), "multiome": ("--cells", "200", "--model", "ridge")}[
        what
    ]
    args = (
        "benchmark",
        "multimodal",
        "--what",
        what,
        "--folds",
        "1",
        "--epochs",
        "1",
        *given,
        "--out",
        str(out),
    )
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    found = pd.read_csv(out)["model"].tolist()
    assert found == (
        [joint.REAL, *(k for k in joint.JOINTS for _ in range(2))]
        if what == "coherence"
        else [atac.TRUTH, "ridge"]
    )
