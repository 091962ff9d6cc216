"""Abundance between groups of donors: against counts by hand, planted changes, and studies without any."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from studies import numbers

import scalloy as sa
from scalloy.compare.discoveries import adjusted

ASK = {"groupby": "group", "by": "type", "donor_key": "donor"}


def table(adata, **more):
    return sa.compare.abundance(adata, **ASK, **more).set_index("type")


def test_shares_are_means_over_donors_and_a_planted_change_is_found_first():
    adata = numbers(folds=[1, 1, 1, 1, 1, 6])
    found = table(adata)
    share = pd.crosstab(adata.obs["donor"], adata.obs["type"], normalize="index")
    of = adata.obs.groupby("donor")["group"].first()
    for column, group in (("share_a", "a"), ("share_b", "b")):
        np.testing.assert_allclose(found[column], share[of == group].mean(), rtol=1e-12)
    assert found["pvalue"].idxmin() == "t5"
    assert found.loc["t5", "effect"] == pytest.approx(np.log2(6), abs=0.7)
    assert found.loc["t5", "lower"] < np.log2(6) < found.loc["t5", "upper"]
    assert found["padj"].lt(0.05).sum() == 1
    assert found["unchanged"].sum() >= 4
    assert not found.loc["t5", "unchanged"]
    assert (found[["donors_a", "donors_b"]] == 6).all(axis=None)
    assert (found["design"] == "across donors").all()


def test_others_seem_to_shrink_in_shares_of_all_and_not_against_what_is_unchanged():
    adata = numbers(10, 10, folds=[1, 1, 1, 1, 1, 8], sd=0.1)
    of_all, against = table(adata, unchanged=None), table(adata)
    rest = [f"t{i}" for i in range(5)]
    assert (of_all.loc[rest, "padj"] < 0.05).all()
    assert (of_all.loc[rest, "effect"] < -0.3).all()
    assert (against.loc[rest, "padj"] > 0.05).all()
    assert of_all["relative_to"].unique().tolist() == ["all cells"]
    assert against["relative_to"].unique().tolist() == ["unchanged populations"]
    named = table(adata, unchanged=["t0", "t1"])
    assert named.loc["t5", "effect"] == pytest.approx(3, abs=0.3)
    assert named["unchanged"].tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("folds", [[1, 8], [1, 6, 36], [1, 1, 6, 36, 200, 1000]])
def test_without_a_majority_that_stays_shares_of_all_cells_are_compared(folds):
    adata = numbers(8, 8, n_types=len(folds), folds=folds, sd=0.05, cells=1500)
    found = table(adata)
    assert found["relative_to"].unique().tolist() == ["all cells"]
    assert not found["unchanged"].any()
    pd.testing.assert_frame_equal(found, table(adata, unchanged=None))


def test_types_that_double_are_not_taken_to_stay_however_uncertain_they_are():
    for seed in range(12):
        found = table(numbers(3, 3, sd=0.9, seed=seed))
        assert (found.loc[found["unchanged"], "effect"].abs() < 1.2).all()


@pytest.mark.parametrize("sizes", [(5, 3), (4, 4), (8, 2), (3, 1)])
def test_types_of_one_group_only_are_not_what_stays(sizes):
    rows = [
        pd.DataFrame({"donor": f"d{d}", "group": group, "type": [f"{group}{k}"] * 50})
        for group, n in zip("ab", sizes)
        for k in range(n)
        for d in (range(4) if group == "a" else range(4, 8))
    ]
    obs = pd.concat(rows, ignore_index=True)
    obs.index = obs.index.astype(str)
    found = table(ad.AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs))
    assert found["relative_to"].unique().tolist() == ["all cells"]
    assert np.isfinite(found["effect"]).all()


def test_effects_are_folds_of_shares_or_of_odds_by_hand():
    """Donors of the same size and shares: the penalty aside, the folds are those of the sums."""
    rows = []
    for donor, group, ones in (("1", "a", 100), ("2", "a", 100), ("3", "b", 250), ("4", "b", 250)):
        kinds = ["x"] * ones + ["y"] * (900 - ones) + ["z"] * 100
        rows.append(pd.DataFrame({"donor": donor, "group": group, "type": kinds}))
    obs = pd.concat(rows, ignore_index=True)
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)
    shares = table(adata, unchanged=None)["effect"]
    assert shares["x"] == pytest.approx(np.log2(2.5), abs=0.02)
    assert shares["y"] == pytest.approx(np.log2(650 / 800), abs=0.02)
    odds = table(adata, unchanged=["z"])["effect"]
    assert odds["x"] == pytest.approx(np.log2(2.5), abs=0.02)
    assert np.isnan(odds["z"])  # nothing is left to compare it with
    odds = table(adata, unchanged=["y", "z"])["effect"]
    assert odds["z"] == pytest.approx(np.log2((100 / 650) / (100 / 800)), abs=0.02)


@pytest.mark.parametrize(("n", "paired"), [(6, False), (3, False), (5, True)])
def test_size_is_right_where_nothing_differs(n, paired):
    p = [table(numbers(n, n, paired=paired, seed=s))["pvalue"].to_numpy() for s in range(60)]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_cells_as_replicates_would_find_changes_everywhere():
    """The naive test, for comparison: the donors' own differences are what it finds."""
    from scipy.stats import chi2_contingency

    rejected = 0
    for s in range(20):
        obs = numbers(cells=1000, seed=s).obs
        rejected += chi2_contingency(pd.crosstab(obs["group"], obs["type"])).pvalue <= 0.05
    assert rejected >= 18


