"""BetaVSC for its user: what it says of cells and latents, on simulated programs and in files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

import scalloy as sa


@pytest.fixture(scope="module")
def coded():
    """As `scalloy benchmark sparse` has it: all settings are the defaults."""
    adata = sa.datasets.programs(seed=3)
    sa.BetaVSC.setup_anndata(adata)
    model = sa.BetaVSC(adata, seed=0)
    model.train(enable_progress_bar=False, accelerator="cpu")
    return model, adata


def test_programs_are_found_better_than_by_a_dense_code(coded):
    model, adata = coded
    truth = adata.obsm["programs"]
    dense = sa.BetaVAE(adata, n_latent=8)
    dense.train(enable_progress_bar=False, accelerator="cpu")
    ours = sa.metrics.matched_correlation(truth, model.get_latent_representation())
    theirs = sa.metrics.matched_correlation(truth, dense.get_latent_representation())
    assert ours.min() >= 0.8
    assert ours.mean() > theirs.mean()
    on = model.get_active().to_numpy()[:, sa.metrics.best_match(truth, model.get_latent_representation())]
    assert ((on > 0.5) == (truth > 0)).mean() > 0.9


def test_genes_of_a_latent_are_those_of_its_program(coded):
    """As surely as by a regression that is given what the programs really do in each cell."""
    model, adata = coded
    code, truth, member = (
        model.get_latent_representation(),
        adata.obsm["programs"],
        adata.varm["programs"] > 0,
    )
    table = model.get_latent_genes(10)
    assert list(table.columns) == ["latent", "gene", "change"]
    assert len(table) == 30 * 10
    every = model.get_latent_genes(None).pivot(index="gene", columns="latent", values="change")
    every = every.loc[adata.var_names].to_numpy()
    expression = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True).X
    known = LinearRegression().fit(truth, expression.toarray()).coef_
    for k, j in enumerate(sa.metrics.best_match(truth, code)):
        sign = np.sign(np.corrcoef(truth[:, k], code[:, j])[0, 1])
        ours = roc_auc_score(member[:, k], sign * every[:, j])
        assert ours >= roc_auc_score(member[:, k], known[:, k]) - 0.05


def test_traversal_begins_and_ends_where_it_should(coded):
    model, _ = coded
    j = int(model.get_latent_summary().index[0])
    steps = model.get_traversal(j, n_steps=5)
    assert steps.shape == (5, 500)
    low, high = np.quantile(model.get_latent_representation()[:, j], [0.02, 0.98])
    np.testing.assert_allclose(steps.index[[0, -1]], [low, high], rtol=1e-5)
    change = steps.iloc[-1] - steps.iloc[0]
    said = model.get_latent_genes(1).set_index("latent").loc[j]
    assert change.abs().idxmax() == said["gene"]
    assert change[said["gene"]] == pytest.approx(said["change"], rel=1e-5)
    z = model.get_latent_representation(indices=[3])
    own = model.get_traversal(j, [float(z[0, j])], indices=[3])  # the cell itself, from its own code
    head = model.module.likelihood.head
    logits = torch.as_tensor(z) @ head.weight.T + head.bias
    np.testing.assert_allclose(own.iloc[0], torch.log1p(1e4 * logits.softmax(-1))[0].detach(), rtol=1e-4)
    with pytest.raises(ValueError, match="`latent=30` is not one of the 30 latents"):
        model.get_traversal(30)


def test_cells_of_a_latent_and_sparsity(coded):
    model, adata = coded
    active, code = model.get_active(), model.get_latent_representation()
    assert active.shape == (3000, 30)
    assert list(active.index) == list(adata.obs_names)
    pd.testing.assert_series_equal(model.get_sparsity(), (1 - active.mean(axis=1)).rename("sparsity"))
    for j in (0, 5):
        found = model.get_latent_cells(j)
        assert set(found.index) == set(active.index[active.iloc[:, j] >= 0.5])
        assert found["code"].abs().is_monotonic_decreasing
    np.testing.assert_allclose(model.get_active(indices=[4, 2]), active.iloc[[4, 2]], atol=1e-6)
    summary = model.get_latent_summary()
    assert summary["active"].is_monotonic_decreasing
    np.testing.assert_allclose(summary["spread"].sort_index(), code.std(0), rtol=1e-5)
    with pytest.raises(ValueError, match="`latent=40` is not one of the 30 latents"):
        model.get_latent_cells(40)


def test_code_is_zero_where_a_latent_is_off(coded):
    model, _ = coded
    sample = model.get_latent_representation(give_mean=False)
    active = model.get_active().to_numpy()
    assert (sample == 0).mean() == pytest.approx(1 - active.mean(), abs=0.02)
    assert (np.abs(model.get_latent_representation())[active < 1e-4] < 1e-2).all()


def test_annotate_writes_which_are_on(coded):
    model, adata = coded
    written = model.annotate(copy=True)
    np.testing.assert_allclose(written.obsm["betavsc_active"], model.get_active(), atol=1e-6)
    np.testing.assert_allclose(written.obs["betavsc_sparsity"], model.get_sparsity(), atol=1e-6)
    assert "betavsc_active" not in adata.obsm


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "`alpha=0.0` is the share of latents that are on"),
        ({"beta": 0.0}, "`beta=0.0` must be above zero"),
        ({"temperature": -1.0}, "`temperature=-1.0` must be above zero"),
        ({"slab_warmup": 2.0}, "`slab_warmup=2.0` is a share of training"),
        ({"prior": "vamp"}, "`prior='vamp'` is not known"),
        ({"decoder": "deep"}, "`decoder='deep'` is not known"),
        ({"prior": "pseudo", "norm": "batch"}, "pseudo-inputs belong to no batch of cells"),
    ],
)
def test_bad_arguments(cells, settings, message):
    sa.BetaVSC.setup_anndata(cells)
    with pytest.raises(ValueError, match=message):
        sa.BetaVSC(cells, **settings)


def test_pseudo_inputs_begin_at_cells(cells):
    sa.BetaVSC.setup_anndata(cells)
    with pytest.raises(ValueError, match="`n_pseudo=201` is more than the 200 cells"):
        sa.BetaVSC(cells, prior="pseudo", n_pseudo=201)
    sa.BetaVSC.setup_anndata(cells)
    model = sa.BetaVSC(cells, prior="pseudo", n_pseudo=7)
    seen = np.log1p(cells.X.toarray())
    for u in model.module.pseudo_inputs.detach().numpy():
        assert np.abs(seen - u).sum(1).min() < 1e-4


def test_traversal_of_data_as_given_and_of_models_without_cells(cells, quick, tmp_path):
    given = cells.copy()
    given.X = np.random.default_rng(0).normal(size=cells.shape).astype(np.float32)
    sa.VAE.setup_anndata(given, allow_non_counts=True)
    model = sa.VAE(given, gene_likelihood="normal", n_hidden=8, n_latent=2)
    model.train(**quick)
    assert np.isfinite(model.get_traversal(1).to_numpy()).all()
    model.save(tmp_path / "model")
    loaded = sa.load(tmp_path / "model")
    with pytest.raises(ValueError, match="loaded without its cells"):
        loaded.get_traversal(0)
    pd.testing.assert_frame_equal(loaded.get_traversal(0, adata=given), model.get_traversal(0))
    with pytest.raises(ValueError, match="selects no cells"):
        model.get_traversal(0, indices=[])
    with pytest.raises(ValueError, match="loaded without its cells"):
        sa.pl.latent(loaded, "cluster")
    with pytest.raises(ValueError, match="loaded without its cells"):
        sa.compare.groups(loaded, groupby="cluster")
    with pytest.raises(ValueError, match="loaded without its cells"):
        loaded.train()


def test_source_settings_train_on_log_normalised_expression(cells, quick):
    sa.BetaVSC.setup_anndata(cells)
    model = sa.BetaVSC(cells, gene_likelihood="mse", n_latent=6, alpha=0.5, beta=2.0, decoder="mlp")
    model.train(**quick)
    assert {"kl_z_train", "kl_s_train"} <= set(model.history)
    assert model.get_latent_representation().shape == (200, 6)
