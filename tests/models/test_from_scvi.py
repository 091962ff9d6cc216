"""Models of scvi-tools as ours: the truth is what scvi-tools itself computes."""

from __future__ import annotations

import numpy as np
import pytest
import scvi

import scalloy as sa
from scalloy.files.reading import DamagedFileError

KEYS = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["lane"],
    "continuous_covariate_keys": ["score"],
}


def their_model(cells, keys=KEYS, **options):
    scvi.model.SCVI.setup_anndata(cells, **keys)
    model = scvi.model.SCVI(cells, n_hidden=16, **options)
    model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_layers": 2, "gene_likelihood": "nb", "encode_covariates": True, "dispersion": "gene-batch"},
        {"gene_likelihood": "poisson", "n_latent": 3, "dropout_rate": 0.0},
    ],
)
def test_same_codes_and_expression(cells, options):
    theirs = their_model(cells, **options)
    z, (_, variance) = theirs.get_latent_representation(), theirs.get_latent_representation(return_dist=True)
    ours = sa.VAE.from_scvi(theirs)
    np.testing.assert_allclose(ours.get_latent_representation(), z, atol=1e-4)
    np.testing.assert_allclose(
        ours.get_latent_representation(return_dist=True)[1] + 1e-4, variance, rtol=1e-3, atol=1e-6
    )
    tensors = next(iter(theirs._make_data_loader(adata=cells, batch_size=200)))
    inputs = theirs.module._get_inference_input(tensors)
    inference = theirs.module.inference(**inputs)
    p_x = theirs.module.generative(**theirs.module._get_generative_input(tensors, inference))["px"]
    batch = sa.vae.base.Batch.of(tensors)
    mine = ours.module.decode(batch, {"z": inference["z"]})["x"]
    np.testing.assert_allclose(mine.mean.detach(), p_x.mean.detach(), rtol=1e-3, atol=1e-5)
    log_p = ours.module.likelihood.log_prob(mine, batch.x)
    np.testing.assert_allclose(log_p.detach(), p_x.log_prob(batch.x).sum(-1).detach(), rtol=1e-3)
    np.testing.assert_array_equal(ours.train_indices, theirs.train_indices)
    assert len(ours.history["train_loss"]) == 2


def test_a_pickle_is_read_only_if_the_user_says_so(cells, tmp_path):
    theirs = their_model(cells)
    z = theirs.get_latent_representation()
    theirs.save(tmp_path / "theirs")
    for allow in ({}, {"allow_pickle": False}):
        with pytest.raises(DamagedFileError, match="can run any code when it is read"):
            sa.load(tmp_path / "theirs", cells, **allow)
    ours = sa.load(tmp_path / "theirs", cells, allow_pickle=True)
    assert type(ours) is sa.VAE
    np.testing.assert_allclose(ours.get_latent_representation(), z, atol=1e-4)
    ours.save(tmp_path / "ours")
    np.testing.assert_allclose(sa.load(tmp_path / "ours", cells).get_latent_representation(), z, atol=1e-4)
    query = cells.copy()
    query.obs["batch"] = "new"
    mapped = sa.VAE.load_query_data(query, ours)
    np.testing.assert_allclose(mapped.get_latent_representation(cells), z, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_distribution": "ln"}, "`latent_distribution='ln'` of the SCVI has no counterpart"),
        ({"dispersion": "gene-label"}, "`dispersion='gene-label'` of the SCVI"),
        ({"use_observed_lib_size": False}, "`use_observed_lib_size=False` of the SCVI"),
    ],
)
def test_what_has_no_counterpart(cells, options, message):
    with pytest.raises(ValueError, match=message):
        sa.VAE.from_scvi(their_model(cells, {"batch_key": "batch", "labels_key": "cluster"}, **options))


def test_no_scvi(cells):
    with pytest.raises(TypeError, match=r"`model` is a VAE; only an `scvi.model.SCVI`"):
        sa.VAE.from_scvi(sa.VAE(cells, n_hidden=8, n_latent=2))