def test_donors_in_both_groups_are_compared_with_themselves():
    """Donors differ a lot, and within each the type grows by half."""
    adata = numbers(6, paired=True, sd=0.8, cells=1500, folds=[2.5, 1, 1, 1, 1, 1], seed=1)
    found = table(adata)
    assert (found["design"] == "within donors").all()
    apart = adata.copy()
    apart.obs["donor"] = apart.obs["donor"] + apart.obs["group"]
    alone = table(apart)
    assert found.loc["t0", "pvalue"] < alone.loc["t0", "pvalue"]
    assert found.loc["t0", "padj"] < 0.05


def test_permutations_are_exact():
    """Over all labelings, the p-values are the ranks."""
    adata = numbers(3, 3, seed=3)
    donors, p = sorted(adata.obs["donor"].unique()), []
    for chosen in itertools.combinations(donors, 3):
        other = adata.copy()
        other.obs["group"] = np.where(other.obs["donor"].isin(chosen), "a", "b")
        found = table(other, test="permutation", unchanged=None)
        p.append(found.loc["t0", "pvalue"])
        assert (found["smallest"] == 0.1).all()
    np.testing.assert_allclose(sorted(p), np.repeat(np.arange(1, 11) / 10, 2))


def test_permutations_within_donors_and_within_levels_of_a_covariate():
    adata = numbers(5, paired=True)
    assert (table(adata, test="permutation")["smallest"] == 2 / 2**5).all()
    adata = numbers(4, 4)
    adata.obs["sex"] = np.where(adata.obs["donor"].isin(["d00", "d01", "d04", "d05"]), "f", "m")
    found = table(adata, test="permutation", covariates="sex")
    assert (found["smallest"] == 2 / 6**2).all()
    adata.obs["age"] = adata.obs["donor"].str[1:].astype(float) % 3
    with pytest.raises(ValueError, match="permutes groups among donors of equal covariates"):
        table(adata, test="permutation", covariates="age")
    assert table(adata, covariates=["sex", "age"])["pvalue"].notna().all()


def test_a_covariate_explains_what_is_its_own():
    """Sex changes a type, and there are more women in one group."""
    women, found = [f"d{i:02}" for i in (0, 1, 8, 9, 10, 11, 12, 13)], []
    for seed in range(12):
        adata, rng = numbers(8, 8, seed=seed), np.random.default_rng(seed)
        adata.obs["sex"] = np.where(adata.obs["donor"].isin(women), "f", "m")
        moved = (adata.obs["sex"] == "f") & (rng.random(adata.n_obs) < 0.5)
        adata.obs.loc[moved, "type"] = "t0"
        kinds = (None, "sex")
        found.append([table(adata, unchanged=None, covariates=c).loc["t0", "pvalue"] for c in kinds])
    without, accounted = np.transpose(found) <= 0.05
    assert without.sum() >= 8
    assert accounted.sum() <= 2


