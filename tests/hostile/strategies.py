"""How hostile cases are drawn, and how many of them."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hostile.cases import HOSTILE

SMALL = {"n_hidden": 8, "n_latent": 3}
SHORT = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}
COLUMNS = {
    "batch_key": "batch",
    "condition_key": "condition",
    "labels_key": "cluster",
    "size_factor_key": "size",
    "categorical_covariate_keys": ["lane"],
    "continuous_covariate_keys": ["score"],
}
LONG = int(os.environ.get("SCALLOY_HOSTILE", "0"))
SWEEPS = os.environ.get("SCALLOY_SWEEPS") == "1"  # as in `make test-all`: all examples of each test


def tried(n):
    """Repeatable examples, so many of them unless a longer run is asked for."""
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    n = LONG or (n if SWEEPS else max(5, n // 4))
    return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=slow)


def names(*left_out, n=3):
    """Up to three things that are wrong at once."""
    known = [name for name in HOSTILE if not left_out or not name.startswith(left_out)]
    return st.lists(st.sampled_from(known), min_size=1, max_size=n, unique=True)


#: Leaves out what is refused in nearly every combination.
mild = names(
    "given:", "x:inf", "x:minus", "x:NaN", "x:neg", "x:frac", "shape:no", "shape:one", "shape:a view", n=2
)


seeds = st.integers(0, 10**6)
