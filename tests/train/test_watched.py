"""The history of components in use and of labels: against a count of the same cells afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import scalloy as sa
from scalloy.blocks.hierarchy import Hierarchy
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.mixtures import Components, Dirichlet
from scalloy.train.watched import LEAST, Watched
from scalloy.vae.label_reading import watched

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


def test_an_inner_node_is_right_if_the_leaf_is_below_it():
    """Leaves 0 to 2, 3 above 0 and 1, and 4 for an unknown label."""
    prior = MixturePrior(Components(4, 2), Dirichlet(4), n_labels=3, hierarchy=Hierarchy(3, [3, 3, -1, -1]))
    module = SimpleNamespace(prior=prior, training=False)
    leaf, y = torch.cartesian_prod(torch.arange(3), torch.arange(6)).T
    r = torch.nn.functional.one_hot(leaf, 4).float() * 0.6 + 0.1
    found = watched(module, r.log(), r, y)
    assert torch.equal(found["labelled"], y < 4)
    right = [b == a or (b == 3 and a < 2) for a, b in zip(leaf.tolist(), y.tolist(), strict=True)]
    assert found["right"].tolist() == right
    assert watched(SimpleNamespace(prior=prior, training=True), r.log(), r, y) == {}


def test_history_of_labels_of_any_depth_counts_all_of_them(cells):
    names = cells.obs["cluster"].astype(str)
    two = sorted(set(names))[:2]
    cells.obs["coarse"] = names.where((np.arange(cells.n_obs) % 2 == 0) | ~names.isin(two), "both")
    sa.CGMDVAE.setup_anndata(cells, labels_key="coarse", label_parents=dict.fromkeys(two, "both"))
    model = sa.CGMDVAE(cells, seed=0, **SMALL)
    model.train(**{**SHORT, "max_epochs": 12}, early_stopping=False, plan_kwargs={"restore_best": False})
    rows = model.validation_indices_
    given = cells.obs["coarse"].astype(str).iloc[rows].to_numpy()
    assert (given == "both").any()
    found = model.get_cluster_probabilities(indices=rows)[model.labels].idxmax(axis=1).to_numpy()
    right = (found == given) | ((given == "both") & np.isin(found, two))
    assert model.history["label_accuracy"].iloc[-1, 0] == pytest.approx(right.mean(), abs=0.2)


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
