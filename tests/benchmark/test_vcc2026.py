"""The judge of the Virtual Cell Challenge: predictions whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest

import scalloy as sa
from scalloy.benchmark import vcc2026
from scalloy.benchmark.judging import HALF
from scalloy.benchmark.transfer import summary

KEYS = {"condition_key": "condition", "control": "control"}


@pytest.fixture(scope="module")
def adata():
    """Cells of two clusters under two conditions."""
    return sa.datasets.simulate(200, 20, n_clusters=2, n_conditions=2, n_batches=1, seed=0)


def test_a_missing_package_names_its_extra(monkeypatch, adata):
    monkeypatch.setitem(__import__("sys").modules, "cell_eval2", None)
    with pytest.raises(ImportError, match=r"scalloy\[judge\]"):
        vcc2026.references(adata, **KEYS)


def test_unknown_judges_are_named(adata):
    with pytest.raises(ValueError, match="vcc2026"):
        sa.benchmark.transfer(adata, ["no change"], labels_key="cluster", judge="vcc2025")


@pytest.fixture(scope="module")
def table(by_judge):
    """Two clusters under two conditions, predicted by the truth, by no change, and by expression alone."""
    pytest.importorskip("cell_eval2", reason="the extra `judge` is not installed")
    return by_judge("vcc2026")


def test_the_truth_is_best_and_no_change_says_nothing(table):
    mean = table.groupby("method")[list(vcc2026.COLUMNS.values())].mean()
    assert mean.loc["oracle", "jaccard"] == 1
    assert mean.loc["oracle", "fold_change_error"] == pytest.approx(0, abs=1e-9)
    assert mean.loc["oracle", "reach"] == 1
    assert mean.loc["oracle", "expression_error"] < 0.2
    assert mean.loc["no change", "fold_change_error"] == pytest.approx(1)
    assert mean.loc["no change", "fidelity"] == mean.loc["no change", "reach"] == 0
    assert mean.loc["no change", "expression_error"] > 0.9
    assert mean.loc["no change", "discrimination"] == 0.5
    better = mean.loc["mean shift"]  # of expression alone: its counts are the controls', changed
    assert better["fold_change_error"] < 0.8
    assert better["expression_error"] < mean.loc["no change", "expression_error"]


def test_both_references_are_in_the_table_and_it_can_be_summarised(table):
    by = table.groupby("method")["fold_change_error"].mean()
    assert by[HALF] < by[vcc2026.GENERIC]
    assert set(table["type"]) == {"cluster_0", "cluster_1"}
    assert "expression_error" in summary(table)
    assert np.isfinite(summary(table)[("jaccard", "mean")]).all()


def test_without_a_measurable_effect_there_is_no_expression_error():
    """The judge then refuses the whole table; its other metrics are kept."""
    from types import SimpleNamespace

    import pandas as pd

    class Table(pd.DataFrame):
        def filter(self, mask):
            return self[mask]

    def aggregate(table):
        if vcc2026.EFFECT in set(table["metric"]):
            msg = "its sum is not positive"
            raise ValueError(msg)
        return {k: SimpleNamespace(to_list=table[k].tolist) for k in ("metric", "mean")}

    table = Table({"metric": ["pds_cosine", vcc2026.EFFECT], "mean": [0.7, -0.1]})
    found = vcc2026._columns(SimpleNamespace(aggregate_metrics=aggregate), table)
    assert found["discrimination"] == 0.7
    assert np.isnan(found["expression_error"])
