"""Scores of Systema: are conditions told apart? (Viñas Torné et al., Nature Biotechnology 2025).

    column                   score of Systema                                        better
    pearson_perturbed        correlation of predicted and true means once the        higher
                             perturbed centroid is subtracted
    pearson_perturbed_top20  the same on the 20 genes that truly change most         higher
    pearson_control          correlation once the centroid of the controls is        higher, no change has 0
                             subtracted, for comparison
    pearson_control_top20    the same on the 20 genes                                higher, no change has 0
    centroid_accuracy        share of the other conditions whose true means are      higher, chance is 0.5
                             farther from the prediction than those of the right one

The perturbed centroid is the mean, over all conditions but the control, of the mean of the training cells
under the condition. Genes change most by the size of Welch's t against the controls; genes that have counts
under the control but none under the condition are left out of the 20. Values are means over conditions. The
accuracy needs several, and a correlation is 0 if no difference from the reference is predicted.

Systema has one context, in which training and test cells differ in their conditions. Here the controls are
those of the group, and training cells are of other groups. If groups are cell types, what is special about
the type is still there after the perturbed centroid is subtracted, so that even no change has a high
correlation: compare with its row.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from anndata import AnnData
from scipy.spatial.distance import cdist

from scalloy import metrics
from scalloy.benchmark.fit import log_normalised
from scalloy.benchmark.judging import Compared, averaged, by_condition, half_against_half

TOP = 20
COLUMNS = (
    *("pearson_perturbed", "pearson_perturbed_top20"),
    *("pearson_control", "pearson_control_top20"),
    "centroid_accuracy",
)


def judged(
    predicted: AnnData, real: AnnData, *, seen: AnnData, condition_key: str, control: str
) -> dict[str, float]:
    """Return the scores of predicted cells; a score that cannot be computed is not a number.

    Parameters
    ----------
    predicted
        Predicted cells under one or more conditions, with counts in ``.layers["counts"]``.
    real
        Counts of real cells under the same conditions and under the control.
    seen
        Counts of the cells on which the model was trained, with at least the genes of ``predicted``.
    condition_key
        Column of ``.obs`` with the condition, in all three objects.
    control
        Name of the control condition.
    """
    cells = by_condition(predicted, real, condition_key=condition_key, control=control)
    centroid = perturbed_centroid(seen[:, predicted.var_names], condition_key, control)
    rows = [
        {**_correlations(c, centroid), "centroid_accuracy": a}
        for c, a in zip(cells.values(), _accuracies(list(cells.values())), strict=True)
    ]
    return averaged(rows, COLUMNS)


references = partial(half_against_half, judged)  # one row: one half of the real cells against the other


def perturbed_centroid(seen: AnnData, condition_key: str, control: str) -> np.ndarray | None:
    """Return the mean of the means of all conditions but the control; ``None`` if there are none."""
    under = seen.obs[condition_key].astype(str)
    rows = {c: rows for c, rows in under.groupby(under).indices.items() if c != control}
    means = [log_normalised(seen.X[r]).mean(0) for r in rows.values()]
    return np.mean(means, axis=0) if means else None


def _correlations(cells: Compared, centroid: np.ndarray | None) -> dict[str, float]:
    """Return the correlations with both references, on all genes and on those that change most."""
    predicted, truth, control = cells.means()
    silenced = (truth == 0) & (control > 0)  # they may have been missed under the condition
    top = [g for g in cells.most_changed() if not silenced[g]][:TOP]
    found = {}
    for name, reference in {"perturbed": centroid, "control": control}.items():
        for genes, suffix in ((np.arange(len(truth)), ""), (top, "_top20")):
            if reference is not None:
                values = (x[genes] for x in (predicted, truth, reference))
                found[f"pearson_{name}{suffix}"] = metrics.pearson_delta(*values)
    return found


def _accuracies(cells: list[Compared]) -> np.ndarray:
    """Return the share of other conditions whose true means are farther than the right one, by condition."""
    if len(cells) < 2:
        return np.full(len(cells), np.nan)
    means = [c.means() for c in cells]
    apart = cdist([m.predicted for m in means], [m.truth for m in means])
    return (apart > np.diag(apart)[:, None]).sum(1) / (len(means) - 1)
