"""Agreement of modalities of generated cells on their type, against shares that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalloy import metrics

K = 4


def view(kind, rng, n_vars=6, distance=8.0):
    """Values in which each type has a variable of its own."""
    return distance * np.eye(K, n_vars)[kind] + rng.normal(size=(len(kind), n_vars))


@pytest.fixture(scope="module")
def given():
    """Real cells of four types in three modalities, and generated ones of which a known part is torn."""
    rng = np.random.default_rng(0)
    kind, of_made = rng.integers(K, size=400), rng.integers(K, size=600)
    torn = np.where(rng.random(600) < 0.3, (of_made + 1) % K, of_made)
    names = ("rna", "prot", "atac")
    real = {m: view(kind, rng, 6 + i) for i, m in enumerate(names)}
    made = {m: view(torn if m == "prot" else of_made, rng, 6 + i) for i, m in enumerate(names)}
    return real, kind, made, (of_made, torn)


def two(values):
    return {m: values[m] for m in ("rna", "prot")}


def test_share_of_cells_that_agree(given):
    real, kind, made, (of_made, torn) = given
    share = (of_made == torn).mean()
    assert 0.6 < share < 0.8
    found = metrics.coherence(two(real), kind, two(made))
    assert found["made"] == pytest.approx(share)
    assert found["real"] == 1.0
    assert found["ratio"] == pytest.approx(share)
    three = metrics.coherence(real, kind, made)
    assert three["made"] == pytest.approx((2 * share + 1) / 3)  # rna and atac agree always


def test_real_cells_set_the_measure(given):
    """Where real cells cannot be told apart, generated ones need not agree either."""
    real, kind, _, _ = given
    rng = np.random.default_rng(1)
    dim = {"rna": real["rna"], "prot": view(kind, rng, distance=1.5)}
    test = rng.integers(K, size=500)
    held_out = {"rna": view(test, rng), "prot": view(test, rng, distance=1.5)}
    found = metrics.coherence(dim, kind, held_out, held_out)
    assert found["ratio"] == 1.0
    assert 0.4 < found["real"] < 0.9
    assert found["composition"] == 0.0
    inside = metrics.coherence(dim, kind, held_out)
    assert inside["real"] == pytest.approx(
        found["real"], abs=0.06
    )  # out of fold, not of cells learned by heart
    noise = {"rna": real["rna"][:60], "prot": rng.normal(size=(60, 80))}  # more variables than cells
    assert metrics.coherence(noise, kind[:60], noise)["real"] < 0.5
    assert metrics.coherence(noise, kind[:60], noise)["made"] > 0.9


def test_one_type_only_is_coherent_but_of_another_composition(given):
    real, kind, _, _ = given
    rng = np.random.default_rng(2)
    one = {m: view(np.zeros(200, int), rng, real[m].shape[1]) for m in real}
    found = metrics.coherence(real, kind, one)
    assert found["ratio"] == 1.0
    shares = np.bincount(kind) / len(kind)
    assert found["composition"] == pytest.approx(1 - shares[0])
    assert metrics.coherence(real, kind, real)["composition"] < 0.01


def test_frames_go_by_name(given):
    real, kind, made, _ = given
    expected = metrics.coherence(two(real), kind, two(made), two(real))
    rng = np.random.default_rng(3)

    def frames(values, prefix):
        out = {}
        for m, x in values.items():
            index = [f"{prefix}_{i}" for i in range(len(x))]
            frame = pd.DataFrame(x, index, [f"{m}_{i}" for i in range(x.shape[1])])
            out[m] = frame.iloc[rng.permutation(len(x)), rng.permutation(x.shape[1])]
        return out

    labels = pd.Series(kind, [f"real_{i}" for i in range(400)])
    named = [frames(two(v), k) for v, k in ((real, "real"), (made, "made"), (real, "held"))]
    found = metrics.coherence(named[0], labels, named[1], named[2])
    assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match="do not have the same variables of rna"):
        metrics.coherence(named[0], labels, {**named[1], "rna": named[1]["rna"].add_prefix("x")})
    with pytest.raises(ValueError, match="do not have the same cells of made"):
        metrics.coherence(named[0], labels, {**named[1], "rna": named[2]["rna"]})


def test_what_does_not_fit_is_refused(given):
    real, kind, made, _ = given
    with pytest.raises(ValueError, match=r"`real` has the modalities: rna. Expected a dict of two or more"):
        metrics.coherence({"rna": real["rna"]}, kind, made)
    with pytest.raises(ValueError, match=r"`made` has the modalities: rna, prot. Expected"):
        metrics.coherence(real, kind, two(made))
    with pytest.raises(ValueError, match=r"`held_out` has the modalities: ndarray. Expected"):
        metrics.coherence(real, kind, made, real["rna"])
    with pytest.raises(ValueError, match=r"same rows: .*made\['prot'\]"):
        metrics.coherence(two(real), kind, {"rna": made["rna"], "prot": made["prot"][:-1]})
    with pytest.raises(ValueError, match="must have the same columns"):
        metrics.coherence(two(real), kind, {"rna": made["rna"][:, :-1], "prot": made["prot"]})
    with pytest.raises(ValueError, match=r"`labels` has 399 values of 4 type\(s\) for 400 cells"):
        metrics.coherence(real, kind[:-1], made)
    with pytest.raises(ValueError, match=r"`labels` has 400 values of 1 type"):
        metrics.coherence(real, np.zeros(400), made)
    rare = np.where(np.arange(400) == 0, 9, kind)
    with pytest.raises(
        ValueError, match="A type has one cell, so that it cannot be both learned and held out"
    ):
        metrics.coherence(real, rare, made)
    assert metrics.coherence(real, rare, made, real)["ratio"] < 1