def test_a_type_that_vanishes_is_found_with_a_finite_effect():
    adata = numbers(3, 3)
    adata = adata[~((adata.obs["group"] == "b") & (adata.obs["type"] == "t1"))].copy()
    found = table(adata)
    assert found["pvalue"].idxmin() == "t1"
    assert found.loc["t1", "share_b"] == 0
    assert -20 < found.loc["t1", "effect"] < -3
    assert np.isfinite(found[["lower", "upper"]].to_numpy()).all()


def test_effects_of_rare_types_are_not_those_of_frequent_ones():
    """Few cells of a donor are of the types that grow and shrink; all types vary alike."""
    rng, found, truth = np.random.default_rng(5), [], np.array([6, 1 / 6])
    folds = np.repeat([1.0, *truth], [7, 1, 1])
    for _ in range(10):
        base = np.concatenate([rng.dirichlet(np.full(5, 3.0)) * 0.98, np.full(4, 0.005)])
        rows = []
        for d in range(10):
            share = base * np.exp(rng.normal(0, 0.4, 9)) * (folds if d > 4 else 1)
            kind = rng.choice(9, 400, p=share / share.sum())
            rows.append(pd.DataFrame({"donor": f"d{d}", "group": "ab"[d > 4], "type": kind.astype(str)}))
        obs = pd.concat(rows, ignore_index=True)
        adata = ad.AnnData(
            np.zeros((len(obs), 1), dtype=np.float32), obs=obs.set_index(obs.index.astype(str))
        )
        same = [str(k) for k in range(5)]
        found.append(table(adata, unchanged=same)["effect"].reindex(["7", "8"]))
    np.testing.assert_allclose(np.mean(found, axis=0), np.log2(truth), atol=0.6)


def test_without_replicates_there_are_effects_and_a_note():
    adata = numbers(1, 4)
    found = table(adata)
    assert found["pvalue"].isna().all()
    assert np.isfinite(found["effect"]).all()
    assert found["lower"].isna().all()
    assert found["note"].str.startswith("At least two donors in both groups").all()
    assert (found["design"] == "no replicates").all()
    assert found["donors_a"].tolist() == [1] * 6
    few = table(adata, at_least=10_000)
    assert few["effect"].isna().all()
    assert few["donors_a"].tolist() == [0] * 6
    assert list(few) == list(found)
    covered = numbers(2, 2)
    covered.obs["age"] = covered.obs["donor"].map({"d00": 1, "d01": 5, "d02": 2, "d03": 9})
    covered.obs["height"] = covered.obs["donor"].map({"d00": 3, "d01": 5, "d02": 4, "d03": 1})
    found = table(covered, covariates=["age", "height"])
    assert found["note"].str.startswith("As many columns in the design as samples").all()


def test_a_reference_of_numbers_is_named_by_its_value():
    adata = numbers(3, 3)
    adata.obs["group"] = adata.obs["group"].map({"a": 1.0, "b": 0.5})
    for given in (1, 1.0, "1.0"):
        found = sa.compare.abundance(adata, **ASK, reference=given)
        assert found[["group_a", "group_b"]].drop_duplicates().to_numpy().tolist() == [["1.0", "0.5"]]
    with pytest.raises(ValueError, match="`reference=2` is not known"):
        sa.compare.abundance(adata, **ASK, reference=2)


