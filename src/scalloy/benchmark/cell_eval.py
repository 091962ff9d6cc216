"""Predictions and truth as the two files that cell-eval (Arc Institute) compares."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
from anndata import AnnData

from scalloy.benchmark.transfer import log_normalised
from scalloy.models import _options


def to_cell_eval(
    predicted: AnnData,
    real: AnnData,
    *,
    condition_key: str,
    control: str,
    folder: str | Path | None = None,
) -> tuple[AnnData, AnnData]:
    """Cells that were predicted and real ones, each with the same real controls, log-normalised.

    ``cell_eval.MetricsEvaluator(*to_cell_eval(...), control_pert=control, pert_col=condition_key)``.

    Parameters
    ----------
    predicted
        Of ``model.transfer(...)``, one condition or several joined. Sampled counts are taken where there are
        some, since cells are compared and not only their means; otherwise ``.X``.
    real
        Raw counts with controls and the treated cells, with the genes of ``predicted``.
    condition_key
        Column of ``.obs`` of both.
    control
        Name of the controls in it.
    folder
        Where ``predicted.h5ad`` and ``real.h5ad`` are written.

    Returns
    -------
    Predicted and real cells, under the same conditions and with the genes in the same order.
    """
    names = real.obs[condition_key].astype(str)
    _options.one_of("control", control, list(names.unique()))
    wanted = predicted.obs[condition_key].astype(str)
    if lacking := sorted(set(wanted) - set(names)):
        msg = f"`real` has no cells under {', '.join(lacking)}, which `predicted` holds."
        raise ValueError(msg)
    if missing := sorted(set(predicted.var_names) - set(real.var_names)):
        msg = f"`real` lacks {len(missing)} genes of `predicted`, such as {missing[0]}."
        raise ValueError(msg)
    genes = predicted.var_names
    sampled = predicted.layers.get("counts")
    x = np.asarray(predicted.X) if sampled is None else log_normalised(sampled)
    kept = real[(names.isin(set(wanted)) | (names == control)).to_numpy(), genes]
    truth = _cells(log_normalised(kept.X), kept, condition_key)
    controls = truth[(truth.obs[condition_key] == control).to_numpy()]
    new = _cells(x, predicted, condition_key)
    new.obs_names = [f"predicted_{k}" for k in new.obs_names]  # they are named after controls
    out = ad.concat([new, controls]), truth
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, cells in zip(("predicted", "real"), out, strict=True):
            cells.write_h5ad(Path(folder) / f"{name}.h5ad")
    return out


def _cells(x: np.ndarray, like: AnnData, condition_key: str) -> AnnData:
    obs = like.obs[[condition_key]].astype(str)
    return AnnData(x.astype(np.float32), obs=obs, var=like.var[[]].copy())
