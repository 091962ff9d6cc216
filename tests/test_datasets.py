"""Embedded and simulated data."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import numpy as np
import pytest

import scalloy as sa
from scalloy import datasets


def test_embedded_kang_is_real_and_complete():
    adata = sa.datasets.kang()
    assert 5_000 < adata.n_obs < 8_000
    assert adata.obs["cell_type"].nunique() == 8
    assert set(adata.obs["condition"]) == {"control", "stimulated"}
    assert adata.obs["batch"].nunique() == 8
    assert adata.obs.groupby(["cell_type", "condition"], observed=True).size().min() >= 20
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.X.data.min() >= 1
    assert "GSE96583" in adata.uns["source"]
    assert (files("scalloy.data") / "kang_subset.h5ad").stat().st_size < 4 * 2**20
    monocytes = adata[adata.obs["cell_type"] == "CD14+ Monocytes"]
    isg15 = monocytes[:, "ISG15"].X.toarray().ravel()
    stimulated = (monocytes.obs["condition"] == "stimulated").to_numpy()
    assert isg15[stimulated].mean() > 10 * isg15[~stimulated].mean()  # interferon at work


def test_subset_agrees_with_the_full_set(benchmark_data, monkeypatch):
    monkeypatch.setenv("SCALLOY_DATA", str(benchmark_data))
    full, subset = sa.datasets.kang(full=True), sa.datasets.kang()
    assert full.shape == (16_412, 13_966)
    there = full[subset.obs_names, subset.var_names]
    assert (there.X != subset.X).nnz == 0
    totals = np.asarray(full[subset.obs_names].X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(totals, subset.obs["n_counts"])
    assert (there.obs["condition"].astype(str) == subset.obs["condition"].astype(str)).all()


def test_fetch_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALLOY_DATA", str(tmp_path))
    monkeypatch.delenv("SCALLOY_DATA_URL", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"holds no kang_pbmc.h5ad.*SCALLOY_DATA_URL"):
        datasets.fetch("kang_pbmc.h5ad")
    with pytest.raises(ValueError, match=r"is not known. Pass one of: kang_pbmc"):
        datasets.fetch("nope")


@pytest.fixture
def server(tmp_path):
    """A folder served on the loopback address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_download_is_checked(monkeypatch, tmp_path, server):
    """A file of another content is refused by its checksum; the right one is kept."""
    folder, url = server
    (folder / "pbmc3k.h5ad").write_bytes(b"not it")
    monkeypatch.delenv("SCALLOY_DATA", raising=False)
    monkeypatch.setenv("SCALLOY_DATA_URL", url)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(ValueError, match="hash"):
        datasets.fetch("pbmc3k.h5ad")
    right = hashlib.sha256(b"not it").hexdigest()
    monkeypatch.setitem(datasets.DOWNLOADS, "pbmc3k.h5ad", right)
    assert datasets.fetch("pbmc3k.h5ad").read_bytes() == b"not it"


def test_simulated_truth():
    adata = sa.datasets.simulate(3000, 50, n_conditions=3, n_proteins=4, theta=3.0, seed=2)
    again = sa.datasets.simulate(3000, 50, n_conditions=3, n_proteins=4, theta=3.0, seed=2)
    assert (adata.X != again.X).nnz == 0
    mean, x = adata.layers["mean"], adata.X.toarray()
    assert np.abs(x.mean(0) / mean.mean(0) - 1)[mean.mean(0) > 1].max() < 0.15
    standardised = (x - mean) / np.sqrt(mean + mean**2 / 3.0)  # NB variance
    assert standardised.var() == pytest.approx(1, abs=0.1)
    control = (adata.obs["condition"] == "control").to_numpy()
    np.testing.assert_array_equal(adata.layers["mean_control"][control], mean[control])
    assert np.abs(adata.layers["mean_treated_1"] - adata.layers["mean_control"]).max() > 1
    np.testing.assert_allclose(adata.layers["mean_treated_2"].sum(1), mean.sum(1), rtol=1e-4)
    assert adata.obsm["protein_counts"].shape == (3000, 4)


def test_sources_toys():
    adata = sa.datasets.poisson_genes()
    assert adata.shape == (2000, 10)
    np.testing.assert_allclose(adata.X.toarray().mean(0), np.arange(1, 11), rtol=0.05)
    toy = sa.datasets.blobs()
    assert toy.shape == (3500, 16)
    assert (toy.obs.groupby(["cluster", "condition"], observed=True).size() == 350).all()
    groups = toy.to_df().groupby([toy.obs["cluster"], toy.obs["condition"]], observed=True).mean()
    shift = groups.xs("treated_1", level=1) - groups.xs("control", level=1)
    assert shift.to_numpy().mean() == pytest.approx(1.5, abs=0.2)


def test_a_trial_has_the_truth_of_both_conditions():
    """Counts have the stated means; silent types do not respond, and others share a part of a response."""
    made = {"n_types": 4, "n_donors": 2, "silent": 1, "donor_response": 0.0, "seed": 3}
    adata = sa.datasets.trial(4000, 60, **made, theta=3.0)
    assert (adata.X != sa.datasets.trial(4000, 60, **made, theta=3.0).X).nnz == 0
    before, after = adata.layers["mean_control"], adata.layers["mean_treated"]
    treated = (adata.obs["condition"] == "treated").to_numpy()
    mean, x = np.where(treated[:, None], after, before), adata.X.toarray()
    standardised = (x - mean) / np.sqrt(mean + mean**2 / 3.0)  # NB variance
    assert standardised.var() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(before.sum(1), after.sum(1), rtol=1e-4)
    of = {name: (adata.obs["cell_type"] == name).to_numpy() for name in ("type_0", "type_1", "type_3")}
    np.testing.assert_array_equal(after[of["type_3"]], before[of["type_3"]])
    change = {k: np.log(after[rows].mean(0) / before[rows].mean(0)) for k, rows in of.items()}
    assert 0.5 < np.corrcoef(change["type_0"], change["type_1"])[0, 1] < 0.99
    alone = sa.datasets.trial(500, 2000, n_types=2, shared=0.0, donor_response=0.0, seed=3)
    shift = alone.to_df("mean_treated") / alone.to_df("mean_control")
    shift = np.log(shift.groupby(alone.obs["cell_type"], observed=True).mean())
    assert abs(np.corrcoef(shift)[0, 1]) < 0.15


def test_donors_and_composition_of_a_trial():
    """Donors differ as much as asked, and the shares of types move as much as asked."""
    same = sa.datasets.trial(3000, 50, donor_effect=0.0, effect=0.0, composition=0.0, seed=1)
    apart = sa.datasets.trial(3000, 50, donor_effect=1.0, effect=0.0, composition=1.5, seed=1)

    def between_donors(adata):
        means = adata.to_df().groupby(adata.obs["donor"], observed=True).mean()
        return np.log(means + 0.1).std().mean()

    def moved(adata):
        shares = adata.obs.groupby("condition", observed=True)["cell_type"].value_counts(normalize=True)
        return (shares["treated"] - shares["control"]).abs().max()

    assert between_donors(apart) > 3 * between_donors(same)
    assert moved(apart) > 0.15 > 0.05 > moved(same)
