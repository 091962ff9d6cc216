"""Conditions of cells, and prediction of cells under another condition.

The functions for users are methods of the models with conditions, :class:`scalloy.TRVAE` and
:class:`scalloy.CGMDVAE`. The predictions are made in :mod:`scalloy.models._core.transfer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy._arguments import category, one_of, totals, warn, whole
from scalloy.data.chunks import pieces_of, write_pieces
from scalloy.models._core.decoding import How
from scalloy.models._core.protocols import Conditioned, ModelOf
from scalloy.models._core.reader import DECODED_ENTRIES
from scalloy.models._core.starts import started
from scalloy.models._core.targets import Target, target_of
from scalloy.models._core.transfer import transfer as predicted
from scalloy.vae.base import HasConditions


def names(model: ModelOf[HasConditions]) -> list[str]:
    """Conditions in the order of their codes.

    Examples
    --------
    >>> model.conditions
    ['control', 'treated_1']
    """
    return model.reader.conditions


def key(model: ModelOf[HasConditions]) -> str | None:
    """Column of ``.obs`` with the condition; ``None`` if there is none.

    Examples
    --------
    >>> model.condition_key
    'condition'
    """
    return model.reader.set_up_with.get("condition_key")


def transfer(
    model: Conditioned[HasConditions],
    cells: AnnData | None = None,
    to: str | Mapping[str, Any] | None = None,
    *,
    route: Literal["auto", "decoder", "transport", "style"] = "auto",
    n_samples: int | None = None,
    library_size: float | None = None,
    seed: int = 0,
    target_sum: float = 1e4,
    context: AnnData | None = None,
) -> AnnData:
    """Predict how cells would look under another condition.

    Each cell is predicted from its own counts and from the change of its group, so that it does not matter
    which other cells it is passed with (but for cells of a donor that the model does not know, or of whom it
    has fewer than ten cells of the same group under the same condition).

    Parameters
    ----------
    cells
        Cells with the genes of the model and a known condition, such as controls; ``None`` is the model's
        own.
    to
        Condition to predict: its name or, if the model was set up with :class:`~scalloy.Conditions`, also the
        amounts of its parts (``{"A": 0.5, "B": 1.0}``) or values of the columns (``{"drug": "A", "dose":
        0.5}``), seen or not.
    route
        Method of prediction. ``"auto"`` averages the decoder's shift of each group of cells with the shifts
        that other groups have shown. The other routes use the decoder alone: ``"decoder"`` with the code of
        the cell, ``"transport"`` with a code that moves with its component, and ``"style"`` with the
        component's location for the style ``w`` of the cell (the last two only for
        :class:`~scalloy.CGMDVAE`). The equations are in :mod:`scalloy.models._core.transfer`.
    n_samples
        Number of samples of the code over which expectations are taken; ``None`` decodes its mean, which
        takes the least time (and one sample for the counts, which are drawn in any case).
    library_size
        Total of the sampled counts of each cell; ``None`` keeps its own, apart from the changes of its genes.
    seed
        Random seed of the samples.
    target_sum
        Total count to which each cell is scaled before the logarithm, as in scanpy's ``normalize_total``.
    context
        Cells from which the expression of each group before the change is taken, for ``route="auto"``;
        ``None`` is the model's own; a group of a donor (or batch) of whom these have fewer than ten cells
        starts at his cells among ``cells`` if they are ten or more, and one of a donor that the model does
        not know always starts at ``cells``. Pass the controls of a study that the model was not trained on
        (often ``cells`` itself).

    Returns
    -------
    AnnData with the same cells and genes. ``.X`` is the expected log-normalised expression, and
    ``.layers["counts"]`` has counts (if the likelihood is one of counts), which the model reads as the counts
    of these cells. ``.obs`` has the new condition, ``"transfer_of"`` (name of the original cell),
    ``"transfer_from"`` (its condition) and ``"transfer_group"``. ``.uns["transfer"]`` has the settings. The
    names of the cells end in the name of the condition.

    With ``route="auto"``, ``.obs["transfer_far"]`` marks cells whose group is unlike all that were seen under
    both conditions. With every route it marks conditions with doses, times or parts beyond what was seen.
    With ``route="auto"``, ``.obs["transfer_skill"]`` is the skill to expect (0 is no better than no change;
    not a number if the change was seen, or if no other group was). ``.uns["transfer"]`` also has, by gene and
    group, the shift and the fold change of counts, each with its standard deviation. If donors (or batches)
    have cells under both conditions, it has them by group and donor. ``.obs["transfer_pair"]`` is the name of
    the entry of each cell.

    Examples
    --------
    >>> controls = adata[adata.obs["condition"] == "control"].copy()
    >>> treated = model.transfer(controls, to="treated_1")
    >>> treated.obs["condition"].unique().tolist()
    ['treated_1']
    """
    settings: dict[str, Any] = {"n_samples": n_samples, "library_size": library_size, "seed": seed}
    settings |= {"context": context, "route": route, "target_sum": target_sum}
    return predicted(model, cells, asked(model, to, settings), **settings)


def asked(model: Conditioned[HasConditions], to: Any, settings: dict[str, Any]) -> Target:
    """Check the arguments of a prediction, and return the condition to predict."""
    if model.condition_key is None:
        name = type(model).__name__
        msg = (
            f"The model knows no condition. Call `{name}.setup_anndata(adata, condition_key=...)` and "
            "train again."
        )
        raise ValueError(msg)
    route = one_of("route", settings.get("route", "auto"), model.ROUTES)
    if settings.get("context") is not None and route != "auto":
        msg = (
            f"`context` is used only with `route='auto'`, not with `route={route!r}`. Leave one of them out."
        )
        raise ValueError(msg)
    totals(None, library_size=settings.get("library_size"))
    totals(target_sum=settings.get("target_sum", 1e4))
    if (n_samples := settings.get("n_samples")) is not None:
        whole(n_samples=n_samples)
    return target_of(model, to)


def write_transfer(
    model: Conditioned[HasConditions],
    path: str | Path,
    cells: AnnData | None = None,
    to: str | Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    **kwargs: Any,
) -> None:
    """Write the result of :meth:`transfer` into a file, piece by piece, for any number of cells.

    Expected values are those of :meth:`transfer`, whatever the pieces. The shifts of the groups are left out.

    Parameters
    ----------
    path
        Name of the file, which ends in ``.h5ad`` or ``.zarr``.
    cells
        Cells in memory, backed, or from :func:`scalloy.data.open_store`; ``None`` is the model's own.
    to
        Condition to predict.
    overwrite
        Whether to replace a file of this name.
    **kwargs
        Further arguments of :meth:`transfer`.

    Examples
    --------
    >>> model.write_transfer(folder / "treated.h5ad", to="treated_1")
    """
    if cells is None or cells is model.adata:
        model.reader.manager()  # raises an error if they were changed; their pieces are read as new cells
    target, changes = asked(model, to, kwargs), None
    source = model.adata if cells is None else cells
    if kwargs.get("route", "auto") == "auto":
        how = How("auto", kwargs.get("n_samples"), kwargs.get("target_sum", 1e4), kwargs.get("seed", 0))
        passed = None if source is model.adata else source
        changes = started(model, how, passed, kwargs.get("context"))
    most = max(1, DECODED_ENTRIES // model.reader.sizes.n_vars)
    made = (predicted(model, piece, target, changes=changes, **kwargs) for piece in pieces_of(source, most))
    write_pieces(Path(path), map(_without_shifts, made), overwrite=overwrite, source=source)


def _without_shifts(made: AnnData) -> AnnData:
    """Return a piece of a prediction, keeping in ``.uns`` only what is the same for all pieces."""
    made.uns["transfer"] = {k: v for k, v in made.uns["transfer"].items() if isinstance(v, str | float)}
    return made


def predict(
    model: Conditioned[HasConditions],
    ctrl_key: str,
    stim_key: str,
    celltype_to_predict: str | None = None,
    adata_to_predict: AnnData | None = None,
    **kwargs: Any,
) -> tuple[AnnData, pd.Series]:
    """Predict a cell type, or given cells, under another condition: :meth:`transfer` with scGen's call.

    Parameters
    ----------
    ctrl_key, stim_key
        Condition of the given cells, and condition to predict.
    celltype_to_predict
        Label of the cells to predict, among the model's own cells under ``ctrl_key``.
    adata_to_predict
        Cells under ``ctrl_key`` to predict instead.
    **kwargs
        Further arguments of :meth:`transfer`.

    Returns
    -------
    The result of :meth:`transfer`, and the change of mean log-normalised expression by gene.

    Examples
    --------
    >>> treated, change = model.predict("control", "treated_1", celltype_to_predict="cluster_0")
    """
    conditions = model.reader.conditions
    ctrl_key, stim_key = (
        category(name, given, conditions)
        for name, given in {"ctrl_key": ctrl_key, "stim_key": stim_key}.items()
    )
    if (celltype_to_predict is None) == (adata_to_predict is None):
        msg = "Pass one of `celltype_to_predict` and `adata_to_predict`."
        raise ValueError(msg)
    cells = adata_to_predict
    if cells is None:
        cells = _of_type(model, celltype_to_predict, ctrl_key, stim_key)
    out = model.transfer(cells, to=stim_key, **kwargs)
    before = _mean_log(model, cells, out.uns["transfer"]["target_sum"])
    change = pd.Series(np.asarray(out.X).mean(0), index=out.var_names) - before.reindex(out.var_names)
    return out, change.rename("change")


def _mean_log(model: ModelOf[HasConditions], cells: AnnData, target_sum: float) -> pd.Series:
    """Return the mean observed expression of each gene of the model, on the scale of :meth:`transfer`."""
    total = np.zeros(model.reader.sizes.n_vars)
    for batch in model.reader.batches(cells, decodes=True):
        observed = model.module.likelihood.observed(batch.x, target_sum)
        total += observed.sum(0, dtype=torch.float64).cpu().numpy()
    return pd.Series(total / cells.n_obs, index=model.reader.var_names)


def _of_type(model: Conditioned[HasConditions], name: Any, control: str, treated: str) -> AnnData:
    """Return the cells of the model of one label under one condition."""
    model.reader.manager()
    key, adata = model.reader.set_up_with.get("labels_key"), model.reader.cells()
    if key is None:
        msg = "`celltype_to_predict` needs labels: call `setup_anndata(adata, labels_key=...)`."
        raise ValueError(msg)
    name = category("celltype_to_predict", name, model.reader.labels)
    of, under = adata.obs[key].astype(str) == name, adata.obs[model.condition_key].astype(str)
    if not (of & (under == control)).any():
        msg = f"No cell of {name!r} is under {control!r}. Pass `adata_to_predict`, or another `ctrl_key`."
        raise ValueError(msg)
    if n := int((of & (under == treated)).sum()):
        warn(
            f"The model was trained on {n} cells of {name!r} under {treated!r}, and has seen the answer. "
            "Leave them out of training to see how well it predicts.",
        )
    return adata[(of & (under == control)).to_numpy()].copy()
