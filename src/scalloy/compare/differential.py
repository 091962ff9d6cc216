"""Differential expression by a model, with scvi-tools' call, and by donors beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy.compare.expression import compared
from scalloy.compare.groups import column
from scalloy.compare.samples import samples_of
from scalloy.data.checks import check_counts, check_layer
from scalloy.models._core import getters

CELLS = (
    "Probabilities and Bayes factors treat cells as independent observations. They say whether the cells at "
    "hand differ, not whether other donors would. Pass `donor_key` for p-values that say this."
)
DONORS = "Columns that begin with `donor_` are of summed counts of donors; see `scalloy.compare.expression`."


def differential_expression(
    model: Any,
    adata: AnnData | None = None,
    groupby: str | None = None,
    group1: str | Sequence[str] | None = None,
    group2: str | None = None,
    idx1: Any = None,
    idx2: Any = None,
    *args: Any,
    donor_key: str | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> pd.DataFrame:
    """Return genes that differ between groups of cells, with scvi-tools' call and test.

    Its probabilities and Bayes factors treat cells as independent observations. With ``donor_key``, counts
    are also summed by donor and compared as in :func:`scalloy.compare.expression`; the results stand beside.

    Parameters
    ----------
    adata
        New cells, which are left as they are; ``None`` is the model's own.
    groupby
        Column of ``.obs`` with the groups.
    group1
        Group or groups of interest; ``None`` takes each in turn.
    group2
        Group to compare with; ``None`` is all other cells.
    idx1, idx2
        Cells to compare in place of groups: masks, positions, or a query of ``.obs``.
    *args, **kwargs
        Further arguments of :meth:`scvi.model.base.RNASeqMixin.differential_expression`.
    donor_key
        Column of ``.obs`` with donors, mice, or whatever else is a replicate. The table then has
        ``donor_log2_fold_change``, ``donor_pvalue``, ``donor_padj`` (Benjamini-Hochberg within a comparison),
        and the numbers of donors, ``donors_1`` and ``donors_2``. They are missing for genes with few counts.
    seed
        Random seed; ``None`` is that of the model.

    Returns
    -------
    The table of scvi-tools. ``attrs["note"]`` says what its probabilities, or p-values, are about.

    Examples
    --------
    >>> genes = model.differential_expression(groupby="condition", group1="treated_1", silent=True)
    >>> "bayes_factor" in genes
    True
    """
    asked = (groupby, group1, group2, idx1, idx2, *args)
    table = getters.differential_expression(model, adata, *asked, seed=seed, **kwargs)
    table.attrs["note"] = CELLS
    if donor_key is None:
        return table
    cells = model.adata if adata is None else model.reader.fitting(adata)
    donor, layer = column(cells.obs, "donor_key", donor_key), model.reader.set_up_with.get("layer")
    check_counts(cells, layer, genes=False)
    x, genes = check_layer(cells, layer), model.reader.var_names.astype(str)
    parts = []
    whole = [("", table)] if idx1 is not None else table.groupby("comparison", sort=False)
    for _, part in whole:
        first, second = (
            (_cells(cells.obs, idx1), None if idx2 is None else _cells(cells.obs, idx2))
            if idx1 is not None
            else _groups(cells.obs[groupby].astype(str), part)
        )
        group = np.where(first, 1, np.where(~first if second is None else second, 0, -1))
        chosen = samples_of(cells.obs, group, donor)
        found = compared(x, genes, chosen).set_index("gene").reindex(part.index.astype(str))
        added = found[["log2_fold_change", "pvalue", "padj"]].add_prefix("donor_")
        added["donors_1"], added["donors_2"] = (len(set(chosen.donor[chosen.group == k])) for k in (1, 0))
        parts.append(part.assign(**{name: values.to_numpy() for name, values in added.items()}))
    out = pd.concat(parts)
    out.attrs["note"] = DONORS
    return out


def _cells(obs: pd.DataFrame, given: Any) -> np.ndarray:
    """Return a mask of the cells that a mask, positions or a query name."""
    mask = np.zeros(len(obs), dtype=bool)
    mask[obs.index.isin(obs.query(given).index) if isinstance(given, str) else np.asarray(given).ravel()] = (
        True
    )
    return mask


def _groups(of: pd.Series, part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
    """Return masks of the two groups of a comparison; ``None`` if the second is the rest."""
    second = str(part["group2"].iloc[0])
    rest = second == "Rest" and second not in set(of)
    return (of == str(part["group1"].iloc[0])).to_numpy(), None if rest else (of == second).to_numpy()
