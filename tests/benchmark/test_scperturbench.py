"""The judge after scPerturBench: distances of known values, the best prediction, and none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

from scalloy import metrics
from scalloy.benchmark import scperturbench
from scalloy.benchmark.judging import HALF, Compared, halves
from scalloy.benchmark.scperturbench import COLUMNS, common_de, energy, symmetric_kl, wasserstein
from scalloy.benchmark.transfer import summary

KEYS = {"condition_key": "condition", "control": "control"}
LOWER = [c for c in COLUMNS if c.startswith(("mse", "energy", "sym_kldiv", "wasserstein"))]


def of_10000(first, condition):
    """Cells of three genes whose first two have these logarithms, so that the third fills up to 10,000."""
    counts = np.expm1(np.asarray(first, dtype=float))
    counts = np.column_stack([counts, 1e4 - counts.sum(1)])
    names = [f"{k}" for k in range(len(counts))]
    out = AnnData(counts, obs=pd.DataFrame({"condition": condition}, index=names))
    out.layers["counts"] = out.X.copy()
    return out


def joined(*parts):
    """Cells of several conditions."""
    obs = pd.concat([p.obs for p in parts]).reset_index(drop=True).rename(index=str)
    out = AnnData(np.concatenate([p.X for p in parts]), obs=obs)
    out.layers["counts"] = out.X.copy()
    return out


# distances ------------------------------------------------------------------------------------


def test_kl_is_that_of_gaussians():
    rng = np.random.default_rng(0)
    means, sds = np.array([0.0, 0.5, -1.0]), np.array([1.0, 2.0, 0.5])
    x, y = rng.normal(size=(200_000, 3)), rng.normal(means, sds, (200_000, 3))
    there = np.log(sds) + (1 + means**2) / (2 * sds**2) - 0.5
    back = -np.log(sds) + (sds**2 + means**2) / 2 - 0.5
    assert symmetric_kl(x, y) == pytest.approx((there + back).mean(), rel=0.01)
    assert symmetric_kl(x, x) == pytest.approx(0, abs=1e-12)


def test_kl_of_a_gene_with_counts_on_one_side_is_huge():
    x, y = np.array([[0.0], [2.0]]), np.zeros((2, 1))  # mean 1, standard deviation 1 against 1e-8
    assert symmetric_kl(x, y) == pytest.approx((1 + 1) / 2e-16, rel=1e-6)


def test_energy_by_hand_and_of_shifted_gaussians():
    assert energy(np.array([[0.0], [2.0]]), np.array([[5.0]])) == pytest.approx(2 * 4 - 1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (2000, 1)), rng.normal(1.5, 1, (2000, 1))

    def apart(shift):
        """Expected distance of two normal numbers."""
        z = shift / np.sqrt(2)
        return np.sqrt(2) * (2 * norm.pdf(z) + z * (2 * norm.cdf(z) - 1))

    assert energy(x, y) == pytest.approx(2 * apart(1.5) - 2 * apart(0), rel=0.06)
    assert energy(x, x) == pytest.approx(0, abs=1e-6)
    assert energy(x, y) == pytest.approx(metrics.energy_distance(x, y, squared=False, unbiased=False))


def test_transport_of_single_cells_is_the_squared_distance():
    assert wasserstein(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])) == pytest.approx(25)
    assert wasserstein(np.ones((3, 2)), np.ones((4, 2))) == 0


def test_transport_between_two_pairs_has_a_closed_form():
    d = 4.0
    x = np.array([[0.0], [np.sqrt(d)]])
    blur = 0.05 * d / 2
    assert wasserstein(x, x) == pytest.approx(-blur * np.log((1 + np.exp(-d / blur)) / 2), rel=1e-4)


def test_transport_is_that_of_the_best_assignment_but_for_the_entropy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.normal(4, 2, (60, 3))
    cost = np.square(x[:, None] - y).sum(-1)
    best = cost[linear_sum_assignment(cost)].mean()
    assert best < wasserstein(x, y) < best + 0.05 * cost.mean() * np.log(60)


def test_values_of_pertpy():
    """By pertpy 1.0.3 and ott-jax 0.4.6."""
    x = 1 + np.sin(np.arange(6)[:, None] * (np.arange(4) + 1))
    y = 1.5 + np.cos(np.arange(5)[:, None] * (np.arange(4) + 2))
    assert energy(x, y) == pytest.approx(0.8264479778390568)
    assert symmetric_kl(x, y) == pytest.approx(0.9934131058687306)
    assert wasserstein(x, y) == pytest.approx(3.771893474318439, rel=1e-6)


# metrics --------------------------------------------------------------------------------------


def test_means_of_a_condition_by_hand():
    control = of_10000([[1.0, 1.0], [1.0, 3.0]], "control")
    truth = of_10000([[2.0, 1.0], [4.0, 3.0]], "a")
    predicted = of_10000([[3.0, 1.0], [3.0, 2.0]], "a")
    found = scperturbench.judged(predicted, joined(control, truth), **KEYS)
    means = [np.log1p(p.X).mean(0) for p in (control, truth, predicted)]
    assert means[1][:2] == pytest.approx([3, 2])
    apart = np.square(means[2] - means[1])
    assert apart[:2] == pytest.approx([0, 0.25])
    assert found["mse"] == found["mse_top100"] == pytest.approx(apart.sum() / 3, rel=1e-4)
    r = np.corrcoef(means[2] - means[0], means[1] - means[0])[0, 1]
    assert found["pearson_delta"] == pytest.approx(r, rel=1e-5)
    x, y = (np.log1p(p.X) for p in (predicted, truth))
    assert found["sym_kldiv"] == pytest.approx(np.log2(1 + symmetric_kl(x, y)), rel=1e-4)
    assert found["energy"] == pytest.approx(energy(x, y), rel=1e-4)
    assert list(found) == list(COLUMNS)


def test_conditions_have_the_same_weight():
    control, a, b = (
        of_10000([[x, 1.0], [x, 3.0], [1.0, x]], c) for x, c in ((1.0, "control"), (2.0, "a"), (6.0, "b"))
    )
    made = of_10000([[1.0, 1.0], [1.0, 2.0]], "a"), of_10000([[7.0, 3.0]] * 5, "b")
    real = joined(control, a, b)
    both = scperturbench.judged(joined(*made), real, **KEYS)
    each = pd.DataFrame([scperturbench.judged(p, real, **KEYS) for p in made])
    assert abs(each["mse"].diff()[1]) > 0.1
    for column in COLUMNS:
        assert both[column] == pytest.approx(each[column].mean(), rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def many_genes():
    """Counts of 250 genes, of which the last 120 change, under a condition and the control."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(2, 1, 250)
    changed = rates * np.where(np.arange(250) < 130, 1, rng.choice([0.2, 5], 250))
    counts = np.concatenate([rng.poisson(rates, (80, 250)), rng.poisson(changed, (60, 250))])
    obs = pd.DataFrame({"condition": ["control"] * 80 + ["a"] * 60}, index=[f"{k}" for k in range(140)])
    return AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs)


