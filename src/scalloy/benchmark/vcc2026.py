"""The judge of the Virtual Cell Challenge 2026: six metrics of predicted counts, by its package cell-eval2.

    column            metric of cell-eval2                       better
    discrimination    pds_cosine                                 higher
    expression_error  expr_mse_unbiased_capped_norm              lower, no change has 1 without noise
    fidelity          de_wilcoxon_direction_fidelity_yield_raw   higher
    reach             de_wilcoxon_direction_reach_raw            higher
    jaccard           de_wilcoxon_sig_jaccard                    higher
    fold_change_error de_wilcoxon_lfc_nmae                       lower, no change has 1

All of them compare predicted with real cells of one context (a cell type, a replicate) under all conditions
at once. ``discrimination`` needs several conditions. Values are raw. The two references of the challenge,
where its scale has 0 and 1, are rows of the table: the mean response to all conditions, taken from the real
cells, and one half of the real cells against the other. Where all real effects together are not above the
noise, there is no expression error, and no row of the mean response.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scalloy.benchmark.cell_eval import to_cell_eval
from scalloy.benchmark.judging import HALF, halves

COLUMNS = {
    "pds_cosine": "discrimination",
    "expr_mse_unbiased_capped_norm": "expression_error",
    "de_wilcoxon_direction_fidelity_yield_raw": "fidelity",
    "de_wilcoxon_direction_reach_raw": "reach",
    "de_wilcoxon_sig_jaccard": "jaccard",
    "de_wilcoxon_lfc_nmae": "fold_change_error",
}
GENERIC = "generic response"
EFFECT = "expr_distance_unbiased"  # size of the real effects, without which there is no expression error


def judged(
    predicted: AnnData, real: AnnData, *, condition_key: str, control: str, **_: Any
) -> dict[str, float]:
    """Return the six metrics of predicted cells; a metric that cannot be computed is not a number.

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
    **_
        Further arguments that other judges take, which are ignored.
    """
    package, config = _package(), _config(real, condition_key, control)
    cells = to_cell_eval(predicted, real, condition_key=condition_key, control=control)
    with _quiet():
        return _columns(package, package.compute_metrics(*cells, config=config))


def references(real: AnnData, *, condition_key: str, control: str, **_: Any) -> dict[str, dict[str, float]]:
    """Return the metrics of the two references: the mean response, and one half of the real cells.

    With a single condition, the mean response is the truth, and is left out.

    Parameters
    ----------
    real
        Counts of real cells under the conditions and under the control.
    condition_key
        Column of ``.obs`` with the condition.
    control
        Name of the control condition.
    **_
        Further arguments that other judges take, which are ignored.
    """
    package, config = _package(), _config(real, condition_key, control)
    cells = AnnData(sp.csr_matrix(real.X, dtype=np.float32), obs=real.obs[[condition_key]].astype(str))
    cells.var_names = real.var_names
    found = {}
    with _quiet():
        if cells.obs[condition_key].nunique() > 2:
            with suppress(ValueError):  # no effect is measurable: the judge refuses this reference
                made = package.build_generic_baseline(cells, config=config, allow_degenerate=True)
                found[GENERIC] = made.results
        both = replace(config, control_source="pred")
        found[HALF] = package.compute_metrics(*halves(cells, condition_key), config=both)
        return {name: _columns(package, table) for name, table in found.items()}


def _package() -> Any:
    """Return cell-eval2, or say how to install it."""
    try:
        import cell_eval2
    except ImportError as error:
        msg = "`judge='vcc2026'` needs cell-eval2: pip install 'scalloy[judge]'."
        raise ImportError(msg) from error
    return cell_eval2


def _config(real: AnnData, condition_key: str, control: str) -> Any:
    """Return the preset of the challenge; a condition that has the name of a gene perturbs this gene."""
    config = _package().EvalConfig.from_preset("vcc2026")
    genes = {str(name) for name in real.var_names}
    names = {str(c) for c in real.obs[condition_key].unique()} - {control}
    targets = {name: name if name in genes else None for name in names}
    return replace(
        config, pert_col=condition_key, control=control, target_gene_map=targets, num_threads=1, device="cpu"
    )


def _columns(package: Any, table: Any) -> dict[str, float]:
    """Return the mean of each metric by the name of its column in our table."""
    try:
        found = package.aggregate_metrics(table)
    except ValueError:  # the real cells show no effect to which the expression error could be related
        found = package.aggregate_metrics(table.filter(table["metric"] != EFFECT))
    mean = dict(zip(found["metric"].to_list(), found["mean"].to_list(), strict=True))
    return {
        ours: float("nan") if (v := mean.get(theirs)) is None else float(v)
        for theirs, ours in COLUMNS.items()
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars, and the advice that cell-eval2 logs at each call."""
    logger = logging.getLogger("cell_eval2")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)
