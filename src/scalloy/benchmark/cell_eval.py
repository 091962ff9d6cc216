"""Conversion of predictions and real cells into files that cell-eval and cell-eval2 read (Arc Institute)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scalloy._arguments import one_of
from scalloy.benchmark.fit import log_normalised


def to_cell_eval(
    predicted: AnnData,
    real: AnnData,
    *,
    condition_key: str,
    control: str,
    folder: str | Path | None = None,
    log: bool = False,
) -> tuple[AnnData, AnnData]:
    """Return predicted and real cells, each joined with the same real controls.

    Pass raw counts on to cell-eval2 with
    ``cell_eval2.compute_metrics(*to_cell_eval(...), pert_col=condition_key, control=control)``, and
    logarithms (``log=True``) to the older cell-eval with
    ``cell_eval.MetricsEvaluator(*to_cell_eval(...), control_pert=control, pert_col=condition_key)``.

    Parameters
    ----------
    predicted
        Result of ``model.transfer(...)`` for one condition, or several such results joined. The counts in
        ``.layers["counts"]`` are used, because whole cells are compared and not only their means. Without
        such a layer only ``log=True`` is possible, with ``.X``.
    real
        Raw counts of the controls and the treated cells, with at least the genes of ``predicted``.
    condition_key
        Column of ``.obs`` with the condition, in both objects.
    control
        Name of the control condition in that column.
    folder
        Folder in which ``predicted.h5ad`` and ``real.h5ad`` are written; ``None`` writes nothing.
    log
        Whether to return ``log1p`` of counts scaled to 10,000 instead of raw counts.

    Returns
    -------
    Predicted and real cells, with the same conditions and with the genes in the same order.

    Examples
    --------
    >>> predicted = model.transfer(adata[adata.obs["condition"] == "control"].copy(), to="treated_1")
    >>> keys = {"condition_key": "condition", "control": "control"}
    >>> predicted, real = sa.benchmark.to_cell_eval(predicted, adata, **keys)
    >>> predicted.obs["condition"].value_counts().to_dict()
    {'treated_1': 102, 'control': 102}
    """
    names = real.obs[condition_key].astype(str)
    one_of("control", control, list(names.unique()))
    wanted = predicted.obs[condition_key].astype(str)
    if lacking := sorted(set(wanted) - set(names)):
        msg = f"`real` has no cells under {', '.join(lacking)}, which `predicted` holds."
        raise ValueError(msg)
    if missing := sorted(set(predicted.var_names) - set(real.var_names)):
        msg = f"`real` lacks {len(missing)} genes of `predicted`, such as {missing[0]}."
        raise ValueError(msg)
    genes = predicted.var_names
    sampled = predicted.layers.get("counts")
    if sampled is None and not log:
        msg = "`predicted` has no counts in `.layers['counts']`. Pass `log=True` to compare its `.X`."
        raise ValueError(msg)
    scaled = log_normalised if log else sp.csr_matrix
    x = np.asarray(predicted.X) if sampled is None else scaled(sampled)
    kept = real[(names.isin(set(wanted)) | (names == control)).to_numpy(), genes]
    truth = _cells(scaled(kept.X), kept, condition_key)
    controls = truth[(truth.obs[condition_key] == control).to_numpy()]
    new = _cells(x, predicted, condition_key)
    new.obs_names = [f"predicted_{k}" for k in new.obs_names]  # predictions carry the controls' names
    out = ad.concat([new, controls]), truth
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, cells in zip(("predicted", "real"), out, strict=True):
            cells.write_h5ad(Path(folder) / f"{name}.h5ad")
    return out


def _cells(x: Any, like: AnnData, condition_key: str) -> AnnData:
    """Return an AnnData of ``x`` with the conditions and gene names of ``like``."""
    obs = like.obs[[condition_key]].astype(str)
    return AnnData(x.astype(np.float32), obs=obs, var=like.var[[]].copy())
