"""Rates of all genes add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalloy.perturbation.composition import TAU, common_factor


@given(st.floats(-2, 2))
def test_what_is_left_is_of_the_size_that_the_true_change_leaves(log_sum):
    before = np.random.default_rng(0).dirichlet(np.ones(50))
    after = before * np.exp(log_sum)
    left = log_sum + np.log(common_factor(before, after))
    assert abs(left) <= min(abs(log_sum), TAU / 2) + 1e-12  # tau^2 a / (a^2 + tau^2) is largest at a = tau
    assert left == pytest.approx(log_sum * TAU**2 / (log_sum**2 + TAU**2), abs=1e-12)


def test_nothing_is_done_where_rates_add_up_or_there_are_none():
    before = np.array([0.5, 0.3, 0.2])
    assert common_factor(before, before[::-1]) == 1.0
    assert common_factor(before, np.zeros(3)) == common_factor(np.zeros(3), before) == 1.0
