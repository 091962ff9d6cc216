"""Tree of clusters of trained models: nested cuts, evidence, markers, files."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from sklearn.metrics import adjusted_rand_score

import scalloy as sa

STORED = Path(__file__).parents[1] / "stored"
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def cells():
    return sa.datasets.simulate(600, 60, n_clusters=4, n_batches=1, n_conditions=1, seed=1)


@pytest.fixture(scope="module")
def model(cells):
    sa.CGMDVAE.setup_anndata(cells)
    model = sa.CGMDVAE(cells, seed=0)
    model.train(max_epochs=60, **QUIET)
    return model


@pytest.fixture(scope="module")
def labelled(cells):
    own = cells.copy()
    own.obs["type"] = own.obs["cluster"].astype(str).replace("cluster_3", "?")
    sa.CGMDVAE.setup_anndata(own, labels_key="type", unlabeled_category="?")
    model = sa.CGMDVAE(own, seed=0)
    model.train(max_epochs=10, **QUIET)
    return model


def test_cuts_are_nested_and_keep_their_numbers(model):
    tree = model.get_cluster_tree()
    assert list(tree.index) == list(range(2, len(tree) + 2))
    before = model.get_cluster_probabilities(n=1)
    np.testing.assert_allclose(before, 1.0, rtol=1e-5)
    for n, row in tree.iterrows():
        after = model.get_cluster_probabilities(n=n)
        assert list(after) == [*before, row["smaller"]]
        assert row["divided"] == row["larger"]
        parts = after[[row["larger"], row["smaller"]]]
        np.testing.assert_allclose(parts.sum(axis=1), before[row["divided"]], atol=1e-5)
        pd.testing.assert_frame_equal(after.drop(columns=parts), before.drop(columns=row["divided"]))
        sizes = row[["larger_cells", "smaller_cells"]].astype(float)
        np.testing.assert_allclose(parts.sum(), sizes, rtol=1e-4)
        before = after
    assert tree[["apart", "overlap"]].stack().between(0, 1).all()


def test_true_groups_are_a_cut_and_what_the_model_has_is_one(model, cells):
    assert adjusted_rand_score(cells.obs["cluster"], model.get_clusters(n=4)) > 0.9
    own = model.get_clusters()
    assert own.equals(model.get_clusters(n=len(model.cluster_names)))
    coarse, fine = model.get_clusters(n="coarse"), model.get_clusters(n="fine")
    assert coarse.nunique() <= own.nunique() <= fine.nunique()
    tree = model.get_cluster_tree()
    assert len(fine.cat.categories) == len(tree) + 1
    assert len(coarse.cat.categories) == tree["agreement"].idxmax()
    real, made = tree.loc[:4], tree.loc[9:]
    assert real["gain"].min() > max(0.1, made["gain"].max())  # the simulated groups, and what is within them


def test_a_model_of_a_given_number_has_it_and_others(cells):
    sa.CGMDVAE.setup_anndata(cells)
    model = sa.CGMDVAE(cells, n_clusters=3, seed=0)
    model.train(max_epochs=10, **QUIET)
    assert len(model.cluster_names) == 3
    assert model.get_clusters().equals(model.get_clusters(n=3))
    assert len(model.get_clusters(n=6).cat.categories) == 6


def test_other_cells_are_cut_alike(model, cells):
    some = cells[:100].copy()
    expected = model.get_clusters(indices=np.arange(100), n=5)
    assert model.get_clusters(some, n=5).equals(expected)


def test_clusters_are_written_at_any_number(model, cells, tmp_path):
    copy = model.annotate(cells, n_clusters=5, key_added="five", copy=True)
    expected = model.get_clusters(n=5)
    assert (copy.obs["five_cluster"].astype(str) == expected.astype(str)).all()
    assert list(copy.uns["five"]["clusters"]) == list(expected.cat.categories)
    pd.testing.assert_frame_equal(
        copy.obsm["five_probabilities"], model.get_cluster_probabilities(n=5), check_exact=False, atol=1e-6
    )
    model.write_annotations(tmp_path / "five.h5ad", n_clusters=5)
    read = ad.read_h5ad(tmp_path / "five.h5ad")
    assert (read.obs["cgmdvae_cluster"].astype(str) == expected.astype(str)).all()


def test_markers_are_those_of_a_t_test_between_the_parts(model, cells):
    tree = model.get_cluster_tree(markers=4)
    row, prior = tree.loc[3], model.module.prior
    with torch.no_grad():
        r = torch.cat([model.module.assignment(batch) for batch in model.reader.batches()])
    part = prior.clusters_at(3)[r.masked_fill(~prior.used, -1).argmax(1)]  # of the most probable component
    of = pd.Series(part.numpy().astype(str), cells.obs_names)
    logged = ad.AnnData(cells.X.copy(), obs=cells.obs[[]], var=cells.var[[]])
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    logged = logged[of.isin([row["larger"], row["smaller"]])].copy()
    logged.obs["part"] = pd.Categorical(of[logged.obs_names])
    sc.tl.rank_genes_groups(logged, "part", groups=[row["smaller"]], reference=row["larger"], method="t-test")
    theirs = list(logged.uns["rank_genes_groups"]["names"][row["smaller"]][:4])
    assert row["smaller_markers"].split(", ") == theirs


def test_components_of_labels_are_named_by_them(labelled):
    leaves = labelled.get_clusters(n="fine")
    assert set(labelled.labels) <= set(leaves.cat.categories)
    tree = labelled.get_cluster_tree()
    two = labelled.get_cluster_probabilities(n=2)
    assert sorted(name for both in two for name in both.split(" + ")) == sorted(leaves.cat.categories)
    assert list(two) == [tree.loc[2, "larger"], tree.loc[2, "smaller"]]
    assert tree.loc[2, "divided"] == labelled.get_cluster_probabilities(n=1).columns[0]
    assert labelled.get_clusters().cat.categories.tolist() == labelled.cluster_names  # as ever


@pytest.mark.parametrize(
    "settings",
    [
        {"n_clusters": 5, "weights": "uniform"},
        {"n_clusters": 4, "assignment": "amortised"},
        {"n_clusters": None},
    ],
)
def test_other_mixtures_have_a_tree(settings, cells):
    own = cells.copy()
    own.obs["half"] = pd.Categorical(np.where(np.arange(600) % 2, "a", "b"))
    sa.CGMDVAE.setup_anndata(own, condition_key="half")
    model = sa.CGMDVAE(own, conditioning="shared", seed=0, **settings)
    model.train(max_epochs=6, **QUIET)
    p = model.get_cluster_probabilities(n=2)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-4)
    assert len(model.cluster_names) == settings["n_clusters"] or settings["n_clusters"] is None


def test_gmvae_has_a_tree_and_a_single_cluster_is_one(cells):
    sa.GMVAE.setup_anndata(cells)
    model = sa.GMVAE(cells, n_clusters=5, seed=0)
    model.train(max_epochs=10, **QUIET)
    assert len(model.get_cluster_tree()) == 4
    assert len(model.get_clusters(n=2).cat.categories) == 2
    single = sa.CGMDVAE(cells, n_clusters=1, seed=0)
    single.train(max_epochs=2, **QUIET)
    assert len(single.get_cluster_tree(markers=2)) == 0
    assert (single.get_clusters(n=1) == "0").all()
    sa.pl.cluster_tree(single)


def test_the_tree_is_saved(model, cells, tmp_path):
    model.save(tmp_path / "m")
    again = sa.load(tmp_path / "m", cells)
    pd.testing.assert_frame_equal(again.get_cluster_tree(), model.get_cluster_tree())
    again.train(max_epochs=1, **QUIET)  # a tree is made of what is there then
    assert len(again.get_cluster_tree()) > 0


def test_models_of_earlier_formats_have_no_tree():
    old = sa.load(STORED / "format-3-python-3.11" / "cgmdvae")
    assert old.get_clusters().notna().all()
    with pytest.raises(ValueError, match="The model has no tree of clusters: it is not trained"):
        old.get_cluster_tree()
    with pytest.raises(ValueError, match="The model has no tree of clusters"):
        old.get_clusters(n=2)


def test_wrong_numbers_are_refused(model):
    most = len(model.get_cluster_tree()) + 1
    with pytest.raises(ValueError, match=f"`n={most + 1}` is more than the {most} components"):
        model.get_clusters(n=most + 1)
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="must be above zero"):
            model.get_clusters(n=wrong)
    with pytest.raises(ValueError, match="`n='medium'` must be above zero: pass a whole number, 'coarse'"):
        model.annotate(n_clusters="medium")
    with pytest.raises(ValueError, match="must be above zero"):
        model.get_cluster_tree(markers=-1)


def test_a_query_keeps_the_tree_of_its_reference(model, cells, tmp_path):
    query = sa.CGMDVAE.load_query_data(cells[:50].copy(), model)
    merges = model.module.prior.merged
    assert np.array_equal(query.module.prior.merged, merges)
    query.train(max_epochs=1, **QUIET)
    assert np.array_equal(query.module.prior.merged, merges)


def test_the_same_seed_gives_the_same_tree(cells):
    trees = []
    for _ in range(2):
        sa.CGMDVAE.setup_anndata(cells)
        model = sa.CGMDVAE(cells, seed=3)
        model.train(max_epochs=4, **QUIET)
        trees.append(model.module.prior.tree)
    assert torch.equal(*trees)


def test_the_picture_shows_each_division(model):
    ax = sa.pl.cluster_tree(model, "fine", markers=2)
    tree = model.get_cluster_tree(markers=2)
    texts = [t.get_text() for t in ax.texts]
    assert len([t for t in texts if t.endswith(")")]) == len(tree) + 1
    assert tree.loc[2, "smaller_markers"] in texts
    ys = [line.get_ydata()[0] for line in ax.lines if line.get_xdata()[1] == len(tree) + 2]
    assert len(set(ys)) == len(ys)  # no two final clusters at the same place
    with pytest.raises(ValueError, match="must be above zero"):
        sa.pl.cluster_tree(model, markers=-2)
