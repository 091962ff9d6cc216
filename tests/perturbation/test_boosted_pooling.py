"""What is learned across genes, where the rule is known."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

from scalloy.baselines import LearnedPooling, learned_pooling, partial_pooling
from scalloy.perturbation import boosted_pooling

GENES = 2000


def groups(rule, n=7, noise=0.02, seed=0):
    """Controls and changes of groups by a rule, with the noise of means; the last is to be predicted."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(0.6, 0.8, GENES)
    control = (base + rng.normal(0, 0.5, (n, GENES)) * (rng.random(GENES) < 0.5)).clip(0)
    true = rule(control, rng)
    seen = true + noise * rng.normal(size=true.shape)
    settings = {"within": np.full(GENES, 100 * noise**2), "inverse_size": np.full(n - 1, 0.01)}
    return control[:-1], seen[:-1], control[-1], true[-1], settings


def saturating(control, rng):
    """Some genes reach a level, wherever they begin."""
    level = np.where(rng.random(GENES) < 0.3, rng.gamma(3.0, 0.7, GENES), 0.0)
    return np.where(level > 0, level - control, 0.0)


def nothing(control, rng):
    """No gene changes."""
    return np.zeros_like(control)


def missed(found, true):
    return float(np.square(found - true).sum())


def test_a_rule_that_all_genes_follow_is_found():
    control, shift, to, true, settings = groups(saturating)
    pooled = partial_pooling(control, shift, to, **settings)
    found = LearnedPooling(control, shift, **settings)
    after = found.predict(to)
    assert found.n_trees > 0
    assert missed(after.mean, true) < 0.5 * missed(pooled.mean, true)
    before, left = found.left_out
    assert left < 0.5 * before
    assert missed(pooled.mean, true) == pytest.approx(before * GENES, rel=0.3)
    np.testing.assert_allclose(after.sd, pooled.sd * np.sqrt(left / before))
    np.testing.assert_array_equal(learned_pooling(control, shift, to, **settings).mean, after.mean)


@pytest.mark.parametrize(("n", "genes"), [(12, 200), (7, 1000)])
def test_where_there_is_no_rule_nothing_is_made_worse(n, genes):
    rng, factor, held = np.random.default_rng(0), [], []
    for _ in range(4):  # a change that all groups share, and noise
        common = np.where(rng.random(genes) < 0.5, rng.normal(0, 0.5, genes), 0.0)
        control = rng.gamma(0.6, 0.8, genes) + rng.normal(0, 0.3, (n + 1, genes))
        shift, noise = common + rng.normal(0, 0.3, (n, genes)), 0.3**2
        settings = {"within": np.full(genes, 100 * noise), "inverse_size": np.full(n, 0.01)}
        pooled = partial_pooling(control[:-1], shift, control[-1], **settings)
        found = learned_pooling(control[:-1], shift, control[-1], **settings)
        factor.append(missed(found.mean, common) / missed(pooled.mean, common))
        held.append(float((np.abs(found.mean - common) < 1.645 * found.sd).mean()))
    assert np.mean(factor) < 1.1
    assert np.mean(held) > 0.85


def test_what_groups_miss_that_are_left_out():
    control, shift, _, _, settings = groups(saturating)
    made = LearnedPooling(control, shift, **settings)
    with_all = partial_pooling(control, shift, control.mean(0), **settings)
    errors = []
    for o in range(len(control)):
        k = [i for i in range(len(control)) if i != o]
        own = {"within": settings["within"], "inverse_size": settings["inverse_size"][k]}
        chosen = {"shared": (with_all.shared,), "widths": (with_all.width,)}
        f = partial_pooling(control[k], shift[k], control[o], **own, **chosen).mean
        errors.append(missed(f, shift[o]))
    assert made.left_out[0] * GENES == pytest.approx(np.mean(errors), rel=1e-6)


def test_trees_that_are_judged_by_a_group_have_learned_without_it(monkeypatch):
    control, shift, _, _, settings = groups(saturating)
    pooled_from, pool = [], LearnedPooling._pool

    def seen(self, which, *profiles):
        for to in profiles:
            pooled_from.append((set(which), int(np.argmin(np.abs(self.control - to).sum(1)))))
        return pool(self, which, *profiles)

    judged = []
    monkeypatch.setattr(LearnedPooling, "_pool", seen)
    monkeypatch.setattr(
        boosted_pooling, "_stages", lambda rows, x: judged.append((rows, x)) or np.zeros((3, len(x)))
    )
    made = LearnedPooling(control, shift, **settings)
    assert made.n_trees == 0
    every = set(range(len(control)))
    assert sorted((sorted(every - of), o) for of, o in pooled_from[1:] if len(every - of) == 1) == [
        ([o], o) for o in sorted(every)
    ]
    assert len(judged) == len(control)
    targets = {made._rows(o, [o], np.arange(GENES)).features.tobytes(): o for o in every}
    for rows, x in judged:
        out = targets[x.tobytes()]
        without = [made._rows(o, [out, o], np.arange(GENES)).errors for o in every - {out}]
        sums = sorted(missed(v, 0 * v) for _, v, _ in rows)
        np.testing.assert_allclose(sums, sorted(missed(v, 0 * v) for v in without))


