"""What other packages of the field do with our models and with what they write."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import scalloy as sa


@pytest.fixture
def annotated(cells, quick):
    sa.CGMDVAE.setup_anndata(cells, batch_key="batch", condition_key="condition", labels_key="cluster")
    model = sa.CGMDVAE(cells, n_hidden=16, n_latent=4)
    model.train(**quick)
    model.annotate()
    return model, cells


@pytest.mark.filterwarnings("ignore")
def test_scanpy_goes_on_from_what_is_written(annotated, tmp_path):
    _, cells = annotated
    counts, code = cells.X.copy(), cells.obsm["X_cgmdvae"].copy()
    sc.pp.neighbors(cells, use_rep="X_cgmdvae")
    sc.tl.umap(cells)
    sc.tl.leiden(cells, flavor="igraph", n_iterations=2)
    sc.tl.dendrogram(cells, "cgmdvae_label", use_rep="X_cgmdvae")
    assert abs(cells.X - counts).sum() == 0
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.tl.rank_genes_groups(cells, "cgmdvae_label", method="wilcoxon")
    first = sc.get.rank_genes_groups_df(cells, str(cells.obs["cgmdvae_label"].cat.categories[0]))
    assert set(first["names"]) == set(cells.var_names)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.obsm["X_cgmdvae"], code)
    assert again.obs["cgmdvae_label"].equals(cells.obs["cgmdvae_label"])
    assert again.uns["cgmdvae"]["model"] == "CGMDVAE"


@pytest.mark.filterwarnings("ignore")
def test_predicted_cells_go_through_scanpy(annotated):
    model, cells = annotated
    controls = cells[cells.obs["condition"] == "control"].copy()
    made = model.transfer(controls, to="treated_1")
    both = ad.concat({"seen": controls, "made": made}, label="origin", index_unique="-")
    sc.pp.pca(both, n_comps=5)
    sc.tl.rank_genes_groups(both, "origin", method="t-test")
    assert both.n_obs == 2 * controls.n_obs


def test_mudata_is_annotated_and_comes_back_from_a_file(cells, quick, tmp_path):
    md = pytest.importorskip("mudata", reason="the extra `multimodal` is not installed")
    rna = ad.AnnData(cells.X, obs=cells.obs[["batch"]].copy(), var=cells.var)
    prot = ad.AnnData(cells.obsm["protein_counts"].astype("float32"))
    mdata = md.MuData({"rna": rna, "prot": prot})
    sa.POISEVAE.setup_mudata(mdata, modalities=("rna", "prot"))
    model = sa.POISEVAE(mdata, n_hidden=8, n_latent=3, n_chains=32)
    model.train(**quick)
    model.annotate()
    sc.pp.neighbors(mdata, use_rep="X_poisevae")
    mdata.write(tmp_path / "cells.h5mu")
    again = md.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(again.obsm["X_poisevae"], mdata.obsm["X_poisevae"])
    assert again.obsp["connectivities"].shape == (200, 200)


def test_posterior_predictive_checks_of_scvi(cells, quick):
    """They take the model as one of their own: how genes vary as the model samples them."""
    from scvi.criticism import PosteriorPredictiveCheck

    cells.X = cells.X.toarray()  # it fails on sparse counts of floats
    sa.VAE.setup_anndata(cells, batch_key="batch")
    model = sa.VAE(cells, n_hidden=16, n_latent=4)
    model.train(**quick)
    check = PosteriorPredictiveCheck(cells, models_dict={"ours": model}, n_samples=3)
    check.coefficient_of_variation(dim="cells")
    values = check.metrics["cv_gene"]
    assert {"ours", "Raw"} <= set(values.columns)
    assert np.isfinite(values["ours"]).all()


@pytest.mark.slow
def test_autotune_of_scvi_searches_over_our_arguments(cells, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra `search` is not installed")
    pytest.importorskip("hyperopt", reason="scvi-tools' own extra `autotune` is not installed")
    from ray import tune
    from scvi.autotune import run_autotune

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TQDM_PATCH_PRINT", "0")  # numba does not compile a `print` that Ray replaced
    sa.VAE.setup_anndata(cells, batch_key="batch")
    found = run_autotune(
        sa.VAE,
        cells,
        metrics="validation_loss",
        mode="min",
        search_space={"model_params": {"n_latent": tune.choice([2, 3])}, "train_params": {"max_epochs": 1}},
        num_samples=2,
        resources={"cpu": 1},
        scheduler="asha",
        searcher="random",
        logging_dir=str(tmp_path / "tune"),
    )
    table = found.result_grid.get_dataframe()
    assert np.isfinite(table["validation_loss"]).all()
    assert set(table["config/model_params/n_latent"]) <= {2, 3}


def test_scib_metrics_take_our_latent_space():
    """Types that lie apart have a better score than the same types in a space of noise."""
    pytest.importorskip("scib_metrics", reason="the extra `bench` is not installed")
    cells = sa.datasets.simulate(400, 60, n_clusters=4, seed=0)
    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, n_latent=4)
    model.train(max_epochs=20, enable_progress_bar=False)
    labels = cells.obs["cluster"].to_numpy()
    noise = np.random.default_rng(0).normal(size=(400, 4))
    ours = sa.metrics.bio_conservation(model.get_latent_representation(), labels)
    assert ours > sa.metrics.bio_conservation(noise, labels)


def test_distances_of_pertpy_agree_with_ours_on_predicted_cells(annotated):
    pertpy = pytest.importorskip("pertpy", reason="pertpy is not installed")
    model, cells = annotated
    made = model.transfer(cells[cells.obs["condition"] == "control"].copy(), to="treated_1")
    truth = np.log1p(cells[cells.obs["condition"] == "treated_1"].X.toarray())
    theirs = pertpy.tl.Distance("edistance")(np.asarray(made.X), truth)
    ours = [sa.metrics.energy_distance(made.X, truth, squared=k, unbiased=False) for k in (False, True)]
    assert theirs in [pytest.approx(v, rel=1e-3) for v in ours]  # squared or not, by pertpy's version


def test_metrics_of_cell_eval_agree_with_ours_on_predicted_cells(annotated):
    cell_eval = pytest.importorskip("cell_eval", reason="cell-eval is not installed")
    from cell_eval import metrics as theirs

    model, cells = annotated
    cells = cells.copy()
    controls = cells[cells.obs["condition"] == "control"].copy()
    made = model.transfer(controls, to="treated_1")
    seen = cells[cells.obs["condition"].isin(["control", "treated_1"]).to_numpy()].copy()
    keys = {"condition_key": "condition", "control": "control"}
    predicted, real = sa.benchmark.to_cell_eval(made, seen, **keys, log=True)
    pair = cell_eval.PerturbationAnndataPair(real, predicted, "condition", "control")

    def mean(data, condition):
        return np.asarray(data[(data.obs["condition"] == condition).to_numpy()].X).mean(0)

    prediction, truth, control = mean(predicted, "treated_1"), mean(real, "treated_1"), mean(real, "control")
    ours = sa.metrics.pearson_delta(prediction, truth, control)
    assert theirs.pearson_delta(pair)["treated_1"] == pytest.approx(ours, rel=1e-4)
    no_change = np.square(control - truth).mean()
    skill = 1 - theirs.mse(pair)["treated_1"] / no_change
    assert skill == pytest.approx(sa.metrics.skill(prediction, truth, control), rel=1e-4)
