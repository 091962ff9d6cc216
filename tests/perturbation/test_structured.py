"""Changes of groups under conditions with structure: what they are learned from, and what they are worth."""

from __future__ import annotations

import numpy as np
import pytest

import scalloy as sa
from scalloy.data.conditions import Conditions
from scalloy.perturbation import condition_effects
from scalloy.perturbation.boosted_pooling import LeftOut
from scalloy.perturbation.design import Content
from scalloy.perturbation.donors import AT_LEAST, Seen
from scalloy.perturbation.structured import Structured
from scalloy.perturbation.structured_worth import (
    INNER,
    NEW,
    OUTER,
    SEEN,
    Judged,
    Kind,
    OnScale,
    Stack,
    Trials,
    relation_of,
    stacked_share,
)

SCALE, GENES = 1500.0, 120


@pytest.fixture(scope="module", autouse=True)
def _soon():
    """Weights that are learned in few steps will do here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(condition_effects, "STEPS", 12)
        patched.setattr(condition_effects, "FURTHER_STEPS", 5)
        patched.setattr(condition_effects, "DILUTIONS", (0.0, 0.3))
        yield


def structured_of(cells, hide=(), counts=True, **more):
    """What cells have shown, without those under some conditions."""
    names = np.asarray(Conditions("drug", dose="dose").fitted(cells)[1].astype(str))
    keep = ~np.isin(names, list(hide))
    cells, names = cells[keep].copy(), names[keep]
    design = Conditions("drug", dose="dose", descriptors="descriptors").fitted(cells)[0].design
    x = cells.X.toarray().astype(float)
    log = np.log1p(SCALE * x / x.sum(1, keepdims=True))
    groups = cells.obs["cell_type"].astype(str).to_numpy()
    seen = Seen.of(groups, None, names, [(log, x if counts else None)], SCALE, **more)
    return Structured(seen, design), log, groups, names


@pytest.fixture(scope="module")
def cells():
    return sa.datasets.screen(
        2500, GENES, n_types=2, n_drugs=4, n_unseen=1, n_pairs=3, doses=(0.1, 1.0, 10.0), seed=2
    )


@pytest.fixture(scope="module")
def known(cells):
    return structured_of(cells)


def effect_of(log, groups, names, group, name):
    """Change of means against the control, and the variances of both."""
    after, before = (log[(groups == group) & (names == n)] for n in (name, "control"))
    return after.mean(0) - before.mean(0), after.var(0) / len(after), before.var(0) / len(before)


# what was seen ------------------------------------------------------------------------------------


def test_contexts_are_groups_under_conditions_with_cells_enough(known):
    structured, _, groups, names = known
    found = {(g, structured.design.name_of(c)) for g, c in structured.contexts}
    expected = {
        (g, n)
        for g in set(groups)
        for n in set(names) - {"control"}
        if ((groups == g) & (names == n)).sum() >= AT_LEAST
    }
    assert found == expected
    assert len(found) > 24


def test_shifts_are_differences_of_means_and_noise_is_that_of_means(known):
    structured, log, groups, names = known
    seen = structured.effects("shift").seen
    for i in (0, 7, len(seen.contexts) - 1):
        group, content = seen.contexts[i]
        change, own, shared = effect_of(log, groups, names, group, structured.design.name_of(content))
        np.testing.assert_allclose(seen.change[i], change, atol=1e-8)
        assert (seen.noise[i] >= own - 1e-12).all()  # at least as much as usual
        assert np.median(seen.noise[i] / np.maximum(own, 1e-9)) < 2
        assert (seen.shared[i] >= shared - 1e-12).all()
    assert len(set(seen.control)) == 2
    assert structured.effects("shift") is structured.effects("shift")


def test_levels_are_those_of_summed_counts(known, cells):
    structured, _, groups, names = known
    seen = structured.effects("levels").seen
    x = cells.X.toarray().astype(float)
    group, content = seen.contexts[4]
    name = structured.design.name_of(content)
    rates = [
        (x[rows].sum(0) / x[rows].sum())
        for rows in ((groups == group) & (names == n) for n in (name, "control"))
    ]
    np.testing.assert_allclose(seen.change[4], np.log1p(5e4 * rates[0]) - np.log1p(5e4 * rates[1]), atol=1e-8)
    assert (seen.noise > 0).all()


# predictions --------------------------------------------------------------------------------------


def test_a_prediction_is_that_of_the_process(known):
    structured, *_ = known
    to = Content.of({"drug_0": 0.5})
    structured.of("drug_0 0.5", to)
    own = structured.effects("shift").predict("type_0", to)
    log = np.zeros((20, GENES))
    found = structured.shift(own.mean, log, "type_0", "control", "drug_0 0.5")
    np.testing.assert_allclose(found.mean, own.mean, atol=1e-10)  # the decoder says the same
    np.testing.assert_allclose(found.uncertainty, own.sd)
    assert not found.far
    assert not found.seen
    assert any("drug_0" in name for name in found.others)
    assert all(name.endswith((" in type_0", " in type_1")) for name in found.others)
    change, sd = structured.level_change(np.zeros(GENES), np.zeros(GENES), "type_0", "control", "drug_0 0.5")
    by_levels = structured.effects("levels").predict("type_0", to)
    np.testing.assert_allclose(sd, by_levels.sd)
    assert np.corrcoef(change, by_levels.mean)[0, 1] > 0.99
    between = structured.predicted("shift", "type_0", "drug_1 1", "drug_0 0.5")
    expected = structured.effects("shift").predict("type_0", to, Content.of({"drug_1": 1.0}))
    np.testing.assert_array_equal(between.mean, expected.mean)


def test_where_nothing_is_asked_or_seen_the_decoder_says_it(known, cells):
    structured, *_ = known
    own = np.arange(GENES, dtype=float)
    same = structured.shift(own, np.zeros((5, GENES)), "type_0", "drug_1 1", "drug_1 1")
    np.testing.assert_array_equal(same.mean, own)
    assert not same.far
    assert structured.level_change(own, own, "type_0", "drug_1 1", "drug_1 1") is None
    assert structured.seen_rates("type_0", "control", "drug_1 1", own) is None
    few = cells[
        np.r_[
            np.flatnonzero(cells.obs["drug"] == "control")[:40],
            np.flatnonzero(cells.obs["drug"] == "drug_1")[:4],
        ]
    ]
    alone, *_ = structured_of(few.copy())
    assert alone.contexts == []
    found = alone.shift(own, np.zeros((5, GENES)), "type_0", "control", "drug_1 1")
    np.testing.assert_array_equal(found.mean, own)
    assert found.far
    assert np.isnan(found.sd).all()


def test_without_counts_there_are_no_levels(cells):
    structured, *_ = structured_of(cells, counts=False)
    assert structured.level_change(np.zeros(GENES), np.zeros(GENES), "type_0", "control", "drug_1 1") is None
    structured.of("new", Content.of({"drug_0": 5.0}))
    worth = structured.worth(["type_0"], "control", "new")
    assert worth.share == 0
    assert np.isfinite(worth.skill.left_out)


@pytest.mark.parametrize(
    ("hidden", "least"),
    [("drug_0 1", 0.5), ("drug_2 10", 0.5), (None, 0.5)],
    ids=["a dose between", "the largest dose", "a combination"],
)
def test_hidden_conditions_are_predicted_about_as_well_as_is_promised(cells, hidden, least):
    """By the true changes of a simulation; an independent measure of what the left-out conditions tell."""
    names = list(Conditions("drug", dose="dose").fitted(cells)[1].categories)
    hidden = hidden or next(n for n in names if "+" in n)
    structured, *_ = structured_of(cells, hide=[hidden])
    asked = Conditions("drug", dose="dose").fitted(cells)[0].design
    content = dict(zip(asked.names, asked.contents, strict=True))[hidden]
    structured.of(hidden, content)
    true = sa.datasets.true_changes(cells, dict(content.parts))
    rate = cells.X.toarray().mean(0)
    often = rate > np.quantile(rate, 0.6)
    found = [structured.predicted("levels", g, "control", hidden).mean for g in ("type_0", "type_1")]
    missed = np.square(np.stack(found) - true.to_numpy())[:, often].sum()
    skill = 1 - missed / np.square(true.to_numpy())[:, often].sum()
    assert skill > least
    worth = structured.worth(["type_0"], "control", hidden)
    assert 0 <= worth.share <= 1
    assert not worth.by_precision
    assert 1 <= worth.stretch <= 4
    assert worth.skill.left_out == pytest.approx(skill, abs=0.35)


# kinds --------------------------------------------------------------------------------------------

OTHERS = [
    Content.of({"A": 1.0}),
    Content.of({"A": 9.0}),
    Content.of({"B": 2.0}),
    Content.of({"A": 9.0, "B": 5.0}),
]


@pytest.mark.parametrize(
    ("parts", "relation"),
    [
        ({"A": 1.0}, SEEN),
        ({"A": 3.0}, INNER),
        ({"A": 10.0}, OUTER),
        ({"A": 0.5}, OUTER),
        ({"C": 1.0}, NEW),
        ({"A": 1.0, "B": 2.0}, SEEN),
        ({"A": 3.0, "B": 2.0}, INNER),
        ({"A": 3.0, "B": 7.0}, OUTER),
        ({"A": 3.0, "C": 7.0}, NEW),
        ({}, SEEN),
    ],
)
def test_relations_of_parts_to_those_that_were_seen(parts, relation):
    assert relation_of(Content.of(parts), OTHERS) == relation


def test_conditions_of_a_kind_are_judged_once(known, monkeypatch):
    structured, *_ = known
    judged = []
    fresh = Structured(structured.seen, structured.design)
    fresh._effects = dict(structured._effects)
    judge = Trials.worth

    def counted(self, kind):
        judged.append(kind)
        return judge(self, kind)

    monkeypatch.setattr(Trials, "worth", counted)
    for name, parts in {
        "inner": {"drug_0": 0.5},
        "also inner": {"drug_1": 3.0},
        "new": {"drug_4": 1.0},
        "outer": {"drug_0": 20.0},
        "a pair": {"drug_0": 1.0, "drug_1": 1.0},
    }.items():
        fresh.of(name, Content.of(parts))
        worth = fresh.worth(["type_0"], "control", name)
        assert worth.skill.contexts >= 2
    assert judged == [Kind(False, *k) for k in ((False, INNER), (False, NEW), (False, OUTER), (True, SEEN))]
    seen_elsewhere = fresh.worth(["type_0"], "control", "drug_0 1")
    assert judged[-1].elsewhere
    assert seen_elsewhere.skill.left_out > 0.3


def test_parts_are_left_out_altogether_if_they_were_never_seen(known, monkeypatch):
    structured, *_ = known
    effects, hidden = structured.effects("shift"), []
    predict = type(effects).predict

    def noted(self, group, to, source=None, **settings):
        hidden.append((to, {c for _, c in settings.get("without", ())}))
        return predict(self, group, to, source, **settings)

    monkeypatch.setattr(type(effects), "predict", noted)
    structured.worth(["type_0"], "control", "drug_1 1")
    trials = structured._trials
    _ = trials.share
    hidden.clear()
    trials.worth(Kind(False, False, NEW))
    assert hidden
    for to, without in hidden:
        (part,) = (name for name, _ in to.parts)
        left = {c for _, c in structured.contexts} - without
        assert not any(part == name for c in left for name, _ in c.parts)
    hidden.clear()
    trials.worth(Kind(False, False, INNER))
    assert all(without == {to} for to, without in hidden)


def test_the_share_has_the_smallest_relative_error_without_shared_noise():
    """By a grid, on two scales, where the noise of controls is in the changes and in one prediction."""
    rng, n = np.random.default_rng(0), 4000
    truth = rng.normal(size=(8, n)) * np.geomspace(0.5, 4, 8)[:, None]
    stacks, clean = [], []
    for extra in (0.3, 0.6):
        control = rng.normal(0, 0.5, truth.shape)
        one, other = truth + rng.normal(0, 0.6, truth.shape), truth + rng.normal(0, extra, truth.shape)
        stacks.append(
            Stack(
                truth - control, one, other - control, np.full(truth.shape, 0.25), np.full(truth.shape, 0.25)
            )
        )
        clean.append((one, other - control))
    size = [np.maximum(np.square(s.change).sum(1), s.noise.sum(1)) for s in stacks]
    errors = [
        sum((np.square(truth - one - w * (b - one)).sum(1) / k).sum() for (one, b), k in zip(clean, size))
        for w in np.linspace(0, 1, 101)
    ]
    assert stacked_share(stacks) == pytest.approx(np.argmin(errors) / 100, abs=0.03)
    same = Stack(truth, truth, truth, 0 * truth, 0 * truth)
    assert stacked_share([same]) == 0


def test_without_counts_only_shifts_are_judged():
    found = LeftOut(np.arange(2), np.arange(3), np.ones((2, 3)), np.full((2, 3), 0.5))
    judged = Judged([OnScale(np.zeros((2, 3)), found, np.ones((2, 3)), np.zeros((2, 3)))], [])
    for share in (0.0, 1.0):
        mean, sd = judged.combined(share)
        assert mean is found.mean
        assert sd is found.sd
