"""The history of components in use and of labels: against a count of the same cells afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scalloy as sa
from scalloy.train.watched import LEAST, Watched

SMALL = {"n_hidden": 16, "n_latent": 4}
SHORT = {"max_epochs": 3, "enable_progress_bar": False, "accelerator": "cpu"}


def test_sums_over_steps_are_those_of_all_cells():
    r, right = torch.rand(50, 6), torch.rand(50) < 0.7
    r[:, 4] = LEAST / 10
    labelled = torch.rand(50) < 0.5
    watched = Watched()
    for part in (slice(20), slice(20, 50)):
        watched.add({"r": r[part], "right": right[part], "labelled": labelled[part]})
    found = watched.end(lambda x: x)
    assert found["active_components"] == 5
    assert found["label_accuracy"] == pytest.approx(float(right[labelled].float().mean()))
    assert watched.end(lambda x: x) == {}
    watched.add({"r": r})
    assert set(watched.end(lambda x: x)) == {"active_components"}


def test_history_has_components_and_the_accuracy_of_labels(cells):
    sa.CGMDVAE.setup_anndata(cells, labels_key="cluster")
    model = sa.CGMDVAE(cells, seed=0, **SMALL)
    model.train(**{**SHORT, "max_epochs": 12}, early_stopping=False, plan_kwargs={"restore_best": False})
    rows = model.validation_indices_
    accuracy = model.history["label_accuracy"].iloc[:, 0].astype(float)
    assert accuracy.between(0, 1).all()
    assert len(accuracy) == len(model.history["validation_loss"]) == 12
    clusters = model.get_cluster_probabilities(indices=rows)[model.labels]
    right = (clusters.idxmax(axis=1) == cells.obs["cluster"].astype(str).iloc[rows].to_numpy()).mean()
    assert accuracy.iloc[-1] == pytest.approx(right, abs=0.2)  # at a sample of z rather than its mean


def test_models_without_labels_have_no_accuracy_and_others_nothing(cells):
    for name, given in (("GMVAE", {"n_clusters": 4}), ("VAE", {})):
        model_class = getattr(sa, name)
        model_class.setup_anndata(cells)
        model = model_class(cells, **SMALL, **given)
        model.train(**SHORT)
        assert "label_accuracy" not in model.history
        assert ("active_components" in model.history) == (name == "GMVAE")


@pytest.mark.parametrize("name", ["CGMDVAE", "GMVAE"])
def test_one_cluster_is_one_component_throughout(cells, name):
    model_class = getattr(sa, name)
    model_class.setup_anndata(cells)
    model = model_class(cells, n_clusters=1, **SMALL)
    assert len(model.module.prior.used) == 1
    model.train(**SHORT)
    assert (model.history["active_components"].astype(float) == 1).all().all()
    assert model.cluster_names == ["0"]
    np.testing.assert_allclose(model.get_cluster_probabilities(), 1)
    assert model.n_alive() == 1
