"""Effects of conditions with structure: dose curves, interactions in combinations, and similar conditions.

The functions for users are methods of the models with conditions, :class:`scalloy.TRVAE` and
:class:`scalloy.CGMDVAE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import stats

from scalloy._arguments import category, few, warn, whole
from scalloy.data.asked_conditions import content_of, design_in
from scalloy.data.conditions import Conditions
from scalloy.models._core.changes import Change, changes_of, shown
from scalloy.models._core.decoding import How
from scalloy.models._core.groups import groups_of
from scalloy.models._core.protocols import Conditioned
from scalloy.models._core.targets import target_of
from scalloy.perturbation.interactions import against_sum
from scalloy.perturbation.left_out import LEVEL
from scalloy.perturbation.structured import Structured
from scalloy.vae.base import HasConditions

N_DOSES = 12  # number of doses of a curve, if none are given
TOTAL = 1e4  # total count to which cells are scaled before the logarithm


def dose_response(
    model: Conditioned[HasConditions],
    part: str,
    doses: Sequence[float] | np.ndarray | None = None,
    *,
    cells: AnnData | None = None,
    source: str | None = None,
    beside: Mapping[str, float] | None = None,
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Predict how the expression of each gene changes with the dose of a drug, in each group of cells.

    Doses that were seen are predicted, too, so that a curve does not jump to what was measured. At other
    doses, this is the change that :meth:`transfer` makes to the mean counts of the groups.

    Parameters
    ----------
    part
        Name of the drug, or of another perturbation with doses.
    doses
        Doses; ``None`` is a dozen up to the largest that was seen.
    cells
        Cells that start under ``source``; ``None`` is the model's own.
    source
        Condition of the cells before; ``None`` is the control.
    beside
        What else the cells get: amounts of other parts, and the time under the name of its column.
    genes
        Names of genes; ``None`` is all.

    Returns
    -------
    DataFrame with a row for each group, dose and gene: ``"log_fold_change"`` of the mean counts (natural
    logarithm) and its standard deviation ``"sd"``, the ends ``"low"`` and ``"high"`` of the 90 % interval,
    and ``"beyond"``, which is true for doses outside of those that were seen. If the data are not counts,
    ``"log_fold_change"`` is the change of the mean expression.

    Examples
    --------
    >>> curves = screened.dose_response("drug_1", doses=[0.1, 1.0], genes=["gene_3"])
    >>> curves.columns.tolist()
    ['group', 'dose', 'gene', 'log_fold_change', 'sd', 'low', 'high', 'beyond']
    """
    structure, _ = _structure(model)
    design = design_in(structure)
    one = category("part", part, design.parts)
    if not design.dosed:
        msg = "The model knows no doses. Call `setup_anndata` with `sa.Conditions(..., dose=...)`."
        raise ValueError(msg)
    if doses is None:
        at = design.parts.index(one)
        low, high = design.lowest[at], design.highest[at]
        doses = np.geomspace(low / 2, high, N_DOSES) if structure.log_dose else np.linspace(0, high, N_DOSES)
    if not len(doses):
        msg = "`doses` is empty. Pass at least one number, or `None` for those of a curve."
        raise ValueError(msg)
    start = design.name_of(design.reference) if source is None else source
    start = category("source", start, model.reader.conditions)
    rows = model.reader.genes(genes)
    names = model.reader.var_names[rows]
    cells = None if cells is None else model.reader.fitting(cells)
    under = model.reader.cells(cells).obs[model.condition_key].astype(str).to_numpy() == start
    if not under.any():
        msg = f"No cell is under `source={start!r}`. Pass `cells=` that are, or another `source`."
        raise ValueError(msg)
    groups = sorted(set(groups_of(model, cells)[under]))
    changes, parts = changes_of(model, How("auto", None, TOTAL), cells), []
    for dose in map(float, doses):
        target = target_of(model, {**(beside or {}), one: dose})
        assert target.content is not None
        beyond = bool(design.beyond(target.content))
        for group in groups:
            with torch.no_grad():
                change = changes.predicted(group, start, target) if target.name != start else None
            mean, sd = _of_counts(change, len(model.reader.var_names))
            found = pd.DataFrame({"group": group, "dose": dose, "gene": names, "log_fold_change": mean[rows]})
            parts.append(found.assign(sd=sd[rows], beyond=beyond))
    out = pd.concat(parts, ignore_index=True)
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * out["sd"]
    out.insert(5, "low", out["log_fold_change"] - half)
    out.insert(6, "high", out["log_fold_change"] + half)
    return out


