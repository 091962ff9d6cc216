"""CGMDVAE with labels that are a tree: training with labels of any depth, and the deepest that holds."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scalloy as sa

SMALL = {"n_hidden": 16, "n_latent": 3}
PARENTS = {"cluster_0": "A", "cluster_1": "A", "A": "all", "cluster_2": "all"}
NODES = ["cluster_0", "cluster_1", "cluster_2", "cluster_3", "A", "all"]
PATH = {"cluster_0": {"cluster_0", "A", "all"}, "cluster_1": {"cluster_1", "A", "all"}}


def cells(n=300, **given):
    adata = sa.datasets.simulate(n, 60, n_clusters=4, seed=3, **given)
    adata.obs["truth"] = adata.obs["cluster"].astype(str)
    return adata


def trained(adata, epochs=2, **given):
    keys = {"labels_key": "cluster", "label_parents": PARENTS, **given}
    sa.CGMDVAE.setup_anndata(adata, **keys)
    model = sa.CGMDVAE(adata, **SMALL)
    model.train(max_epochs=epochs, enable_progress_bar=False, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def mixed():
    """Most cells of A known as A only, some unknown; one of the columns is gone in new cells."""
    adata = cells()
    rng, truth = np.random.default_rng(0), adata.obs["truth"].to_numpy()
    known = np.where(np.isin(truth, ["cluster_0", "cluster_1"]) & (rng.random(300) < 0.7), "A", truth)
    adata.obs["known"] = np.where(rng.random(300) < 0.3, "Unknown", known)
    return trained(adata, 40, labels_key="known", unlabeled_category="Unknown")


@pytest.mark.parametrize("unknown", [False, True])
def test_a_flat_tree_changes_nothing(unknown):
    made = []
    for given in ({"label_parents": None}, {"label_parents": {}}):
        adata = cells(120)
        adata.obs["cluster"] = adata.obs["truth"].where(
            np.arange(120) % 3 > 0, "Unknown" if unknown else "cluster_2"
        )
        more = {"unlabeled_category": "Unknown"} if unknown else {}
        made.append(trained(adata, 3, **given, **more))
    plain, flat = made
    state = flat.module.state_dict()
    assert set(state) - set(plain.module.state_dict()) == {"readers.temperature"}
    assert all(torch.equal(v, state[k]) for k, v in plain.module.state_dict().items())
    assert plain.labels == flat.labels
    pd.testing.assert_frame_equal(plain.predict_labels(soft=True), flat.predict_labels(soft=True))
    pd.testing.assert_series_equal(plain.get_unknown_score(), flat.get_unknown_score())


def test_labels_of_any_depth_are_learned_from(mixed):
    truth, known = mixed.adata.obs["truth"], mixed.adata.obs["known"]
    found = mixed.predict_labels()
    assert set(found) <= set(NODES[:4])
    for name in ("A", "Unknown"):
        asked = (known == name).to_numpy()
        assert (found.astype(str) == truth)[asked].mean() > 0.85
    p = mixed.predict_labels(soft=True)
    assert sorted(p.columns) == sorted(NODES)
    np.testing.assert_allclose(p["A"], p["cluster_0"] + p["cluster_1"], atol=1e-6)
    np.testing.assert_allclose(p["all"], p["A"] + p["cluster_2"], atol=1e-6)
    np.testing.assert_allclose(p[NODES[:4]].sum(axis=1), 1, atol=1e-5)
    groups = mixed.get_transfer_groups()
    assert set(groups[known == "A"]) <= {"cluster_0", "cluster_1"}
    assert (groups == known)[~known.isin(["A", "Unknown"])].all()


def test_the_deepest_label_is_the_first_that_reaches_the_level(mixed):
    p, unknown = mixed.predict_labels(soft=True, level=0.9), mixed.get_unknown_score()
    depth = {"all": 1, "A": 2, "cluster_2": 2, "cluster_0": 3, "cluster_1": 3, "cluster_3": 1, "Unknown": 0}
    before = None
    for level in (0.05, 0.6, 0.9, 0.999, 1.0):
        found = mixed.predict_labels(level=level).astype(str)
        for name, label in found[unknown <= 0.5].items():
            fit = [node for node in NODES if p.loc[name, node] >= level]
            expected = max(fit, key=lambda node: (depth[node], p.loc[name, node]), default="Unknown")
            assert label == expected
        assert not found[unknown > 0.5].isin(NODES[:4]).any()  # of no known type: of no leaf
        depths = found.map(depth)
        assert before is None or (depths <= before).all()
        before = depths
    fine = mixed.predict_labels(level=1e-9).astype(str)
    np.testing.assert_array_equal(fine[unknown <= 0.5].map(depth) > 0, True)


def test_probabilities_with_a_level_are_at_the_temperature(mixed):
    leaves, temperature = NODES[:4], float(mixed.module.readers.temperature)
    raw, hot = (mixed.predict_labels(soft=True, **g)[leaves].to_numpy() for g in ({}, {"level": 0.5}))
    expected = np.maximum(raw, 1e-12) ** (1 / temperature)
    np.testing.assert_allclose(hot, expected / expected.sum(1, keepdims=True), atol=1e-4)


def test_annotate_writes_the_deepest_label(mixed, tmp_path):
    made = mixed.annotate(copy=True)
    level = mixed.predict_labels(level=0.9)
    assert (made.obs["cgmdvae_deepest_label"].astype(str) == level.astype(str)).all()
    p = mixed.predict_labels(soft=True, level=0.9)
    for name, label in level[level != "Unknown"].items():
        assert made.obs.loc[name, "cgmdvae_deepest_probability"] == pytest.approx(
            p.loc[name, label], abs=1e-5
        )
    depth = {"all": 1, "A": 2, "cluster_2": 2, "cluster_0": 3, "cluster_1": 3, "cluster_3": 1, "Unknown": 0}
    assert list(made.obs["cgmdvae_depth"]) == [depth[label] for label in level]
    assert list(made.obs["cgmdvae_label"].astype(str)) == list(mixed.predict_labels().astype(str))
    made.write_h5ad(tmp_path / "a.h5ad")
    assert (ad.read_h5ad(tmp_path / "a.h5ad").obs["cgmdvae_depth"] == made.obs["cgmdvae_depth"]).all()


def test_annotations_at_a_level(mixed, tmp_path):
    assert mixed.annotate(copy=True).uns["cgmdvae"]["level"] == 0.9
    for level in (0.05, 0.999):
        made = mixed.annotate(copy=True, level=level, n_clusters=3, key_added="mine")
        found = mixed.predict_labels(level=level)
        assert (made.obs["mine_deepest_label"].astype(str) == found.astype(str)).all()
        assert made.uns["mine"]["level"] == level
        assert list(made.obs["mine_cluster"].astype(str)) == list(mixed.get_clusters(n=3).astype(str))
        mixed.write_annotations(tmp_path / "a.h5ad", level=level, overwrite=True)
        read = ad.read_h5ad(tmp_path / "a.h5ad")
        assert (read.obs["cgmdvae_deepest_label"].astype(str) == found.astype(str)).all()
    assert (mixed.predict_labels(level=0.05) != mixed.predict_labels(level=0.999)).any()
    for wrong in (0, 1.5, "high", True):
        with pytest.raises(ValueError, match=r"`level=.*` is a probability"):
            mixed.annotate(level=wrong)


def test_a_level_needs_a_tree_of_labels(tmp_path):
    model = trained(cells(60), 1, label_parents=None)
    with pytest.raises(ValueError, match=r"`level=0.5` needs a tree of labels"):
        model.annotate(level=0.5)
    assert "level" not in model.annotate(copy=True).uns["cgmdvae"]
    model = trained(cells(60), 1, labels_key=None, label_parents=None)
    with pytest.raises(ValueError, match="The model was trained without labels"):
        model.annotate(level=0.5)
    with pytest.raises(ValueError, match="The model was trained without labels"):
        model.write_annotations(tmp_path / "a.h5ad", level=0.5)


def test_saved_and_loaded_it_says_the_same(mixed, tmp_path):
    mixed.save(tmp_path / "model")
    new = mixed.adata.copy()
    for given in (new, None):
        model = sa.CGMDVAE.load(tmp_path / "model", given, accelerator="cpu")
        assert model.reader.tree == mixed.reader.tree
        pd.testing.assert_series_equal(model.predict_labels(new, level=0.9), mixed.predict_labels(level=0.9))


def test_new_cells_need_no_labels_and_may_have_any(mixed):
    expected = mixed.predict_labels(soft=True)
    bare = ad.AnnData(mixed.adata.X, obs=mixed.adata.obs[[]], var=mixed.adata.var)
    coarse, odd = bare.copy(), bare.copy()
    coarse.obs["known"], odd.obs["known"] = "A", "never seen"
    for given in (bare, coarse, odd):
        pd.testing.assert_frame_equal(mixed.predict_labels(given, soft=True), expected, atol=1e-5)
    query = sa.CGMDVAE.load_query_data(coarse, mixed)
    assert (query.labels, query.reader.tree) == (mixed.labels, mixed.reader.tree)
    assert set(query.get_transfer_groups()) <= {"cluster_0", "cluster_1"}
    pd.testing.assert_series_equal(query.predict_labels(level=0.5), mixed.predict_labels(level=0.5))


def test_columns_from_coarse_to_fine(tmp_path):
    adata = cells(150)
    adata.obs["class"] = adata.obs["truth"].replace({"cluster_0": "A", "cluster_1": "A"})
    adata.obs["fine"] = adata.obs["truth"].where(np.arange(150) % 4 > 0)
    model = trained(adata, labels_key=["class", "fine"], label_parents=None)
    assert model.reader.tree.inner == ("A",)
    model.save(tmp_path / "model")
    new = adata[::-1].copy()
    del new.obs["label_tree"]
    expected = model.predict_labels(level=0.5)
    for given in (new, new[:, ::-1].copy(), ad.AnnData(new.X, obs=new.obs[["class"]], var=new.var)):
        pd.testing.assert_series_equal(model.predict_labels(given, level=0.5)[adata.obs_names], expected)
        assert "label_tree" not in given.obs
    loaded = sa.CGMDVAE.load(tmp_path / "model", new, accelerator="cpu")
    assert (loaded.adata.obs["label_tree"] == adata.obs["label_tree"][new.obs_names]).all()
    assert "label_tree" not in new.obs
    pd.testing.assert_series_equal(loaded.predict_labels(level=0.5)[adata.obs_names], expected)
    groups = model.get_transfer_groups(ad.AnnData(new.X, obs=new.obs[["class"]], var=new.var))
    assert set(groups[new.obs["class"] == "A"]) <= {"cluster_0", "cluster_1"}
    query = sa.CGMDVAE.load_query_data(new, model)
    assert query.labels == model.labels


def test_a_type_that_is_left_out_stays_at_its_parent_or_outside():
    adata = cells(400)
    known = adata.obs["truth"].where(adata.obs["truth"] != "cluster_1", "Unknown")
    adata.obs["known"] = known.replace({"cluster_0": "a1"})
    rng = np.random.default_rng(0)
    adata.obs["known"] = np.where(
        (adata.obs["known"] != "Unknown") & (rng.random(400) < 0.3), "Unknown", adata.obs["known"]
    )
    parents = {"a1": "A", "cluster_2": "A"}
    model = trained(adata, 40, labels_key="known", label_parents=parents, unlabeled_category="Unknown")
    found = model.predict_labels(level=0.9)[adata.obs["truth"] == "cluster_1"]
    assert found.isin(["Unknown", "A"]).mean() > 0.7
    leaves = model.predict_labels()[adata.obs["truth"] == "cluster_1"]
    assert set(leaves) <= {"a1", "cluster_2", "cluster_3"}  # without a level it gets one of these


@pytest.mark.parametrize("level", [0, -1, 1.5, "high", True])
def test_a_level_is_a_probability(level, mixed):
    with pytest.raises(ValueError, match="is a probability: pass a number above 0 and up to 1"):
        mixed.predict_labels(level=level)


def test_a_level_needs_a_tree():
    model = trained(cells(100), 1, label_parents=None)
    with pytest.raises(
        ValueError, match=r"`level=0.9` needs a tree of labels.*`label_parents=\{\}` is a tree"
    ):
        model.predict_labels(level=0.9)
