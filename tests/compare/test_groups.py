"""Comparing groups: against double loops, all labelings by hand, and simulations with donors."""

from __future__ import annotations

import itertools

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import binom, spearmanr

import scalloy as sa
from scalloy.blocks.divergences import RandomFeatures, kernel, median_scales, mmd2
from scalloy.compare import statistics
from scalloy.compare.designs import design

mpl.use("Agg")


def cells(n_donors=12, n=30, *, dims=3, donor_sd=0.5, shift=0.0, share=1.0, paired=False, seed=0):
    """Cells of donors, each with its own mean; a share of the cells of group b is shifted."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n)
    group = np.arange(len(donor)) % 2 if paired else donor % 2
    x = rng.normal(0, donor_sd, (n_donors, dims))[donor] + rng.normal(size=(len(donor), dims))
    x[(group == 1) & (rng.random(len(x)) < share)] += shift
    obs = pd.DataFrame({"group": np.array(["a", "b"])[group], "donor": [f"d{i}" for i in donor]})
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    adata = ad.AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)
    adata.obsm["z"] = x
    return adata


def mean_kernel(x, y, scales):
    return np.mean([[np.mean(np.exp(-np.sum((p - q) ** 2) / (2 * scales))) for q in y] for p in x])


def one(adata, **more):
    return sa.compare.groups(adata, "z", groupby="group", **more).iloc[0]


def test_statistic_across_donors_is_a_double_loop_over_donors():
    adata = cells(5, 12, shift=1.0)
    x, donors = adata.obsm["z"].astype(np.float32), adata.obs["donor"].to_numpy()
    scales = median_scales(torch.as_tensor(x)).numpy().astype(float)
    parts = {d: x[donors == d] for d in np.unique(donors)}
    of = {d: adata.obs["group"][donors == d].iloc[0] for d in parts}
    found = []
    for one_group, other in (("a", "a"), ("b", "b"), ("a", "b")):
        pairs = [(d, e) for d in parts for e in parts if d != e and (of[d], of[e]) == (one_group, other)]
        found.append(np.mean([mean_kernel(parts[d], parts[e], scales) for d, e in pairs]))
    row = one(adata, donor_key="donor")
    assert row["design"] == "across donors"
    assert row["statistic"] == pytest.approx(found[0] + found[1] - 2 * found[2], rel=1e-4)
    within = (found[0] + found[1]) / 2
    assert row["effect"] == pytest.approx(np.sqrt(row["statistic"] / (1 - within)), rel=1e-4)


def test_statistic_within_donors_leaves_out_pairs_of_the_same_donor():
    adata = cells(4, 24, paired=True, shift=0.7)
    x, obs = adata.obsm["z"].astype(np.float32), adata.obs
    scales = median_scales(torch.as_tensor(x)).numpy().astype(float)
    parts = {key: x[rows] for key, rows in obs.groupby(["donor", "group"]).indices.items()}
    total, n = 0.0, 0
    for (d, g), (e, h) in itertools.product(parts, repeat=2):
        if d != e:
            total += (1 if g == h else -1) * mean_kernel(parts[d, g], parts[e, h], scales)
            n += 1
    row = one(adata, donor_key="donor")
    assert row["design"] == "within donors"
    assert row["statistic"] == pytest.approx(total / (n / 4), rel=1e-4)
    assert row["n_permutations"] == 2**4 - 1  # the real one is not among them
    assert row["smallest"] == 2 / 2**4


def test_statistic_of_cells_is_the_unbiased_mmd_and_energy_distance():
    adata = cells(4, 25, shift=0.5)
    group = np.array(adata.obs["group"] == "b")
    x = torch.tensor(np.array(adata.obsm["z"]), dtype=torch.float32)
    row = one(adata)
    assert row["design"] == "cells"
    assert row["statistic"] == pytest.approx(float(mmd2(x[~group], x[group], median_scales(x))), rel=1e-4)
    energy = sa.metrics.energy_distance(adata.obsm["z"][~group], adata.obsm["z"][group], squared=False)
    row = one(adata, test="energy")
    assert row["statistic"] == pytest.approx(energy, rel=1e-4)
    own = adata.obsm["z"][group]
    distances = [np.linalg.norm(p - q) for p, q in itertools.combinations(own, 2)]
    other = [np.linalg.norm(p - q) for p, q in itertools.combinations(adata.obsm["z"][~group], 2)]
    spread = (np.mean(distances) + np.mean(other)) / 2
    assert row["effect"] == pytest.approx(np.sqrt(energy / spread), rel=1e-4)


def test_all_labelings_give_the_exact_p_value():
    adata = cells(6, 12, shift=0.8)
    frame = sa.compare.groups(adata, "z", groupby="group", donor_key="donor")
    row, null = frame.iloc[0], frame.attrs["null"]["a | b"]
    assert len(null) == row["n_permutations"] == 19
    found = []
    donors = sorted(adata.obs["donor"].unique())
    for chosen in itertools.combinations(donors, 3):
        other = adata.copy()
        other.obs["group"] = np.where(other.obs["donor"].isin(chosen), "b", "a")
        found.append(one(other, donor_key="donor")["statistic"])
    np.testing.assert_allclose(sorted([*null, row["statistic"]]), sorted(found), rtol=1e-4, atol=1e-7)
    assert row["pvalue"] == np.mean(np.array(found) >= row["statistic"] - 1e-7)
    assert row["smallest"] == 2 / 20


def test_labelings_keep_what_they_must():
    rng = np.random.default_rng(0)
    group, donor = rng.integers(2, size=400), rng.integers(5, size=400).astype(str)
    within = design(group, donor, "cell", at_least=5)
    labels, every = within.labelings(50, rng)
    assert not every
    np.testing.assert_array_equal(labels[:, 0], within.group)
    for d in range(5):
        own = within.block == d
        np.testing.assert_array_equal(labels[own].sum(0), within.group[own].sum())
    assert len(np.unique(labels, axis=1).T) == labels.shape[1] == 1 + 50
    pairs = design(group, donor, "auto", at_least=5)
    labels, every = pairs.labelings(1000, rng)
    assert every
    assert len(np.unique(labels, axis=1).T) == labels.shape[1] == 2**5
    np.testing.assert_array_equal(labels[:, 0], pairs.group)
    assert (labels[:, 1:] != pairs.group[:, None]).any(0).all()


def test_random_features_come_near_the_kernel_and_their_number_says_how_near():
    x = torch.randn(60, 4, dtype=torch.float64)
    scales, exact = median_scales(x), kernel(x, x, median_scales(x))
    off = []
    for n in (500, 8000):
        features = RandomFeatures(4, scales, n, torch.Generator().manual_seed(0))(x)
        product = features @ features.T
        torch.testing.assert_close(product.diagonal(), torch.ones(60, dtype=torch.float64))
        off.append(float((product - exact).square().mean().sqrt()))
    assert off[1] < 0.02
    assert off[0] / off[1] == pytest.approx(4, rel=0.3)  # one over the square root


@pytest.mark.parametrize("more", [{}, {"donor_key": "donor"}])
def test_many_cells_by_features_agree_with_all_pairs(monkeypatch, more):
    adata = cells(8, 60, shift=0.5, donor_sd=0.1)
    exact = sa.compare.groups(adata, "z", groupby="group", n_permutations=400, **more)
    monkeypatch.setattr(statistics, "EXACT", 100)
    monkeypatch.setattr(statistics, "FEATURES", 20_000)
    fast = sa.compare.groups(adata, "z", groupby="group", n_permutations=400, **more)
    assert fast["statistic"][0] == pytest.approx(exact["statistic"][0], rel=0.05)
    np.testing.assert_allclose(fast.attrs["null"]["a | b"], exact.attrs["null"]["a | b"], atol=0.003)
    assert fast["pvalue"][0] == pytest.approx(exact["pvalue"][0], abs=0.01)


def test_size_is_right_with_donors_and_far_off_without():
    n, level = 200, 6 / 126  # six of the 126 ways to split ten donors into two fives
    rejected = {
        key: sum(
            one(cells(10, 12, seed=s), donor_key=key, n_permutations=252)["pvalue"] <= 0.05 for s in range(n)
        )
        for key in ("donor", None)
    }
    low, high = binom.interval(0.999, n, level)
    assert low <= rejected["donor"] <= high
    assert rejected[None] > 4 * level * n


@pytest.mark.parametrize("test", ["mmd", "energy", "classifier"])
@pytest.mark.parametrize("paired", [True, False])
def test_every_test_sees_a_shift_and_not_its_absence(test, paired):
    more = {"donor_key": "donor", "test": test, "n_permutations": 59}
    there = one(cells(10, 20, shift=1.5, paired=paired), **more)
    assert there["pvalue"] <= 0.05
    assert there["effect"] > 0.3
    absent = [one(cells(10, 20, paired=paired, seed=s), **more)["pvalue"] for s in (1, 2, 3)]
    assert max(absent) > 0.05
    assert np.mean(absent) > 0.1


def test_a_donor_effect_alone_is_none_within_donors():
    """Pairs of samples are exchangeable, however different the donors are."""
    row = one(cells(12, 40, donor_sd=5.0, paired=True, seed=4), donor_key="donor")
    assert row["pvalue"] > 0.05


def test_by_type_corrected_with_what_was_impossible_said():
    adata = cells(8, 40, shift=2.0)
    adata.obs["type"] = np.resize(["B", "T", "NK"], adata.n_obs)
    adata.obs.loc[adata.obs_names[:-6], "type"] = np.resize(["B", "T"], adata.n_obs - 6)
    adata.obs.loc[adata.obs_names[-6:], "type"] = "rare"
    frame = sa.compare.groups(adata, "z", groupby="group", by="type", donor_key="donor", at_least=5)
    assert list(frame["type"]) == ["B", "T", "rare"]
    assert frame["pvalue"].notna().tolist() == [True, True, False]
    assert "fewer than `at_least=5`" in frame["note"][2]
    p = frame["pvalue"][:2].to_numpy()
    np.testing.assert_allclose(frame["padj"][:2], np.minimum(1, [2 * p.min() if p[0] != p[1] else p[0]] * 2))
    again = pd.concat([frame, frame])  # what is attached does not get in the way
    assert len(again) == 6
    ax = sa.pl.null(frame, 1)
    assert ax.lines[0].get_xdata()[0] == frame["statistic"][1]
    assert sum(p.get_height() for p in ax.patches) == frame["n_permutations"][1]
    assert ax.get_title().startswith("T, a and b, p = ")
    other = frame.sort_values("type", ascending=False).reset_index(drop=True)
    assert sa.pl.null(other, 1).patches[0].get_x() == ax.patches[0].get_x()
    with pytest.raises(ValueError, match="Row 2 was not tested"):
        sa.pl.null(frame, 2)
    with pytest.raises(ValueError, match="pass what `groups` returned"):
        sa.pl.null(pd.DataFrame(frame.to_dict("records")))


def test_three_groups_and_a_reference():
    adata = cells(9, 12)
    adata.obs["group"] = adata.obs["donor"].map({f"d{i}": "xyz"[i % 3] for i in range(9)})
    frame = sa.compare.groups(adata, "z", groupby="group", donor_key="donor")
    assert frame[["group_a", "group_b"]].agg("".join, axis=1).tolist() == ["xy", "xz", "yz"]
    frame = sa.compare.groups(adata, "z", groupby="group", donor_key="donor", reference="y")
    assert frame[["group_a", "group_b"]].agg("".join, axis=1).tolist() == ["yx", "yz"]


def test_a_model_is_compared_in_its_own_latent_space(cells, quick):
    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, n_hidden=8, n_latent=2)
    model.train(**quick)
    model.annotate()
    ours = sa.compare.groups(model, groupby="condition", n_permutations=19)
    same = sa.compare.groups(cells, "X_vae", groupby="condition", n_permutations=19)
    pd.testing.assert_frame_equal(ours, same)
    with pytest.raises(ValueError, match="for a model its own latent representation"):
        sa.compare.groups(model, "X_vae", groupby="condition")


@pytest.mark.parametrize("more", [{"donor_key": "donor"}, {}])
def test_witness_finds_the_cells_that_differ(more):
    adata = cells(12, 60, shift=4.0, share=0.2, donor_sd=0.2, seed=3)
    x = adata.obsm["z"]
    found = sa.compare.witness(adata, "z", groupby="group", groups=("a", "b"), **more)
    moved = np.linalg.norm(x - 4.0, axis=1) < np.linalg.norm(x, axis=1)
    assert list(found.index) == list(adata.obs_names)
    significant = (found["padj"] < 0.1) & (found["witness"] > 0)
    assert significant[moved].mean() > 0.8
    assert significant[~moved].mean() < 0.1
    assert found["zscore"][moved].mean() > 2


def test_witness_is_a_double_loop_over_other_donors():
    adata = cells(4, 12, shift=1.0)
    found = sa.compare.witness(adata, "z", groupby="group", groups=("a", "b"), donor_key="donor")
    x, obs = adata.obsm["z"].astype(np.float32), adata.obs
    scales = median_scales(torch.as_tensor(x)).numpy().astype(float)
    for i in (0, 17, 40):
        by_group = {"a": [], "b": []}
        for d in obs["donor"].unique():
            if d != obs["donor"].iloc[i]:
                rows = (obs["donor"] == d).to_numpy()
                by_group[obs["group"][rows].iloc[0]].append(mean_kernel(x[[i]], x[rows], scales))
        truth = np.mean(by_group["b"]) - np.mean(by_group["a"])
        assert found["witness"].iloc[i] == pytest.approx(truth, abs=1e-5)


def test_genes_that_go_with_the_witness():
    adata = cells(8, 60, shift=3.0, share=0.5, seed=1)
    found = sa.compare.witness(adata, "z", groupby="group", groups=("a", "b"), donor_key="donor")
    rng = np.random.default_rng(0)
    rate = np.exp(np.column_stack([2 * found["zscore"].rank(pct=True), np.ones((adata.n_obs, 4)) * 1.5]))
    counts = ad.AnnData(rng.poisson(rate).astype(np.float32), obs=adata.obs)
    counts.var_names = ["with", "g1", "g2", "g3", "g4"]
    table = sa.compare.genes(counts, found)
    assert table.index[0] == "with"
    assert table["correlation"].iloc[0] > 0.4
    assert (table["n"] == 8).all()
    x = counts[found.index].X.astype(float)
    normed = np.log1p(x / x.sum(1, keepdims=True) * 1e4)
    w = found["witness"].to_numpy()
    r = [spearmanr(normed[rows, 2], w[rows]).statistic for rows in found.groupby("donor").indices.values()]
    assert table.loc["g2", "correlation"] == pytest.approx(np.mean(r), abs=1e-3)
    assert table.loc["g2", "spread"] == pytest.approx(np.std(r, ddof=1), abs=1e-3)
    stored = counts.copy()  # zeros that are stored change nothing
    stored.X = sp.csr_matrix(stored.X + 1.0)
    stored.X.data -= 1.0
    pd.testing.assert_frame_equal(sa.compare.genes(stored, found), table)
    with pytest.raises(ValueError, match="Names of cells occur more than once"):
        sa.compare.genes(ad.concat([counts, counts]), found)


def test_bad_input():
    adata = cells(4, 12)
    with pytest.raises(KeyError, match=r"`use_rep=None` is not in `adata.obsm`. Pass one of: z"):
        sa.compare.groups(adata, groupby="group")
    with pytest.raises(KeyError, match=r"`donor_key='mouse'` is not a column of `adata.obs`"):
        one(adata, donor_key="mouse")
    with pytest.raises(ValueError, match="`test='t'` is not known"):
        one(adata, test="t")
    with pytest.raises(ValueError, match="`unit='donor'` needs `donor_key`"):
        one(adata, unit="donor")
    with pytest.raises(ValueError, match="no donor has enough cells in both groups"):
        one(adata, unit="cell", donor_key="donor")
    with pytest.raises(ValueError, match="0 in both groups, 1 and 1 in one only"):
        one(cells(2, 12), donor_key="donor")
    with pytest.raises(ValueError, match="a group has 24 cells, fewer than `at_least=30`"):
        one(adata, at_least=30)
    with pytest.raises(ValueError, match="`groupby` needs two groups"):
        one(adata[adata.obs["group"] == "a"])
    with pytest.raises(ValueError, match="`reference='c'` is not known"):
        one(adata, reference="c")
    adata.obs.loc[adata.obs_names[3], "donor"] = np.nan
    with pytest.raises(ValueError, match=r"`donor_key='donor'` is missing \(NaN\) in 1 cell\(s\): cell_3"):
        one(adata, donor_key="donor")
    adata.obsm["z"][2, 0] = np.inf
    with pytest.raises(ValueError, match="not finite in 1 cells"):
        one(adata)


def test_real_donors_treated_cells_differ_and_halves_of_the_controls_do_not():
    """The naive test, on the same cells, takes any two handfuls of donors for different."""
    import scanpy as sc

    adata = sa.datasets.kang()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=20)
    many = adata.obs["cell_type"].value_counts().nlargest(4).index
    adata = adata[adata.obs["cell_type"].isin(many)].copy()
    more = {"by": "cell_type", "donor_key": "batch"}
    treated = sa.compare.groups(adata, "X_pca", groupby="condition", **more)
    assert (treated["design"] == "within donors").all()
    assert (treated["pvalue"] <= treated["smallest"] + 1e-12).all()
    assert (treated["padj"] < 0.05).all()
    controls = adata[adata.obs["condition"] == "control"].copy()
    donors = sorted(controls.obs["batch"].astype(str).unique())
    controls.obs["half"] = np.where(controls.obs["batch"].astype(str).isin(donors[::2]), "first", "second")
    halves = sa.compare.groups(controls, "X_pca", groupby="half", **more)
    assert (halves["padj"] > 0.1).all()
    naive = sa.compare.groups(controls, "X_pca", groupby="half", by="cell_type", n_permutations=200)
    assert (naive["padj"] < 0.05).sum() >= 3
    assert halves["effect"].max() < treated["effect"].min()


def test_p_values_of_all_labelings_tie_with_the_swapped_one():
    """Balanced groups: exchanging the two changes nothing, so no p-value is below 2 / N."""
    for test in ("mmd", "energy"):
        for seed in range(10):
            row = one(cells(8, 10, seed=seed, shift=0.4), donor_key="donor", test=test)
            assert row["pvalue"] * 70 % 2 == pytest.approx(0, abs=1e-9)
            assert row["pvalue"] >= row["smallest"] == 2 / 70
            few = cells(2, 4, seed=seed)
            row = one(few, test=test, at_least=2)
            assert row["pvalue"] * 70 % 2 == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_p_values_of_the_classifier_are_uniform_where_nothing_differs():
    p = [one(cells(6, 15, seed=s), donor_key="donor", test="classifier")["pvalue"] for s in range(40)]
    assert min(p) >= 1 / 20
    assert 0.35 < np.mean(p) < 0.72


def test_a_rare_group_survives_that_only_some_cells_are_looked_at(monkeypatch):
    monkeypatch.setattr(statistics, "EXACT", 200)
    adata = cells(2, 900)
    adata.obs["group"] = ["b"] * 12 + ["a"] * 1788
    adata.obsm["z"][:12] += 4
    for test in ("energy", "classifier"):
        row = one(adata, test=test, n_permutations=39)
        assert np.isfinite(row["statistic"])
        assert row["pvalue"] == row["smallest"] == 1 / 40


def test_donors_of_both_kinds_use_what_allows_a_test():
    adata = cells(7, 30, seed=2)
    donor = adata.obs["donor"].astype(str)
    both = donor.isin(["d0", "d1", "d2"])
    adata.obs.loc[both, "group"] = np.resize(["a", "b"], both.sum())
    adata.obs.loc[~both, "group"] = np.where(donor[~both] == "d3", "b", "a")
    row = one(adata, donor_key="donor")
    assert (row["design"], row["donors_a"], row["n_a"] + row["n_b"]) == ("within donors", 3, both.sum())


def test_effect_of_cells_within_donors_is_none_where_only_composition_differs():
    adata = cells(2, 200, donor_sd=0)
    donor = (adata.obs["donor"] == "d1").to_numpy()
    adata.obsm["z"][donor] += 3.0
    rng = np.random.default_rng(0)
    adata.obs["group"] = np.where(rng.random(400) < np.where(donor, 0.9, 0.1), "b", "a")
    row = one(adata, donor_key="donor", unit="cell", n_permutations=200)
    assert row["pvalue"] > 0.05
    assert row["effect"] < 0.2


def test_more_labelings_than_a_number_can_hold():
    """Eight donors with ninety cells in each group: 10^400 ways."""
    row = one(cells(8, 180, paired=True), donor_key="donor", unit="cell", n_permutations=9)
    assert row["smallest"] == 1 / 10
    assert 0.1 <= row["pvalue"] <= 1


def test_far_from_zero_is_as_good_as_near():
    adata = cells(4, 25, shift=0.5)
    far = adata.copy()
    far.obsm["z"] = far.obsm["z"] + 1e4
    for test in ("mmd", "energy"):
        assert one(far, test=test)["statistic"] == pytest.approx(one(adata, test=test)["statistic"], rel=1e-3)


def test_more_bad_input():
    adata = cells(4, 12)
    with pytest.raises(ValueError, match="`n_permutations=0` must be above zero"):
        one(adata, n_permutations=0)
    with pytest.raises(ValueError, match="`at_least=0` must be above zero"):
        one(adata, at_least=0)
    adata.obs["group_a"] = "x"
    with pytest.raises(ValueError, match="`by='group_a'` is a column of the table"):
        one(adata, by="group_a")
    adata.obs["group"] = (adata.obs["group"] == "b").astype(int)
    assert one(adata, reference=1)["group_a"] == "1"
    found = sa.compare.witness(adata, "z", groupby="group", groups=(0, 1), n_permutations=9)
    assert set(found["group"]) == {"0", "1"}
