"""Baselines of predictions against scikit-learn and limits."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from scalloy.baselines import kernel_ridge, mean_shift
from scalloy.baselines.shifts import SHIFTS, tuned
from scalloy.perturbation.similarity import typical_distance


def groups(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(6, 20)), rng.normal(size=(6, 20)), rng.normal(size=20)


def test_kernel_ridge_is_sklearns():
    control, shift, to = groups()
    gamma = 1 / typical_distance(control)
    model = KernelRidge(alpha=0.1, kernel="rbf", gamma=gamma).fit(control, shift - shift.mean(0))
    expected = shift.mean(0) + model.predict(to[None])[0]
    np.testing.assert_allclose(kernel_ridge(control, shift, to), expected, rtol=1e-8)


def test_far_from_everything_it_is_the_mean_shift():
    control, shift, to = groups()
    np.testing.assert_allclose(kernel_ridge(control, shift, to + 1e3), mean_shift(control, shift, to))


def test_without_a_ridge_it_returns_what_was_seen():
    control, shift, _ = groups()
    np.testing.assert_allclose(kernel_ridge(control, shift, control[2], ridge=1e-9), shift[2], rtol=1e-5)


@pytest.mark.parametrize("n", [6, 20, 90])
def test_settings_are_those_of_the_naive_loop(n, monkeypatch):
    """Over all groups that are left out, of which there are no more than 20."""
    rng, left_out = np.random.default_rng(n), []
    control = rng.normal(size=(n, 12))
    shift = np.tanh(control) + rng.normal(0, 0.3, (n, 12))
    predict, grid = SHIFTS["kernel ridge"]
    grid = {k: v[:2] for k, v in grid.items()}

    def spied(control, shift, to, **settings):
        left_out.append(to)
        return predict(control, shift, to, **settings)

    monkeypatch.setitem(SHIFTS, "kernel ridge", (spied, grid))
    found = tuned("kernel ridge", control, shift)
    rows = [int(np.flatnonzero((control == to).all(1))[0]) for to in left_out]
    chosen = sorted(set(rows))
    assert len(rows) == 4 * len(chosen) == 4 * min(n, 20)
    assert (chosen[0], chosen[-1]) == (0, n - 1)
    errors = {}
    for ridge in grid["ridge"]:
        for width in grid["width"]:
            missed = 0.0
            for i in chosen:
                others = [j for j in range(n) if j != i]
                guess = predict(control[others], shift[others], control[i], ridge=ridge, width=width)
                missed += ((guess - shift[i]) ** 2).sum()
            errors[ridge, width] = missed
    assert (found["ridge"], found["width"]) == min(errors, key=errors.get)


def test_distances_of_many_groups_take_no_memory_by_gene():
    """What was an array of groups x groups x genes."""
    rng = np.random.default_rng(0)
    control = rng.normal(size=(300, 3000))
    tracemalloc.start()
    found = typical_distance(control)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    pairs = [np.square(control[i] - control[j]).sum() for i in range(300) for j in range(i + 1, 300)]
    assert found == pytest.approx(np.median(pairs), rel=1e-12)
