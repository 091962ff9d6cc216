"""TRVAE for users: what the penalty does to a predicted effect, the paper's model, another condition."""

import numpy as np
import pytest
import scipy.sparse as sp
import scvi
import torch

import scalloy as sa
from scalloy.blocks import divergences as div
from scalloy.kernels.csr import log_normalise
from scalloy.models._core import training
from scalloy.vae.base import Batch
from scalloy.vae.trvae import TRVAE as TRVAEMath

KEYS = {"condition_key": "condition", "labels_key": "cluster"}


@pytest.fixture(scope="module")
def adata():
    return sa.datasets.simulate(1200, 60, n_clusters=3, n_conditions=2, n_batches=1, effect=1.5, seed=1)


def trained(adata, epochs=30, **more):
    scvi.settings.seed = 0
    cells = adata.copy()
    sa.TRVAE.setup_anndata(cells, **KEYS)
    model = sa.TRVAE(cells, n_hidden=32, n_latent=4, **more)
    model.train(max_epochs=epochs, enable_progress_bar=False, early_stopping=False)
    return model


def effect(model):
    """Size of the predicted change of controls, by the decoder."""
    controls = model.adata[model.adata.obs["condition"] == "control"].copy()
    after, before = (
        model.transfer(controls, to=to, route="decoder").X.mean(0) for to in ("treated_1", "control")
    )
    return float(np.linalg.norm(after - before))


def test_a_strong_penalty_takes_the_effect_away_only_where_the_condition_enters_first_alone(adata):
    first = [effect(trained(adata, mmd_weight=w, inject="first")) for w in (0.0, 1e3, 1e5)]
    assert max(first[1:]) < 0.5 * first[0]  # what is left of it is noise under both weights
    every = [effect(trained(adata, mmd_weight=w, inject="all")) for w in (0.0, 1e5)]
    assert every[1] > 0.8 * every[0]


def test_without_weight_it_is_the_conditional_vae_to_the_bit(adata, monkeypatch):
    plain = trained(adata, 3, mmd_weight=0.0)
    monkeypatch.setattr(TRVAEMath, "discrepancy", lambda self, h, batch: h.new_zeros(()))
    without = trained(adata, 3, mmd_weight=50.0)
    np.testing.assert_array_equal(plain.get_latent_representation(), without.get_latent_representation())


def test_the_penalty_makes_the_first_layer_alike(adata):
    """The estimate from the few cells of a validation set is a noisy one: its mean over ten epochs."""
    seen = [trained(adata, mmd_weight=w).history["penalty_mmd_validation"] for w in (0.0, 1e3)]
    without, penalised = (float(column.iloc[-10:, 0].mean()) for column in seen)
    assert penalised < 0.5 * without


def test_prediction_of_a_type_never_seen_treated_beats_no_change(adata):
    held = (adata.obs["cluster"] == "cluster_0") & (adata.obs["condition"] == "treated_1")
    model = trained(adata[~held].copy(), 60)
    controls = adata[(adata.obs["cluster"] == "cluster_0") & (adata.obs["condition"] == "control")].copy()

    def log(x):
        return np.log1p(1e4 * x / x.sum(1, keepdims=True)).mean(0)

    truth, before = log(adata[held].X.toarray()), log(controls.X.toarray())
    out = model.transfer(
        controls, to="treated_1"
    )  # pooled: the decoder alone has no third type to learn from
    assert sa.metrics.skill(out.X.mean(0), truth, before) > 0.5
    assert (out.layers["counts"].data >= 0).all()
    assert (out.obs["transfer_group"] == "cluster_0").all()


def test_the_papers_model(adata):
    cells = adata.copy()
    sa.TRVAE.setup_anndata(cells, **KEYS)
    model = sa.TRVAE.original(cells, n_hidden=24)
    model.train(max_epochs=2, batch_size=512, enable_progress_bar=False)
    assert model.module.n_latent == 40
    assert model.module.published_kernel
    assert model._plan_defaults["weights"]["mmd"] == pytest.approx(0.009765625)
    assert model._plan_defaults["weights"]["z"] == pytest.approx(2.44e-11, rel=0.01)
    assert "counts" not in model.transfer(cells, to="treated_1", route="decoder").layers


