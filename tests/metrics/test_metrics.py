"""Metrics against their definitions, scikit-learn and brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from scalloy import metrics


@pytest.fixture
def means():
    rng = np.random.default_rng(0)
    control = rng.gamma(1.0, size=300)
    truth = control + rng.normal(0.2, 0.5, 300)
    return control, truth, truth + rng.normal(0, 0.2, 300)


def test_skill_is_zero_for_no_change_and_one_for_the_truth(means):
    control, truth, predicted = means
    assert metrics.skill(control, truth, control) == 0
    assert metrics.skill(truth, truth, control) == 1
    by_sklearn = r2_score(truth - control, predicted - control, force_finite=False)
    total, centred = (
        np.square(truth - control).sum(),
        np.square(truth - control - (truth - control).mean()).sum(),
    )
    assert metrics.skill(predicted, truth, control) == pytest.approx(1 - (1 - by_sklearn) * centred / total)


def test_correlations_are_scipys(means):
    control, truth, predicted = means
    delta = pearsonr(predicted - control, truth - control)[0]
    assert metrics.pearson_delta(predicted, truth, control) == pytest.approx(delta)
    assert metrics.r2_mean(predicted, truth) == pytest.approx(pearsonr(predicted, truth)[0] ** 2)
    assert metrics.pearson_delta(control, truth, control) == 0
    shift = np.linspace(0, 1, 300)
    expected = pearsonr(predicted - control - shift, truth - control - shift)[0]
    assert metrics.resid_pearson_delta(predicted, truth, control, shift) == pytest.approx(expected)
    assert metrics.resid_pearson_delta(control + shift, truth, control, shift) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_the_right_width_cover_their_level(level):
    rng = np.random.default_rng(1)
    sd = rng.uniform(0.1, 2, 20_000)
    truth = rng.normal(0, sd)
    assert metrics.coverage(np.zeros(20_000), truth, sd, level) == pytest.approx(level, abs=0.015)


def test_hungarian_accuracy_is_the_best_of_all_assignments():
    rng = np.random.default_rng(2)
    truth, clusters = rng.integers(4, size=200), rng.integers(4, size=200)
    best = max(np.mean(np.array(order)[clusters] == truth) for order in permutations(range(4)))
    assert metrics.hungarian_accuracy(truth, clusters) == pytest.approx(best)
    majority = sum(np.bincount(truth[clusters == k]).max() for k in range(4)) / 200
    assert metrics.purity(truth, clusters) == pytest.approx(majority)


def test_calibration_error_of_known_confidences():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.3, 1, 50_000)
    correct = rng.random(50_000) < confidence
    assert metrics.expected_calibration_error(correct, confidence) < 0.01
    assert metrics.expected_calibration_error(np.ones(100), np.full(100, 0.8)) == pytest.approx(0.2)
    confidence, correct = np.repeat([0.9, 0.5], [90, 10]), np.repeat([1, 0], [90, 10])  # by their cells
    error = metrics.expected_calibration_error(correct, confidence)
    assert error == pytest.approx(0.9 * 0.1 + 0.1 * 0.5)


def test_majority_equals_a_naive_count():
    rng = np.random.default_rng(5)
    labels, clusters = rng.integers(4, size=300).astype(str), rng.integers(6, size=300)
    found = metrics.majority(labels, clusters)
    for k in range(6):
        names, counts = np.unique(labels[clusters == k], return_counts=True)
        assert found.loc[k, "label"] == names[counts.argmax()]
        assert found.loc[k, "purity"] == pytest.approx(counts.max() / counts.sum())
        assert found.loc[k, "cells"] == counts.sum()
    whole = (found["purity"] * found["cells"]).sum() / found["cells"].sum()
    assert whole == pytest.approx(metrics.purity(labels, clusters))
