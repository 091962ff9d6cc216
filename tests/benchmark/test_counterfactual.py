"""The benchmark of counterfactuals: its truth, its zero and its one."""

from __future__ import annotations

import numpy as np
import pytest

import scalloy as sa
from scalloy.benchmark import counterfactual as module
from scalloy.benchmark.rivals import Rival


@pytest.fixture(scope="module")
def source():
    adata = sa.datasets.simulate(300, 50, n_conditions=3, n_batches=1, seed=0)
    return adata[adata.obs["condition"] == "control"].copy()


def test_what_is_expected_is_what_many_draws_have(source):
    """By numerical integration: the logarithm of a negative binomial count, the total nearly fixed."""
    from scipy.stats import nbinom

    source = source[:, :].copy()
    found = module.expected(source, "treated_1", seed=0)
    mean, k = source.layers["mean_treated_1"][:3], np.arange(3000)
    p = nbinom(source.uns["theta"], 4 / (4 + mean[..., None])).pmf(k)
    total = mean.sum(1)[:, None, None]
    exact = (p * np.log1p(1e4 * k / total)).sum(-1)
    assert np.abs(found[:3] - exact).mean() < 0.15
    assert np.corrcoef(found[:3].ravel(), exact.ravel())[0, 1] > 0.99


def test_zero_is_to_know_the_cell_and_one_is_to_know_all(source):
    truth = {c: module.expected(source, c, seed=0) for c in ("control", "treated_1")}
    nothing = module.scores(truth["control"], source, truth["control"], truth["treated_1"])
    everything = module.scores(truth["treated_1"], source, truth["control"], truth["treated_1"])
    assert nothing["skill_of_each"] == pytest.approx(0)
    assert everything["skill_of_each"] == pytest.approx(1)
    assert everything["skill"] > 0.95


def test_a_model_is_asked_for_each_condition_and_sees_no_treated_cell():
    seen = []

    class Spy(sa.baselines.Baseline):
        def train(self, **kwargs):
            seen.append(self.adata.obs.astype(str).value_counts())
            super().train(**kwargs)

    def make(cells, condition, labels):
        return Spy(cells, "partial pooling", condition_key=condition, labels_key=labels)

    frame = module.counterfactual(
        {"ours": Rival(make)}, seeds=(0, 1), n_obs=1200, n_vars=60, n_clusters=5, n_conditions=3
    )
    assert list(frame["condition"]) == ["treated_1", "treated_2"] * 2
    for counts in seen:
        assert {c for c, k in counts.index if k == "cluster_0"} == {"control"}
        assert {c for c, k in counts.index if k == "cluster_1"} == {"control", "treated_1", "treated_2"}
    assert (frame["skill"] > 0.3).all()  # what the others share
    assert set(module.summary(frame).index) == {"ours"}