@torch.no_grad()
def test_weights_of_the_papers_model_are_those_of_its_loss():
    """eta / 2 SSE + alpha / 2 mean(mu^2 + var - log var - 1) + beta sum of MMD^2, over eta x 512 cells."""
    cells = sa.datasets.simulate(512, 30, n_conditions=3, n_batches=1, seed=2)
    sa.TRVAE.setup_anndata(cells, condition_key="condition")
    model = sa.TRVAE.original(cells, n_hidden=16, n_latent=7)
    module = model.module.eval()
    (tensors,) = model.reader.tensors(batch_size=512)
    batch = Batch.of(tensors)
    torch.manual_seed(0)
    q = module.encode(batch)
    p = module.decode(batch, latents := module.draw(q))
    terms, weights = module.terms(batch, q, latents, p), training._plan(model, None)["weights"]
    ours = terms.recon.mean() + weights["z"] * terms.kl["z"].mean() + weights["mmd"] * terms.penalty["mmd"]
    x = log_normalise(batch.x.to_dense())
    sse = (x - p["x"].mean).square().sum()
    mu, var = q["z"].mean, q["z"].variance
    kl = (mu.square() + var - var.log() - 1).mean()
    parts = [p["h"].mean[batch.c == k] for k in range(3)]
    pairs = ((0, 1), (0, 2), (1, 2))
    mmd = sum(div.mmd2(parts[i], parts[j], div.TRVAE, unbiased=False) for i, j in pairs)
    paper = 100 / 2 * sse + 5e-5 / 2 * kl + 500 * mmd
    constant = 0.5 * 30 * np.log(2 * np.pi)
    assert float(ours) - constant == pytest.approx(float(paper) / (100 * 512), rel=1e-5)
    assert weights["z"] * float(terms.kl["z"].mean()) == pytest.approx(
        5e-5 / 2 * float(kl) / (100 * 512), rel=1e-4
    )
    assert weights["mmd"] * float(terms.penalty["mmd"]) == pytest.approx(
        500 * float(mmd) / (100 * 512), rel=1e-4
    )


def test_the_papers_weights_are_kept_in_a_file(tmp_path):
    cells = sa.datasets.simulate(100, 20, n_conditions=3, n_batches=1, seed=2)
    sa.TRVAE.setup_anndata(cells, condition_key="condition")
    model = sa.TRVAE.original(cells, n_hidden=16, n_latent=7)
    model.train(max_epochs=1, enable_progress_bar=False)
    model.save(tmp_path / "model")
    loaded = sa.load(tmp_path / "model", cells)
    assert training._plan(loaded, None) == training._plan(model, None)
    assert loaded.module.sum_pairs


def test_messages(adata):
    cells = adata.copy()
    sa.TRVAE.setup_anndata(cells, condition_key="condition")
    with pytest.raises(ValueError, match="`mmd_within_labels` needs labels"):
        sa.TRVAE(cells, mmd_within_labels=True)
    with pytest.raises(ValueError, match="`mmd_weight=-1` must not be below zero"):
        sa.TRVAE(cells, mmd_weight=-1)
    with pytest.raises(ValueError, match="`kl_weight=nan` must not be below zero"):
        sa.TRVAE(cells, kl_weight=float("nan"))
    with pytest.raises(ValueError, match=r"`pairs='all'` is not known. Pass one of: mean, sum"):
        sa.TRVAE(cells, pairs="all")
    with pytest.raises(ValueError, match="`inject='last'` is not known"):
        sa.TRVAE(cells, inject="last")
    model = sa.TRVAE(cells, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"`route='transport'` is not known. Pass one of: auto, decoder"):
        model.transfer(cells, to="treated_1", route="transport")
    with pytest.warns(UserWarning, match="The model knows no groups of cells"):
        made = model.transfer(cells, to="treated_1")
    assert (made.obs["transfer_group"] == "cells").all()  # no labels: one group
    sa.TRVAE.setup_anndata(cells)
    model = sa.TRVAE(cells, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"Call `TRVAE.setup_anndata"):
        model.transfer(cells, to="treated_1")


