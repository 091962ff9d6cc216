"""Benchmark of structured conditions: what is held out, what methods are given, and scores of known ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scalloy as sa
from scalloy.benchmark.fit import log_normalised
from scalloy.benchmark.hold_outs import KINDS, hold_outs
from scalloy.benchmark.structured import SETS, summary
from scalloy.benchmark.structured_rivals import Fold, Predicted, Predictor, of_model, predictors
from scalloy.benchmark.structured_task import Task, Truth
from scalloy.cli import main
from scalloy.data.conditions import Conditions
from scalloy.perturbation.design import Content

TOLD = Conditions("drug", dose="dose", descriptors="descriptors")


@pytest.fixture(scope="module")
def cells():
    """A small screen: two types, four drugs in three doses, three pairs of drugs, of which some interact."""
    made = {"n_types": 2, "n_drugs": 4, "n_unseen": 1, "n_pairs": 3, "doses": (1.0, 3.0, 10.0)}
    return sa.datasets.screen(2400, 60, **made, library=3000.0, seed=3)


def content(time=0.0, **parts):
    return Content.of(parts, time)


# what is held out ----------------------------------------------------------------------------------

TABLE = {
    (t, c): 50
    for t in ("B", "T")
    for c in (
        content(),
        *(content(A=v) for v in (1.0, 2.0, 5.0)),
        *(content(D=v) for v in (1.0, 2.0)),
        content(A=5.0, D=2.0),
        content(A=1.0, E=1.0),  # E is never alone
    )
}
BOTH = [content(A=5.0, D=2.0)]


def found(kind, **given):
    return {h.name: (sorted(h.held, key=str), list(h.scored)) for h in hold_outs(TABLE, kind, **given)}


def contexts(contents, types="BT"):
    return sorted(((t, c) for t in types for c in contents), key=str)


@pytest.mark.parametrize(
    ("kind", "name", "held", "scored"),
    [
        ("combination", "A+D", BOTH, BOTH),
        (
            "combination, one part seen",
            "A+D without D",
            [content(D=1.0), content(D=2.0), *BOTH],
            BOTH,
        ),
        (
            "combination, one part seen",
            "A+E without E",
            [content(A=1.0, E=1.0)],
            [content(A=1.0, E=1.0)],
        ),
        ("inner dose", "A 2", [content(A=2.0)], [content(A=2.0)]),
        ("largest dose", "A 5", [content(A=5.0), *BOTH], [content(A=5.0)]),
        ("largest dose", "D 2", [content(D=2.0), *BOTH], [content(D=2.0)]),
        ("perturbation", "D", [content(D=1.0), content(D=2.0), *BOTH], [content(D=1.0), content(D=2.0)]),
    ],
)
def test_what_is_held_out(kind, name, held, scored):
    of = found(kind, described=frozenset("D"))
    assert of[name][0] == contexts(held)
    assert sorted(of[name][1], key=str) == contexts(scored)
    names = {
        "combination": ["A+D"],
        "combination, one part seen": ["A+D without D", "A+E without E"],
        "inner dose": ["A 2"],
        "largest dose": ["A 5", "D 2"],
        "perturbation": ["D"],
    }
    assert list(of) == names[kind]


def test_types_take_turns():
    of = found("type")
    assert list(of) == ["A in B", "D in T"]
    held = [content(A=v) for v in (1.0, 2.0, 5.0)]
    assert sorted(of["A in B"][1], key=str) == contexts(held, "B")
    assert of["A in B"][0] == contexts([*held, *BOTH, content(A=1.0, E=1.0)], "B")


def test_times_are_held_out():
    table = {("T", content(time, **parts)): 9 for parts in ({}, {"A": 1.0}) for time in (1.0, 4.0, 9.0, 20.0)}
    for kind, time in (("inner time", 9.0), ("latest time", 20.0)):
        (held,) = hold_outs(table, kind)
        assert (held.name, list(held.scored)) == (f"A at {time:g}", [("T", content(time, A=1.0))])
        assert held.held == {("T", content(time, A=1.0))}
    assert not hold_outs(table, "largest dose")


def test_few_cells_are_not_scored_and_some_are_enough():
    assert not hold_outs(TABLE, "combination", min_cells=51)
    assert len(hold_outs(TABLE, "largest dose", most=1)) == 1


# scores --------------------------------------------------------------------------------------------


def constant(how):
    """Method that predicts a function of the type and the content."""
    return Predictor(lambda fold, seed: lambda group, c: how(group, c), seeded=False)


def test_the_truth_has_a_skill_of_one(cells):
    """What is beyond the sum of the parts is known as well, and the true sum of the parts has none of it."""

    def true(group, c):
        return sa.datasets.true_changes(cells, dict(c.parts)).loc[group].to_numpy()

    def parts(group, c):
        return np.sum([true(group, Content((part,))) for part in c.parts], axis=0)

    methods = {
        "truth": constant(lambda g, c: Predicted(true(g, c), np.full(60, 0.1))),
        "nothing": constant(lambda g, c: Predicted(np.zeros(60))),
        "parts": constant(lambda g, c: Predicted(parts(g, c))),
    }
    asked = {"conditions": TOLD, "labels_key": "cell_type"}
    table = sa.benchmark.conditions(cells, methods, **asked)
    assert set(table["kind"]) == set(KINDS) - {"inner time", "latest time"}
    scores = table.set_index("method")
    assert scores.loc["truth", "skill"].dropna().to_numpy() == pytest.approx(1.0)
    assert scores.loc["nothing", "skill"].dropna().to_numpy() == pytest.approx(0.0)
    assert (scores.loc["truth", "coverage_90"] == 1).all()
    assert scores.loc["nothing", "coverage_90"].isna().all()
    of = {k: v.set_index("method")["beyond_additive"] for k, v in table.groupby("condition")}
    beyond = {k: v["truth"].max() for k, v in of.items()}
    interacting = cells.uns["interactions"].any(axis=1)
    interacting = set(interacting.index[interacting])
    combined = {k: "+".join(p.split()[0] for p in k.split("+")) for k in beyond if "+" in k}
    assert 0 < len({n for n in combined.values() if n in interacting}) < 3
    for condition, value in beyond.items():
        name = combined.get(condition)
        assert (value == pytest.approx(1.0)) if name in interacting else np.isnan(value)
    assert table["beyond_additive"].where(table["method"] == "parts").dropna().eq(0).all()


def test_methods_get_no_held_out_cell_and_no_truth(cells):
    told = Conditions("drug", dose="dose", descriptors="descriptors")
    task, folds = Task(cells, conditions=told, labels_key="cell_type"), []

    def trained(fold, seed):
        folds.append((fold, seed))
        return lambda group, c: None

    with pytest.raises(ValueError, match="There is nothing to hold out of these kinds: type"):
        sa.benchmark.conditions(  # no method predicts anything
            cells, {"spy": Predictor(trained)}, conditions=told, labels_key="cell_type", kinds=["type"]
        )
    held = task.hold_outs("type", None, 1)
    assert [f"drug_{i} in type_{i % 2}" for i in range(4)] == [h.name for h in held]
    for i, (fold, seed) in enumerate(folds):
        assert seed == 0
        assert not fold.train.layers
        assert set(fold.train.uns) == {"descriptors"}
        rows = fold.train.obs["drug"].str.split("+").map(lambda parts, i=i: f"drug_{i}" in parts)
        assert set(fold.train.obs["cell_type"][rows]) == {f"type_{1 - i % 2}"}
        lacking = sum(len(task.rows[c]) for c in held[i].held)
        assert fold.train.n_obs == cells.n_obs - lacking
        assert set(fold.source) == {"type_0", "type_1"}
        assert all(set(source.obs["drug"]) == {"control"} for source in fold.source.values())


def test_the_truth_of_measured_cells_is_against_controls_that_methods_do_not_have(cells):
    plain = cells.copy()
    del plain.layers["mean_control"], plain.layers["mean"]
    task = Task(plain, conditions=Conditions("drug", dose="dose"), labels_key="cell_type")
    (hold_out, *_) = task.hold_outs("combination", None, 5)
    fold, (group, c) = task.fold(hold_out), hold_out.scored[0]
    start = task.rows[group, task.design.reference]
    given = set(fold.source[group].obs_names)
    assert given == set(plain.obs_names[start]) & set(fold.train.obs_names)
    other = [row for row in start if plain.obs_names[row] not in given]
    assert abs(len(other) - len(given)) <= 1
    x = plain.X.toarray().astype(float)
    rates = [x[rows].sum(0) / x[rows].sum() for rows in (other, task.rows[group, c])]
    expected = np.log1p(5e4 * rates[1]) - np.log1p(5e4 * rates[0])
    np.testing.assert_allclose(task.truth((group, c), fold).change, expected)


def test_skill_of_measured_cells_is_corrected_for_noise(cells):
    """Controls of one half against those of the other are no change, but for the noise that is taken out."""
    plain = cells.copy()
    del plain.layers["mean_control"], plain.layers["mean"]
    task = Task(plain, conditions=Conditions("drug", dose="dose"), labels_key="cell_type")
    (hold_out, *_) = task.hold_outs("combination", None, 5)
    fold = task.fold(hold_out)
    ratios = []
    for group in fold.source:
        truth = task.truth((group, task.design.reference), fold)
        ratios.append(np.square(truth.change).sum() / np.sum(truth.noise))
    assert np.mean(ratios) < 1  # the half is also a part of the whole


def test_intervals_are_wider_by_the_noise_of_what_was_measured():
    rng = np.random.default_rng(0)
    noise = np.full(4000, 0.04)
    predicted = np.zeros(4000)
    change = rng.normal(0, np.sqrt(0.01 + 0.04), 4000)  # an error of 0.1, and noise
    truth = Truth(change, predicted, np.ones(4000, dtype=bool), noise)
    scores = truth.scores(Predicted(predicted, np.full(4000, 0.1)), combined=True)
    assert scores["coverage_90"] == pytest.approx(0.9, abs=0.02)
    assert scores["beyond_additive"] == 0


def test_a_summary_has_mean_worst_and_all_together():
    table = pd.DataFrame(
        {
            "kind": ["type"] * 4,
            "method": ["one", "one", "other", "other"],
            "skill": [0.5, 0.1, 0.0, np.nan],
            "error": [1.0, 9.0, 2.0, 10.0],
            "change": [2.0, 10.0, 2.0, 10.0],
            "pearson_delta": [0.5, 0.7, 0.0, 0.0],
            "beyond_additive": [np.nan] * 4,
            "coverage_90": [0.8, 0.9, np.nan, np.nan],
        }
    )
    found = summary(table).loc["type"]
    assert found["skill"].to_numpy().tolist() == [[0.3, 0.1, 0.167], [0.0, 0.0, 0.0]]
    assert found[("coverage_90", "mean")].tolist()[0] == 0.85
    assert found["contexts"].squeeze().tolist() == [2, 2]


# models --------------------------------------------------------------------------------------------


class Model:
    """Model that multiplies all rates by two, and says what it was given."""

    asked: list = []  # noqa: RUF012

    @classmethod
    def setup_anndata(cls, adata, *, conditions, labels_key):
        cls.columns = conditions.factors, labels_key

    def __init__(self, adata, **settings):
        self.settings = settings

    def train(self, max_epochs=None, **_):
        self.epochs = max_epochs

    def transfer(self, cells, to, *, seed):
        self.asked.append(to)
        out = cells.copy()
        out.layers["counts"] = cells.X * 2
        out.X = log_normalised(cells.X) + 0.25
        factor = np.full(cells.n_vars, 2.0)
        factor[0] = np.nan  # a gene without counts
        table = pd.DataFrame({"type_0 from control": factor})
        out.uns["transfer"] = {"fold_change": table, "log_fold_change_sd": 0 * table + 0.5, "sd": table}
        return out


@pytest.mark.parametrize("scale", ["log rates", "mean logs"])
def test_predictions_of_models_are_read(scale):
    made = {"n_types": 1, "n_drugs": 2, "n_unseen": 1, "n_pairs": 0, "doses": (1.0,), "times": (1.0, 5.0)}
    cells = sa.datasets.screen(300, 20, **made)
    told = Conditions("drug", dose="dose", time="time")
    source = {"type_0": cells[(cells.obs["drug"] == "control").to_numpy()].copy()}
    fold = Fold(cells, told, "cell_type", source, scale)
    predict = of_model(Model, fold, 3, max_epochs=2, n_latent=4)
    assert Model.columns == (("drug",), "cell_type")
    found = predict("type_0", content(5.0, drug_0=1.0, drug_1=2.0))
    assert Model.asked.pop() == {"drug_0": 1.0, "drug_1": 2.0, "time": 5.0}
    assert predict("type_0", content(5.0, drug_2=1.0)) is None  # neither seen nor described
    if scale == "log rates":
        np.testing.assert_allclose(found.change[1:], np.log(2))
        np.testing.assert_allclose(found.sd[1:], 0.5)
        assert found.change[0] == 0
    else:
        np.testing.assert_allclose(found.change, 0.25)
        np.testing.assert_allclose(found.sd[1:], 2.0)
    assert (found.counts != source["type_0"].X * 2).nnz == 0


def test_a_judge_scores_counts_of_all_contexts(cells):
    """Those of methods without counts are made from the changes of the means."""
    asked = {"conditions": TOLD, "labels_key": "cell_type", "judge": "systema", "min_cells": 5}
    table = sa.benchmark.conditions(cells, ["no change", "interpolation"], kinds=["inner dose"], **asked)
    assert table["method"].tolist() == ["half of the cells", "no change", "interpolation"] * 2
    assert table["type"].unique().tolist() == ["type_0", "type_1"]
    found = summary(table).loc["inner dose"]
    score = "centroid_accuracy" if "centroid_accuracy" in found else found.columns[0]
    assert found.loc["interpolation", score] > found.loc["no change", score]


@pytest.mark.usefixtures("registries")
def test_methods_by_name():
    known = predictors()
    assert list(known)[: len(sa.baselines.STRUCTURED)] == list(sa.baselines.STRUCTURED)
    with pytest.raises(ValueError, match=r"`models='additiv'` is not known"):
        predictors(["additiv"])


def test_every_data_set_has_something_to_hold_out(benchmark_data, monkeypatch):
    monkeypatch.setenv("SCALLOY_DATA", str(benchmark_data))
    table = sa.benchmark.conditions("norman_dev", ["no change", "additive"])
    sizes = table.drop_duplicates(["kind", "held_out"]).groupby("kind").size()
    assert sizes.to_dict() == {"combination": 5, "combination, one part seen": 8}
    assert table["skill"].notna().all()
    make, told = SETS["time course"]
    course = Task(make(0), **told)
    assert [len(course.hold_outs(kind, None, 1)) for kind in ("inner time", "latest time")] == [6, 6]


def test_what_cannot_be_held_out(cells):
    with pytest.raises(ValueError, match=r"so its columns are not known. Pass `conditions=Conditions"):
        sa.benchmark.conditions(cells, ["no change"])
    with pytest.raises(ValueError, match="There is nothing to hold out of these kinds: latest time"):
        sa.benchmark.conditions(cells, ["no change"], conditions=TOLD, kinds=["latest time"])
    with pytest.raises(ValueError, match=r"`kinds='dose'` is not known"):
        sa.benchmark.conditions(cells, ["no change"], conditions=TOLD, kinds=["dose"])


def test_the_command_takes_a_file(cells, tmp_path):
    plain = cells.copy()
    del plain.layers["mean_control"], plain.layers["mean"]
    plain.write_h5ad(tmp_path / "cells.h5ad")
    columns = [
        "--factor",
        "drug",
        "--dose",
        "dose",
        "--labels-key",
        "cell_type",
        "--descriptors",
        "descriptors",
    ]
    asked = ["--kind", "largest dose", "--most", "1", "--model", "no change", "--model", "nearest dose"]
    out = tmp_path / "table.csv"
    given = ["benchmark", "conditions", tmp_path / "cells.h5ad", *columns, *asked, "--min-cells", 5]
    done = CliRunner().invoke(main.app, [str(a) for a in [*given, "--out", out]])
    assert done.exit_code == 0, done.output
    assert "worst" in done.output
    table = pd.read_csv(out)
    assert set(table["held_out"]) == {"drug_0 10"}
    assert set(table["method"]) == {"no change", "nearest dose"}
