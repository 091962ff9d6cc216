"""Changes of groups of cells between two conditions, each found once from a context.

    group o, from c to c'    r'_o    its rates after the change
                             d_o     shift of the mean of its log-normalised expression
    its cell i               x_i     = middle_i factor_o, so that the mean of the context shifts by d_o
                             counts  thinned or added to by the factor r'_o / r_o of the rates

``middle`` is the mean of the decoded expression before and after the change. Both a shift and a change of the
rates are predicted (:mod:`scalloy.perturbation.group_effects`), and the rates are found from both. The shift
is then that of the changed counts (:mod:`scalloy.perturbation.fold_changes`). If a change was seen, rates and
shift are both known, and the counts are spread over cells such that both hold. The context is the model's own
cells, or others that are given; the change of a group is the same for every cell that is predicted.

Rates do not depend on the total to which a user scales expression: shifts are predicted on the scale of the
median cell of the model (500 counts at least), and then computed for the user's scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy._arguments import warn
from scalloy.data.asked_conditions import design_in
from scalloy.kernels.csr import cell_totals, dense
from scalloy.models._core.decoding import Decoded, How, batches, decode
from scalloy.models._core.groups import UNGROUPED, donors_of, groups_of
from scalloy.models._core.protocols import Conditioned, weights_now
from scalloy.models._core.targets import Target, knowing
from scalloy.perturbation.composition import common_factor
from scalloy.perturbation.donors import AT_LEAST, Seen
from scalloy.perturbation.fold_changes import Sample
from scalloy.perturbation.group_effects import Shift, Worth, combined
from scalloy.perturbation.left_out import ExpectedSkill, promised
from scalloy.perturbation.pseudobulk import level, log_per_level, rate_at
from scalloy.perturbation.redraw_counts import SHAPE
from scalloy.perturbation.structured import Learned, Structured
from scalloy.vae.base import HasConditions

SHALLOWEST = 500.0  # smallest scale of shifts; on smaller ones, a few cells with many counts sway the mean
MOST_SUMS = 30_000_000  # largest number of sums of genes over groups, donors and conditions
NOTHING_KNOWN = Worth(0.0, ExpectedSkill(np.nan, np.nan, np.nan, 0))
MOST_CELLS = 2000  # largest number of cells of a group from which its change is found


@dataclass
class Rates:
    """Rates of a group of cells: the share of each gene in all counts, ``before`` and ``after`` the change.

    ``shape`` says over how few cells the added counts of a gene are spread
    (:mod:`scalloy.perturbation.redraw_counts`), and ``sd`` is the standard deviation of the logarithm of the
    fold change. ``pattern`` is the share that the decoder gives each gene after the change, averaged over
    cells (weighted by library size); the share in a single cell, divided by it, says how much of an increase
    that cell gets.
    """

    before: np.ndarray
    after: np.ndarray
    shape: np.ndarray
    sd: np.ndarray
    pattern: np.ndarray


@dataclass
class Change:
    """Change of the cells of one group: found from the context, and the same for every cell.

    If the decoder gives ``middle`` for a cell, its predicted expression is ``middle * factor + offset``.
    ``rates`` are `None` if the data are not counts, and ``skill`` is `None` if the change was not pooled.
    """

    shift: Shift
    factor: np.ndarray
    offset: np.ndarray
    rates: Rates | None = None
    skill: ExpectedSkill | None = None


@dataclass
class Changes:
    """Changes of groups, each computed when it is first needed and then kept."""

    model: Conditioned[HasConditions]
    how: How
    seen: Seen
    groups: np.ndarray
    context: AnnData | None = None
    structured: Structured | None = None
    known: dict[tuple[str, ...], Change | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cells = self.model.reader.cells(self.context)
        self.under = cells.obs[self.model.condition_key].astype(str).to_numpy()
        self.donors = donors_of(self.model, self.context)

    def of(self, group: str, donor: str, source: str, target: Target) -> Change | None:
        """Return the change of a group in a donor between two conditions, or ``None``.

        It is ``None`` if the context has no such cells, or if the model knows no groups, unless conditions
        have structure: then others tell of this one even if all cells are one group. A group with few cells
        of the donor starts at the cells of all donors, as it does if ``donor`` is empty.
        """
        key = (group, donor, source, target.name)
        if key not in self.known:
            rows = self._rows(group, donor, source)
            rows = self._some(rows if len(rows) >= AT_LEAST else self._rows(group, "", source))
            ungrouped = group == UNGROUPED and group not in self.model.reader.labels
            if (ungrouped and self.structured is None) or not len(rows):
                self.known[key] = None
            else:
                learned, name = self._learned(group, donor, source, target)
                self.known[key] = self._find(learned, name, source, target, rows)
        return self.known[key]

    def predicted(self, group: str, source: str, target: Target) -> Change | None:
        """Return the change of a group as it is predicted, even if it was seen."""
        assert self.structured is not None
        assert target.content is not None
        key = ("predicted", group, source, target.name)
        if key not in self.known:
            rows = self._some(self._rows(group, "", source))
            learned = self.structured.of(target.name, target.content)
            self.known[key] = self._find(learned, group, source, target, rows) if len(rows) else None
        return self.known[key]

    def _learned(self, group: str, donor: str, source: str, target: Target) -> tuple[Learned, str]:
        """Return what a change is learned from, and the name that the group has there.

        If the change was not seen, it is the one whose predictions of what was left out were better: of the
        same change in other groups, or of all changes by what conditions have in common.
        """
        shown, name = self.seen.chosen(group, donor, source, target.name)
        if self.structured is None or target.content is None or shown.is_well_seen(name, source, target.name):
            return shown, name
        structured = self.structured.of(target.name, target.content)
        others = shown.others(source, target.name)
        if others:
            by_groups = shown.worth(others, source, target.name).skill.left_out
            if by_groups >= structured.worth([group], source, target.name).skill.left_out:
                return shown, name
        return structured, group

    def number(self, group: str, donor: str, source: str) -> int:
        """Return the number of cells of a group in a donor under a condition that the context has."""
        return len(self._rows(group, donor, source))

    def _some(self, rows: np.ndarray) -> np.ndarray:
        """Return as many of these rows as a change is found from, in their order."""
        return np.sort(np.random.default_rng(self.how.seed).permutation(rows)[:MOST_CELLS])

    def _rows(self, group: str, donor: str, source: str) -> np.ndarray:
        """Return the positions of the cells of a group in a donor, or if that is empty, in all donors."""
        every = (self.groups == group) & (self.under == source)
        return np.flatnonzero(every & (self.donors == donor) if donor else every)

    def _find(self, shown: Learned, group: str, source: str, target: Target, rows: np.ndarray) -> Change:
        """Compute a change from these rows of the context, and from the changes that others have shown."""
        to = target.name
        scale, seen = self.seen.scale, shown.is_well_seen(group, source, to)
        apart = () if scale == self.how.target_sum else (scale,)
        with knowing(self.model, target) as code:
            made, *others = decode(self.model, self.context, code, self.how, rows, () if seen else apart)
        scaled = others[0] if others else made
        if seen and apart and made.counts is not None:  # the decoder's shift is not needed
            counts = torch.from_numpy(made.counts.toarray())
            scaled = replace(made, observed=self.model.module.likelihood.observed(counts, scale).numpy())
        own = scaled.after.mean(0) - scaled.before.mean(0)
        shift = shown.shift(own, scaled.observed, group, source, to)
        observed, found = made.observed.mean(0), None
        if made.counts is not None:
            shift, found = self._with_rates(shown, scaled, shift, group, source, to)
        pooled = shift.uncertainty is not None
        worth = shown.worth(shift.others, source, to) if pooled else None
        skill = None
        if worth is not None:
            shift, found = _stretched(shift, found, worth.stretch)
            assert shift.uncertainty is not None
            skill = promised(worth.skill, shift.mean, shift.uncertainty)
        middle, wanted = made.middle.mean(0), observed + shift.mean
        factor, offset = np.ones_like(middle), wanted - middle
        if (made.observed >= 0).all():
            factor = np.where(middle > 0, wanted.clip(0) / np.maximum(middle, 1e-12), 1.0)
            offset = np.zeros_like(middle)
        return Change(shift, factor, offset, found, skill)

    def _with_rates(
        self, shown: Learned, made: Decoded, shift: Shift, group: str, source: str, to: str
    ) -> tuple[Shift, Rates]:
        """Return the change of the rates, and the shift that corresponds to it on the scale of the user."""
        assert made.counts is not None
        assert made.share is not None
        assert made.share_before is not None
        ell = np.asarray(made.counts.sum(axis=1), dtype=np.float64)
        shares = (made.share_before, made.share)
        decoded, pattern = (np.maximum((ell * s).sum(0) / max(ell.sum(), 1e-12), 1e-12) for s in shares)
        sample = Sample.of(made.counts, self.seen.scale, made.share / pattern)
        asked = sample.rescaled(self.how.target_sum / self.seen.scale)
        before, wanted = sample.every, (made.observed.mean(0) + shift.mean).clip(0)
        if shift.seen and (seen := shown.seen_rates(group, source, to, before)):
            after, sd = seen
            shape = sample.shapes_after(after, wanted)
        else:
            by_shift = sample.rates_after(wanted - made.observed.mean(0))
            own = level(before * pattern / decoded) - level(before)
            by_levels = shown.level_change(own, level(before), group, source, to)
            worth = shown.worth(shift.others, source, to) if by_levels else NOTHING_KNOWN
            after, sd = self._combined(sample, shift, by_shift, by_levels, worth)
            common = common_factor(before, after)
            after, shape = common * after, np.full_like(after, SHAPE)
        now, then = (asked.mean_logs(rate, shape) for rate in (before, after))
        slope = np.ones_like(now)  # of means on the scale of the user with those on ours
        if asked is not sample:
            known = sample.slopes(after, shape)
            np.divide(asked.slopes(after, shape), known, out=slope, where=known > 0)
        found = Rates(before, after, shape, sd * log_per_level(after), pattern)
        apart = sample.mean_logs(after, shape) - wanted  # of the two predictions of the mean
        unsure = None if shift.uncertainty is None else np.hypot(shift.uncertainty, apart) * slope
        sd = np.hypot(shift.sd, apart) * slope
        return replace(shift, mean=then - now, sd=sd, uncertainty=unsure), found

    @staticmethod
    def _combined(
        sample: Sample,
        shift: Shift,
        by_shift: np.ndarray,
        by_levels: tuple[np.ndarray, np.ndarray] | None,
        worth: Worth,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rates after a change, and the standard deviation of the change of levels.

        Parameters
        ----------
        sample
            Cells before the change.
        shift
            Predicted shift of the mean log-normalised expression.
        by_shift
            Rates that correspond to it.
        by_levels
            Predicted change of levels and its standard deviation; ``None`` if there is none.
        worth
            Value of predictions on this scale.
        """
        if by_levels is None or shift.uncertainty is None:
            return by_shift, np.full_like(by_shift, np.nan)
        slope = sample.slopes(by_shift, np.full_like(by_shift, SHAPE))
        sd_shift = shift.uncertainty / np.maximum(slope * log_per_level(by_shift), 1e-12)
        now = level(sample.every)
        sds = sd_shift, by_levels[1]
        change, sd = combined(
            level(by_shift) - now, by_levels[0], *sds, worth.share, by_precision=worth.by_precision
        )
        return np.where(change == 0, sample.every, rate_at(now + change)), sd


