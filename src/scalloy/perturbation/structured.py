"""Changes of groups under conditions with structure, learned from other conditions as well as other groups.

The changes of all groups under all conditions, each against the control of its group, are put together in a
Gaussian process (:mod:`scalloy.perturbation.condition_effects`), once on the scale of shifts and once on that
of levels. A change that was not seen is predicted from both as in :mod:`scalloy.perturbation.group_effects`.

What such a prediction is worth is found by leaving out conditions in turn
(:mod:`scalloy.perturbation.structured_worth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scalloy.perturbation.condition_effects import ConditionEffects, Observed, Predicted
from scalloy.perturbation.design import Content, Design
from scalloy.perturbation.donors import Seen
from scalloy.perturbation.group_effects import Shift, Shown, Worth, with_decoder
from scalloy.perturbation.group_moments import Moments
from scalloy.perturbation.pooling import Pooled
from scalloy.perturbation.pseudobulk import level
from scalloy.perturbation.structured_worth import Kind, Trials

NAMED = 5  # number of contexts that are named as those which a change was learned from


@dataclass
class Structured:
    """Changes that conditions of groups have shown, to predict conditions that were not seen.

    Parameters
    ----------
    seen
        Moments of the cells of each group, donor and condition.
    design
        Meaning of the conditions.
    """

    seen: Seen
    design: Design
    contents: dict[str, Content] = field(default_factory=dict)
    _effects: dict[str, ConditionEffects] = field(default_factory=dict)
    _pairs: dict[tuple[str, str], tuple[Moments, Moments]] = field(default_factory=dict)
    _worth: dict[Kind, Worth] = field(default_factory=dict)
    _trials: Trials | None = None

    def __post_init__(self) -> None:
        self.contents.update(self.design.by_name)
        reference = self.design.name_of(self.design.reference)
        for name in self.design.names:
            if name == reference:
                continue
            for group, pair in self.seen.by_group(reference, name).pairs(reference, name).items():
                self._pairs[group, name] = pair

    @property
    def contexts(self) -> list[tuple[str, Content]]:
        """Groups and conditions that were seen against the control."""
        return [(group, self.contents[name]) for group, name in self._pairs]

    def n_cells(self, group: str, content: Content) -> int:
        """Return the smaller number of cells of a group under the control and under a condition.

        Parameters
        ----------
        group, content
            Group, and content of the condition.
        """
        return int(min(m.n for m in self._pairs[group, self.design.name_of(content)]))

    def effects(self, scale: str) -> ConditionEffects:
        """Return the Gaussian process on a scale, ``"shift"`` or ``"levels"``.

        Parameters
        ----------
        scale
            Name of the scale.
        """
        if scale not in self._effects:
            self._effects[scale] = ConditionEffects(self._observed(scale), self.design)
        return self._effects[scale]

    def _observed(self, scale: str) -> Observed:
        """Return the changes that were seen, and their noise, on a scale."""
        pairs = list(self._pairs.values())
        every = [m for pair in pairs for m in pair]
        if scale == "shift":
            usual = np.mean([m.variance for m in every], axis=0)  # of genes that happen to have no counts
            value = {id(m): m.mean for m in every}
            noise = {id(m): np.maximum(m.variance, usual) / m.n for m in every}
        else:
            assert self.seen.dispersion is not None
            bulks = {id(m): m.bulk for m in every if m.bulk is not None}
            value = {k: level(bulk.rate) for k, bulk in bulks.items()}
            noise = {}
            for group in {group for group, _ in self._pairs}:
                own = {id(m) for (g, _), pair in self._pairs.items() if g == group for m in pair}
                usual = np.mean([bulks[k].rate for k in own], axis=0)
                noise |= {k: bulks[k].variance_of_few(self.seen.dispersion, usual) for k in own}
        change = np.stack([value[id(after)] - value[id(before)] for before, after in pairs])
        of_cells, of_control = (np.stack([noise[id(pair[k])] for pair in pairs]) for k in (1, 0))
        groups = [group for group, _ in self._pairs]
        control = np.unique(groups, return_inverse=True)[1]
        abundance = np.mean([before.mean for before, _ in pairs], axis=0)
        return Observed(self.contexts, change, of_cells, of_control, control, abundance)

    def of(self, name: str, content: Content) -> Structured:
        """Return the same with the name of one more condition that may be asked for."""
        self.contents[name] = content
        return self

    # predictions --------------------------------------------------------------------------------

    def predicted(self, scale: str, group: str, source: str, to: str) -> Predicted:
        """Predict the change of a group on a scale.

        Parameters
        ----------
        scale
            Name of the scale.
        group, source, to
            Group, and names of the conditions before and after.
        """
        before = self.contents[source]
        start = None if before == self.design.reference else before
        return self.effects(scale).predict(group, self.contents[to], start)

    def is_well_seen(self, group: str, source: str, to: str) -> bool:
        """Return whether a change was seen, which is never so here."""
        return False

    def shift(self, own: np.ndarray, cells: np.ndarray, group: str, source: str, to: str) -> Shift:
        """Predict the shift of a group; fall back to the decoder's ``own`` if nothing was seen."""
        if source == to or not self._pairs:
            return Shift(own, np.full_like(own, np.nan), [], far=source != to)
        found = self.predicted("shift", group, source, to)
        pooled = Pooled(found.mean, found.sd, np.nan, np.nan)
        mean = with_decoder(own, pooled, self.worth([group], source, to).kinship)
        sd = pooled.sd_of_mean(cells)
        return Shift(mean, sd, self._most_telling(found), far=False, uncertainty=found.sd)

    def level_change(
        self, own: np.ndarray, before: np.ndarray, group: str, source: str, to: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Predict the change of a group's levels and its standard deviation, by gene."""
        if source == to or not self._pairs or self.seen.dispersion is None:
            return None
        found = self.predicted("levels", group, source, to)
        pooled = Pooled(found.mean, found.sd, np.nan, np.nan)
        return with_decoder(own, pooled, self.worth([group], source, to).kinship), found.sd

    def seen_rates(
        self, group: str, source: str, to: str, now: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the seen change of rates, of which there is none here."""
        return None

    def _most_telling(self, found: Predicted) -> list[str]:
        """Name the contexts with the largest weights in a prediction."""
        size = np.abs(found.weight).mean(0)
        several = len({group for group, _ in self._pairs}) > 1
        names = [f"{name} in {group}" if several else name for group, name in self._pairs]
        most = np.argsort(-size, kind="stable")[:NAMED]
        return [names[found.rows[i]] for i in most if size[i] > 0]

    # worth --------------------------------------------------------------------------------------

    def worth(self, groups: Sequence[str], source: str, to: str) -> Worth:
        """Return what predictions of conditions of the same kind were worth.

        Parameters
        ----------
        groups
            The group whose change is predicted.
        source, to
            Names of the conditions before and after.
        """
        if self._trials is None:
            levels = None if self.seen.dispersion is None else self.effects("levels")
            controls = [before for before, _ in self._pairs.values()]
            self._trials = Trials(self.effects("shift"), levels, controls, self.seen.scale)
        kind = self._trials.kind(groups[0], self.contents[to])
        if kind not in self._worth:
            self._worth[kind] = self._trials.worth(kind)
        return self._worth[kind]


Learned = Shown | Structured  # what a change can be learned from
