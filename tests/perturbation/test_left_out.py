"""What predictions of left-out groups were worth: shares and skills that are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from scalloy.perturbation.donors import Seen
from scalloy.perturbation.group_effects import Shown
from scalloy.perturbation.group_moments import Moments
from scalloy.perturbation.left_out import (
    MOST_STRETCH,
    expected_skill,
    kinship,
    promised,
    stacked_share,
    stretch,
)

GROUPS, GENES = 6, 500


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_is_found_and_stays_between_none_and_all(share):
    rng = np.random.default_rng(0)
    one, both = rng.normal(size=(2, GROUPS, GENES))
    shift = one + share * (both - one) + 0.1 * rng.normal(size=one.shape)
    assert stacked_share(shift, one, both) == pytest.approx(share, abs=0.02)
    assert stacked_share(one - (both - one), one, both) == 0
    assert stacked_share(one + 2 * (both - one), one, both) == 1
    assert stacked_share(shift, one, one) == 1


@pytest.mark.parametrize("right", [1.0, 0.7, 0.0, -0.5])
def test_skill_is_that_of_the_true_changes_whatever_the_noise(right):
    rng = np.random.default_rng(1)
    true = rng.normal(size=(40, GENES))
    predicted = right * true
    for noise in (0.01, 1.0):
        shift = true + np.sqrt(noise) * rng.normal(size=true.shape)
        found = expected_skill(shift, predicted, np.full(true.shape, noise))
        assert found.mean == pytest.approx(1 - (1 - right) ** 2, abs=0.1)
        assert found.low <= found.mean <= found.high <= 1
        assert found.contexts == 40


def test_the_interval_holds_the_skill_of_another_group():
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(400):
        skills = rng.normal(0.5, 0.2, 6)
        true = rng.normal(size=(6, 50))
        predicted = true * (1 - np.sqrt(np.maximum(1 - skills, 0)))[:, None]
        found = expected_skill(true[:-1], predicted[:-1], np.zeros((5, 50)))
        inside.append(found.low <= skills[-1] <= max(found.high, 1.0))
    assert 0.85 < np.mean(inside) < 0.99


@pytest.mark.parametrize(("said", "true"), [(1.0, 1.0), (0.5, 1.0), (0.3, 1.0)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_stretched_intervals_hold_nine_of_ten_genes(said, true, noise):
    """Errors of standard deviation ``true``, of which predictions say that it is ``said``."""
    rng = np.random.default_rng(5)
    sizes = rng.gamma(2, 0.5, (GROUPS, GENES))
    sd, variance = said * sizes, noise * np.ones_like(sizes)
    missed = rng.normal(size=sizes.shape) * np.sqrt(np.square(true * sizes) + variance)
    factor = stretch(missed, sd, variance)
    assert factor == pytest.approx(true / said, rel=0.1)
    other = rng.normal(size=sizes.shape) * np.sqrt(np.square(true * sizes) + variance)
    inside = np.abs(other) <= 1.645 * np.sqrt(np.square(factor * sd) + variance)
    assert inside.mean() == pytest.approx(0.9, abs=0.02)


def test_intervals_are_stretched_within_bounds():
    one = np.ones((2, 50))
    assert stretch(100 * one, 0.01 * one, 0 * one) == MOST_STRETCH
    assert stretch(0 * one, one, one) == 1.0  # never narrower
    assert stretch(one[:0], one[:0], one[:0]) == 1.0


def test_nothing_is_expected_without_groups_in_which_something_changed():
    rng = np.random.default_rng(3)
    noise = np.ones((5, GENES))
    shift = rng.normal(size=(5, GENES))
    assert np.isnan(expected_skill(shift, 0 * shift, noise).mean)
    assert np.isnan(expected_skill(10 * shift[:1], shift[:1], noise[:1]).mean)


@pytest.mark.parametrize("shared", [True, False])
def test_groups_that_agree_promise_skill_and_groups_that_do_not_promise_none(shared):
    rng = np.random.default_rng(4)
    n, genes, cells = 6, 80, 150
    rate = rng.dirichlet(np.full(genes, 2.0), n)
    groups, conditions, counts = [], [], []
    common = rng.normal(0, 1, genes)
    for g in range(n):
        effect = common if shared else rng.normal(0, 1, genes)
        for condition, up in (("control", 0.0), ("a", effect)):
            mean = rate[g] * np.exp(up) / (rate[g] @ np.exp(up * np.ones(genes))) * 2000
            counts.append(rng.poisson(mean * rng.gamma(4, 1 / 4, (cells, 1))).astype(float))
            groups += [str(g)] * cells
            conditions += [condition] * cells
    x = np.concatenate(counts)
    log = np.log1p(2000 * x / x.sum(1, keepdims=True))
    shown = Seen.of(groups, None, conditions, [(log, x)], 2000.0).by_group("control", "a")
    found = shown.worth([str(g) for g in range(n)], "control", "a")
    assert 0 <= found.share <= 1
    assert found.skill.contexts == n
    assert (found.skill.mean > 0.8) if shared else (found.skill.mean < 0.2)
    assert np.isnan(shown.worth(["0"], "control", "a").skill.mean)


def test_groups_that_do_not_respond_count():
    """One in four is silent, and predicted as the others respond: its error counts, and it is counted."""
    rng = np.random.default_rng(7)
    common, noise = rng.normal(size=GENES), np.full((4, GENES), 0.01)
    true = np.stack([common, common, common, 0 * common])
    shift = true + 0.1 * rng.normal(size=true.shape)
    found = expected_skill(shift, np.tile(common, (4, 1)), noise)
    assert found.mean == pytest.approx(1 - 1 / 3, abs=0.02)  # of the squared changes of three, one is missed
    assert (found.worse, found.contexts) == (1, 4)
    assert expected_skill(shift, 0 * true, noise).worse == 0
    assert expected_skill(shift, 0.05 * rng.normal(size=true.shape), noise).worse == 0  # next to nothing


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_kinship_is_the_share_of_what_similarity_explains(share):
    """Responses differ between groups by parts that a prediction knows, and by parts that it does not."""
    rng = np.random.default_rng(8)
    common, known, unknown = rng.normal(size=(3, 30, GENES))
    predicted = common + np.sqrt(share) * known
    true = predicted + np.sqrt(1 - share) * unknown
    for noise in (0.01, 1.0):
        shift = true + np.sqrt(noise) * rng.normal(size=true.shape)
        found = kinship(shift, predicted, common, np.full(true.shape, noise))
        assert found == pytest.approx(share, abs=0.03)
    assert kinship(common, common, common, 0 * common) == 0.0  # nothing to explain
    assert kinship(true, common, predicted, 0 * true) == 0.0


@pytest.mark.parametrize("similar", [True, False])
def test_kinship_is_found_from_groups(similar):
    """Groups on a line respond by where they are, or each in its own way."""
    rng = np.random.default_rng(9)
    n, genes, cells = 8, 200, 400
    place = np.linspace(-2, 2, n)[:, None]
    control = 2 + place * rng.normal(0, 0.3, genes)
    own = place * rng.normal(0, 0.5, genes) if similar else rng.normal(0, 0.7, (n, genes))
    means = {"control": control, "a": control + rng.normal(0, 1, genes) + own}
    shown = Shown(
        {(str(g), c): Moments(m[g], np.full(genes, 0.5), cells) for c, m in means.items() for g in range(n)}
    )
    found = shown.worth([str(g) for g in range(n)], "control", "a").kinship
    assert found > 0.6 if similar else found < 0.2


@pytest.mark.parametrize("size", [0.0, 0.3, 2.0])
def test_a_promise_is_the_skill_that_the_uncertainty_leaves(size):
    """Changes that are distributed as a prediction says have the skill that it promises."""
    rng = np.random.default_rng(10)
    mean, sd = size * rng.normal(size=20_000), rng.gamma(2, 0.5, 20_000)
    true = mean + sd * rng.normal(size=20_000)
    nothing_known = expected_skill(true[None], true[None], 0 * true[None])
    found = promised(nothing_known, mean, sd)
    assert found.mean == pytest.approx(1 - np.square(true - mean).sum() / np.square(true).sum(), abs=0.03)
    assert np.isnan(found.left_out)
    shift = np.tile(true, (3, 1))
    for right in (1.0, 0.1):  # left out, others were predicted well or badly
        known = expected_skill(shift, right * shift, 0 * shift)
        assert promised(known, mean, sd).mean == min(found.mean, known.mean)
    assert promised(nothing_known, 0 * mean, 0 * sd).mean == 0.0


def test_noise_that_a_prediction_shares_does_not_count_twice():
    """Controls are in what was observed and in what was predicted: their noise is not in the error."""
    rng = np.random.default_rng(4)
    true = rng.normal(size=(60, GENES))
    control, own = rng.normal(0, 0.7, (60, GENES)), rng.normal(0, 0.5, (60, GENES))
    shift, predicted = true + own - control, 0.6 * true - control
    both = np.full(true.shape, 0.7**2 + 0.5**2)
    added = np.full(true.shape, 0.5**2 - 0.7**2)  # to |f - p|^2, of which the noise of the control is a part
    found = expected_skill(shift, predicted, both, added)
    assert found.mean == pytest.approx(1 - (0.4**2 + 0.7**2), abs=0.05)
    assert expected_skill(shift, predicted, both, both) == expected_skill(shift, predicted, both)
