"""What is learned across genes, where the rule is known."""

from __future__ import annotations

import numpy as np
import pytest

from scalloy.baselines import LearnedPooling, learned, learned_pooling, partial_pooling

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
    assert left < before
    assert missed(pooled.mean, true) == pytest.approx(before, rel=0.3)
    assert missed(after.mean, true) == pytest.approx(left, rel=0.5)
    assert found.missed(after) == left
    assert (after.sd < pooled.sd).all()
    np.testing.assert_array_equal(learned_pooling(control, shift, to, **settings).mean, after.mean)


def test_where_there_is_no_rule_nothing_is_made_worse():
    control, shift, to, true, settings = groups(nothing)
    pooled = partial_pooling(control, shift, to, **settings)
    found = learned_pooling(control, shift, to, **settings)
    size = missed(shift[0], 0 * shift[0])
    assert missed(found.mean, true) < missed(pooled.mean, true) + 0.05 * size


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
        errors.append(missed(f, shift[o]) - (settings["within"] * settings["inverse_size"][o]).sum())
    assert made.left_out[0] == pytest.approx(np.mean(errors), rel=1e-6)


def test_few_groups_are_pooled_as_they_are():
    control, shift, to, _, settings = groups(saturating, n=learned.LEAST)
    made = LearnedPooling(control, shift, **settings)
    found, pooled = made.predict(to), partial_pooling(control, shift, to, **settings)
    np.testing.assert_array_equal(found.mean, pooled.mean)
    np.testing.assert_array_equal(found.sd, pooled.sd)
    assert made.left_out is None
    assert made.missed(found) == pytest.approx(np.square(pooled.sd).sum())


def test_many_groups_and_genes_are_learned_from_in_part(monkeypatch):
    control, shift, to, true, settings = groups(saturating, n=10)
    monkeypatch.setattr(learned, "MOST_GROUPS", 5)
    monkeypatch.setattr(learned, "MOST_ROWS", 5 * 700)
    rows = []
    staged = learned._staged
    monkeypatch.setattr(
        learned, "_staged", lambda x, y, i: rows.append([len(v) for v in x]) or staged(x, y, i)
    )
    pooled = partial_pooling(control, shift, to, **settings)
    found = learned_pooling(control, shift, to, **settings)
    assert rows == [[700] * 5] * 5
    assert missed(found.mean, true) < 0.7 * missed(pooled.mean, true)


def test_data_below_zero_are_taken_too():
    control, shift, to, _, settings = groups(saturating)
    found = learned_pooling(control - 2, shift, to - 2, **settings)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.sd).all()
