"""Benchmarks of codes and of comparing groups, small: their tables hold what they promise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scalloy import datasets, metrics
from scalloy.benchmark import compare, sparse
from scalloy.benchmark.cost import autoencoders
from scalloy.benchmark.latent import latent, pictures, summary
from scalloy.cli import main


@pytest.fixture
def small(monkeypatch):
    adata = datasets.kang()
    adata = adata[adata.obs["cell_type"].isin(["B cells", "CD14+ Monocytes", "NK cells"])][::3].copy()
    import sys

    for name in ("latent", "compare", "cost"):
        monkeypatch.setattr(sys.modules[f"scalloy.benchmark.{name}"], "load", lambda *_: adata.copy())
    return adata


@pytest.mark.slow
def test_codes_of_all_models_on_the_same_footing(small, tmp_path):
    frame = latent(["kang_subset"], n_latent=[4], seeds=[0], max_epochs=15)
    assert list(frame["model"]) == ["PCA", *["AE", "VAE", "BetaVAE", "BetaVSC", "BetaVSC, mlp"] * 2]
    own = frame.set_index(["model", "likelihood"])
    assert (own.loc[[("AE", "nb"), ("AE", "mse")], "time"] == 1).all()
    assert own["elbo"].notna().sum() == 8
    assert own["off"].notna().sum() == 4
    assert (frame["knn"] > 0.8).all()
    assert frame["r2"].between(0, 1).all()
    table = summary(frame)
    assert table.loc[("kang_subset", 4, "nb", "VAE"), "knn"] == pytest.approx(
        own.loc[("VAE", "nb"), "knn"], abs=1e-3
    )
    written = pictures(tmp_path, "kang_subset", n_latent=4, max_epochs=2)
    assert [p.name for p in written] == ["codes_kang_subset.png", "latents_kang_subset.png"]
    assert all(p.stat().st_size > 10_000 for p in written)


def test_explained_variance_is_scikit_learns():
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    from scalloy.benchmark.latent import _components, _r2

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8))
    z, r2 = _components(x, [np.arange(40), None, np.arange(40, 60)], 3)
    pca = PCA(3, random_state=0).fit(x[:40])
    back = pca.inverse_transform(pca.transform(x[40:]))
    fitted = [LinearRegression().fit(back[:, [g]], x[40:, g]).predict(back[:, [g]]) for g in range(8)]
    assert r2 == pytest.approx(r2_score(x[40:], np.stack(fitted, 1), multioutput="variance_weighted"))
    assert _r2(3 * x + 7, x) == pytest.approx(1)
    np.testing.assert_allclose(z[:40].mean(0), 0, atol=1e-10)


@pytest.mark.slow
def test_sparse_programs_command(tmp_path, monkeypatch):
    few = lambda **given: programs(600, 60, **given)  # noqa: E731
    programs = datasets.programs
    monkeypatch.setattr(sparse.datasets, "programs", few)
    out = tmp_path / "programs.csv"
    args = ["benchmark", "sparse", "--seeds", "1", "--epochs", "2", "--out", str(out)]
    done = CliRunner().invoke(main.app, args)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    assert set(table["model"]) == set(sparse.MODELS)
    assert set(table["activities"]) == {"switched on", "signed"}
    assert table["correlation"].between(table["lowest"], 1).all()
    assert table.loc[table["model"].str.startswith("BetaVSC"), "recall"].notna().all()


@pytest.mark.slow
def test_relaxation_bias_falls_and_spread_rises_as_gates_harden():
    table = sparse.relaxation(n_samples=4000)
    ours = table[(table["gates"] == "hard") & (table["function"] == "linear")]
    assert ours["bias"].is_monotonic_increasing  # with the temperature
    assert ours["spread"].is_monotonic_decreasing
    assert (table.loc[table["gates"] == "paper", "bias"] < 0.2).all()


@pytest.mark.slow
def test_size_and_power_tables():
    table = compare.size(n_simulations=4, n_permutations=20)
    assert len(table) == 6
    assert (table["low"] <= table["rejected"]).all()
    assert (table["rejected"] <= table["high"]).all()
    table = compare.power(shift=(8.0,), share=0.3, n_simulations=2, n_permutations=50, classifier=False)
    assert (table["rejected"] == 1).all()


def test_simulated_donors_are_what_they_should_be():
    adata = compare.donors(40, 200, donor_sd=2.0, share=0.5, shift=3.0, rng=np.random.default_rng(0))
    z, obs = adata.obsm["X_z"], adata.obs
    assert obs.groupby("donor")["group"].nunique().eq(1).all()
    sizes = obs["donor"].value_counts()
    assert sizes.between(100, 300).all()
    means = pd.DataFrame(z[:, 1:]).groupby(obs["donor"].to_numpy()).mean()
    assert means.to_numpy().std() == pytest.approx(2.0, rel=0.15)
    b = (obs["group"] == "b").to_numpy()
    assert z[b, 0].mean() - z[~b, 0].mean() == pytest.approx(1.5, abs=2.0)
    paired = compare.donors(6, 100, paired=True, rng=np.random.default_rng(0))
    assert paired.obs.groupby("donor")["group"].nunique().eq(2).all()


@pytest.mark.slow
def test_real_donors_and_time_of_autoencoders(small):
    table = compare.kang(max_epochs=2)
    assert set(table["latent"]) == {"X_vae", "X_pca"}
    assert set(table["permuted"]) == {"donors", "cells (naive)"}
    assert len(table) == 2 * 2 * 2 * 3
    table = autoencoders("kang_subset", max_epochs=2, repeats=1)
    assert set(table["likelihood"]) == {"nb", "mse"}
    ratio = table.set_index(["model", "likelihood"])["ratio"]
    assert (ratio > 0).all()
    assert ratio["VAE, 800 x 2", "mse"] > 1.5 * ratio["VAE", "mse"]  # it is the size that costs


def test_hoyer_of_known_codes():
    rng = np.random.default_rng(0)
    one_each = np.eye(4)[np.arange(400) % 4] * rng.choice([-1, 1], (400, 1))
    assert metrics.hoyer(one_each) == pytest.approx(1, abs=1e-6)
    alike = rng.choice([-1.0, 1.0], (400, 5))
    assert metrics.hoyer(alike) == pytest.approx(0, abs=0.01)
    x = np.array([[3.0, 4.0], [-3.0, 4.0], [3.0, -4.0], [-3.0, -4.0]])
    assert metrics.hoyer(x * [1, 10]) == pytest.approx(metrics.hoyer(x))


def test_matched_correlation_is_the_best_assignment():
    import itertools

    rng = np.random.default_rng(1)
    truth, code = rng.normal(size=(50, 3)), rng.normal(size=(50, 4))
    r = np.abs(np.corrcoef(truth.T, code.T)[:3, 3:])
    best = max(sum(r[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(4), 3))
    assert metrics.matched_correlation(truth, code).sum() == pytest.approx(best)
    np.testing.assert_allclose(metrics.matched_correlation(truth, -truth[:, [2, 0, 1]]), 1)
    assert list(metrics.best_match(truth, -truth[:, [2, 0, 1]])) == [1, 2, 0]


def test_bio_conservation_knows_good_from_bad_or_names_the_extra():
    rng = np.random.default_rng(0)
    types = np.repeat(["a", "b", "c"], 60)
    good = rng.normal(size=(180, 4)) + 8 * np.eye(4)[np.repeat([0, 1, 2], 60)]
    try:
        import scib_metrics  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install 'scalloy\[bench\]'"):
            metrics.bio_conservation(good, types)
        return
    assert metrics.bio_conservation(good, types) > 0.9
    assert metrics.bio_conservation(rng.normal(size=(180, 4)), types) < 0.6


def test_programs_are_what_they_say():
    adata = datasets.programs(4000, 100, n_programs=5, active=0.3, seed=2)
    z = adata.obsm["programs"]
    assert (z > 0).mean() == pytest.approx(0.3, abs=0.02)
    assert z[z > 0].mean() == pytest.approx(1, abs=0.03)
    effect = adata.varm["programs"]
    assert ((effect > 0).mean(), effect.min()) == (pytest.approx(0.1, abs=0.04), 0)
    up = effect[:, 0] > 1
    on, x = z[:, 0] > 0, np.asarray(adata.X.todense())
    share = x[:, up].sum(1) / x.sum(1)
    assert share[on].mean() > 1.2 * share[~on].mean()
    assert (datasets.programs(500, 50, signed=True).obsm["programs"] < 0).any()
