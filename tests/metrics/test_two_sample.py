"""The classifier two-sample test against what is known of the two distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from scalloy import metrics

QUICK = {"n_trees": 25}


def of(real, generated, **settings):
    return metrics.two_sample(real, generated, **{**QUICK, **settings})


def test_the_same_distribution_cannot_be_told():
    rng = np.random.default_rng(0)
    found = pd.DataFrame([of(*rng.normal(size=(2, 150, 6)), seed=s) for s in range(8)])
    # under chance, the area has the standard error of the Mann-Whitney statistic
    se = np.sqrt((30 + 30 + 1) / (12 * 30 * 30) / 5 / 8)
    assert abs(found["auc"].mean() - 0.5) < 4 * se
    assert abs(found["accuracy"].mean() - 0.5) < 0.05
    assert found["auc"].between(0.35, 0.65).all()


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_a_shift_is_told_about_as_well_as_it_can_be(shift):
    """Of two normal densities the best classifier is known: its area is Phi(shift / sqrt(2))."""
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(2, 1500, 1))
    found = of(real, generated + shift, n_trees=50)
    best, share = norm.cdf(shift / np.sqrt(2)), norm.cdf(shift / 2)
    assert best - 0.06 < found["auc"] < best + 0.02
    assert share - 0.06 < found["accuracy"] < share + 0.02


@pytest.mark.parametrize("wrong", ["variance", "zeros", "correlation"])
def test_more_than_means_is_seen(wrong):
    """The mean of each variable stays; its variance, share of zeros or what goes together does not."""
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(2, 600, 2))
    real, generated = np.tanh(shared @ rng.normal(size=(2, 30))) + 0.3 * rng.normal(size=(2, 600, 30))
    assert of(real, generated)["auc"] < 0.58
    if wrong == "variance":
        generated = generated.mean(0) + 1.5 * (generated - generated.mean(0))
    elif wrong == "zeros":
        real, generated = np.maximum(real, 0), np.maximum(generated, 0) * 1.0
        generated = np.where(rng.random(generated.shape) < 0.2, 0, generated / 0.8)
    else:
        generated = np.stack([rng.permutation(v) for v in generated.T], 1)
        for moment in (np.mean, np.var):
            np.testing.assert_allclose(moment(generated, 0), moment(real, 0), atol=0.15)
    assert of(real, generated)["auc"] > 0.8


def test_numbers_of_cells_may_differ():
    rng = np.random.default_rng(3)
    real, generated = rng.normal(size=(400, 5)), rng.normal(size=(60, 5))
    alike, apart = of(real, generated), of(real, generated + 3)
    assert abs(alike["accuracy"] - 0.5) < 0.1  # the majority would be right in 87 % of the cells
    assert apart["accuracy"] > 0.95
    swapped = of(generated + 3, real)
    assert swapped["auc"] == pytest.approx(apart["auc"], abs=0.02)


def test_scale_of_single_variables_matters_for_the_components_only():
    rng = np.random.default_rng(4)
    real, generated = rng.normal(size=(2, 200, 4))
    one = of(real, generated + 1, n_components=1)
    assert of(real, generated + 1, n_components=4) != one
    assert of(real, generated + 1, n_components=1) == one  # the same seed, the same figures
    assert of(real, generated + 1, n_components=1, seed=1) != one


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"same columns: `real` \(20, 3\), `generated` \(20, 4\)"):
        of(np.zeros((20, 3)), np.zeros((20, 4)))
    with pytest.raises(ValueError, match=r"At least 10 row\(s\) are needed"):
        of(np.zeros((20, 3)), np.zeros((9, 3)))
    with pytest.raises(ValueError, match="`n_trees=0` must be above zero"):
        metrics.two_sample(np.zeros((20, 3)), np.zeros((20, 3)), n_trees=0)