def test_asking_for_rows_changes_nothing():
    control, shift, _, _, settings = groups(saturating)
    made = LearnedPooling(control, shift, **settings)
    before = dict(vars(made))
    rows = made._rows(2, [2], np.arange(3, 9))
    assert vars(made) == before
    (alone,) = made._pool(np.setdiff1d(np.arange(len(control)), [2]), control[2])
    np.testing.assert_array_equal(rows.sd, alone.sd[3:9])


def test_arguments_are_in_the_order_of_the_docs():
    said = re.findall(r"^    (\w[\w, ]*)$", LearnedPooling.__doc__.split("Attributes")[0], re.MULTILINE)
    said = [name for names in said for name in names.split(", ") if name != "Parameters"]
    taken = inspect.signature(LearnedPooling).parameters
    assert list(taken) == said
    assert [k for k, v in taken.items() if v.kind is v.KEYWORD_ONLY] == ["noise", "halves", "seed"]


def test_few_groups_are_pooled_as_they_are():
    control, shift, to, _, settings = groups(saturating, n=boosted_pooling.LEAST)
    made = LearnedPooling(control, shift, **settings)
    found, pooled = made.predict(to), partial_pooling(control, shift, to, **settings)
    np.testing.assert_array_equal(found.mean, pooled.mean)
    np.testing.assert_array_equal(found.sd, pooled.sd)
    assert made.left_out is None


def test_many_groups_and_genes_are_learned_from_in_part(monkeypatch):
    control, shift, to, true, settings = groups(saturating, n=10)
    monkeypatch.setattr(boosted_pooling, "MOST_GROUPS", 5)
    monkeypatch.setattr(boosted_pooling, "MOST_ROWS", 25 * 700)
    sizes, fitted = [], boosted_pooling._fitted
    monkeypatch.setattr(
        boosted_pooling,
        "_fitted",
        lambda rows, *more: sizes.append([len(r.errors) for r in rows]) or fitted(rows, *more),
    )
    pooled = partial_pooling(control, shift, to, **settings)
    found = learned_pooling(control, shift, to, **settings)
    assert sizes == [[700] * 4] * 5 + [[700] * 25]
    assert missed(found.mean, true) < 0.7 * missed(pooled.mean, true)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("factor", "offset"), [(1, -2), (1e5, 0)])
def test_data_that_are_no_logarithms_are_taken_too(factor, offset, dtype):
    control, shift, to, _, settings = groups(saturating)
    control, shift, to = (np.asarray(v, dtype=dtype) for v in (factor * control + offset, factor * shift, to))
    to, settings = factor * to + offset, {**settings, "within": factor**2 * settings["within"]}
    found = learned_pooling(control, shift, to, **settings)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.sd).all()


def test_left_out_predictions_are_those_of_poolings_without_the_group():
    """Few groups: without trees, of all genes. More: as of a pooling that never saw the group."""
    control, shift, _, _, settings = groups(saturating, n=boosted_pooling.LEAST)
    found = LearnedPooling(control, shift, **settings).left_out_predictions()
    assert found.mean.shape == shift.shape
    k = [0, 2]
    own = {"within": settings["within"], "inverse_size": settings["inverse_size"][k]}
    expected = partial_pooling(control[k], shift[k], control[1], **own)
    np.testing.assert_allclose(found.mean[1], expected.mean)
    np.testing.assert_allclose(found.sd[1], expected.sd)
    control, shift, _, _, settings = groups(saturating)
    made = LearnedPooling(control, shift, **settings)
    found = made.left_out_predictions()
    assert made.n_trees > 0
    errors = np.square(found.mean - shift[np.ix_(found.groups, found.genes)]).mean()
    assert errors == pytest.approx(made.left_out[1])
    for o in found.groups[:2]:
        k = [i for i in range(len(control)) if i != o]
        own = {"within": settings["within"], "inverse_size": settings["inverse_size"][k]}
        alone = LearnedPooling(control[k], shift[k], **own).predict(control[o]).mean[found.genes]
        mean, seen = found.mean[list(found.groups).index(o)], shift[o][found.genes]
        assert np.corrcoef(alone, mean)[0, 1] > 0.98
        assert np.corrcoef(alone - seen, mean - seen)[0, 1] > 0.5  # errors of the same sign
