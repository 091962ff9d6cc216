"""The benchmark of generated cells: its ways of making cells, its figures, and real cells as the best."""

from __future__ import annotations

import numpy as np
import pytest

import scalloy as sa
from scalloy.benchmark.generation import FIGURES, MODELS, figures, negative_binomials, summary


def test_negative_binomials_have_the_moments_of_their_group():
    rng = np.random.default_rng(0)
    n, share = 4000, rng.dirichlet(np.full(200, 3.0), size=2)
    groups, total = np.repeat(["a", "b"], n // 2), rng.integers(1000, 2000, n)
    mean = total[:, None] * share[(groups == "b").astype(int)]
    x = rng.poisson(rng.gamma(4.0, mean / 4.0)).astype(float)
    rows = rng.permutation(n)
    made = negative_binomials(x, groups, rows, rng)
    for group in "ab":
        real, new = x[groups == group], made[groups[rows] == group]
        np.testing.assert_allclose(new.mean(0), real.mean(0), rtol=0.1)
        np.testing.assert_allclose(new.var(0), real.var(0), rtol=0.35)
        assert new.var(0).sum() == pytest.approx(real.var(0).sum(), rel=0.05)
        others = x[groups != group]
        assert np.abs(new.mean(0) - others.mean(0)).max() > 5 * np.abs(new.mean(0) - real.mean(0)).max()


def test_figures_are_those_of_naive_loops():
    rng = np.random.default_rng(1)
    truth, made = rng.gamma(1.0, size=(80, 6)), np.maximum(rng.normal(0.5, 1, (70, 6)), 0)
    found = figures(truth, made, n_trees=3, seed=0)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    by_pair = [[np.corrcoef(v[:, i], v[:, j])[0, 1] for i, j in pairs] for v in (truth, made)]
    assert found["correlations"] == pytest.approx(np.corrcoef(*by_pair)[0, 1])
    expected = {"means": 0.0, "variances": 0.0, "zeros": 0.0}
    for g in range(6):
        expected["means"] += abs(truth[:, g].mean() - made[:, g].mean()) / 6
        expected["variances"] += abs(truth[:, g].var() - made[:, g].var()) / 6
        expected["zeros"] += abs((truth[:, g] == 0).mean() - (made[:, g] == 0).mean()) / 6
    assert {k: found[k] for k in expected} == pytest.approx(expected)
    assert found["auc"] > 0.6


def test_the_table_has_every_method_and_real_cells_are_hardest_to_tell():
    short = {"n_genes": 80, "n_cells": 300, "max_epochs": 2, "n_trees": 20}
    frame = sa.benchmark.generation(["kang_subset"], seeds=[0], **short)
    assert list(frame["method"].unique()) == ["real cells", "shuffled genes", "NB per type", *MODELS]
    assert (frame.groupby("method").size().drop(["real cells", "shuffled genes", "NB per type"]) == 2).all()
    auc = frame.groupby("method")["auc"].mean()
    assert auc["real cells"] == auc.min()
    assert auc["shuffled genes"] > auc["real cells"] + 0.05
    assert np.isfinite(frame[list(FIGURES)]).all(axis=None)
    table = summary(frame)
    assert table.loc[("kang_subset", "VAE", "prior"), ("auc", "mean")] == pytest.approx(
        frame.query("method == 'VAE' and source == 'prior'")["auc"].item(), abs=1e-3
    )