def _stretched(shift: Shift, rates: Rates | None, factor: float) -> tuple[Shift, Rates | None]:
    """Multiply the standard deviations of a pooled change by a factor; sampling noise stays as it is."""
    assert shift.uncertainty is not None
    more = np.square(shift.uncertainty) * (factor**2 - 1)
    sd = np.sqrt(np.maximum(np.square(shift.sd) + more, 0.0))
    shift = replace(shift, sd=sd, uncertainty=factor * shift.uncertainty)
    return shift, rates if rates is None else replace(rates, sd=factor * rates.sd)


def changes_of(model: Conditioned[HasConditions], how: How, context: AnnData | None = None) -> Changes:
    """Return an object that finds the changes of groups from the model's cells and the context.

    What the model's own cells have shown, and the changes that were found from them, are kept on the model
    until its weights change.
    """
    context = None if context is None else model.reader.fitting(context)
    seen, groups, structured = shown(model, how.target_sum)
    if context is not None and context is not model.adata:
        return Changes(model, how, seen, groups_of(model, context), context, structured)
    if (key := ("changes", how)) not in model._kept:
        model._kept[key] = Changes(model, how, seen, groups, structured=structured)
    return model._kept[key]


def shown(model: Conditioned[HasConditions], target_sum: float) -> tuple[Seen, np.ndarray, Structured | None]:
    """Return what the groups of the model's cells have shown, the group of each cell, and the structure.

    Both are found once for the weights as they are, which the versions of the parameters tell. Counts are
    scaled to the total of the median cell, other data as the user asks.
    """
    key = ("shown", weights_now(model), None if model.module.likelihood.draws_counts else target_sum)
    if key in model._kept:
        model.reader.manager()  # refuses own cells that were changed in place meanwhile
    else:
        model._kept.clear()
        seen, groups = _shown(model, target_sum)
        structure = model.reader.structure
        by_parts = None if structure is None else Structured(seen, design_in(structure))
        model._kept[key] = seen, groups, by_parts
    return model._kept[key]


