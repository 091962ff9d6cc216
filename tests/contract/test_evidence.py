"""Lower bound and evidence of every model that has both: of the same cells, the one not above the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract.test_models import MODELS, setup

import scalloy as sa

BOTH = [name for name in MODELS if not name.startswith("AE")]
MORE = {
    "CGMDVAE_labels": {"weights": "condition"},
    "CGMDVAE_local": {"weights": "local", "assignment": "amortised"},
    "CGMDVAE_interaction": {"conditioning": "interaction", "n_w": 1, "w_prior": "condition"},
}


@pytest.fixture(scope="module", params=[*BOTH, *MORE])
def made(request):
    name = request.param
    adata = sa.datasets.simulate(200, 40, seed=1, n_proteins=3)
    adata.obs["score"], adata.obs["lane"] = np.linspace(-1, 1, 200), ["a", "b", "c", "d"] * 50
    torch.manual_seed(0)
    if name in MORE:
        labels = "cluster" if name == "CGMDVAE_labels" else None
        sa.CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key=labels)
        model = sa.CGMDVAE(adata, n_hidden=16, n_latent=4, **MORE[name])
    else:
        setup(name, adata)
        model = MODELS[name](adata)
    model.train(
        max_epochs=4, enable_progress_bar=False, accelerator="cpu", validation_size=0.3, train_size=0.7
    )
    return model


def test_the_bound_is_not_above_the_evidence(made):
    elbo = np.stack([made.get_elbo(return_mean=False, seed=seed) for seed in range(30)]).astype(np.float64)
    evidence = made.get_marginal_ll(n_mc_samples=60, return_mean=False, seed=0)
    assert evidence.shape == elbo.shape[1:] == made.validation_indices.shape  # of the same cells by default
    error = elbo.mean(1).std(ddof=1) / 30**0.5
    assert elbo.mean() < evidence.mean() + 3 * error
    by_cell = elbo.std(0, ddof=1) / 30**0.5
    assert (elbo.mean(0) < evidence + 5 * by_cell + 1.0).mean() > 0.95


def test_what_is_of_all_cells_is_in_the_bound(made):
    rows = made.validation_indices
    with torch.no_grad():
        batch = next(made.reader.batches(None, rows))
        terms = made.module.objective(batch)
    per_cell = sum(float(v) for v in terms.kl_global.values()) / len(made.train_indices)
    again = made.get_elbo(seed=0)
    made.module.free = {}  # as of a query, which has its weights from the reference
    try:
        without = made.get_elbo(seed=0)
    finally:
        made.module.free = None
    assert without - again == pytest.approx(per_cell, rel=1e-3, abs=1e-4)
    if type(made) is sa.CGMDVAE and terms.kl_global:
        assert per_cell > 1e-3


def test_the_error_of_reconstruction_is_of_the_cells_of_the_bound(made):
    of_each = made.get_reconstruction_error(return_mean=False, seed=0)["reconstruction_loss"]
    rows = made.held_out()
    named = made.get_reconstruction_error(indices=rows, return_mean=False, seed=0)["reconstruction_loss"]
    np.testing.assert_array_equal(of_each, named)
    np.testing.assert_array_equal(
        made.get_elbo(return_mean=False, seed=0), made.get_elbo(indices=rows, return_mean=False, seed=0)
    )
