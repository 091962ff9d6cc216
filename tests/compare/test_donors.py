"""Distances between donors: against double loops, sums of squares, all orders by hand, and simulations."""

from __future__ import annotations

import itertools

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from scipy.cluster.hierarchy import fcluster, leaves_list
from scipy.spatial.distance import cdist
from scipy.stats import binom

import scalloy as sa
from scalloy.blocks.divergences import median_scales
from scalloy.compare import donor_distances, statistics
from scalloy.compare.donor_distances import Squared, average, squared_distances
from scalloy.compare.explained import arrangements, explained, table

mpl.use("Agg")


def cells(n_donors=8, n=30, *, dims=3, donor_sd=0.5, shift=0.0, sizes=None, seed=0):
    """Cells of donors, each with its own mean; those of group b are shifted."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n if sizes is None else sizes)
    x = rng.normal(0, donor_sd, (n_donors, dims))[donor] + rng.normal(size=(len(donor), dims))
    x[:, 0] += shift * (donor % 2)
    obs = pd.DataFrame({"donor": [f"d{i:02}" for i in donor], "group": np.array(["a", "b"])[donor % 2]})
    obs["age"] = rng.permutation(n_donors)[donor] * 10
    obs["type"] = np.resize(["B", "T", "T"], len(obs))
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    adata = ad.AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)
    adata.obsm["z"] = x
    return adata


def run(adata, **more):
    return sa.compare.donors(adata, "z", **{"donor_key": "donor", "n_permutations": 99, **more})


def points(n, dims=3, seed=0):
    """Exact squared distances between points, without noise."""
    y = np.random.default_rng(seed).normal(size=(n, dims))
    return y, Squared(cdist(y, y, "sqeuclidean"), np.zeros(n))


def judged(squared, n_permutations=99, **covariates):
    frame = pd.DataFrame(covariates, index=[f"d{i}" for i in range(len(squared.noise))])
    rows = explained(squared, frame, n_permutations, np.random.default_rng(0))
    return table(rows).set_index("covariate")


def loop(x, y, kernel):
    """Unbiased squared distance of two samples, pair by pair."""
    own = [np.mean([kernel(p, q) for p, q in itertools.permutations(s, 2)]) for s in (x, y)]
    return own[0] + own[1] - 2 * np.mean([kernel(p, q) for p in x for q in y])


# distances ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["energy", "mmd"])
def test_distances_are_double_loops_and_their_mean_is_weighted(distance):
    adata = cells(4, 12, sizes=[9, 12, 15, 18])
    found = run(adata, by="type", distance=distance, at_least=3)
    x, obs = adata.obsm["z"], adata.obs
    for level, frame in found.by_population.items():
        inside = (obs["type"] == level).to_numpy()
        scales = median_scales(torch.as_tensor(x[inside])).numpy()
        kernels = {
            "energy": lambda p, q: -np.linalg.norm(p - q),
            "mmd": lambda p, q, a=scales: np.mean(np.exp(-np.sum((p - q) ** 2) / (2 * a))),
        }
        of = {d: x[inside & (obs["donor"] == d).to_numpy()] for d in frame.index}
        for d, e in itertools.combinations(frame.index, 2):
            truth = loop(of[d], of[e], kernels[distance])
            assert frame.loc[d, e] == frame.loc[e, d] == pytest.approx(truth, rel=1e-4, abs=1e-6)
        assert (np.diagonal(frame) == 0).all()
    share = pd.crosstab(obs["donor"], obs["type"], normalize="index").mean()
    np.testing.assert_allclose(found.weights[share.index], share)
    expected = sum(share[k] * found.by_population[k] for k in share.index)
    np.testing.assert_allclose(found.distances, expected)
    assert found.distance == distance


@pytest.mark.parametrize("distance", ["energy", "mmd"])
def test_random_parts_of_a_donor_have_distance_zero_on_average(distance):
    """However few cells there are; with the pairs of a cell with itself they would not."""
    sizes, rng, unbiased, raw = [4, 8, 20, 60], np.random.default_rng(0), [], []
    for _ in range(300):
        x, donor = rng.normal(size=(sum(sizes), 2)), np.repeat(np.arange(4), sizes)
        found = squared_distances(x, donor, 4, distance=distance, at_least=2, rng=rng)
        unbiased.append(found.between[np.triu_indices(4, 1)])
        raw.append(found.raw()[np.triu_indices(4, 1)])
    z = np.mean(unbiased, 0) / (np.std(unbiased, 0) / np.sqrt(300))
    assert np.abs(z).max() < 3.5
    assert (np.mean(raw, 0) / (np.std(raw, 0) / np.sqrt(300))).min() > 10
    assert np.min(raw) > 0


def test_raw_distances_include_the_pairs_of_a_cell_with_itself():
    adata = cells(3, 7)
    x, donor = adata.obsm["z"], np.repeat(np.arange(3), 7)
    found = squared_distances(x, donor, 3, distance="energy", at_least=2, rng=np.random.default_rng(0))
    k = -cdist(x, x)
    mean = np.array([[k[np.ix_(donor == i, donor == j)].mean() for j in range(3)] for i in range(3)])
    truth = np.diagonal(mean)[:, None] + np.diagonal(mean) - 2 * mean
    np.testing.assert_allclose(found.raw(), truth, atol=1e-6)


def test_many_cells_are_thinned_or_approximated(monkeypatch):
    adata = cells(5, 120, shift=1.0)
    exact = {d: run(adata, distance=d).distances.to_numpy() for d in ("energy", "mmd")}
    monkeypatch.setattr(statistics, "EXACT", 100)
    monkeypatch.setattr(statistics, "FEATURES", 20_000)
    features = run(adata, distance="mmd").distances.to_numpy()
    np.testing.assert_allclose(features, exact["mmd"], atol=0.004)
    assert np.abs(features - exact["mmd"]).max() > 1e-7
    monkeypatch.setattr(donor_distances, "ALL_PAIRS", 200)
    some = [run(adata, rng=seed).distances.to_numpy() for seed in range(60)]
    assert np.std(some, 0).max() > 0.01
    off = np.triu_indices(5, 1)
    z = (np.mean(some, 0) - exact["energy"])[off] / (np.std(some, 0)[off] / np.sqrt(60))
    assert np.abs(z).max() < 4  # no bias


def test_chosen_cells_are_as_many_of_each_donor_as_possible():
    donor = np.repeat([3, 5, 8, 9], [10, 40, 200, 500])
    for n, expected in ((100, [10, 30, 30, 30]), (300, [10, 40, 125, 125]), (749, [10, 40, 200, 499])):
        kept = donor_distances._evenly(donor, n, np.random.default_rng(0))
        assert [int((donor[kept] == d).sum()) for d in (3, 5, 8, 9)] == expected
        assert len(set(kept)) == len(kept)
    assert len(donor_distances._evenly(donor, 750, np.random.default_rng(0))) == 750
    assert len(donor_distances._evenly(np.arange(6).repeat(4), 3, np.random.default_rng(0))) == 12


def test_pairs_use_the_populations_that_both_have():
    nan = np.nan
    a = Squared(np.array([[0.0, 1, nan], [1, 0, nan], [nan, nan, nan]]), np.array([0.1, 0.2, nan]))
    b = Squared(np.array([[0.0, 5, 6], [5, 0, 7], [6, 7, 0]]), np.array([0.3, 0.4, 0.5]))
    both = average([a, b], np.array([3.0, 1.0]))
    np.testing.assert_allclose(both.between, [[0, 2, 6], [2, 0, 7], [6, 7, 0]])
    np.testing.assert_allclose(both.noise, [0.15, 0.25, 0.5])


def test_donors_with_few_cells_and_missing_populations():
    adata = cells(6, 30)
    donor, kind = adata.obs["donor"], adata.obs["type"]
    kept = ~((donor == "d01") & (kind == "B")) & ~((donor == "d04") & (np.arange(180) % 30 > 5))
    adata = adata[kept].copy()
    found = run(adata, by="type", covariates="group", at_least=8)
    others = ["d00", "d01", "d02", "d03", "d05"]
    assert list(found.distances) == list(found.groups(2).index) == list(found.coordinates.index) == others
    assert found.distances.notna().all(axis=None)
    assert found.by_population["B"].loc["d01"].isna().all()
    assert found.by_population["B"].notna().to_numpy().sum() == 16
    np.testing.assert_allclose(found.distances.loc["d01"], found.by_population["T"].loc["d01"])
    assert found.outlying.index[-1] == "d04"
    last = found.outlying.loc["d04"]
    assert (last["n_cells"], last["note"]) == (6, "fewer than 8 cells in each population")
    assert np.isnan(last["distance"])
    assert np.isnan(last["zscore"])
    assert (found.outlying["note"][:-1] == "").all()
    by_type = found.explained_by_population.set_index("population")
    assert by_type["donors"].to_dict() == {"B": 4, "T": 5}
    assert found.explained["donors"].tolist() == [5]


# variance explained -------------------------------------------------------------------------------


def test_one_way_is_the_analysis_of_variance_of_anderson():
    """Sums of squared distances within groups over their sizes (Anderson 2001), without any projection."""
    _, squared = points(9)
    group = np.array(list("aabbbbccc"))
    d2, n = squared.between, 9
    total = sum(d2[i, j] for i, j in itertools.combinations(range(n), 2)) / n
    within = 0.0
    for g in "abc":
        some = np.flatnonzero(group == g)
        within += sum(d2[i, j] for i, j in itertools.combinations(some, 2)) / len(some)
    row = judged(squared, group=group).loc["group"]
    assert row["r2"] == row["r2_alone"] == pytest.approx(1 - within / total)
    assert row["f"] == pytest.approx((total - within) / 2 / (within / 6))
    assert row["r2_adjusted"] == pytest.approx(1 - within / total - 2 * (within / 6) / total)
    assert (row["df"], row["donors"]) == (2, 9)


def test_several_covariates_are_sums_of_squares_of_regressions():
    """For points in space, what a covariate explains is what a regression without it misses."""
    y, squared = points(14, 4)
    rng = np.random.default_rng(1)
    given = {
        "sex": rng.choice(["f", "m"], 14),
        "age": rng.normal(50, 10, 14),
        "site": np.array(list("xyz"))[np.arange(14) % 3],
    }
    design = {"sex": [given["sex"] == "f"], "age": [given["age"]], "site": [given["site"] == s for s in "xy"]}

    def missed(keys):
        x = np.column_stack([np.ones(14), *(c for k in keys for c in design[k])]).astype(float)
        return np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum()

    total, least = missed([]), missed(list(design))
    frame = judged(squared, **given)
    for key in design:
        row, ss = frame.loc[key], missed([k for k in design if k != key]) - least
        assert row["r2"] == pytest.approx(ss / total)
        assert row["r2_alone"] == pytest.approx(1 - missed([key]) / total)
        assert row["f"] == pytest.approx(ss / row["df"] / (least / (14 - 5)))
    assert frame["df"].to_dict() == {"sex": 1, "age": 1, "site": 2}


def test_all_labelings_give_the_exact_p_value():
    y, squared = points(6)
    y[:3] += 0.8
    squared = Squared(cdist(y, y, "sqeuclidean"), squared.noise)
    between = []
    for chosen in itertools.combinations(range(6), 3):
        rest = [i for i in range(6) if i not in chosen]
        between.append(np.square(y[list(chosen)].mean(0) - y[rest].mean(0)).sum())
    row = judged(squared, group=list("aaabbb")).loc["group"]
    assert row["n_permutations"] == 19
    assert row["pvalue"] == np.mean(np.array(between) >= between[0] - 1e-9)
    assert row["smallest"] == 2 / 20


def test_all_orders_of_a_number_give_the_exact_p_value():
    y, squared = points(5)
    age = np.array([0.0, 1, 2, 3, 4])

    def slope(order):
        return np.square((age[list(order)] - 2) @ y).sum()

    truth = [slope(order) for order in itertools.permutations(range(5))]
    row = judged(squared, 200, age=age).loc["age"]
    assert row["n_permutations"] == 119
    assert row["pvalue"] == np.mean(np.array(truth) >= truth[0] - 1e-9)
    assert row["smallest"] == 2 / 120  # the order from the end is the same line
    assert judged(squared, 200, age=age**2).loc["age", "smallest"] == 1 / 120


def test_residuals_are_permuted_where_there_are_other_covariates():
    """Freedman & Lane, on the points themselves: fit without the covariate, permute, fit again."""
    y, squared = points(6, seed=3)
    rng = np.random.default_rng(5)
    age, dose = rng.normal(size=6), rng.normal(size=6)
    y += np.outer(dose, [1.0, 0, 0])
    squared = Squared(cdist(y, y, "sqeuclidean"), squared.noise)

    def fit(values, x):
        return x @ np.linalg.lstsq(x, values, rcond=None)[0]

    def f(values, x, rest):
        left = np.square(values - fit(values, x)).sum()
        return (np.square(values - fit(values, rest)).sum() - left) / (left / 3)

    for key, tested, other in (("age", age, dose), ("dose", dose, age)):
        rest = np.column_stack([np.ones(6), other])
        x, expected = np.column_stack([rest, tested]), fit(y, rest)
        values = [f(expected + (y - expected)[list(p)], x, rest) for p in itertools.permutations(range(6))]
        row = judged(squared, 719, age=age, dose=dose).loc[key]
        assert row["f"] == pytest.approx(values[0])
        assert row["pvalue"] == pytest.approx(np.mean(np.array(values) >= values[0] - 1e-9))
        assert row["n_permutations"] == 719


def test_samples_of_a_donor_are_exchanged_with_each_other():
    """Eight donors with two samples each: the signs of their differences."""
    rng = np.random.default_rng(2)
    donor, side = np.repeat(np.arange(8), 2), np.tile([0, 1], 8)
    y = rng.normal(0, 3, (8, 2))[donor] + rng.normal(size=(16, 2)) + 0.8 * side[:, None]
    squared = Squared(cdist(y, y, "sqeuclidean"), np.zeros(16))
    row = judged(squared, 300, side=np.array(["l", "r"])[side], donor=[f"d{i}" for i in donor]).loc["side"]
    gaps = y[1::2] - y[::2]
    sizes = [np.square(np.array(s) @ gaps).sum() for s in itertools.product([1, -1], repeat=8)]
    assert row["permuted"] == "donors within donor"
    assert row["n_permutations"] == 255
    assert row["pvalue"] == np.mean(np.array(sizes) >= sizes[0] - 1e-9)
    assert row["smallest"] == 2 / 256


def test_what_is_permuted_depends_on_the_other_covariates():
    rng, n = np.random.default_rng(0), 12
    squared = points(n)[1]
    sex, pair = list("fm" * 6), [f"p{i // 2}" for i in range(n)]
    given = {"group": list("aaabbb" * 2), "age": rng.normal(size=n)}
    assert judged(squared, group=given["group"])["permuted"].tolist() == ["donors"]
    assert judged(squared, **given)["permuted"].tolist() == ["residuals", "donors within group"]
    three = judged(squared, **given, dose=rng.normal(size=n))["permuted"]
    assert three.tolist() == ["residuals", "residuals within group", "residuals within group"]
    assert judged(squared, sex=sex, group=given["group"])["permuted"]["group"] == "donors within sex"
    assert judged(squared, pair=pair, sex=sex)["permuted"]["sex"] == "residuals"  # 64 orders within pairs


def test_arrangements_are_all_that_differ_or_random():
    rng, kinds = np.random.default_rng(0), np.array([2, 0, 2, 1, 0])
    free = np.zeros(5)
    orders = arrangements(kinds, 29, rng, free)
    assert len(orders) == 30  # 5! / (2! 2! 1!)
    assert len({tuple(kinds[o]) for o in orders}) == 30
    assert set(map(tuple, np.sort(orders, 1))) == {(0, 1, 2, 3, 4)}
    np.testing.assert_array_equal(orders[0], np.arange(5))
    orders = arrangements(kinds, 28, rng, free)
    assert orders.shape == (29, 5)
    np.testing.assert_array_equal(orders[0], np.arange(5))
    assert set(map(tuple, np.sort(orders, 1))) == {(0, 1, 2, 3, 4)}
    assert len(arrangements(np.array([0] * 1200 + [1]), 1500, rng, np.zeros(1201))) == 1201
    within = np.array([0, 0, 0, 1, 1])  # 3! orders of the first three, which are 3 that differ, and 2!
    orders = arrangements(kinds, 5, rng, within)
    assert len({tuple(kinds[o]) for o in orders}) == len(orders) == 6
    random = arrangements(kinds, 4, rng, within)
    assert random.shape == (5, 5)
    for some in (orders, random):
        np.testing.assert_array_equal(some[0], np.arange(5))
        np.testing.assert_array_equal(within[some], np.tile(within, (len(some), 1)))


def test_smallest_p_value_counts_names_of_levels_that_may_be_exchanged():
    """Three groups of three have 1,680 labelings in sets of six that are the same partition."""
    row = judged(points(9)[1], 1679, group=list("aaabbbccc")).loc["group"]
    assert row["smallest"] == 6 / 1680
    row = judged(points(9)[1], 999, group=list("aaabbbccc")).loc["group"]
    assert 1 / 1000 <= row["smallest"] < 0.015


def test_half_of_the_donors_by_chance_explains_as_much_as_expected():
    adjusted, alone = [], []
    for seed in range(60):
        found = run(cells(10, 12, donor_sd=1, seed=seed), covariates="group", n_permutations=1)
        adjusted.append(found.explained["r2_adjusted"][0])
        alone.append(found.explained["r2"][0])
    assert abs(np.mean(adjusted)) < 3.5 * np.std(adjusted) / np.sqrt(60)
    assert np.mean(alone) == pytest.approx(1 / 9, abs=0.04)


@pytest.mark.parametrize("numeric", [True, False])
def test_size_of_the_test_where_another_covariate_matters(numeric):
    """Twelve donors: the tested covariate is random, the other one moves the cells."""
    n, rejected, seen = 200, 0, 0
    for seed in range(n):
        adata, rng = cells(12, 12, shift=1.5, seed=seed), np.random.default_rng(1000 + seed)
        marker = dict(zip(sorted(set(adata.obs["donor"])), rng.normal(size=12)))
        adata.obs["marker"] = adata.obs["donor"].map(marker).astype(float)
        if numeric:
            adata.obs["group"] = (adata.obs["group"] == "b").astype(float)
        found = run(adata, covariates=["marker", "group"], n_permutations=199, rng=seed).explained
        p = found.set_index("covariate")["pvalue"]
        assert found["permuted"][0] == ("residuals" if numeric else "donors within group")
        rejected += p["marker"] <= 0.05
        seen += p["group"] <= 0.05
    low, high = binom.interval(0.99, n, 0.05)
    assert max(4, low) <= rejected <= min(18, high)
    assert seen > 0.9 * n


def test_kinds_of_covariates():
    adata = cells(8, 20, shift=1.0)
    adata.obs["female"] = adata.obs["group"] == "a"
    adata.obs["stage"] = pd.Categorical(adata.obs["age"] // 30 % 3, categories=[2, 1, 0, 7])
    more = ["group", "age", "stage"]
    found = run(adata, covariates=more)
    assert found.explained["covariate"].tolist() == more
    assert found.explained["df"].tolist() == [1, 1, 2]
    assert found.covariates["age"].dtype == float
    assert found.covariates.loc["d03", "group"] == "b"
    alone = {key: run(adata, covariates=key).explained.iloc[0] for key in ("group", "female", "age")}
    assert alone["female"]["r2"] == pytest.approx(alone["group"]["r2"])
    d2 = found.distances.to_numpy()
    g = -(np.eye(8) - 1 / 8) @ d2 @ (np.eye(8) - 1 / 8) / 2
    age = found.covariates["age"].to_numpy()
    age = age - age.mean()
    assert alone["age"]["r2"] == pytest.approx(age @ g @ age / (age @ age) / np.trace(g))
    assert run(adata, covariates=("group", "group")).explained["covariate"].tolist() == ["group"]
    nothing = run(adata)
    assert len(nothing.explained) == len(nothing.explained_by_population) == 0
    assert list(nothing.explained) == list(found.explained)


def test_covariates_that_cannot_be_judged_say_why():
    rng = np.random.default_rng(0)
    squared, group, age = points(8)[1], list("aabbaabb"), rng.normal(size=8)
    frame = judged(
        squared, group=group, same=["x"] * 8, each=list("abcdefgh"), again=list("ccddccdd"), age=age
    )
    notes = frame["note"]
    assert notes["same"] == "the same for all donors"
    assert notes["each"] == "each donor has a level of its own, so there are no replicates"
    assert notes["group"] == "cannot be told from again, age"
    assert notes["again"] == "cannot be told from group, age"
    assert notes["age"] == ""
    assert frame["pvalue"].notna().tolist() == [False] * 4 + [True]
    assert frame.loc["group", "r2_alone"] == frame.loc["again", "r2_alone"] > 0
    alone = judged(squared, group=group, age=age).loc["age"]
    assert frame.loc["age", ["r2", "f"]].tolist() == pytest.approx(alone[["r2", "f"]].tolist())
    few = judged(points(4)[1], a=[0.0, 1, 2, 4], b=[1.0, 0, 5, 2], c=[3.0, 3, 1, 0])
    assert (few["note"] == "4 donors are too few for 3 parameters of all covariates").all()
    assert few["r2"].isna().all()
    none = judged(Squared(np.zeros((5, 5)), np.zeros(5)), a=list("xxyyy"))
    assert none.loc["a", "note"] == "donors do not differ at all"
    rows = run(cells(8, 40, donor_sd=0, seed=1), covariates="group").explained
    assert rows["note"][0] == "sampling of cells makes up most of the distances"
    assert np.isnan(rows["r2"][0])
    assert rows["pvalue"][0] > 0.05


def test_adjusted_over_all_rows():
    adata = cells(8, 40, shift=2.0, donor_sd=0.3)
    frame = run(adata, by="type", covariates=["group", "age"], n_permutations=500).explained_by_population
    assert frame[["population", "covariate"]].agg("-".join, axis=1).tolist() == [
        "B-group",
        "B-age",
        "T-group",
        "T-age",
    ]
    p = np.sort(frame["pvalue"])
    by_hand = np.minimum.accumulate((p * 4 / np.arange(1, 5))[::-1])[::-1].clip(max=1)
    np.testing.assert_allclose(np.sort(frame["padj"]), by_hand)
    assert (frame["padj"][[0, 2]] < 0.05).all()


def test_the_population_that_carries_the_difference_is_seen():
    adata = cells(8, 60)
    moved = (adata.obs["type"] == "B") & (adata.obs["group"] == "b")
    adata.obsm["z"][moved.to_numpy(), 1] += 4.0
    found = run(adata, by="type", covariates="group", n_permutations=500)
    r2 = found.explained_by_population.set_index("population")["r2_adjusted"]
    assert r2["B"] > 0.7
    assert r2["T"] < 0.3


# outliers, tree, map ------------------------------------------------------------------------------


def test_an_outlier_is_found_with_the_population_that_makes_it_one():
    adata = cells(10, 30)
    odd = (adata.obs["donor"] == "d04") & (adata.obs["type"] == "B")
    adata.obsm["z"][odd.to_numpy()] += 4.0
    frame = run(adata, by="type").outlying
    assert frame.index[0] == "d04"
    assert frame["zscore"].iloc[0] > 3.5
    assert frame["population"].iloc[0] == "B"
    assert (frame["zscore"].iloc[1:] < 3.5).all()
    assert (frame["n_cells"] == 30).all()


def test_distances_to_others_and_their_scores_by_hand():
    adata = cells(6, 20)
    found = run(adata)
    d2 = found.distances.to_numpy()
    far = np.array([np.sqrt(np.mean([d2[i, j] for j in range(6) if j != i])) for i in range(6)])
    np.testing.assert_allclose(found.outlying["distance"][list(found.distances)], far)
    off = np.log(far) - np.median(np.log(far))
    score = off / (1.4826 * 1.2 * np.median(np.abs(off)))  # 1.2: six donors
    np.testing.assert_allclose(found.outlying["zscore"][list(found.distances)], score)
    assert found.outlying["distance"].is_monotonic_decreasing


@pytest.mark.parametrize("n", [6, 8, 20])
def test_donors_that_belong_together_are_rarely_called_outliers(n):
    from scalloy.compare.donors import _far

    called = {0.0: 0, 6.0: 0}
    for seed in range(200):
        y = np.random.default_rng(seed).normal(size=(n, 4))
        for off in called:
            y[0, 0] += off
            score = _far(cdist(y, y, "sqeuclidean"))[1]
            called[off] += (score > 3.5).any() if off == 0 else score[0] > 3.5
    assert called[0.0] <= 0.15 * 200
    assert called[6.0] >= (0.4 if n == 6 else 0.6) * 200


def test_scores_take_five_donors_and_distances_above_zero():
    from scalloy.compare.donors import _far

    far, score = _far(cdist(*[np.arange(4.0)[:, None]] * 2, "sqeuclidean"))
    assert np.isfinite(far).all()
    assert np.isnan(score).all()
    squared = cdist(*[np.array([0.0, 1, 3, 6, 10, 15])[:, None]] * 2, "sqeuclidean")
    squared[2] = squared[:, 2] = -0.1
    far, score = _far(squared)
    assert far[2] == 0
    assert np.isnan(score).tolist() == [False, False, True, False, False, False]
    far, score = _far(-np.ones((6, 6)))
    assert np.isnan(score).all()


def test_planted_groups_of_donors_are_recovered_by_the_tree():
    found = run(cells(12, 30, donor_sd=0.2, shift=2.0))
    groups = found.groups(2)
    assert groups.nunique() == pd.crosstab(groups, [i % 2 for i in range(12)]).gt(0).to_numpy().sum() == 2
    apart = np.sqrt(found.distances.clip(lower=0)).loc[groups == "group 1", groups == "group 2"]
    assert found.tree[-1, 2] == pytest.approx(apart.to_numpy().mean())
    for n in (1, 2, 5, 11, 12):
        ours = found.groups(n)
        along = ours.iloc[leaves_list(found.tree)]  # numbered as they stand in the tree
        assert list(dict.fromkeys(along)) == [f"group {i + 1}" for i in range(n)]
        other = fcluster(found.tree, n, "maxclust")
        assert pd.crosstab(ours, other).gt(0).to_numpy().sum() == n


def test_groups_of_donors_lead_to_the_cells_that_differ():
    adata = cells(12, 60, donor_sd=0.2)
    rng = np.random.default_rng(0)
    moved = ((adata.obs["group"] == "b") & (rng.random(adata.n_obs) < 0.4)).to_numpy()
    adata.obsm["z"][moved, 2] += 5.0
    adata.obs["set"] = adata.obs["donor"].map(run(adata).groups(2))
    ours = adata.obs.loc[moved, "set"].iloc[0]
    other = next(name for name in ("group 1", "group 2") if name != ours)
    found = sa.compare.witness(adata, "z", groupby="set", groups=(other, ours), donor_key="donor")
    assert set(adata.obs.loc[moved, "set"]) == {ours}
    assert found["zscore"][moved].mean() > 2 > 1 > found["zscore"][~moved].mean()


def test_map_shows_the_distances_of_points_in_a_plane():
    adata = cells(6, 40, dims=2, donor_sd=30.0)
    found = run(adata)
    values = np.linalg.eigvalsh(sa.compare.explained.gower(found.distances.to_numpy()))[::-1]
    xy = found.coordinates.to_numpy()
    np.testing.assert_allclose(np.square(xy).sum(0), values[:2])
    np.testing.assert_allclose(found.coordinates.attrs["share"], values[:2] / values[values > 0].sum())
    np.testing.assert_allclose(xy.sum(0), 0, atol=1e-9)
    plane = np.random.default_rng(0).normal(size=(6, 2))
    d2 = cdist(plane, plane, "sqeuclidean")
    from scalloy.compare.donors import _coordinates

    drawn = _coordinates(d2, found.distances.index).to_numpy()
    np.testing.assert_allclose(cdist(drawn, drawn, "sqeuclidean"), d2)


def test_a_model_is_looked_at_in_its_own_latent_space(cells, quick):
    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, n_hidden=8, n_latent=2)
    model.train(**quick)
    model.annotate()
    cells.obs["lane"] = [f"lane {i % 5}" for i in range(cells.n_obs)]
    ours = sa.compare.donors(model, donor_key="lane")
    same = sa.compare.donors(cells, "X_vae", donor_key="lane")
    pd.testing.assert_frame_equal(ours.distances, same.distances)


def test_real_samples_treatment_explains_much_and_random_halves_nothing():
    import scanpy as sc

    adata = sa.datasets.kang()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=20)
    obs = adata.obs
    obs["sample"] = obs["batch"].astype(str) + " " + obs["condition"].astype(str)
    more = {"donor_key": "sample", "by": "cell_type"}
    found = sa.compare.donors(adata, "X_pca", **more, covariates=["condition", "batch"])
    frame = found.explained.set_index("covariate")
    assert frame.loc["condition", "r2"] > 0.5
    assert frame.loc["condition", "pvalue"] < 0.01
    assert set(found.groups(2).groupby(found.covariates["condition"]).nunique()) == {1}
    some = adata[obs["condition"] == "control"].copy()
    some.obs["half"] = some.obs["sample"] + np.random.default_rng(0).choice([" 1", " 2"], some.n_obs)
    some.obs["first"] = some.obs["half"].str[-1]
    halves = sa.compare.donors(some, "X_pca", donor_key="half", by="cell_type", covariates=["first", "batch"])
    assert halves.explained["pvalue"][0] > 0.05
    assert halves.explained["pvalue"][1] < 0.01


# errors -------------------------------------------------------------------------------------------


def test_bad_input():
    adata = cells(6, 12)
    with pytest.raises(
        ValueError, match=r"`covariates='type'` has several values within the same donor .'donor'.: d00"
    ):
        run(adata, covariates=["group", "type"])
    adata.obs.loc[adata.obs_names[2], "age"] += 1
    with pytest.raises(
        ValueError, match=r"`covariates='age'` has several values within the same donor .'donor'.: d00\."
    ):
        run(adata, covariates="age")
    with pytest.raises(
        TypeError, match=r"`covariates=7` is a int. Expected a column of `adata.obs`, or a list"
    ):
        run(adata, covariates=7)
    with pytest.raises(KeyError, match="`covariates='sex'` is not a column"):
        run(adata, covariates="sex")
    with pytest.raises(KeyError, match="`donor_key='mouse'` is not a column"):
        run(adata, donor_key="mouse")
    with pytest.raises(ValueError, match="`distance='wasserstein'` is not known"):
        run(adata, distance="wasserstein")
    with pytest.raises(ValueError, match="`n_permutations=0` must be above zero"):
        run(adata, n_permutations=0)
    with pytest.raises(
        ValueError, match=r"At least three donors .`donor_key='donor'`. with 13 cells or more"
    ):
        run(adata, at_least=13)
    with pytest.raises(ValueError, match="`n=7` is more than the 6 donors of the tree"):
        run(adata).groups(7)
    with pytest.raises(ValueError, match="`n=0` must be above zero"):
        run(adata).groups(0)
    adata.obs["type"] = np.where(adata.obs["donor"] == "d03", "B", "T")
    with pytest.raises(ValueError, match="Donors 'd00' and 'd03' have no population in common with 10 cells"):
        run(adata, by="type")
    adata.obs["age"] = adata.obs["age"].astype(float).where(adata.obs["donor"] != "d02")
    with pytest.raises(ValueError, match=r"`covariates='age'` is missing .NaN. in 12 cell"):
        run(adata, covariates="age")


# pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", ["group", "age", None])
@pytest.mark.parametrize("n", [8, 40])
def test_picture_shows_the_matrix_in_the_order_of_the_tree(color, n):
    found = run(cells(n, 20, shift=2.0), covariates=["group", "age"])
    matrix, chart = sa.pl.donors(found, color)
    matrix.figure.canvas.draw()
    order = [tick.get_text() for tick in matrix.get_yticklabels()]
    assert sorted(order) == list(found.distances)
    drawn = np.asarray(matrix.images[0].get_array())
    np.testing.assert_allclose(drawn, np.sqrt(found.distances.clip(lower=0).loc[order, order]))
    inset = [ax for ax in matrix.child_axes if ax.images]
    assert len(inset) == (color is not None)
    shade = {
        tuple(p): c for p, c in zip(chart.collections[0].get_offsets(), chart.collections[0].get_facecolors())
    }
    assert sorted(t.get_text() for t in chart.texts) == sorted(order)
    for text in chart.texts:
        assert tuple(text.xy) == tuple(found.coordinates.loc[text.get_text()])
    if color is not None:
        strip = np.asarray(inset[0].images[0].get_array())[0]
        for name, own in zip(order, strip):
            np.testing.assert_allclose(shade[tuple(found.coordinates.loc[name])][:3], own)
        values = found.covariates.loc[order, color]
        assert len(np.unique(strip, axis=0)) == values.nunique()
    plt.close("all")


def test_names_in_the_map_do_not_cover_each_other():
    """Two groups of donors so far apart that those of a group are crowded."""
    found = run(cells(16, 30, shift=12.0))
    chart = sa.pl.donors(found)[1]
    chart.figure.canvas.draw()
    boxes = [Text.get_window_extent(text).shrunk(0.9, 0.7) for text in chart.texts]  # without lines
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(
        chart.bbox.padded(2).containsx(box.x0) and chart.bbox.padded(2).containsx(box.x1) for box in boxes
    )
    plt.close("all")


def test_picture_of_names_of_any_spelling_and_of_the_wrong_axes():
    adata = cells(6, 12)
    adata.obs["donor"] = adata.obs["donor"].map({f"d{i:02}": f"_$x_{i}$ \\frac{{" for i in range(6)})
    adata.obs["$\\frac"] = adata.obs["group"] + "$\\frac"
    adata.obs["$\\size"] = adata.obs["group"].map({"a": 0.0, "b": 1.0})
    found = run(adata, covariates=["$\\frac", "$\\size"], distance="mmd")
    for color in found.covariates:
        sa.pl.donors(found, color)[0].figure.canvas.draw()
    axes = plt.subplots(1, 2)[1]
    assert sa.pl.donors(found, ax=axes)[1] is axes[1]
    with pytest.raises(ValueError, match=r"`ax` has 1 axes. Pass two: for the matrix and for the map"):
        sa.pl.donors(found, ax=axes[0])
    with pytest.raises(ValueError, match=r"`color='age'` is not known. Pass one of"):
        sa.pl.donors(found, "age")
    plt.close("all")
