"""A category that no cell has is unknown to a model, whatever the column still says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from contract.test_models import MODELS, class_of, every

import scalloy as sa

KEYS = {"batch_key": "batch", "condition_key": "condition", "labels_key": "cluster"}
GHOST = "ghost"  # comes first in each column, so that its code would move all others
WITH_CONDITIONS = ["TRVAE", "CGMDVAE"]


def with_ghosts(cells):
    """Columns with one more category, and the others in the reverse of their usual order."""
    for key in KEYS.values():
        names = sorted(set(cells.obs[key].astype(str)), reverse=True)
        cells.obs[key] = pd.Categorical(cells.obs[key].astype(str), categories=[GHOST, *names])
    return cells


def keys_of(name):
    takes = name.split("_")[0] in WITH_CONDITIONS
    return {k: v for k, v in KEYS.items() if takes or k != "condition_key"}


def haunted(cells, key):
    """A few cells, of which the first has the category."""
    some = cells[:5].copy()
    some.obs[key] = [GHOST, *some.obs[key].astype(str)[1:]]
    return some


@every
def test_it_is_unknown_to_every_model(name, cells, quick, tmp_path):
    before = with_ghosts(cells).obs.copy()
    keys = keys_of(name)
    class_of(name).setup_anndata(cells, **keys)
    pd.testing.assert_frame_equal(cells.obs[list(before)], before)
    model = MODELS[name](cells)
    sizes, names = model.reader.sizes, {k: before[v].cat.categories[1:] for k, v in keys.items()}
    assert sizes.n_batch == len(names["batch_key"]) == model.summary_stats.n_batch
    assert sizes.n_labels == len(names["labels_key"])
    assert model.reader.labels == list(names["labels_key"])
    model.train(**quick)
    model.save(tmp_path / "model")
    for each in (model, sa.load(tmp_path / "model"), sa.load(tmp_path / "model", cells.copy())):
        with pytest.raises(
            ValueError, match=r"'batch'\]` holds categories that the model has never seen: ghost"
        ):
            each.get_latent_representation(haunted(cells, "batch"))
        z = each.get_latent_representation(haunted(cells, "cluster"))
        np.testing.assert_allclose(z, model.get_latent_representation(cells[:5].copy()), atol=1e-5)
        with pytest.raises(ValueError, match="`transform_batch='ghost'` is not known"):
            each.get_normalized_expression(cells[:5].copy(), transform_batch=GHOST)
    query = haunted(cells, "batch")
    mapped = class_of(name).load_query_data(query, model)
    assert mapped.summary_stats.n_batch == sizes.n_batch + 1
    codes = mapped.adata.obs["_scvi_batch"]
    assert codes.iloc[0] == sizes.n_batch
    known = list(names["batch_key"])
    assert list(codes[1:]) == [known.index(b) for b in query.obs["batch"][1:]]


@pytest.mark.parametrize("name", WITH_CONDITIONS)
def test_nothing_is_predicted_for_it(name, cells, quick):
    class_of(name).setup_anndata(with_ghosts(cells), **KEYS)
    model = MODELS[name](cells)
    assert model.conditions == list(cells.obs["condition"].cat.categories[1:])
    model.train(**quick)
    with pytest.raises(ValueError, match="`to='ghost'` is not known"):
        model.transfer(cells[:5].copy(), to=GHOST)
    with pytest.raises(
        ValueError, match=r"'condition'\]` holds categories that the model has never seen: ghost"
    ):
        model.get_latent_representation(haunted(cells, "condition"))


@pytest.mark.parametrize("unlabeled", ["unknown", GHOST])
def test_labels_beside_an_unlabeled_category(unlabeled, cells, quick):
    """The unlabelled category is last, be it one of those without cells or one of the others."""
    with_ghosts(cells)
    if unlabeled != GHOST:
        cells.obs["cluster"] = cells.obs["cluster"].cat.add_categories(unlabeled)
        cells.obs.loc[cells.obs_names[::3], "cluster"] = unlabeled
        sa.CGMDVAE.setup_anndata(cells, **KEYS, unlabeled_category=unlabeled)
    else:
        with pytest.warns(UserWarning, match="No cell has the label"):
            sa.CGMDVAE.setup_anndata(cells, **KEYS, unlabeled_category=unlabeled)
    model = MODELS["CGMDVAE"](cells)
    named = sorted(set(cells.obs["cluster"]) - {unlabeled}, reverse=True)
    assert set(model.labels) == set(named)
    mapping = model.reader._state("labels")["categorical_mapping"]
    assert len(mapping) == len(named) + 1
    assert mapping[-1] == unlabeled
    np.testing.assert_array_equal(mapping[cells.obs["_scvi_labels"]], cells.obs["cluster"].astype(str))
    model.train(**quick)
    assert GHOST not in set(model.predict_labels().astype(str))


def test_columns_of_any_kind_keep_their_values(cells):
    for values in ([True, False], [3, 1], [2.5, 0.5], ["b", "a"]):
        names = np.resize(values, cells.n_obs)
        cells.obs["batch"] = pd.Categorical(names, categories=[values[0], *values[1:]])
        sa.VAE.setup_anndata(cells, batch_key="batch")
        model = MODELS["VAE"](cells)
        mapping = model.reader._state("batch")["categorical_mapping"]
        assert list(mapping) == values
        np.testing.assert_array_equal(mapping[cells.obs["_scvi_batch"]], names)
