"""Groups and genes of pandas go by their names in every baseline that takes arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scalloy as sa
from scalloy.baselines.shifts import SHIFTS

N_GROUPS, N_GENES = 6, 40
GENES = pd.Index([f"g{i}" for i in range(N_GENES)])
GROUPS = pd.Index([f"type {i}" for i in range(N_GROUPS)])
POOLINGS = {
    "partial_pooling": sa.baselines.partial_pooling,
    "learned_pooling": sa.baselines.learned_pooling,
    "LearnedPooling": lambda control, shift, to, **noise: sa.baselines.LearnedPooling(
        control, shift, **noise
    ).predict(to),
}


@pytest.fixture
def plain():
    rng = np.random.default_rng(0)
    control = rng.gamma(1.0, size=(N_GROUPS, N_GENES)) + np.linspace(0, 2, N_GENES)
    shift = 0.3 * control + rng.normal(0, 0.3, (N_GROUPS, N_GENES)) + np.arange(N_GROUPS)[:, None] * 0.1
    noise = {"within": rng.gamma(1.0, size=N_GENES), "inverse_size": np.linspace(0.01, 0.1, N_GROUPS)}
    return {"control": control, "shift": shift, "to": control.mean(0) + 0.1, **noise}


def named(plain, seed=0):
    """Frames and Series of the same, each but the first in an order of its own."""
    rng = np.random.default_rng(seed)
    genes = {k: GENES[rng.permutation(N_GENES)] for k in ("shift", "to", "within")}
    groups = {k: GROUPS[rng.permutation(N_GROUPS)] for k in ("shift", "inverse_size")}
    frames = {k: pd.DataFrame(plain[k], GROUPS, GENES) for k in ("control", "shift")}
    return {
        "control": frames["control"],
        "shift": frames["shift"].loc[groups["shift"], genes["shift"]],
        "to": pd.Series(plain["to"], GENES)[genes["to"]],
        "within": pd.Series(plain["within"], GENES)[genes["within"]],
        "inverse_size": pd.Series(plain["inverse_size"], GROUPS)[groups["inverse_size"]],
    }


def only(given, *names):
    return {k: given[k] for k in names}


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts(name, plain):
    three, predict = ("control", "shift", "to"), SHIFTS[name][0]
    expected = predict(**only(plain, *three))
    np.testing.assert_allclose(predict(**only(named(plain), *three)), expected, rtol=1e-6, atol=1e-9)
    settings = sa.baselines.tuned(name, **only(plain, "control", "shift"))
    assert sa.baselines.tuned(name, **only(named(plain), "control", "shift")) == settings
    other = only(named(plain), *three)
    other["to"] = other["to"].rename({"g3": "stranger"})
    with pytest.raises(
        ValueError, match=r"`control` and `to` do not have the same genes. 1 only in `control`: g3"
    ):
        predict(**other)


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings(name, plain):
    expected, found = POOLINGS[name](**plain), POOLINGS[name](**named(plain))
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.sd, expected.sd, rtol=1e-6, atol=1e-9)
    wrong = {**named(plain), "to": named(plain)["to"].rename({"g3": "stranger"})}
    with pytest.raises(ValueError, match="do not have the same genes"):
        POOLINGS[name](**wrong)
    cells = pd.DataFrame(np.random.default_rng(0).random((30, N_GENES)))
    np.testing.assert_allclose(found.sd_of_mean(cells), found.sd_of_mean(cells.to_numpy()))


def test_two_views():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(80, 2))
    views = [pd.DataFrame(y @ rng.normal(size=(2, n)) + rng.normal(0, 0.3, (80, n))) for n in (5, 4)]
    x, other = (v.set_axis([f"cell {i}" for i in range(80)]) for v in views)
    x.columns = list("abcde")
    expected = sa.baselines.ProbabilisticCCA(2).fit(x.to_numpy(), other.to_numpy()).predict(x.to_numpy())
    fitted = sa.baselines.ProbabilisticCCA(2).fit(x, other.sample(frac=1, random_state=0))
    np.testing.assert_allclose(fitted.predict(x[list("ecabd")]), expected, rtol=1e-6)
    np.testing.assert_allclose(fitted.predict(x.to_numpy()), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="do not have the same columns"):
        fitted.predict(x.rename(columns={"a": "z"}))