def _of_counts(change: Change | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the log fold change of the mean counts of each gene and its standard deviation."""
    if change is None:
        return np.zeros(n), np.zeros(n)
    if change.rates is None:
        return change.shift.mean, change.shift.sd
    before, after = change.rates.before, change.rates.after
    known = (before > 0) & (after > 0)
    mean = np.log(np.divide(after, before, out=np.ones_like(after), where=known))
    return np.where(known, mean, np.nan), np.where(known, change.rates.sd, np.nan)


def interactions(
    model: Conditioned[HasConditions],
    combinations: Iterable[Any] | None = None,
    *,
    groups: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Compare each combination that was seen with the sum of the effects of its parts.

    The effect of a part is the one that was seen in the same group, at the same dose and time. If it was not
    seen, it is predicted from all others, and its uncertainty counts. What all genes have in common is taken
    out (:mod:`scalloy.perturbation.interactions`).

    Parameters
    ----------
    combinations
        Combinations, written as ``to`` in :meth:`transfer`; ``None`` is all that were seen.
    groups
        Names of groups; ``None`` is all in which a combination was seen.
    genes
        Names of genes; ``None`` is all.

    Returns
    -------
    DataFrame with a row for each group, combination and gene: the ``"observed"`` change, the ``"additive"``
    one (that of the parts together), their difference ``"interaction"`` with its standard error ``"se"``, the
    ``"p_value"`` of no interaction, and the ``"q_value"``, the false discovery rate over all rows (Benjamini
    and Hochberg). Changes are of ``log(1 + 50,000 r)`` for the share ``r`` of a gene in all counts. Positive
    interactions of genes that rise, and negative ones of genes that fall, are synergies.

    Examples
    --------
    >>> found = screened.interactions(["drug_1 1+drug_2 1"])
    >>> found.columns.tolist()[:6]
    ['group', 'combination', 'gene', 'observed', 'additive', 'interaction']
    """
    structure, structured = _structure(model)
    design = design_in(structure)
    rows, scale = model.reader.genes(genes), "levels" if structured.seen.dispersion is not None else "shift"
    seen = structured.contexts
    contents = [c for c in dict.fromkeys(c for _, c in seen) if len(c.parts) > 1]
    if combinations is not None:
        combinations = [combinations] if isinstance(combinations, str | Mapping) else combinations
        known = [content_of(structure, combination) for combination in combinations]
        if lacks := [design.name_of(c) for c in known if c not in contents]:
            msg = (
                f"{few(map(repr, lacks))} is no combination that was seen, so nothing can be compared with "
                f"the sum of its parts. Seen: {few(map(design.name_of, contents)) or 'none'}."
            )
            raise ValueError(msg)
        contents = known
    if groups is not None:
        groups = [groups] if isinstance(groups, str) else groups
        groups = [category("groups", group, sorted({g for g, _ in seen})) for group in groups]
    parts = []
    for content in contents:
        for group in sorted({g for g, c in seen if c == content and (groups is None or g in groups)}):
            found = vars(against_sum(structured, scale, group, content))
            table = pd.DataFrame(found, index=model.reader.var_names).iloc[rows]
            table.insert(2, "interaction", table["observed"] - table["additive"])
            table = table.rename_axis("gene").reset_index()
            table.insert(0, "group", group)
            table.insert(1, "combination", design.name_of(content))
            parts.append(table)
    if not parts:
        msg = "No combination was seen beside the control, so there is nothing to compare. Pass others."
        raise ValueError(msg)
    out = pd.concat(parts, ignore_index=True)
    return out.assign(q_value=stats.false_discovery_control(out["p_value"]))


def get_nearest_conditions(model: Conditioned[HasConditions], to: Any, n: int = 5) -> pd.DataFrame:
    """Return the conditions that were seen and are most like another one, seen or not.

    Parameters
    ----------
    to
        A condition, written as in :meth:`transfer`.
    n
        Number of conditions.

    Returns
    -------
    DataFrame with the ``"correlation"`` of their effects with those of ``to`` that the model expects, from
    parts in common, similar doses and times, similar descriptors, and what all conditions have in common.

    Examples
    --------
    >>> screened.get_nearest_conditions({"drug_1": 0.5}, n=2).shape
    (2, 1)
    """
    whole(n=n)
    structure, structured = _structure(model)
    wanted, effects = content_of(structure, to), structured.effects("shift")
    group = structured.contexts[0][0]
    contents = [c for c in dict.fromkeys(c for _, c in structured.contexts) if c != wanted]
    these = [(group, wanted), *((group, c) for c in contents)]
    covariance = effects.covariance(these, these)
    root = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    correlation = (covariance[0] / (root[0] * root))[1:]
    names = [structured.design.name_of(c) for c in contents]
    found = pd.Series(correlation, index=pd.Index(names, name="condition"), name="correlation")
    return found.sort_values(ascending=False, kind="stable").head(n).to_frame()


def _structure(model: Conditioned[HasConditions]) -> tuple[Conditions, Structured]:
    """Return the meaning of the conditions, and what the model's cells have shown of them."""
    if (structure := model.reader.structure) is None:
        msg = (
            "The conditions of the model are mere names. Call `setup_anndata` with `conditions="
            "sa.Conditions(...)`, and train again."
        )
        raise ValueError(msg)
    structured = shown(model, TOTAL)[2]
    assert structured is not None
    if not structured.contexts:
        msg = "No group of cells was seen both under the control and under another condition."
        raise ValueError(msg)
    if len(structured.contexts) == 1:
        warn("Only one condition was seen in one group, so nothing tells how effects of others differ.")
    return structure, structured
