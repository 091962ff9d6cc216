"""Baselines of structured conditions against definitions written out, scikit-learn, and known truth."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

import scalloy as sa
from scalloy.baselines import STRUCTURED, Contexts, structured
from scalloy.baselines.contexts import between, contexts_of
from scalloy.data.conditions import Conditions
from scalloy.perturbation.design import Content, strength
from scalloy.perturbation.similarity import typical_distance

DOSES = (1.0, 3.0, 9.0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def seen(rng):
    """Two types, two drugs in three doses and one combination; drug D in the first type only."""
    rows = [(t, {d: dose}) for t, d, dose in product("TB", "AD", DOSES) if (t, d) != ("B", "D")]
    rows += [("T", {"A": 3.0, "D": 9.0}), ("B", {"A": 3.0, "D": 9.0})]
    return Contexts.of([t for t, _ in rows], [c for _, c in rows], rng.normal(size=(len(rows), 7)))


def change(seen, group, **parts):
    """Change that was seen of a type under a condition."""
    found = [
        change
        for t, c, change in zip(seen.types, seen.contents, seen.changes, strict=True)
        if (t, c) == (group, Content.of(parts))
    ]
    assert len(found) == 1
    return found[0]


def test_sums_and_means_of_parts(seen):
    both = {"A": 3.0, "D": 9.0}
    a, d = change(seen, "T", A=3.0), change(seen, "T", D=9.0)
    np.testing.assert_allclose(sa.baselines.additive_null(seen, "T", both), a + d)
    np.testing.assert_allclose(sa.baselines.mean_of_parts(seen, "T", both), (a + d) / 2)
    elsewhere = change(seen, "B", A=3.0) + d  # D was not seen in B
    np.testing.assert_allclose(sa.baselines.additive_null(seen, "B", both), elsewhere)
    in_new_type = (change(seen, "T", A=3.0) + change(seen, "B", A=3.0)) / 2
    np.testing.assert_allclose(sa.baselines.additive_null(seen, "NK", {"A": 3.0}), in_new_type)
    unknown = sa.baselines.additive_null(seen, "T", {"A": 3.0, "E": 1.0})
    np.testing.assert_allclose(unknown, a)
    assert not STRUCTURED["no change"](seen, "T", both).any()
    assert not sa.baselines.additive_null(seen, "T", {}).any()
    assert not sa.baselines.generic_response(seen, "T", {}).any()


def test_generic_response_is_the_mean_over_conditions(seen):
    own = [change(seen, "T", **{d: dose}) for d, dose in product("AD", DOSES)]
    own.append(change(seen, "T", A=3.0, D=9.0))
    found = sa.baselines.generic_response(seen, "T", {"E": 1.0})
    np.testing.assert_allclose(found, np.mean(own, axis=0))


@pytest.mark.parametrize(("dose", "near"), [(0.2, 1.0), (1.5, 1.0), (2.5, 3.0), (8.0, 9.0), (90.0, 9.0)])
def test_nearest_dose_is_so_on_the_logarithmic_scale(seen, dose, near):
    u = strength(np.array([dose, *DOSES]), 1.0, 9.0)
    assert DOSES[np.abs(u[1:] - u[0]).argmin()] == near
    np.testing.assert_allclose(sa.baselines.nearest_dose(seen, "B", {"A": dose}), change(seen, "B", A=near))
    together = sa.baselines.nearest_dose(seen, "B", {"A": dose, "D": 1.0})
    np.testing.assert_allclose(together, change(seen, "B", A=3.0, D=9.0))
    np.testing.assert_allclose(
        sa.baselines.nearest_dose(seen, "B", {"A": dose, "E": 1.0}), change(seen, "B", A=near)
    )


@pytest.mark.parametrize("dose", [0.5, 2.0, 9.0, 40.0])
def test_the_line_is_that_of_least_squares(seen, dose):
    u = strength(np.array([*DOSES, dose]), 1.0, 9.0)
    y = np.stack([change(seen, "T", A=d) for d in DOSES])
    slope = np.linalg.lstsq(u[:3, None], y, rcond=None)[0][0]
    np.testing.assert_allclose(sa.baselines.linear_in_log_dose(seen, "T", {"A": dose}), u[3] * slope)


@pytest.mark.parametrize("dose", [0.5, 1.0, 2.0, 9.0, 40.0])
def test_interpolation_is_numpys(seen, dose):
    u = strength(np.array([*DOSES, dose]), 1.0, 9.0)
    y = np.stack([np.zeros(7), *(change(seen, "T", A=d) for d in DOSES)])
    expected = [np.interp(u[3], [0, *u[:3]], y[:, g]) for g in range(7)]
    found = sa.baselines.interpolation(seen, "T", {"A": dose})
    np.testing.assert_allclose(found, expected)
    points = dict(zip([0.0, *u[:3]], y, strict=True))
    np.testing.assert_allclose(between(points, u[3]), expected)


def test_over_time_the_control_changes_as_well(rng):
    """Effects are against the control at the same time, and the change of the control is added to them."""
    times = (2.0, 8.0, 32.0)
    rows = [(c, t) for c in ({}, {"A": 1.0}, {"D": 1.0}) for t in times]
    y = rng.normal(size=(9, 5))
    seen = Contexts.of(["T"] * 9, [c for c, _ in rows], y, times=[t for _, t in rows])
    of = {("AD"[i // 3 - 1] if i > 2 else "", t): y[i] for i, (_, t) in enumerate(rows)}
    both = Content.of({"A": 1.0, "D": 1.0}, 8.0)
    expected = of["A", 8.0] + of["D", 8.0] - of["", 8.0]
    for name in ("additive", "interpolation", "linear in log dose"):
        np.testing.assert_allclose(STRUCTURED[name](seen, "T", both), expected)
    u = strength(np.array([*times, 5.0]), 2.0, 32.0)
    share = (u[3] - u[0]) / (u[1] - u[0])
    drift = (1 - share) * of["", 2.0] + share * of["", 8.0]
    np.testing.assert_allclose(STRUCTURED["additive"](seen, "T", Content((), 5.0)), drift)
    between_times = (1 - share) * of["A", 2.0] + share * of["A", 8.0]
    found = sa.baselines.interpolation(seen, "T", Content.of({"A": 1.0}, 5.0))
    np.testing.assert_allclose(found, between_times)
    near = sa.baselines.nearest_dose(seen, "T", Content.of({"A": 1.0}, 7.0))
    late = seen.drift("T", seen.position(Content((), 7.0))[1])
    np.testing.assert_allclose(near, of["A", 8.0] - of["", 8.0] + late)


def described(rng, n=12, width=2):
    x = rng.normal(size=(n + 1, width))
    names = [f"drug_{i:02d}" for i in range(n + 1)]
    return x, names, dict(zip(names, x, strict=True))


def test_kernel_regression_is_sklearns_with_the_best_settings(rng):
    """Settings are those of a naive loop over all of them, with each fold left out."""
    x, names, told = described(rng)
    y = np.sin(x @ rng.normal(size=(2, 30))) + rng.normal(0, 0.1, (13, 30))
    seen = Contexts.of(["T"] * 12, [{n: 1.0} for n in names[:12]], y[:12], descriptors=told)
    found = sa.baselines.kernel_regression(seen, "T", {names[12]: 1.0})
    middle, scale = x[:12].mean(0), np.sqrt(np.square(x[:12] - x[:12].mean(0)).sum(1).mean())
    z = (x - middle) / scale
    order = np.random.RandomState(0).permutation(12)
    folds = [order[:2], order[2:4], *(order[i : i + 1] for i in range(4, 12))]
    errors = {}
    for kernel, width, ridge in product(("rbf", "linear"), structured.WIDTHS, structured.RIDGES):
        settings = {"kernel": kernel, "alpha": ridge}
        settings |= {"gamma": 1 / (width * typical_distance(z[:12]))} if kernel == "rbf" else {}
        missed = []
        for fold in folds:
            kept = np.setdiff1d(np.arange(12), fold)
            model = KernelRidge(**settings).fit(z[kept], y[kept] - y[kept].mean(0))
            missed.append(np.square(model.predict(z[fold]) + y[kept].mean(0) - y[fold]).mean())
        errors[tuple(settings.items())] = np.mean(missed)
    best = KernelRidge(**dict(min(errors, key=errors.get))).fit(z[:12], y[:12] - y[:12].mean(0))
    np.testing.assert_allclose(found, best.predict(z[12:])[0] + y[:12].mean(0), rtol=1e-6)


def test_kernel_regression_needs_descriptors_and_some_parts(rng):
    _, names, told = described(rng)
    y = rng.normal(size=(12, 5))
    drugs = [{n: 1.0} for n in names[:12]]
    without = Contexts.of(["T"] * 12, drugs, y)
    np.testing.assert_allclose(sa.baselines.kernel_regression(without, "T", {"E": 1.0}), y.mean(0))
    few = Contexts.of(["T"] * 3, drugs[:3], y[:3], descriptors=told)
    found = sa.baselines.kernel_regression(few, "T", {names[12]: 1.0})
    np.testing.assert_allclose(found, y[:3].mean(0))
    seen = Contexts.of(["T"] * 12, drugs, y, descriptors=told)  # what was seen needs no descriptors
    np.testing.assert_allclose(sa.baselines.kernel_regression(seen, "T", drugs[4]), y[4])


def test_kernel_regression_beats_the_mean_where_effects_follow_descriptors(rng):
    made = {"n_types": 2, "n_drugs": 30, "n_pairs": 0, "doses": (1.0,), "n_unseen": 6, "described": 1.0}
    cells = sa.datasets.screen(6000, 80, **made, seed=1)
    told = Conditions("drug", dose="dose", descriptors="descriptors")
    seen, _ = contexts_of(cells, told, "cell_type", scale="log rates")
    missed = {"kernel regression": 0.0, "generic response": 0.0, "no change": 0.0}
    for drug in (f"drug_{i}" for i in range(30, 36)):
        truth = sa.datasets.true_changes(cells, {drug: 1.0})
        for name in missed:
            found = [STRUCTURED[name](seen, group, {drug: 1.0}) for group in truth.index]
            missed[name] += np.square(np.stack(found) - truth.to_numpy()).sum()
    assert missed["kernel regression"] < 0.6 * min(missed["generic response"], missed["no change"])


def test_changes_of_cells_come_near_to_the_truth():
    """Log rates are those of summed counts; means of logarithms are those of each type."""
    cells = sa.datasets.screen(4000, 40, n_types=2, n_drugs=3, n_pairs=1, doses=(1.0, 9.0), theta=50.0)
    told = Conditions("drug", dose="dose")
    seen, start = contexts_of(cells, told, "cell_type", scale="log rates")
    assert set(start) == {"type_0", "type_1"}
    truth = np.stack(
        [
            sa.datasets.true_changes(cells, dict(c.parts)).loc[t]
            for t, c in zip(seen.types, seen.contents, strict=True)
        ]
    )
    assert len(truth) == 2 * (3 * 2 + 2)
    assert np.corrcoef(seen.changes.ravel(), truth.ravel())[0, 1] > 0.97
    logs, level = contexts_of(cells, told, "cell_type")
    i = logs.contents.index(Content.of({"drug_0": 9.0}))
    rows = (cells.obs["cell_type"] == logs.types[i]) & (cells.obs["drug"] == "drug_0")
    x = cells[(rows & (cells.obs["dose"] == "9")).to_numpy()].X.toarray()
    expected = np.log1p(1e4 * x / x.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(level[logs.types[i]] + logs.changes[i], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="`scale='counts'` is not known"):
        contexts_of(cells, told, scale="counts")


@pytest.mark.parametrize("method", STRUCTURED)
def test_it_is_used_like_a_model(method):
    cells = sa.datasets.screen(1500, 30, n_types=2, n_drugs=5, n_pairs=1, doses=(1.0, 9.0), seed=2)
    told = Conditions("drug", dose="dose", descriptors="descriptors")
    simple = sa.baselines.StructuredBaseline(cells, method, conditions=told, labels_key="cell_type")
    simple.train(max_epochs=3)
    source = cells[(cells.obs["drug"] == "control").to_numpy()].copy()
    before = source.X.copy()
    seen, _ = contexts_of(cells, told, "cell_type")
    for to in ({"drug_0": 9.0, "drug_4": 1.0}, {"drug": "drug_6", "dose": 1.0}, {"drug_1": 4.0}):
        out = simple.transfer(source, to=to, seed=1)
        content = Content.of({"drug_6": 1.0} if "drug" in to else to)
        assert set(out.obs["drug"]) == {"+".join(part for part, _ in content.parts)}
        x = np.log1p(1e4 * before.toarray() / before.toarray().sum(1, keepdims=True))
        for group in ("type_0", "type_1"):
            rows = (source.obs["cell_type"] == group).to_numpy()
            expected = (x[rows] + STRUCTURED[method](seen, group, content)).clip(0)
            np.testing.assert_allclose(out.X[rows], expected, rtol=1e-4, atol=1e-4)
    assert (before != source.X).nnz == 0
    back = simple.transfer(cells[:20].copy(), to="control")
    assert set(back.obs["dose"].astype(float)) == {0.0}


def test_from_a_treated_cell_the_prediction_is_the_difference():
    cells = sa.datasets.screen(1500, 30, n_types=1, n_drugs=3, n_pairs=0, doses=(1.0, 9.0), seed=2)
    told = Conditions("drug", dose="dose")
    simple = sa.baselines.StructuredBaseline(cells, conditions=told)
    treated = cells[((cells.obs["drug"] == "drug_0") & (cells.obs["dose"] == 9.0)).to_numpy()].copy()
    same = simple.transfer(treated, to={"drug_0": 9.0})
    x = treated.X.toarray()
    np.testing.assert_allclose(same.X, np.log1p(1e4 * x / x.sum(1, keepdims=True)), rtol=1e-4, atol=1e-5)


def test_what_it_cannot_learn_from():
    cells = sa.datasets.screen(300, 30, n_types=2, n_drugs=2, n_pairs=0, doses=(1.0,))
    with pytest.raises(TypeError, match=r"`conditions` is a str. Pass `Conditions\(...\)`"):
        sa.baselines.StructuredBaseline(cells, conditions="drug")
    with pytest.raises(ValueError, match=r"`method='additiv'` is not known.*Did you mean 'additive'"):
        sa.baselines.StructuredBaseline(cells, "additiv", conditions=Conditions("drug"))
    alone = cells[
        ((cells.obs["cell_type"] == "type_0") == (cells.obs["drug"] == "control")).to_numpy()
    ].copy()
    simple = sa.baselines.StructuredBaseline(alone, conditions=Conditions("drug"), labels_key="cell_type")
    with pytest.raises(ValueError, match="No type has cells under the control and under another condition"):
        simple.train()
