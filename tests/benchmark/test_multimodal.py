"""Benchmarks of two modalities on the embedded data, quickly: what is in the tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scalloy.benchmark import coupling, multimodal
from scalloy.benchmark.multimodal import JOINTS, panel, speed, summary
from scalloy.cli.main import app


def test_table_of_cross_generation():
    models = ["POISEVAE", "product of experts", "knn", "mean"]
    frame = multimodal("citeseq_subset", models, n_folds=1, max_epochs=2)
    assert list(frame["model"]) == models
    assert frame["r"].notna().all()
    row = frame.set_index("model")
    assert row.loc["mean", "r"] == 0
    assert row.loc["knn", "r"] > 0.6
    assert 0.5 < row.loc["POISEVAE", "coverage"] <= 1
    assert (row["rmse"] > 0).all()
    assert row.loc["mean", "rmse"] == pytest.approx(1.0, abs=0.1)
    assert np.isnan(row.loc["knn", "ari"])
    table = summary(frame)
    assert ("r", "mean") in table.columns
    with pytest.raises(ValueError, match="`models='magic'` is not known"):
        multimodal("citeseq_subset", ["magic"], n_folds=1)


@pytest.mark.slow
def test_totalvi_in_the_same_table_and_panel():
    frame = multimodal("citeseq_subset", ["totalVI"], n_folds=1, totalvi_epochs=1)
    assert frame.loc[0, "epochs"] == 1
    assert frame["r"].between(-1, 1).all()
    found = panel("citeseq_subset", ["POISEVAE", "totalVI"], seeds=[0], max_epochs=1, totalvi_epochs=1)
    assert list(found["model"]) == ["POISEVAE", "totalVI"]
    assert found["r_missing"].between(-1, 1).all()


@pytest.mark.slow
def test_speed_is_a_ratio():
    """One epoch of few cells beside other work: too short for a time that means anything."""
    frame = speed("citeseq_subset", max_epochs=1, repeats=1)
    assert np.isfinite(frame["times_faster"]).all()
    assert set(frame["model"]) == set(JOINTS)


def test_sources_are_drawn_from_a_coupled_prior_and_seen_with_little_noise():
    adata, z, z2 = coupling.drawn_sources(n=3000)
    assert adata.obsm["protein_b"].shape == (3000, 30)
    both = np.corrcoef(np.c_[z, np.square(z)].T, np.c_[z2, np.square(z2)].T)[:6, 6:]
    assert np.abs(both).max() > 0.2
    again = coupling.drawn_sources(n=3000)
    np.testing.assert_array_equal(again[1], z)
    frame = coupling.sources(("poise",), seeds=[0], max_epochs=1)
    assert frame[["first", "second"]].to_numpy().min() > 0


@pytest.mark.slow
def test_circle_beside_digits(benchmark_data, monkeypatch):
    monkeypatch.setenv("SCALLOY_DATA", str(benchmark_data))
    cells = coupling.circle_and_digits(5.0, n=400)
    points = cells.obsm["protein_point"].to_numpy()
    angle = 2 * np.pi * (cells.obs["digit"].astype(int).to_numpy() - 1) / 8
    residual = points - 5 * np.c_[np.cos(angle), np.sin(angle)]
    assert residual.var() == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize(("radius", "expected"), [(5.0, (4.2, 1.95)), (3.0, (2.5, 1.34)), (2.0, (1.8, 1.09))])
def test_references_without_clusters_are_far_from_the_centres(radius, expected):
    """As another program measured them, with other draws."""
    rng, angle = np.random.default_rng(1), 2 * np.pi * np.arange(8) / 8
    centres = radius * np.c_[np.cos(angle), np.sin(angle)]
    points = centres[rng.integers(8, size=6000)] + rng.normal(0, 0.2**0.5, (6000, 2))

    real = np.min([np.hypot(*(points - c).T) for c in centres], axis=0).mean()
    for made, known in zip(coupling.references(points).values(), expected, strict=True):
        found = np.min([np.hypot(*(made - c).T) for c in centres], axis=0).mean() / real
        assert found == pytest.approx(known, rel=0.04)


@pytest.mark.slow
def test_command_line(tmp_path):
    torch.manual_seed(0)
    args = ["benchmark", "multimodal", "--data", "citeseq_subset", "--model", "ridge", "--folds", "1"]
    done = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "table.csv")])
    assert done.exit_code == 0, done.output
    assert "ridge" in (tmp_path / "table.csv").read_text()