def test_genes_that_change_are_those_of_scanpy(many_genes):
    normed = many_genes.copy()
    sc.pp.normalize_total(normed, target_sum=1e4)
    sc.pp.log1p(normed)
    sc.tl.rank_genes_groups(normed, "condition", groups=["a"], reference="control", method="t-test")
    found = normed.uns["rank_genes_groups"]
    scores = pd.Series(found["scores"]["a"], found["names"]["a"]).abs().sort_values(ascending=False)
    under = (normed.obs["condition"] == "control").to_numpy()
    x = normed.X.toarray()
    mean = pd.Series(x[~under].mean(0) - x[under].mean(0), normed.var_names)
    predicted = many_genes[under].copy()
    predicted.obs["condition"] = "a"
    predicted.layers["counts"] = predicted.X
    judged = scperturbench.judged(predicted, many_genes, **KEYS)
    assert judged["mse_top100"] == pytest.approx(np.square(mean[scores.index[:100]]).mean(), rel=1e-4)
    assert judged["mse_top100"] > 1.5 * judged["mse"]
    top = [many_genes.var_names.get_loc(g) for g in scores.index[:100]]
    assert judged["energy_top100"] == pytest.approx(energy(x[under][:, top], x[~under][:, top]), rel=1e-4)
    some = wasserstein(x[under][:, top], x[~under][:, top])
    assert judged["wasserstein_top100"] == pytest.approx(some, rel=1e-4)


