"""A second study on a model of every kind: the reference does not move at all, the query does."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from contract.test_models import MODELS, class_of, each_class, every, setup

import scalloy as sa

FITTED = {"max_epochs": 4, "enable_progress_bar": False, "accelerator": "cpu"}


def halves(cells):
    """A reference, and a query with another batch, lane and (for half of it) condition and cluster."""
    lanes = cells.obs["lane"].isin(["a", "b"]).to_numpy()
    reference, query = cells[lanes].copy(), cells[~lanes].copy()
    query.obs["batch"] = np.where(np.arange(query.n_obs) % 2, query.obs["batch"].astype(str), "new batch")
    query.obs["condition"] = np.where(
        np.arange(query.n_obs) % 2, "cooked", query.obs["condition"].astype(str)
    )
    query.obs["cluster"] = np.where(np.arange(query.n_obs) % 3, query.obs["cluster"].astype(str), "new type")
    return reference, query


def unchanged(before: ad.AnnData, after: ad.AnnData) -> None:
    pd.testing.assert_frame_equal(before.obs, after.obs)
    pd.testing.assert_frame_equal(before.var, after.var)
    assert (before.X != after.X).nnz == 0
    assert set(before.uns) == set(after.uns)
    assert set(before.obsm) == set(after.obsm)


def bound(model, adata):
    """The ELBO without what all cells of a reference share, in which a query has no part."""
    value = model.get_elbo(adata, return_mean=False, seed=3)
    if isinstance(model, sa.CGMDVAE) and model.module.free is None:
        shared = model.module.prior.of_all_cells(model.module.ridge).values()
        value = value + sum(float(v.detach()) for v in shared) / len(model.train_indices)
    return value


@every
@pytest.mark.parametrize("single", [False, True])
def test_the_reference_stays_and_the_query_moves(name, single, cells, tmp_path):
    """Also if the reference had a single batch and lane, so that nothing in it knew of batches."""
    reference, query = halves(cells)
    if single:
        reference.obs["batch"], reference.obs["lane"] = "only batch", "only lane"
    setup(name, reference)
    model = MODELS[name](reference)
    model.train(**FITTED)
    z, log_p = model.get_latent_representation(), bound(model, reference)
    model.save(tmp_path / "reference")
    before = query.copy()
    mapped = class_of(name).load_query_data(query, tmp_path / "reference")
    np.testing.assert_array_equal(mapped.get_latent_representation(reference), z)
    start = mapped.get_latent_representation()
    mapped.train(**FITTED)
    assert np.abs(mapped.get_latent_representation() - start).max() > 1e-4
    np.testing.assert_array_equal(mapped.get_latent_representation(reference), z)  # to the last bit
    np.testing.assert_allclose(bound(mapped, reference), log_p, rtol=1e-4)
    unchanged(before, query)
    mapped.annotate(key_added="mapped")
    np.testing.assert_array_equal(query.obsm["X_mapped"], mapped.get_latent_representation())
    assert len(mapped.history["train_loss"]) == 4
    mapped.save(tmp_path / "mapped")
    again = sa.load(tmp_path / "mapped", query)
    np.testing.assert_array_equal(again.get_latent_representation(), mapped.get_latent_representation())
    again.train(**FITTED)  # a query that was saved is still one
    np.testing.assert_array_equal(again.get_latent_representation(reference), z)


@each_class
def test_new_categories_begin_at_the_mean_of_the_known_ones(name, cells):
    reference, query = halves(cells)
    setup(name, reference)
    model = MODELS[name](reference)
    model.train(**FITTED)
    mapped, grown = class_of(name).load_query_data(query, model), 0
    known = dict(model.module.named_parameters())
    for key, value in mapped.module.named_parameters():
        if key in known and value.shape != known[key].shape and value.shape[1:] == known[key].shape[1:]:
            old, new = known[key], value[len(known[key]) :]
            torch.testing.assert_close(value[: len(old)], old, rtol=0, atol=0)
            torch.testing.assert_close(new, old.mean(0).expand_as(new))
            grown += float(old.detach().std(0).max()) > 1e-3  # otherwise any of the known ones would do
    assert grown or name == "BetaVSC"  # which has them beside the code


@pytest.mark.parametrize("name", ["CGMDVAE", "CGMDVAE_full", "TRVAE"])
def test_a_new_condition(name, cells):
    reference, query = halves(cells)
    keys = {"batch_key": "batch", "labels_key": "cluster", "condition_key": "condition"}
    class_of(name).setup_anndata(reference, **keys)
    model = MODELS[name](reference)
    model.train(**FITTED)
    z = model.get_latent_representation()
    mapped = class_of(name).load_query_data(query, model)
    assert mapped.conditions == [*model.conditions, "cooked"]
    mapped.train(**FITTED)
    np.testing.assert_array_equal(mapped.get_latent_representation(reference), z)
    treated = mapped.transfer(query[:5].copy(), to="cooked")
    assert np.isfinite(treated.X).all()
    if name.startswith("CGMDVAE"):
        assert mapped.labels == model.labels
        assert set(mapped.predict_labels().astype(str)) <= set(model.labels)


@pytest.mark.slow
def test_scvi_tools_moves_its_reference_and_we_do_not(capsys):
    """Donors of a real study on others, with two covariates that the encoder sees, as scArches advises."""
    cells = sa.datasets.kang()[::3, ::3].copy()
    cells.obs["site"] = np.where(np.arange(cells.n_obs) % 2, "x", "y")
    first = cells.obs["batch"].isin(sorted(cells.obs["batch"].unique())[:4]).to_numpy()
    keys = {"batch_key": "batch", "categorical_covariate_keys": ["condition", "site"]}
    reference, query = cells[first].copy(), cells[~first].copy()
    trained = {"max_epochs": 20, "accelerator": "cpu", "enable_progress_bar": False}
    scvi.model.SCVI.setup_anndata(reference, **keys)
    theirs = scvi.model.SCVI(reference, encode_covariates=True)
    theirs.train(**trained)
    before = theirs.get_latent_representation()
    mapped = scvi.model.SCVI.load_query_data(query.copy(), theirs)  # nothing is trained yet
    mapped.is_trained = True
    after = mapped.get_latent_representation(reference.copy())
    their_move, spread = np.abs(after - before).mean(), before.std()
    sa.VAE.setup_anndata(reference, **keys)
    ours = sa.VAE(reference, encode_covariates=True)
    ours.train(**trained)
    before = ours.get_latent_representation()
    mapped = sa.VAE.load_query_data(query, ours)
    mapped.train(**trained)
    our_move = np.abs(mapped.get_latent_representation(reference) - before).max()
    with capsys.disabled():
        print(f"reference moved by {their_move:.2f} of {spread:.2f} (scvi-tools), {our_move} (ours) ", end="")
    assert our_move == 0.0
    assert their_move > 0.01 * spread


def test_genes_by_name(cells, quick, caplog):
    reference, query = halves(cells)
    sa.VAE.setup_anndata(reference, batch_key="batch")
    model = sa.VAE(reference, n_hidden=16, n_latent=4)
    model.train(**quick)
    expected = sa.VAE.load_query_data(query, model).get_latent_representation()
    turned = query[:, ::-1].copy()
    turned.X = sp.csc_matrix(turned.X)
    found = sa.VAE.load_query_data(turned, model)
    np.testing.assert_allclose(found.get_latent_representation(), expected, atol=1e-5)
    np.testing.assert_allclose(
        model.get_latent_representation(reference[:, ::-1].copy())[:5],
        model.get_latent_representation()[:5],
        atol=1e-5,
    )
    fewer, zeroed = query[:, 5:].copy(), query.copy()
    zeroed.X[:, :5] = 0
    zeroed.X.eliminate_zeros()
    found = sa.VAE.load_query_data(fewer, model)
    assert "lacks 5 of the 40 genes of the model, which are taken as zero: gene_0, gene_1" in caplog.text
    np.testing.assert_allclose(found.get_latent_representation(), model_on(model, zeroed), atol=1e-5)
    missing = r"lacks 5 of the 40 genes of the model \(at most 10% may be missing\)"
    with pytest.raises(ValueError, match=missing):
        sa.VAE.load_query_data(fewer, model, max_missing=0.1)
    with pytest.raises(ValueError, match="lacks 5 of the 40 genes of the model: gene_0"):
        model.get_latent_representation(fewer)
    stranger = query.copy()
    stranger.var_names = [f"other_{i}" for i in range(40)]
    with pytest.raises(ValueError, match="lacks 40 of the 40 genes"):
        sa.VAE.load_query_data(stranger, model, max_missing=0.99)


def model_on(model, cells):
    """Codes by the encoder alone, which knows no batch."""
    return sa.VAE.load_query_data(cells, model).get_latent_representation()


def test_names_that_are_numbers(cells, quick):
    """Batch 1 of the reference is batch "1" of the query."""
    reference, query = halves(cells)
    reference.obs["batch"] = np.arange(reference.n_obs) % 2
    query.obs["batch"] = [str(i % 3) for i in range(query.n_obs)]
    sa.VAE.setup_anndata(reference, batch_key="batch")
    model = sa.VAE(reference, n_hidden=8, n_latent=3)
    model.train(**quick)
    mapped = sa.VAE.load_query_data(query, model)
    assert mapped.summary_stats.n_batch == 3
    codes = mapped.adata.obs["_scvi_batch"].to_numpy()
    np.testing.assert_array_equal(codes, np.arange(query.n_obs) % 3)


def test_views_backed_and_another_order_give_the_same_numbers(cells, quick, tmp_path):
    sa.VAE.setup_anndata(cells, batch_key="batch")
    model = sa.VAE(cells, n_hidden=16, n_latent=4)
    model.train(**quick)
    z = model.get_latent_representation()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    rows = [150, 3, 3, 77]
    np.testing.assert_allclose(model.get_latent_representation(backed), z, atol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(backed, indices=rows), z[rows], atol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(cells[rows]), z[rows], atol=1e-5)
    mask = np.arange(200) % 7 == 0
    np.testing.assert_allclose(model.get_latent_representation(backed, indices=mask), z[mask], atol=1e-5)
    expression = model.get_normalized_expression(backed, indices=rows)
    assert list(expression.index) == [f"cell_{i}" for i in rows]
    backed.file.close()