def test_three_groups_a_reference_and_a_model():
    adata = numbers(4, 4)
    adata.obs["group"] = adata.obs["donor"].map(lambda d: "abc"[int(d[1:]) % 3])
    found = sa.compare.abundance(adata, **ASK)
    pairs = found[["group_a", "group_b"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["a", "b"], ["a", "c"], ["b", "c"]]
    found = sa.compare.abundance(adata, **ASK, reference="c")
    assert found[["group_a", "group_b"]].drop_duplicates().to_numpy().tolist() == [["c", "a"], ["c", "b"]]
    for _, own in found.groupby("group_b"):
        known = own["pvalue"].notna()
        assert (own.loc[known, "padj"] >= own.loc[known, "pvalue"]).all()


def test_clusters_and_nodes_of_their_tree(cells, quick):
    cells.obs["donor"] = np.random.default_rng(0).choice(["1", "2", "3", "4"], cells.n_obs)
    cells.obs["arm"] = np.where(cells.obs["donor"].isin(["1", "2"]), "x", "y")
    sa.CGMDVAE.setup_anndata(cells)
    model = sa.CGMDVAE(cells, n_hidden=8, n_latent=2)
    model.train(**quick)
    ask = {"groupby": "arm", "donor_key": "donor", "at_least": 3}
    found = sa.compare.abundance(model, by="clusters", **ask).set_index("cluster")
    of = model.get_clusters().astype(str)
    assert sorted(found.index) == sorted(set(of))
    one = (of == found.index[0]).groupby(cells.obs["donor"]).mean()
    assert found["share_a"].iloc[0] == pytest.approx(one[["1", "2"]].mean())
    encoded = []
    hook = model.module.enc_z.register_forward_hook(lambda *seen: encoded.append(len(seen[2].mean)))
    nodes = sa.compare.abundance(model, by="tree", **ask)
    hook.remove()
    assert sum(encoded) == cells.n_obs  # for all cuts together
    tree = model.get_cluster_tree()
    assert len(nodes) == 2 * len(tree)
    for n, own in nodes.groupby("n_clusters"):
        assert own["cluster"].tolist() == tree.loc[n, ["larger", "smaller"]].tolist()
        share = (model.get_clusters(n=int(n)).astype(str) == own["cluster"].iloc[1]).groupby(
            cells.obs["donor"]
        )
        assert own["share_b"].iloc[1] == pytest.approx(share.mean()[["3", "4"]].mean())
    same = sa.compare.abundance(cells, by="arm", groupby="cluster", donor_key="donor", at_least=1)
    assert set(same["arm"]) == {"x", "y"}
    with pytest.raises(TypeError, match="needs a trained model that finds clusters"):
        sa.compare.abundance(cells, by="tree", **ask)


def plane(seed=0, *, shift=0.0, n=6, cells=250):
    """Cells in a plane; in group b a spot in it is denser."""
    rng = np.random.default_rng(seed)
    adata = numbers(n, n, cells=cells, seed=seed)
    z = rng.normal(size=(adata.n_obs, 2))
    spot = (adata.obs["group"] == "b").to_numpy() & (rng.random(adata.n_obs) < shift)
    z[spot] = rng.normal([1.5, 0], 0.25, (spot.sum(), 2))
    adata.obsm["z"] = z
    return adata


def hoods(adata, **more):
    return sa.compare.abundance(
        adata, groupby="group", by="neighbourhoods", donor_key="donor", use_rep="z", **more
    )


def test_neighbourhoods_find_the_spot_that_is_denser():
    adata = plane(shift=0.1)
    found = hoods(adata)
    centre = adata.obsm["z"][adata.obs_names.get_indexer(found["cell"])]
    near = np.linalg.norm(centre - [1.5, 0], axis=1) < 0.4
    far = np.linalg.norm(centre - [1.5, 0], axis=1) > 1.2
    assert (found.loc[near, "padj"] < 0.1).mean() > 0.8
    assert (found.loc[near, "effect"] > 0).all()
    assert (found.loc[far, "padj"] < 0.1).mean() < 0.05
    assert abs(found.loc[far, "effect"].median()) < 0.15
    assert (found["n_cells"] == 60).all()  # five for each of the twelve samples
    weighted = adjusted(found["pvalue"].to_numpy(), 1 / found["radius"].to_numpy())
    np.testing.assert_allclose(found["padj"], weighted)


def test_neighbourhoods_are_those_of_their_cells():
    adata = plane(n=3, cells=100)
    found = hoods(adata, n_neighbors=20, n_neighborhoods=15, unchanged=None)
    assert 5 < len(found) <= 15
    assert found["cell"].is_unique
    of = adata.obs.groupby("donor")["group"].first()
    for row in found.itertuples():
        distance = np.linalg.norm(
            adata.obsm["z"] - adata.obsm["z"][adata.obs_names.get_loc(row.cell)], axis=1
        )
        own = adata.obs["donor"].iloc[np.argsort(distance, kind="stable")[:20]]
        share = own.value_counts().reindex(of.index, fill_value=0) / adata.obs["donor"].value_counts()
        assert row.share_a == pytest.approx(share[of.index[of == "a"]].mean())
        assert row.radius == pytest.approx(np.sort(distance)[19])
    assert hoods(adata, n_neighborhoods=5, rng=1).equals(hoods(adata, n_neighborhoods=5, rng=1))


def test_neighbourhoods_find_nothing_where_nothing_differs():
    any_found = [bool((hoods(plane(seed=s))["padj"] < 0.1).any()) for s in range(20)]
    assert sum(any_found) <= 5


def test_a_space_that_separates_the_groups_is_warned_of():
    adata = plane()
    adata.obsm["z"][(adata.obs["group"] == "b").to_numpy()] += 50
    with pytest.warns(UserWarning, match="hold cells of one group only"):
        found = hoods(adata)
    assert found["relative_to"].unique().tolist() == ["all cells"]


def test_order_of_cells_and_of_donors_does_not_matter():
    adata = numbers(folds=[1, 2, 1, 1, 1, 1])
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    pd.testing.assert_frame_equal(table(adata), table(shuffled))
    renamed = adata.copy()
    renamed.obs["donor"] = renamed.obs["donor"].map(lambda d: f"x{99 - int(d[1:])}")
    pd.testing.assert_frame_equal(table(adata), table(renamed), rtol=1e-5)
    swapped = adata.copy()
    swapped.obs["group"] = swapped.obs["group"].map({"a": "b", "b": "a"})
    np.testing.assert_allclose(table(swapped)["effect"], -table(adata)["effect"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table(swapped)["pvalue"], table(adata)["pvalue"], rtol=1e-4)


def test_bad_input():
    adata = numbers(3, 3)
    with pytest.raises(ValueError, match="`test='t'` is not known"):
        table(adata, test="t")
    with pytest.raises(ValueError, match="`unchanged='t9'` is not known"):
        table(adata, unchanged=["t9"])
    with pytest.raises(ValueError, match="`unchanged='automatic'` is not known"):
        table(adata, unchanged="automatic")
    with pytest.raises(ValueError, match="`paired=True` needs two donors in both groups"):
        table(adata, paired=True)
    both = adata.copy()
    both.obs["donor"] = np.arange(adata.n_obs).astype(str)
    both.obs["donor"] = np.where(np.arange(adata.n_obs) % 7 == 0, "mixed", adata.obs["donor"])
    with pytest.raises(
        ValueError, match=r"`paired=False`, but 1 donor\(s\) have cells in both groups: mixed"
    ):
        table(both, paired=False)
    adata.obs["arm"] = adata.obs["group"]
    with pytest.raises(ValueError, match=r"`covariates` \(arm\) tell the groups apart by themselves"):
        table(adata, covariates="arm")
    adata.obs["cell"] = np.arange(adata.n_obs) % 2
    with pytest.raises(ValueError, match="`covariates='cell'` has several values within the same sample"):
        table(adata, covariates="cell")
    with pytest.raises(TypeError, match=r"Expected a column of `adata.obs`, or a list of columns"):
        table(adata, covariates=7)
    with pytest.raises(KeyError, match="`donor_key='nope'` is not a column"):
        sa.compare.abundance(adata, groupby="group", by="type", donor_key="nope")
    adata.obsm["z"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    with pytest.raises(ValueError, match="Neighbourhoods have no names"):
        hoods(adata, unchanged=["3"])
    with pytest.raises(ValueError, match="`unchanged=0` names no population"):
        table(adata, unchanged=0)
    with pytest.raises(KeyError, match="`use_rep=None`"):
        sa.compare.abundance(adata, groupby="group", by="neighborhoods", donor_key="donor")


def test_each_column_has_one_role_and_names_are_lists():
    adata = numbers(3, 3)
    for ask in ({"by": "group"}, {"by": "donor"}, {"groupby": "donor"}):
        with pytest.raises(ValueError, match="Pass a column of its own for each: the groups"):
            sa.compare.abundance(adata, **(ASK | ask))
    adata.obs["effect"] = adata.obs["type"]
    with pytest.raises(ValueError, match="`by='effect'` is a column of the table that is returned"):
        sa.compare.abundance(adata, **(ASK | {"by": "effect"}))
    with pytest.raises(ValueError, match=r"`paired=0` is not known\. Pass True, False or 'auto'"):
        table(adata, paired=0)
    with pytest.raises(TypeError, match=r"`unchanged='t0'` is one name\. Pass a list of names"):
        table(adata, unchanged="t0")
    with pytest.raises(ValueError, match=r"`unchanged=\[\]` names no population"):
        table(adata, unchanged=[])
    with pytest.raises(ValueError, match="`n_neighbors=0` must be above zero"):
        table(adata, n_neighbors=0)


def test_levels_of_a_covariate_in_one_group_only_allow_no_permutation():
    """Two donors of each group are women; the rest, men or unknown, are in one group."""
    adata = numbers(4, 4, seed=2)
    kinds = {"d00": "f", "d01": "f", "d04": "f", "d05": "f", "d02": "x", "d03": "x"}
    adata.obs["sex"] = adata.obs["donor"].map(kinds).fillna("m")
    found = table(adata, test="permutation", covariates="sex", unchanged=None)
    assert found["smallest"].iloc[0] == pytest.approx(2 / 6)  # either half of the women, and its opposite
    assert (found["pvalue"] >= 2 / 6 - 1e-9).all()


def test_populations_without_cells_of_either_group_count_for_nothing():
    """Many types are in a third group only; the others are compared as if these were not there."""
    adata = numbers(6, 6, seed=1)
    adata.obs["group"] = adata.obs["donor"].map(lambda d: "abc"[int(d[1:]) // 4])
    third = adata.obs["group"] == "c"
    adata.obs.loc[third, "type"] = "own " + pd.Series(np.arange(adata.n_obs) % 20, adata.obs_names).astype(
        str
    )
    found = table(adata)
    found = found[found["group_b"] == "b"]
    own = found.index.str.startswith("own")
    assert found.loc[own, ["effect", "pvalue", "padj"]].isna().all(axis=None)
    assert (found.loc[own, "note"] == "No cells in either group").all()
    assert not found.loc[own, "unchanged"].any()
    pd.testing.assert_frame_equal(found[~own], table(adata[~third].copy()))


def test_a_single_cluster_has_no_tree(cells, quick):
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 2, "1", "2")
    sa.CGMDVAE.setup_anndata(cells)
    model = sa.CGMDVAE(cells, n_clusters=1, n_hidden=8, n_latent=2)
    model.train(**quick)
    with pytest.raises(ValueError, match="the model has one cluster only, which is not divided"):
        sa.compare.abundance(model, groupby="cluster", by="tree", donor_key="donor")


def test_populations_whose_donors_do_not_vary_have_a_note():
    adata = numbers(3, 3)
    adata.obs["type"] = adata.obs["group"].map({"a": "only in a", "b": "only in b"})
    found = table(adata)
    assert found["pvalue"].isna().all()
    assert (found["note"] == "Donors of a group do not vary, so nothing tells the variance").all()
    assert (table(numbers(3, 3))["note"] == "").all()


def test_donors_of_both_kinds_use_what_allows_a_test():
    adata = numbers(4, paired=True)
    adata = adata[~((adata.obs["donor"] == "d00") & (adata.obs["group"] == "a"))].copy()
    found = table(adata)
    assert (found["design"] == "within donors").all()
    assert (found["donors_a"] == 3).all()


def test_sparse_members_are_not_made_dense():
    from scalloy.compare.populations import populations

    adata = plane()
    made = populations(
        adata, adata.obs, "neighbourhoods", "z", n_samples=12, size=20, most=50, rng=np.random.default_rng(0)
    )
    assert sp.issparse(made.members)
    assert made.members.nnz == 20 * made.members.shape[1]