def _shown(model: Conditioned[HasConditions], target_sum: float) -> tuple[Seen, np.ndarray]:
    """Return moments of the groups of the model's cells under each condition, and the group of each cell."""
    if model.adata is None:
        msg = (
            "`route='auto'` pools with shifts of the cells that the model was trained on, and it was loaded "
            "without them. Pass `adata=` to `load`, or `route='decoder'`."
        )
        raise ValueError(msg)
    likelihood, scale = model.module.likelihood, target_sum
    if likelihood.draws_counts:
        totals = [cell_totals(batch.x).cpu().numpy() for batch, _ in batches(model, None)]
        scale = max(SHALLOWEST, float(np.median(np.concatenate(totals))))

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for batch, _ in batches(model, None):
            x = likelihood.observed(batch.x, scale).cpu().numpy()
            yield x, dense(batch.x).cpu().numpy() if likelihood.draws_counts else None

    conditions = model.adata.obs[model.condition_key].astype(str).to_numpy()
    groups, clusters = groups_of(model), not model.reader.labels
    donors = _few_donors(model, groups, conditions)
    return Seen.of(groups, donors, conditions, pieces(), scale, clusters=clusters), groups


def _few_donors(
    model: Conditioned[HasConditions], groups: np.ndarray, conditions: np.ndarray
) -> np.ndarray | None:
    """Return the donor of each cell of the model, or ``None`` if there are too many to be told apart."""
    donors = donors_of(model)
    n = len(pd.MultiIndex.from_arrays([groups, donors, conditions]).unique())
    if n * model.reader.sizes.n_vars <= MOST_SUMS:
        return donors
    warn(
        f"There are {n} combinations of group, donor (or batch) and condition, too many for {MOST_SUMS:.0e} "
        "sums over the cells of each gene. So changes are not compared within donors: controls and treated "
        "cells of different donors differ by more than the condition.",
    )
    return None
