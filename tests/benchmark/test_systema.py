"""The judge after Systema: scores by hand, and predictions that are the best and nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.stats import pearsonr, ttest_ind

from scalloy.benchmark import systema
from scalloy.benchmark.judging import HALF
from scalloy.benchmark.systema import COLUMNS, perturbed_centroid

KEYS = {"condition_key": "condition", "control": "control"}
CORRELATIONS = COLUMNS[:-1]


def made(**profiles):
    """Cells with 10,000 counts, by condition: each has the given logarithms of all genes but one."""
    rows = [(c, p) for c, every in profiles.items() for p in every]
    counts = np.expm1(np.array([p for _, p in rows], dtype=float))
    counts = np.column_stack([counts, 1e4 - counts.sum(1)])
    obs = pd.DataFrame({"condition": [c for c, _ in rows]}, index=[f"cell_{k}" for k in range(len(rows))])
    out = AnnData(counts, obs=obs)
    out.layers["counts"] = out.X.copy()
    return out


def mean(adata, condition):
    """Mean logarithms under a condition."""
    return np.log1p(adata.X[(adata.obs["condition"] == condition).to_numpy()]).mean(0)


def test_the_centroid_is_a_mean_of_means_without_the_control():
    seen = made(a=[[1, 0], [3, 0], [5, 0]], b=[[1, 4]], control=[[7, 7]])
    centroid = perturbed_centroid(seen, **KEYS)
    assert centroid[:2] == pytest.approx([2, 2])  # a has (3, 0), b (1, 4); over cells it would be (2.5, 1)
    assert centroid[2] == pytest.approx((mean(seen, "a")[2] + mean(seen, "b")[2]) / 2)
    assert perturbed_centroid(seen[4:], **KEYS) is None


@pytest.fixture
def hand():
    """Real, predicted and training cells of six genes and one that fills up."""
    rng = np.random.default_rng(0)
    real = made(**{c: rng.random((5, 6)) * 4 for c in ("control", "a", "b", "c")})
    predicted = made(**{c: rng.random((4, 6)) * 4 for c in ("a", "b", "c")})
    seen = {"a": 3, "d": 9, "control": 4}
    return predicted, real, made(**{c: rng.random((n, 6)) * 4 for c, n in seen.items()})


def test_correlations_and_accuracies_by_hand(hand, monkeypatch):
    monkeypatch.setattr(systema, "TOP", 4)
    predicted, real, seen = hand
    centroid = (mean(seen, "a") + mean(seen, "d")) / 2
    rows = []
    for c in "abc":
        p, t, k = mean(predicted, c), mean(real, c), mean(real, "control")
        rows_of = [(real.obs["condition"] == x).to_numpy() for x in (c, "control")]
        sd = [np.log1p(real.X[x]).std(0, ddof=1) for x in rows_of]
        top = np.argsort(-np.abs(t - k) / np.hypot(*sd))[:4]
        right = np.linalg.norm(p - t)
        rows.append(
            [pearsonr(p[g] - r[g], t[g] - r[g])[0] for r in (centroid, k) for g in (slice(None), top)]
            + [np.mean([np.linalg.norm(p - mean(real, o)) > right for o in "abc" if o != c])]
        )
    found = systema.judged(predicted, real, seen=seen, **KEYS)
    assert list(found) == list(COLUMNS)
    assert list(found.values()) == pytest.approx(np.mean(rows, 0), rel=1e-4)
    assert 0 < found["centroid_accuracy"] < 1


def test_the_centroid_itself_says_nothing_and_the_opposite_is_wrong(hand):
    _, real, _ = hand
    seen = made(a=[[1, 2, 3, 3, 2, 1]], control=[[4, 4, 4, 4, 4, 4]])
    same, changed = made(a=[[1, 2, 3, 3, 2, 1]]), made(control=[[1, 2, 3, 3, 2, 1]], a=[[1, 3, 3, 3, 1, 1]])
    found = systema.judged(same, changed, seen=seen, **KEYS)
    assert found["pearson_perturbed"] == found["pearson_control"] == 0
    found = systema.judged(made(a=[[1, 1, 3, 3, 3, 1]]), changed, seen=seen, **KEYS)
    assert found["pearson_perturbed"] == pytest.approx(-1, abs=1e-3)
    assert systema.judged(same, real, seen=seen, **KEYS)["pearson_control"] != 0


def test_accuracy_counts_the_conditions_that_are_farther():
    real = made(control=[[0.0]], a=[[1.0]], b=[[2.0]], c=[[4.0]], d=[[7.0]])
    # distances along one line: a is predicted nearest to b, b right, c beyond d, d between c and itself
    predicted = made(a=[[2.1]], b=[[2.0]], c=[[7.5]], d=[[5.0]])
    found = systema.judged(predicted, real, seen=real, **KEYS)["centroid_accuracy"]
    assert found == pytest.approx(np.mean([2 / 3, 1, 2 / 3, 2 / 3]))


def test_ties_are_not_farther_and_one_condition_has_no_accuracy():
    real = made(control=[[0.0]], a=[[1.0]], b=[[1.0]])
    assert systema.judged(real[1:], real, seen=real, **KEYS)["centroid_accuracy"] == 0
    found = systema.judged(real[1:2], real[:2], seen=real, **KEYS)
    assert np.isnan(found["centroid_accuracy"])


def test_genes_without_counts_under_the_condition_are_not_among_those_that_change_most(monkeypatch):
    monkeypatch.setattr(systema, "TOP", 3)
    control = [[3.0, 1.0, 1.0, 1.0, 2.0], [3.1, 1.1, 1.2, 1.1, 2.9]]
    real = made(control=control, a=[[0, 2.0, 3.0, 0.1, 2.1], [0, 2.1, 3.1, 0.2, 2.8]])
    predicted = made(a=[[9.0, 2.0, 2.4, 0.5, 0.0]])  # the first gene is far off
    found = systema.judged(predicted, real, seen=real, **KEYS)
    change = [mean(x, "a") - mean(real, "control") for x in (predicted, real)]
    assert found["pearson_control_top20"] == pytest.approx(
        np.corrcoef(*(c[1:4] for c in change))[0, 1], rel=1e-4
    )
    assert found["pearson_control"] < 0.1


def test_single_cells_have_no_other_half(hand):
    _, real, seen = hand
    found = systema.references(real[[0, 1, 5, 10]], seen=seen, **KEYS)[HALF]
    assert list(found) == list(COLUMNS)
    assert np.isnan(list(found.values())).all()


def test_training_cells_without_another_condition_leave_only_the_control(hand):
    predicted, real, seen = hand
    found = systema.judged(predicted, real, seen=seen[seen.obs["condition"] == "control"], **KEYS)
    assert np.isnan([found["pearson_perturbed"], found["pearson_perturbed_top20"]]).all()
    assert np.isfinite([found[c] for c in COLUMNS[2:]]).all()


def test_genes_of_training_cells_go_by_name(hand):
    predicted, real, seen = hand
    turned = systema.judged(predicted, real, seen=seen[:, ::-1].copy(), **KEYS)
    assert turned == pytest.approx(systema.judged(predicted, real, seen=seen, **KEYS))


def test_the_truth_is_best_and_no_change_tells_nothing_apart(by_judge, cells):
    table = by_judge("systema")
    assert list(table.columns) == ["type", "method", "seed", *COLUMNS]
    for name, rows in table.groupby("type"):
        by = rows.set_index("method")
        assert by.loc["oracle", list(COLUMNS)].tolist() == pytest.approx([1] * 5)
        assert by.loc["no change", ["pearson_control", "pearson_control_top20"]].tolist() == [0, 0]
        assert by.loc["no change", "centroid_accuracy"] == 0.5
        assert by.loc[HALF, "centroid_accuracy"] == 1
        assert (by.loc[HALF, list(CORRELATIONS)] < 1).all()
        assert by.loc["mean shift", "pearson_control"] > 0.5
        found = by.loc["no change", ["pearson_perturbed", "pearson_perturbed_top20"]].tolist()
        assert found == pytest.approx(of_no_change(cells, name), abs=1e-4)


def of_no_change(cells, name):
    """Correlation of controls and truth once the perturbed centroid of the other clusters is subtracted."""
    normed = cells.copy()
    sc.pp.normalize_total(normed, target_sum=1e4)
    sc.pp.log1p(normed)
    x, of, under = normed.to_df(), *(normed.obs[k].astype(str) for k in ("cluster", "condition"))
    treated = ["treated_1", "treated_2"]
    reference = np.mean([x[(of != name) & (under == c)].mean() for c in treated], axis=0)
    control, found = x[(of == name) & (under == "control")], []
    for c in treated:
        truth = x[(of == name) & (under == c)]
        top = np.argsort(-np.abs(ttest_ind(truth, control, equal_var=False).statistic))[:20]
        apart = np.stack([v.mean() - reference for v in (control, truth)])
        found.append([np.corrcoef(apart)[0, 1], np.corrcoef(apart[:, top])[0, 1]])
    return np.mean(found, 0)
