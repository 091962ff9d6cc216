"""Tables of judges: a small simulated data set with predictions whose scores are known."""

from __future__ import annotations

from functools import cache

import pytest

import scalloy as sa
from scalloy.benchmark.rivals import Rival, rivals

HELD = ("cluster_0", "cluster_1")


@pytest.fixture(scope="session")
def cells():
    """Cells of three clusters under a control and two conditions."""
    return sa.datasets.simulate(1500, 160, n_clusters=3, n_conditions=3, n_batches=1, seed=0)


@pytest.fixture(scope="session")
def by_judge(cells):
    """Function of a judge that returns the table of two clusters, predicted by the truth and by others."""

    class Oracle:
        """Returns the real cells, by name of the condition and the cluster."""

        def __init__(self, *_):
            """Need no training cells."""

        def train(self, **_):
            """Learn nothing."""

        def transfer(self, given, to, **_):
            """Return the real cells."""
            of = str(given.obs["cluster"].iloc[0])
            real = cells[((cells.obs["cluster"] == of) & (cells.obs["condition"] == to)).to_numpy()]
            out = real[:, list(given.var_names)].copy()
            out.layers["counts"] = out.X.copy()
            return out

    models = {"oracle": Rival(Oracle, seeded=False)} | {k: rivals()[k] for k in ("no change", "mean shift")}

    @cache
    def table(judge):
        return sa.benchmark.transfer(
            cells, models, labels_key="cluster", hold_out=HELD, n_genes=160, judge=judge, seeds=[0]
        )

    return table