def test_common_genes_are_counted(monkeypatch):
    monkeypatch.setattr(scperturbench, "TOP", 4)
    rng = np.random.default_rng(0)
    control, noise = rng.normal(size=(50, 12)), rng.normal(size=(50, 12))
    up = np.zeros(12)
    up[:4] = 5
    truth = noise + up
    cases = {
        1.0: truth,
        0.75: noise + np.roll(up, 1),
        0.5: noise - 2 * np.roll(up, 2),
        0.0: noise + np.roll(up, 6),
    }
    for share, predicted in cases.items():
        assert common_de(Compared(predicted, truth, control)) == share
    order = rng.permutation(50)  # the same cells in another order: their means differ by rounding
    assert common_de(Compared(control[order], truth, control)) == 0
    assert np.isnan(common_de(Compared(truth, control[order], control)))


def test_whole_cells_are_compared_in_some_of_them_and_means_in_all(monkeypatch, many_genes):
    predicted = many_genes[80:110].copy()
    predicted.layers["counts"] = predicted.X
    every = scperturbench.judged(predicted, many_genes, **KEYS)
    monkeypatch.setattr(scperturbench, "MOST_CELLS", 10)
    some = scperturbench.judged(predicted, many_genes, **KEYS)
    for column in COLUMNS:
        of_means = column.startswith(("mse", "pearson", "common"))
        assert (some[column] == every[column]) == of_means
    assert scperturbench._some(np.arange(30)).size == 10
    assert np.unique(scperturbench._some(np.arange(30))).size == 10


# halves ---------------------------------------------------------------------------------------


def test_each_cell_is_in_one_half_and_conditions_are_divided_evenly(cells):
    one, other = halves(cells, "condition")
    assert sorted([*one.obs_names, *other.obs_names]) == sorted(cells.obs_names)
    sizes = [half.obs["condition"].value_counts() for half in (one, other)]
    assert (sizes[0] - sizes[1]).isin([0, 1]).all()
    rows = np.flatnonzero(cells.obs["condition"] == "control")
    assert np.abs(np.diff(cells.obs_names[rows].isin(one.obs_names).astype(int))).sum() > len(rows) / 4


def test_one_half_is_judged_by_the_other(many_genes):
    truth, made = halves(many_genes, "condition")
    made = made[(made.obs["condition"] == "a").to_numpy()].copy()
    made.layers["counts"] = made.X.copy()
    expected = scperturbench.judged(made, truth, **KEYS)
    assert scperturbench.references(many_genes, **KEYS) == {HALF: expected}
    assert expected["energy"] > 2 * scperturbench.judged(made, many_genes, **KEYS)["energy"]


def test_a_single_cell_has_no_other_half(many_genes):
    alone = many_genes[:81].copy()
    found = scperturbench.references(alone, **KEYS)[HALF]
    assert list(found) == list(COLUMNS)
    assert np.isnan(list(found.values())).all()


# all together ---------------------------------------------------------------------------------


def test_the_truth_is_best_in_every_column(by_judge):
    table = by_judge("scperturbench")
    assert list(table.columns) == ["type", "method", "seed", *COLUMNS]
    assert set(table["type"]) == {"cluster_0", "cluster_1"}
    assert summary(table).xs("mean", axis=1, level=1).notna().all(axis=None)
    for _, rows in table.groupby("type"):
        by = rows.set_index("method")
        best = by.loc["oracle"]
        for column in COLUMNS:
            others = by.drop("oracle")[column]
            assert (others > best[column]).all() if column in LOWER else (others < best[column]).all(), column
        for column in ("mse", "energy", "sym_kldiv", "mse_top100", "energy_top100", "sym_kldiv_top100"):
            assert best[column] == pytest.approx(0, abs=1e-5)
        for column in ("pearson_delta", "pearson_delta_top100", "common_de"):
            assert best[column] == pytest.approx(1)
            assert by.loc["no change", column] == 0
        assert by.loc["mean shift", "mse"] < by.loc["no change", "mse"]
        assert by.loc["mean shift", "pearson_delta"] > 0.5
        assert by.loc[HALF, "energy"] < by.loc["no change", "energy"]
