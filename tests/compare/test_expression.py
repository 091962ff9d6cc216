"""Expression between groups of donors: planted genes, sums by hand, and studies in which nothing differs."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import ttest_ind
from studies import counts

import scalloy as sa

ASK = {"groupby": "group", "donor_key": "donor"}


def table(adata, **more):
    return sa.compare.expression(adata, **ASK, **more).set_index("gene")


def planted(found):
    """Whether each gene in the table is one that was changed."""
    return found.index.str[1:].astype(int) < 30


@pytest.mark.parametrize("paired", [False, True])
def test_planted_genes_are_found_and_others_are_not(paired):
    found = table(counts(paired=paired))
    true = planted(found)
    hits = found["padj"] < 0.1
    assert hits[true].mean() > 0.8
    assert (hits & ~true).sum() / hits.sum() < 0.2
    assert found.loc[true, "log2_fold_change"].median() == pytest.approx(np.log2(3), abs=0.25)
    assert found["pvalue"].is_monotonic_increasing
    assert found["design"].unique().tolist() == ["within donors" if paired else "across donors"]
    assert (found[["donors_a", "donors_b"]] == 5).all(axis=None)
    inside = (found["lower"] < np.where(true, np.log2(3), 0)) & (
        np.where(true, np.log2(3), 0) < found["upper"]
    )
    assert inside.mean() == pytest.approx(0.95, abs=0.04)
    error = (found["shrunken"] - np.where(true, np.log2(3), 0)) ** 2
    assert error.mean() < ((found["log2_fold_change"] - np.where(true, np.log2(3), 0)) ** 2).mean()


@pytest.mark.parametrize(("n", "paired"), [(6, False), (3, False), (5, True)])
def test_size_is_right_where_nothing_differs(n, paired):
    p = [table(counts(n, n, changed=0, paired=paired, seed=s))["pvalue"].to_numpy() for s in range(6)]
    assert 0.03 < (np.concatenate(p) <= 0.05).mean() < 0.07


def test_cells_as_replicates_would_find_most_genes():
    adata = counts(changed=0, cells=200)
    x = np.log1p(adata.X / adata.X.sum(1, keepdims=True) * 1e3)
    group = (adata.obs["group"] == "b").to_numpy()
    assert (ttest_ind(x[group], x[~group]).pvalue <= 0.05).mean() > 0.4


def test_folds_and_means_are_those_of_summed_counts():
    """With the same counts in all others genes, sizes are equal and folds those of sums plus a half."""
    rng, n = np.random.default_rng(0), 40
    adata = counts(2, 2, genes=200, cells=n, changed=0)
    adata = adata[
        np.concatenate([np.flatnonzero(adata.obs["donor"] == d)[:20] for d in np.unique(adata.obs["donor"])])
    ]
    adata = adata.copy()
    adata.X[:] = 1
    adata.X[:, 0] = rng.poisson(3, adata.n_obs)
    found = table(adata)
    sums = pd.Series(adata.X[:, 0]).groupby(adata.obs["group"].to_numpy()).sum()
    size = adata.obs["donor"].map(pd.Series(adata.X.sum(1)).groupby(adata.obs["donor"].to_numpy()).sum())
    assert size.groupby(adata.obs["donor"].to_numpy()).first().std() < 15
    assert found.loc["g0", "log2_fold_change"] == pytest.approx(
        np.log2((sums["b"] + 0.5) / (sums["a"] + 0.5)), abs=0.01
    )
    assert found.loc["g7", "log2_fold_change"] == pytest.approx(0, abs=0.01)
    assert found.loc["g7", "mean"] == pytest.approx(1e6 * 20.5 / size.mean(), rel=0.02)


def test_each_population_is_a_study_of_its_own():
    one, two = counts(changed=30), counts(changed=0, seed=1)
    one.obs["type"], two.obs["type"] = "x", "y"
    both = ad.concat([one, two], index_unique="-")
    both.obs["donor"] = both.obs["donor"].astype(str)
    found = sa.compare.expression(both, **ASK, by="type")
    for name, alone in (("x", one), ("y", two)):
        own = found[found["type"] == name].drop(columns="type").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, sa.compare.expression(alone, **ASK))
    few = both[(both.obs["type"] == "x") | (both.obs["donor"] == "d00")].copy()
    found = sa.compare.expression(few, **ASK, by="type")
    impossible = found[found["type"] == "y"]
    assert impossible["gene"].isna().all()
    assert impossible["note"].str.contains("At least two donors").all()


def test_permutations_are_exact():
    adata, p = counts(3, 3, genes=40, changed=5, seed=2), []
    for chosen in itertools.combinations(sorted(adata.obs["donor"].unique()), 3):
        other = adata.copy()
        other.obs["group"] = np.where(other.obs["donor"].isin(chosen), "a", "b")
        found = table(other, test="permutation")
        assert (found["smallest"] == 0.1).all()
        p.append(found["pvalue"].sort_index())
    every = pd.concat(p, axis=1).dropna()
    assert len(every) >= 35
    for _, own in every.iterrows():
        np.testing.assert_allclose(np.sort(own), np.repeat(np.arange(1, 11) / 10, 2))


def test_intervals_agree_with_p_values():
    found = table(counts(4, 4))
    outside = (found["lower"] > 0) | (found["upper"] < 0)
    np.testing.assert_array_equal(outside, found["pvalue"] < 0.05)


def test_without_replicates_there_are_fold_changes_and_a_note():
    found = table(counts(1, 1))
    assert found["pvalue"].isna().all()
    assert found["shrunken"].isna().all()
    assert np.isfinite(found["log2_fold_change"]).all()
    assert found["note"].str.startswith("At least two donors").all()
    assert found.loc[~planted(found), "log2_fold_change"].median() == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("paired", [False, True])
def test_interaction_between_donors_finds_genes_that_respond_in_one_sex(paired):
    rng = np.random.default_rng(0)
    adata = counts(8, 8, paired=paired, changed=30)
    adata.obs["sex"] = np.where(adata.obs["donor"].str[1:].astype(int) % 2 == 0, "f", "m")
    more = ((adata.obs["group"] == "b") & (adata.obs["sex"] == "m")).to_numpy()
    adata.X[np.ix_(more, np.arange(50, 70))] += rng.poisson(3, (more.sum(), 20))
    found = table(adata, interaction="sex")
    assert (found["level"] == "m").all()
    assert (found["against"] == "f").all()
    number = found.index.str[1:].astype(int)
    own = (number >= 50) & (number < 70)
    assert (found.loc[own, "padj"] < 0.1).mean() > 0.7
    assert (found.loc[own, "log2_fold_change"] > 0).all()
    assert (found.loc[~own, "padj"] < 0.1).mean() < 0.03  # those that respond in both are none


@pytest.mark.parametrize("paired", [False, True])
def test_interaction_within_donors_finds_genes_that_respond_in_one_type(paired):
    rng = np.random.default_rng(0)
    adata = counts(5, 5, paired=paired, changed=30, cells=60)
    adata.obs["type"] = np.array(["x", "y"])[np.arange(adata.n_obs) % 2]
    adata.X[:, 80:120] *= np.where(adata.obs["type"] == "y", 3, 1)[:, None]  # types differ, too
    more = ((adata.obs["group"] == "b") & (adata.obs["type"] == "y")).to_numpy()
    adata.X[np.ix_(more, np.arange(50, 70))] += rng.poisson(2, (more.sum(), 20))
    found = table(adata, interaction="type")
    number = found.index.str[1:].astype(int)
    own = (number >= 50) & (number < 70)
    assert (found.loc[own, "padj"] < 0.1).mean() > 0.7
    assert (found.loc[~own, "padj"] < 0.1).mean() < 0.03


def test_donors_whose_types_differ_on_their_own_are_compared_within_types():
    """Each donor has its own difference between types, before and after; it does not hide the interaction."""
    rng, adata = np.random.default_rng(0), counts(6, paired=True, changed=0, cells=120, sd=0.1)
    adata.obs["type"] = np.array(["x", "y"])[np.arange(adata.n_obs) % 2]
    for donor in adata.obs["donor"].unique():
        own = ((adata.obs["donor"] == donor) & (adata.obs["type"] == "y")).to_numpy()
        factor = np.exp(rng.normal(0, 1.5, adata.n_vars))
        adata.X[own] = rng.poisson(adata.X[own] * factor)
    adata.X[adata.X.sum(1) == 0, 0] = 1
    more = ((adata.obs["group"] == "b") & (adata.obs["type"] == "y")).to_numpy()
    adata.X[np.ix_(more, np.arange(40))] *= 2
    found = table(adata, interaction="type")
    own = found.index.str[1:].astype(int) < 40
    assert (found.loc[own, "padj"] < 0.1).mean() > 0.6
    assert (found.loc[~own, "pvalue"] < 0.05).mean() < 0.1


def test_size_of_interactions_is_right():
    p = []
    for seed in range(4):
        adata = counts(5, 5, changed=0, cells=50, seed=seed)
        adata.obs["type"] = np.array(["x", "y"])[np.arange(adata.n_obs) % 2]
        p.append(table(adata, interaction="type")["pvalue"])
    assert 0.02 < (pd.concat(p) <= 0.05).mean() < 0.08


def test_levels_are_compared_with_the_one_that_is_named():
    adata = counts(3, 3, genes=60, cells=60)
    adata.obs["type"] = np.array(["x", "y", "z"])[np.arange(adata.n_obs) % 3]
    found = sa.compare.expression(adata, **ASK, interaction="type", against="y")
    assert found["level"].unique().tolist() == ["x", "z"]
    assert found["against"].unique().tolist() == ["y"]
    first = sa.compare.expression(adata, **ASK, interaction="type")
    one = found[found["level"] == "x"].set_index("gene")["log2_fold_change"].sort_index()
    other = first[first["level"] == "y"].set_index("gene")["log2_fold_change"].sort_index()
    np.testing.assert_allclose(one, -other, atol=0.02)
    with pytest.raises(ValueError, match="`against='w'` is not known"):
        table(adata, interaction="type", against="w")
    with pytest.raises(ValueError, match=r"`against` is a level of `interaction`. Pass both"):
        table(adata, against="y")


def test_interactions_that_cannot_be_told_have_a_note():
    adata = counts(3, 3)
    adata.obs["sex"] = np.where(adata.obs["donor"] == "d00", "f", "m")
    found = sa.compare.expression(adata, **ASK, interaction="sex")
    assert found["note"].tolist() == ["Fewer than two donors have both a level and a group"]


def test_covariates_are_accounted_for():
    adata = counts(6, 6, changed=0)
    late = adata.obs["donor"].isin(["d00", "d06", "d07", "d08", "d09", "d10"])
    adata.obs["batch"] = np.where(late, "late", "early")
    adata.X[np.ix_(late.to_numpy(), np.arange(100))] *= 4
    found, without = table(adata, covariates="batch"), table(adata)
    number = without.index.str[1:].astype(int) < 100
    assert (without.loc[number, "pvalue"] <= 0.05).mean() > 0.4
    number = found.index.str[1:].astype(int) < 100
    assert (found.loc[number, "pvalue"] <= 0.05).mean() < 0.12


def test_layers_models_and_stored_forms_give_the_same(quick):
    adata = counts(3, 3, genes=60)
    first = table(adata)
    other = adata.copy()
    other.layers["raw"], other.X = sp.csc_matrix(adata.X), np.log1p(adata.X)
    pd.testing.assert_frame_equal(first, table(other, layer="raw"), rtol=1e-6)
    with pytest.raises(ValueError, match="holds values that are not whole numbers"):
        table(other)
    sa.VAE.setup_anndata(other, layer="raw")
    model = sa.VAE(other, n_hidden=8, n_latent=2)
    pd.testing.assert_frame_equal(first, table(model), rtol=1e-6)
    turned = adata[::-1, ::-1].copy()
    pd.testing.assert_frame_equal(first.sort_index(), table(turned).sort_index(), rtol=1e-5, atol=1e-5)


def test_rare_genes_are_left_out():
    adata = counts(3, 3)
    adata.X[:, 7] = 0
    adata.X[:4, 7] = 5  # many counts in one sample
    found = table(adata)
    assert "g7" not in found.index
    assert len(table(adata, min_counts=200)) < len(found)
    none = sa.compare.expression(adata, **ASK, min_counts=10**6)
    assert none["note"].tolist() == ["No gene has 1000000 counts"]


def test_counts_in_a_file_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("scalloy.compare.samples.AT_ONCE", 50)
    adata = counts(3, 3, genes=60)
    adata.X = sp.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(table(stored), table(adata))
    stored.file.close()


def test_a_type_without_pairs_has_a_note_and_does_not_stop_the_others():
    adata = counts(4, paired=True, genes=60)
    rare = (adata.obs["donor"] == "d00") & (np.arange(adata.n_obs) % 2 == 0)
    adata.obs["type"] = np.where(rare, "rare", "common")
    found = table(adata, by="type", paired=True)
    note = "`paired=True` needs two donors in both groups or more, but 1 are"
    assert (found.loc[found["type"] == "rare", "note"] == note).all()
    assert (found.loc[found["type"] == "common", "design"] == "within donors").all()
    few = table(adata, paired=True, at_least=1000)
    assert (few["design"] == "no replicates").all()


def test_bad_input():
    adata = counts(3, 3)
    with pytest.raises(ValueError, match="`test='t'` is not known"):
        table(adata, test="t")
    with pytest.raises(ValueError, match="No permutation of groups leaves an interaction alone"):
        table(adata, test="permutation", interaction="donor")
    adata.obs["one"] = "same"
    with pytest.raises(ValueError, match="`interaction` needs two levels or more"):
        table(adata, interaction="one")
    for name in ("gene", "lower", "note", "level"):
        adata.obs[name] = "x"
        with pytest.raises(ValueError, match=f"`by='{name}'` is a column of the table that is returned"):
            table(adata, by=name)
    for ask in ({"by": "group"}, {"by": "donor"}, {"interaction": "group"}):
        with pytest.raises(ValueError, match="Pass a column of its own for each: the groups"):
            table(adata, **ask)
    with pytest.raises(ValueError, match="`min_counts=0` must be above zero"):
        table(adata, min_counts=0)
