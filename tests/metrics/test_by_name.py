"""Values of pandas go by their names: in any order the same number, with other names a message."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalloy import metrics

# the axes of each argument: genes, cells and labels that arguments share; p, t and k are cells of its own
MEANS, CELLS = {"predicted": "g", "truth": "g"}, {"predicted": "pg", "truth": "tg"}
CASES = {
    "accuracy_at_coverage": {"correct": "c", "score": "c"},
    "best_match": {"truth": "ca", "code": "cb"},
    "bio_conservation": {"z": "cb", "labels": "c"},
    "ceilings": {"truth": "tg", "control": "kg"},
    "clr": {"log_counts": "cg"},
    "coverage": {**MEANS, "sd": "g"},
    "de_auprc": {**CELLS, "control": "kg"},
    "weighted_r2": {**CELLS, "control": "kg"},
    "de_overlap": {**CELLS, "control": "kg"},
    "energy_distance": CELLS,
    "expected_calibration_error": {"correct": "c", "confidence": "c"},
    "hierarchical_f1": {"truth": "c", "found": "c"},
    "hoyer": {"z": "cb"},
    "hungarian_accuracy": {"truth": "c", "clusters": "c"},
    "knn_accuracy": {"z": "cb", "labels": "c"},
    "majority": {"labels": "c", "clusters": "c"},
    "matched": {"truth": "c", "clusters": "c"},
    "matched_correlation": {"truth": "ca", "code": "cb"},
    "mmd": CELLS,
    "pearson_delta": {**MEANS, "control": "g"},
    "purity": {"truth": "c", "clusters": "c"},
    "r2_determination": MEANS,
    "r2_mean": MEANS,
    "r2_variance": CELLS,
    "resid_pearson_delta": {**MEANS, "control": "g", "mean_shift": "g"},
    "rmse_z": {"predicted": "cg", "truth": "cg", "sd": "g"},
    "skill": {**MEANS, "control": "g"},
    "two_sample": {"real": "tg", "generated": "pg"},
    "variable_auroc": {"predicted": "cg", "truth": "cg"},
    "variable_correlation": {"predicted": "cg", "truth": "cg"},
    "welch": {"cells": "kg", "others": "tg"},
    "wilcoxon": {"cells": "kg", "others": "tg"},
    "within": {"low": "cg", "high": "cg", "truth": "cg"},
}
OF_NUMBERS = {"spearman_brown"}
OF_MODALITIES = {"coherence"}  # takes dicts: in test_coherence
SIZES = {"g": 30, "c": 60, "p": 25, "t": 30, "k": 35, "a": 3, "b": 4}
SHARED = {"g", "c"}
MORE = {
    "de_overlap": {"k": 10},
    "de_auprc": {"fdr": 0.2},
    "hierarchical_f1": {"parents": {"a": "T", "b": "T"}},
    "accuracy_at_coverage": {"coverage": 0.5},
    "two_sample": {"n_trees": 10},
}
every = pytest.mark.parametrize("name", CASES)
several = pytest.mark.parametrize("name", [n for n, axes in CASES.items() if len(axes) > 1])


def arrays(name):
    """Arguments of a metric, as arrays, of which each order of an axis gives another value."""
    if name == "bio_conservation":
        pytest.importorskip("scib_metrics", reason="the extra `bench` is not installed")
    rng, out = np.random.default_rng(0), {}
    for i, (argument, axes) in enumerate(CASES[name].items()):
        shape = tuple(SIZES[a] for a in axes)
        if argument in {"labels", "clusters", "found"} or (argument == "truth" and axes == "c"):
            out[argument] = np.array(["a", "b", "c"])[(np.arange(60) + (rng.random(60) < 0.3)) % 3]
        else:
            common = np.linspace(0, 3, shape[-1]) + np.zeros(shape)
            changes = i * 1.5 * (np.arange(shape[-1]) % 3 == 0)
            out[argument] = common + changes + rng.random(shape)
            if axes[0] == "c" and len(axes) == 2:
                out[argument] += 3 * (np.arange(60)[:, None] % 3)
    if name == "expected_calibration_error":
        confidence = rng.random(60)
        out = {"correct": rng.random(60) < confidence, "confidence": confidence}
    if name == "accuracy_at_coverage":
        out["correct"] = rng.random(60) < out["score"] / out["score"].max()
    if name == "two_sample":  # alike in this order of the genes, and in others not
        out["generated"] = out["real"][:25] + 0.1 * rng.random((25, 30))
    if name == "variable_auroc":
        out["truth"] = out["truth"] > np.median(out["truth"], axis=0)
    if name == "within":
        out["high"] = out["low"] + 0.5
    return out


def named(values, axes, orders):
    """A Series or a frame of an array, in these orders of its axes."""
    index = [pd.Index([f"{a}_{i}" for i in range(SIZES[a])]) for a in axes]
    made = pd.Series(values, index[0]) if len(axes) == 1 else pd.DataFrame(values, *index)
    for i, a in enumerate(axes):
        if a in orders:
            made = made.take(orders[a], axis=i)
    return made


def in_orders(name, *, first=True):
    """Arguments of pandas, each in an order of its own, but for the first."""
    rng, out = np.random.default_rng(1), {}
    for argument, values in arrays(name).items():
        shared = SHARED & set(CASES[name][argument])
        orders = {a: rng.permutation(SIZES[a]) for a in sorted(shared)} if out or not first else {}
        out[argument] = named(values, CASES[name][argument], orders)
    return out


def call(name, given):
    return getattr(metrics, name)(**given, **MORE.get(name, {}))


def test_every_metric_is_here():
    assert set(CASES) | OF_NUMBERS | OF_MODALITIES | {"METRICS", "register"} == set(metrics.__all__)


@every
def test_order_does_not_matter(name):
    agree(call(name, in_orders(name)), call(name, arrays(name)))


def agree(found, expected):
    """Numbers but for rounding, and names."""
    if isinstance(expected, dict):
        expected, found = list(expected.values()), list(found.values())
    if np.asarray(expected).dtype.kind == "O":
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.isfinite(np.asarray(expected, dtype=float)).all()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@every
@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_are_taken_as_arrays(name, kind):
    given = {
        k: kind(kind(row) if np.ndim(row) else row for row in v.tolist()) for k, v in arrays(name).items()
    }
    agree(call(name, given), call(name, arrays(name)))
    rows = {k: list(v) for k, v in arrays(name).items()}  # as of one array for each cell
    agree(call(name, rows), call(name, arrays(name)))


@pytest.mark.parametrize("name", [n for n in CASES if n != "bio_conservation"])
def test_lists_of_unequal_parts_are_refused(name):
    for argument in CASES[name]:
        given = arrays(name)
        given[argument] = [*given[argument].tolist()[:-1], [1.0] * 7]
        with pytest.raises(
            (TypeError, ValueError), match=r"Expected an array of numbers with|One label for each|Labels are"
        ):
            call(name, given)


@several
def test_positions_would_have_given_something_else(name):
    """So that the test above can fail."""
    values = {k: v.to_numpy() for k, v in in_orders(name).items()}
    with pytest.raises(AssertionError):
        agree(call(name, values), call(name, arrays(name)))


@several
def test_other_names_are_refused(name):
    given = in_orders(name)
    last = list(given)[-1]
    axis = min(SHARED & set(CASES[name][last]))
    place = CASES[name][last].index(axis)
    names = list(given[last].axes[place])
    gone, names[3] = names[3], "stranger"
    given[last] = given[last].set_axis(names, axis=place)
    with pytest.raises(ValueError, match=rf"1 only in `\w+`: {gone}. 1 only in `{last}`: stranger"):
        call(name, given)


@several
def test_arrays_go_by_position_where_that_is_clear(name):
    plain = arrays(name)
    for argument in plain:
        mixed = {k: named(v, CASES[name][k], {}) if k == argument else v for k, v in plain.items()}
        agree(call(name, mixed), call(name, plain))


def test_what_is_in_the_same_order_goes_with_arrays_and_what_is_not_is_refused():
    plain, given = arrays("skill"), in_orders("skill")
    with pytest.raises(
        ValueError, match=r"`predicted` and `truth` have the same genes in different orders, and `con"
    ):
        metrics.skill(given["predicted"], given["truth"], plain["control"])
    with pytest.raises(ValueError, match=r"must have the same shape: `predicted` \(30,\), `truth` \(29,\)"):
        metrics.skill(given["predicted"], plain["truth"][:29], plain["control"])


def test_numbers_are_names_among_numbers_only():
    plain, given = arrays("r2_mean"), in_orders("r2_mean")
    unnamed = pd.Series(plain["truth"])
    expected = metrics.r2_mean(**plain)
    assert metrics.r2_mean(given["predicted"], unnamed) == expected
    order = np.random.default_rng(2).permutation(30)
    assert metrics.r2_mean(pd.Series(plain["predicted"]), unnamed.iloc[order]) == pytest.approx(expected)
    assert metrics.r2_mean(unnamed.iloc[order], pd.Series(plain["predicted"])) == pytest.approx(expected)
    as_text = unnamed.iloc[order].set_axis(order.astype(str))
    assert metrics.r2_mean(pd.Series(plain["predicted"]).iloc[::-1], as_text) == pytest.approx(expected)
    by_position = metrics.r2_mean(plain["predicted"], as_text.to_numpy())
    assert metrics.r2_mean(pd.Series(plain["predicted"]), as_text) == by_position != expected


def test_names_that_occur_twice():
    a = pd.Series([1.0, 2, 3, 5], list("xyyz"))
    assert metrics.r2_mean(a, a) == pytest.approx(1)
    with pytest.raises(
        ValueError, match=r"`predicted` and `truth` have their genes in different orders, .*: y\. Make"
    ):
        metrics.r2_mean(a, a.iloc[::-1])


def test_pairs_of_positions_and_missing_arguments():
    given = in_orders("skill")
    assert metrics.skill(*given.values()) == metrics.skill(**given)
    with pytest.raises(TypeError, match="control"):
        metrics.skill(given["predicted"], given["truth"])


def test_what_a_model_says_by_gene(cells, quick):
    """A prediction in the model's order of genes against a truth in another one."""
    import scalloy as sa

    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, n_hidden=8, n_latent=2)
    model.train(**quick)
    predicted = model.get_normalized_expression(library_size=1e4)
    truth = cells.to_df()
    sorted_by_name = truth[sorted(truth.columns)].iloc[::-1]
    assert list(sorted_by_name.columns) != list(truth.columns)
    for metric, left in ((metrics.r2_mean, lambda f: f.mean()), (metrics.r2_variance, lambda f: f)):
        assert metric(left(predicted), left(sorted_by_name)) == pytest.approx(
            metric(left(predicted), left(truth))
        )


def test_labels_may_be_half_precision_numbers():
    labels = np.array([0, 0, 1, 1], dtype=np.float16)
    assert metrics.hungarian_accuracy(labels, labels) == 1.0
    assert metrics.purity(labels, [0, 0, 0, 1]) == 0.75
