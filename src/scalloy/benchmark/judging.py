"""Parts that the judges of predicted counts share: their form, the cells that they compare, and halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy import metrics
from scalloy.benchmark.cell_eval import to_cell_eval
from scalloy.perturbation.fold_changes import rates_after
from scalloy.perturbation.redraw_counts import thinned_or_added

HALF = "half of the cells"  # row of one half of the real cells, taken for a prediction of the other


class Judge(Protocol):
    """Module that scores the predicted counts of a group under all conditions together."""

    def judged(
        self, predicted: AnnData, real: AnnData, *, seen: AnnData, condition_key: str, control: str
    ) -> dict[str, float]:
        """Return the scores of predicted cells by column; ``seen`` are the training cells of the models."""

    def references(
        self, real: AnnData, *, seen: AnnData, condition_key: str, control: str
    ) -> dict[str, dict[str, float]]:
        """Return the scores of rows that need no model, by the name of the row."""


class Compared(NamedTuple):
    """Predicted and real cells under one condition and real controls, cells x genes, log-normalised."""

    predicted: np.ndarray
    truth: np.ndarray
    control: np.ndarray

    def most_changed(self) -> np.ndarray:
        """Return all genes in the order of how clearly the real cells differ from the controls."""
        return np.argsort(-np.abs(metrics.welch(self.truth, self.control)), kind="stable")

    def means(self) -> Compared:
        """Return the mean of each gene."""
        return Compared(*(x.mean(0) for x in self))


def by_condition(
    predicted: AnnData, real: AnnData, *, condition_key: str, control: str
) -> dict[str, Compared]:
    """Return the cells to compare under each predicted condition; each cell is scaled to 10,000 counts.

    Parameters
    ----------
    predicted
        Predicted cells under one or more conditions, with counts in ``.layers["counts"]``.
    real
        Counts of real cells under the same conditions and under the control.
    condition_key
        Column of ``.obs`` with the condition, in both objects.
    control
        Name of the control condition.
    """
    cells = to_cell_eval(predicted, real, condition_key=condition_key, control=control, log=True)
    made, true = (
        {c: np.asarray(x.X[rows], dtype=float) for c, rows in x.obs.groupby(condition_key).indices.items()}
        for x in cells
    )
    return {c: Compared(made[c], true[c], true[control]) for c in made if c != control}


def averaged(found: Sequence[Mapping[str, float]], columns: Sequence[str]) -> dict[str, float]:
    """Return the mean of each column over the conditions where it is a number."""
    return pd.DataFrame(found, columns=list(columns), dtype=float).mean().to_dict()


def counts_after(source: AnnData, change: np.ndarray, target_sum: float, seed: int = 0) -> sp.csr_matrix:
    """Return counts of cells after a change of their mean log-normalised expression.

    They are changed by the factors that correspond to it, added where a gene rises and thinned where it
    falls.

    Parameters
    ----------
    source
        Cells with raw counts.
    change
        Change of the mean, by gene.
    target_sum
        Total count to which each cell is scaled before the logarithm.
    seed
        Random seed of the draws.
    """
    counts = sp.csr_matrix(source.X)
    before, after = rates_after(counts, change, target_sum, np.ones(counts.shape))
    return thinned_or_added(counts, before, after, np.random.default_rng(seed))


def halves(cells: AnnData, condition_key: str) -> list[AnnData]:
    """Split the cells under each condition into two random halves; the first has the odd cell."""
    rng = np.random.default_rng(0)
    half = np.zeros(cells.n_obs, dtype=int)
    for rows in cells.obs.groupby(condition_key, observed=True).indices.values():
        half[rng.permutation(rows)[: len(rows) // 2]] = 1
    return [cells[half == k].copy() for k in (0, 1)]


def half_against_half(
    judged: Callable[..., dict[str, float]], real: AnnData, *, condition_key: str, control: str, **also: Any
) -> dict[str, dict[str, float]]:
    """Return the scores of one random half of the real cells, taken for a prediction of the other half."""
    truth, made = halves(real, condition_key)
    made = made[(made.obs[condition_key].astype(str) != control).to_numpy()].copy()
    made.layers["counts"] = made.X
    return {HALF: judged(made, truth, condition_key=condition_key, control=control, **also)}