def test_scgens_call_is_a_transfer_and_says_when_it_has_seen_the_answer(adata):
    unseen = adata[~((adata.obs["cluster"] == "cluster_2") & (adata.obs["condition"] == "treated_1"))].copy()
    model = trained(unseen)
    out, change = model.predict("control", "treated_1", celltype_to_predict="cluster_2", seed=3)
    controls = (model.adata.obs["cluster"] == "cluster_2") & (model.adata.obs["condition"] == "control")
    cells = model.adata[controls.to_numpy()].copy()
    again = model.transfer(cells, to="treated_1", seed=3)
    np.testing.assert_array_equal(out.X, again.X)
    assert list(out.obs["transfer_of"]) == list(cells.obs_names)
    counts = cells.X.toarray()
    observed = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).mean(0)
    np.testing.assert_allclose(change, out.X.mean(0) - observed, rtol=1e-4, atol=1e-5)
    same, _ = model.predict("control", "treated_1", adata_to_predict=cells, seed=3)
    np.testing.assert_array_equal(out.X, same.X)
    with pytest.warns(UserWarning, match="trained on .* cells of 'cluster_0' under 'treated_1'"):
        model.predict("control", "treated_1", celltype_to_predict="cluster_0")
    with pytest.raises(ValueError, match="No cell of 'cluster_2' is under 'treated_1'"):
        model.predict("treated_1", "control", celltype_to_predict="cluster_2")
    with pytest.raises(ValueError, match="`stim_key='treated'` is not known"):
        model.predict("control", "treated", celltype_to_predict="cluster_2")
    with pytest.raises(ValueError, match="Pass one of"):
        model.predict("control", "treated_1")


def test_files_for_cell_eval(adata, tmp_path):
    import anndata as ad

    controls = adata[adata.obs["condition"] == "control"].copy()
    baseline = sa.baselines.Baseline(adata, "add and thin", **KEYS)
    predicted = baseline.transfer(controls, to="treated_1")
    shuffled = adata[:, ::-1].copy()
    keys = {"condition_key": "condition", "control": "control"}
    pred, real = sa.benchmark.to_cell_eval(predicted, shuffled, **keys, log=True, folder=tmp_path)
    assert list(pred.var_names) == list(real.var_names) == list(predicted.var_names)
    assert set(pred.obs["condition"]) == set(real.obs["condition"]) == {"control", "treated_1"}
    assert pred.obs_names.is_unique
    ours = (cells[(cells.obs["condition"] == "control").to_numpy()].X for cells in (pred, real))
    np.testing.assert_array_equal(*ours)
    counts = np.asarray(predicted.layers["counts"].todense())
    treated = pred[(pred.obs["condition"] == "treated_1").to_numpy()].X
    np.testing.assert_allclose(treated, np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), rtol=1e-4)
    truth = adata[real.obs_names, real.var_names].X.toarray()
    np.testing.assert_allclose(real.X, np.log1p(truth / truth.sum(1, keepdims=True) * 1e4), rtol=1e-4)
    assert ad.read_h5ad(tmp_path / "predicted.h5ad").shape == pred.shape
    raw, as_measured = sa.benchmark.to_cell_eval(predicted, shuffled, **keys)
    np.testing.assert_array_equal(raw[: len(counts)].X.toarray(), counts)
    np.testing.assert_array_equal(as_measured.X.toarray(), truth)
    del predicted.layers["counts"]
    with pytest.raises(ValueError, match="has no counts in"):
        sa.benchmark.to_cell_eval(predicted, shuffled, **keys)
    predicted.layers["counts"] = sp.csr_matrix(counts)
    with pytest.raises(ValueError, match="has no cells under treated_1"):
        sa.benchmark.to_cell_eval(predicted, controls, **keys)
    with pytest.raises(ValueError, match="lacks 10 genes of `predicted`"):
        sa.benchmark.to_cell_eval(predicted, adata[:, 10:].copy(), **keys)


def test_decoded_logarithms_are_of_the_total_that_is_asked_for(adata):
    model = trained(adata, epochs=2, gene_likelihood="mse")
    controls = adata[adata.obs["condition"] == "control"].copy()
    ask = {"to": "treated_1", "route": "decoder", "seed": 0}
    usual, small = (model.transfer(controls, target_sum=t, **ask).X for t in (1e4, 100.0))
    expected = np.log1p(np.expm1(usual.clip(0)) / 100)  # of the mean over samples of the code, all but equal
    np.testing.assert_allclose(small, expected, rtol=0.05, atol=0.01)
    pooled = model.transfer(controls, to="treated_1", target_sum=100.0).X
    treated = adata[adata.obs["condition"] == "treated_1"].X.toarray()
    truth = np.log1p(100 * treated / treated.sum(1, keepdims=True))
    assert np.abs(pooled.mean(0) - truth.mean(0)).mean() < 0.1 * truth.mean()
