"""Baselines of predictions against scikit-learn and limits."""

from __future__ import annotations

import numpy as np
from sklearn.kernel_ridge import KernelRidge

from scalloy.baselines import kernel_ridge, mean_shift
from scalloy.baselines.shifts import typical_distance


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
