"""Command line, demo and pictures."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
import pytest
from typer.testing import CliRunner

import scalloy as sa
from scalloy.cli import main

mpl.use("Agg")


def test_demo_trains_prints_and_saves(tmp_path):
    done = CliRunner().invoke(main.app, ["demo", "--out", str(tmp_path), "--max-epochs", "2"])
    assert done.exit_code == 0, done.output
    assert "held-out ELBO" in done.output
    for name in ("training.png", "umap.png", "kang_vae.h5ad"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
def test_benchmark_speed_makes_one_table(tmp_path):
    args = ["--data", "kang_subset", "--genes", "50", "--likelihood", "nb", "--epochs", "1", "--repeats", "1"]
    out = tmp_path / "speed.csv"
    done = CliRunner().invoke(
        main.app, ["benchmark", "speed", *args, "--scvi-epochs", "1", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    assert set(table["quantity"]) >= {"train_cells_per_s", "latent_cells_per_s", "peak_mb", "elbo"}
    assert (table["ratio"].dropna() > 0).all()


@pytest.mark.slow
def test_benchmark_fit_makes_one_table():
    frame = sa.benchmark.fit(
        ["kang_subset"], seeds=[0], n_genes=50, max_epochs=1, scvi_epochs=1, n_mc_samples=2
    )
    assert list(frame["model"]) == ["VAE", "SCVI"]
    assert (frame["marginal_ll"] > frame["elbo"]).all()


def test_errors_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scalloy", "benchmark", "fit", "--data", "nope"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error: `data='nope'` is not known. Pass one of: kang")


def test_pictures_return_axes(cells, quick):
    model = sa.VAE(cells, n_hidden=8, n_latent=2)
    model.train(**quick)
    model.annotate()
    ax = sa.pl.history(model, "kl_z")
    assert [line.get_label() for line in ax.get_lines()] == ["train", "validation"]
    cells.uns["batch_colors"] = ["#ff0000", "#0000ff"]
    ax = sa.pl.latent(cells, "batch", basis="X_vae")
    colors = {tuple(c) for c in ax.collections[0].get_facecolors().round(2)}
    assert colors == {(1, 0, 0, 1), (0, 0, 1, 1)}
    assert len(sa.pl.latent(cells, "score", basis="X_vae").collections) == 1
    with pytest.raises(KeyError, match="`basis='X_umap'` is not in"):
        sa.pl.latent(cells, "batch")
    with pytest.raises(KeyError, match="`color='nope'`"):
        sa.pl.latent(cells, "nope")
    with pytest.raises(ValueError, match="`term='nope'` is not in the history"):
        sa.pl.history(model, "nope")
