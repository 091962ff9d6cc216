"""Groups of cells of none of the known types: they are found, and so are the genes by which they differ."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scalloy as sa

N_MARKERS = 8


@pytest.fixture(scope="module")
def simulated():
    """Cells of four types, of which one has no label and is high in its own genes."""
    adata = sa.datasets.simulate(600, 80, n_clusters=4, n_conditions=1, n_batches=1, seed=3)
    rng = np.random.default_rng(0)
    hidden = adata.obs["cluster"].astype(str).to_numpy() == adata.obs["cluster"].cat.categories[1]
    x = adata.X.toarray()
    x[np.ix_(hidden, range(N_MARKERS))] += rng.poisson(100, (hidden.sum(), N_MARKERS))
    adata.X = type(adata.X)(x.astype(np.float32))
    adata.obs["given"] = adata.obs["cluster"].astype(object)
    blind = hidden | (rng.random(adata.n_obs) < 0.5)
    adata.obs.loc[blind, "given"] = "Unknown"
    adata.obs["hidden"], adata.obs["blind"] = hidden, blind
    return adata


@pytest.fixture(scope="module")
def trained(simulated):
    sa.CGMDVAE.setup_anndata(simulated, labels_key="given", unlabeled_category="Unknown")
    model = sa.CGMDVAE(simulated, seed=0)
    model.train(max_epochs=12, enable_progress_bar=False, accelerator="cpu")
    return model


def test_a_type_without_a_label_is_found_as_one_group_with_its_markers(simulated, trained):
    novel = trained.get_novel()
    hidden = simulated.obs["hidden"]
    first = novel.cells == novel.groups.index[0]
    assert (first & hidden).sum() >= 0.9 * hidden.sum()  # all in one group
    assert (first & hidden).sum() >= 0.9 * first.sum()  # and hardly any others
    own = [f"gene_{g}" for g in range(N_MARKERS)]
    genes = novel.markers.loc[novel.markers["group"] == novel.groups.index[0], "gene"]
    assert len(set(genes[:N_MARKERS]) & set(own)) >= N_MARKERS - 2  # the type has others from the start
    assert set(own) <= set(genes)
    assert novel.groups["markers"].iloc[0].split(", ") == list(genes[:10])
    assert novel.groups["unknown"].iloc[0] > 0.5
    assert novel.groups["cells"].iloc[0] == first.sum()
    assert novel.groups["nearest"].iloc[0] in trained.labels


def test_cells_with_a_known_label_are_in_no_group(simulated, trained):
    assert trained.get_novel(threshold=0.0, min_cells=1).cells[~simulated.obs["blind"]].isna().all()


def test_in_a_tree_labels_of_any_depth_are_known(simulated):
    """Half of the labelled cells are known as a parent only; the type without a label is still a group."""
    adata = simulated.copy()
    given, two = adata.obs["given"].astype(str), sorted(set(adata.obs["given"]) - {"Unknown"})[:2]
    adata.obs["given"] = given.where((np.arange(adata.n_obs) % 2 == 0) | ~given.isin(two), "both")
    parents = dict.fromkeys(two, "both")
    sa.CGMDVAE.setup_anndata(adata, labels_key="given", unlabeled_category="Unknown", label_parents=parents)
    model = sa.CGMDVAE(adata, seed=0)
    model.train(max_epochs=12, enable_progress_bar=False, accelerator="cpu")
    everything = model.get_novel(threshold=0.0, min_cells=1).cells
    assert everything[~adata.obs["blind"]].isna().all()
    score, hidden, coarse = model.get_unknown_score(), adata.obs["hidden"], adata.obs["given"] == "both"
    assert score[hidden].mean() > 0.8
    assert score[coarse].mean() < 0.3
    novel = model.get_novel()
    first = novel.cells == novel.groups.index[0]
    assert (first & hidden).sum() >= 0.9 * max(hidden.sum(), first.sum())
    assert set(novel.groups["nearest"]) <= set(model.labels)
    found = model.predict_labels(level=0.9)
    assert not found[score > 0.5].isin(model.labels).any()
    made = model.annotate(copy=True)
    assert (made.obs["cgmdvae_deepest_label"].astype(str) == found.astype(str)).all()
    np.testing.assert_allclose(made.obs["cgmdvae_unknown"], score, atol=1e-4)


def test_scores_of_markers_are_those_of_the_rank_sum_test(simulated, trained):
    novel = trained.get_novel()
    top = novel.markers.iloc[0]
    own = (novel.cells == top["group"]).to_numpy()
    p = trained.predict_labels().astype(str).to_numpy()
    given = simulated.obs["given"].astype(str).to_numpy()
    types = np.where(given == "Unknown", p, given)
    known = ~((given == "Unknown") & (trained.get_unknown_score() > 0.5).to_numpy())
    x = simulated.X.toarray()
    values = np.log1p(1e4 * x / x.sum(1, keepdims=True))[:, simulated.var_names.get_loc(top["gene"])]
    for others, column in ((known, "score"), (known & (types == top["nearest"]), "score_nearest")):
        a, b = values[own].astype(np.float32), values[others].astype(np.float32)
        exact = stats.mannwhitneyu(a, b, use_continuity=False, method="asymptotic")
        z = stats.norm.isf(exact.pvalue / 2) if exact.pvalue > 0 else np.inf
        u = exact.statistic - len(a) * len(b) / 2
        ranks = stats.rankdata(np.r_[a, b])
        sd = np.sqrt(len(a) * len(b) * ranks.var(ddof=1) / len(ranks))
        assert top[column] == pytest.approx(u / sd, rel=1e-3)
        assert np.isinf(z) or top[column] == pytest.approx(z, rel=1e-3)


def test_new_cells_have_groups_of_their_own_names(simulated, trained):
    some = simulated[::2].copy()
    novel = trained.get_novel(some)
    assert novel.cells.index.equals(some.obs_names)
    pd.testing.assert_index_equal(trained.get_novel(some, np.arange(50)).cells.index, some.obs_names[:50])


def test_no_unknown_cells_is_no_error(trained, caplog):
    with caplog.at_level(logging.WARNING, logger="scalloy"):
        novel = trained.get_novel(threshold=0.999999)
    assert "all cells seem to be of known types" in caplog.text
    assert novel.groups.empty
    assert novel.markers.empty
    assert novel.cells.isna().all()
    assert list(novel.groups) == ["cells", "unknown", "nearest", "share_nearest", "markers"]


@pytest.mark.parametrize(
    ("wrong", "message"), [({"threshold": 1.0}, "is a share"), ({"min_cells": 0}, "above zero")]
)
def test_arguments_are_checked(trained, wrong, message):
    with pytest.raises(ValueError, match=message):
        trained.get_novel(**wrong)


def test_b_cells_of_kang_without_a_label_are_a_group():
    adata = sa.datasets.kang()
    adata = adata[adata.obs["condition"] == "control"].copy()
    rng = np.random.default_rng(0)
    b_cells = (adata.obs["cell_type"] == "B cells").to_numpy()
    adata.obs["given"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc[b_cells | (rng.random(adata.n_obs) < 0.3), "given"] = "Unknown"
    sa.CGMDVAE.setup_anndata(adata, labels_key="given", unlabeled_category="Unknown")
    model = sa.CGMDVAE(adata, seed=0)
    model.train(max_epochs=8, enable_progress_bar=False, accelerator="cpu")
    novel = model.get_novel()
    first = (novel.cells == novel.groups.index[0]).to_numpy()
    assert (first & b_cells).sum() >= 0.8 * b_cells.sum()
    assert (first & b_cells).sum() >= 0.8 * first.sum()
    assert {"CD79A", "MS4A1"} & set(novel.groups["markers"].iloc[0].split(", "))
