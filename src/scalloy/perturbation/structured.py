"""Changes of groups under conditions with structure, learned from other conditions as well as other groups.

The changes of all groups under all conditions, each against the control of its group, are put together in a
Gaussian process (:mod:`scalloy.perturbation.condition_effects`), once on the scale of shifts and once on that
of levels. A change that was not seen is predicted from both as in :mod:`scalloy.perturbation.group_effects`.

What a prediction is worth is found from conditions of the same kind, which are left out in turn: a
combination from combinations, an inner dose from inner doses, a part that was never seen from parts that are
left out altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scalloy.perturbation.boosted_pooling import LeftOut
from scalloy.perturbation.condition_effects import ConditionEffects, Observed, Predicted
from scalloy.perturbation.design import SAME, Content, Design
from scalloy.perturbation.donors import Seen
from scalloy.perturbation.group_effects import BothScales, Shift, Shown, Worth, with_decoder
from scalloy.perturbation.group_moments import Moments
from scalloy.perturbation.left_out import ExpectedSkill, expected_skill, stacked_share, stretch
from scalloy.perturbation.pooling import Pooled
from scalloy.perturbation.pseudobulk import level

MOST_LEFT_OUT, MOST_GENES = 24, 500  # conditions that are left out in turn, and genes of these predictions
NAMED = 5  # number of contexts that are named as those which a change was learned from
SEEN, INNER, OUTER, NEW = range(4)  # amount of a part: in other conditions too, between, beyond, none seen


@dataclass
class Structured:
    """Changes of groups under all conditions, from which those that were not seen are predicted.

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
    _worth: dict[tuple[object, ...], Worth] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.contents.update(zip(self.design.names, self.design.contents, strict=True))
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
            usual = np.mean([bulk.rate for bulk in bulks.values()], axis=0)
            noise = {k: b.variance_of_few(self.seen.dispersion, usual) for k, b in bulks.items()}
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
        content, group = self.contents[to], groups[0]
        elsewhere = content in [c for g, c in self.contexts if g != group]
        others = [c for c in self.contexts if c[1] != content]
        kind = (elsewhere, *kind_of(content, [c for _, c in others]))
        if kind not in self._worth:
            self._worth[kind] = self._judged(elsewhere=elsewhere, kind=kind[1:])
        return self._worth[kind]

    def _judged(self, *, elsewhere: bool, kind: tuple[object, ...]) -> Worth:
        """Leave out contexts of a kind in turn, and judge their predictions on both scales."""
        contexts = self.contexts
        seen = list(dict.fromkeys(content for _, content in contexts if content.parts))
        hidden = {c: [o for o in seen if o == c or (kind[1] == NEW and _share_parts(o, c))] for c in seen}
        kinds = {c: kind_of(c, [o for o in seen if o not in hidden[c]]) for c in seen}
        alike = [c for c in seen if kinds[c] == kind]
        if len(alike) < 2:  # combinations from combinations, at least
            alike = [c for c in seen if kinds[c][0] == kind[0]]
        alike = alike if len(alike) > 1 else seen
        rng = np.random.default_rng(0)
        chosen = {alike[i] for i in rng.permutation(len(alike))[:MOST_LEFT_OUT]}
        rows = np.array([i for i, (_, content) in enumerate(contexts) if content in chosen], dtype=int)
        rows = np.sort(rng.permutation(rows)[:MOST_LEFT_OUT])
        n_genes = len(self.effects("shift").size)
        genes = np.sort(rng.permutation(n_genes)[:MOST_GENES])
        if len(rows) < 2:
            return Worth(1.0, ExpectedSkill(np.nan, np.nan, np.nan, len(rows)))

        def left_out(scale: str) -> tuple[LeftOut, np.ndarray]:
            effects, found, noise = self.effects(scale), [], []
            for i in rows:
                group, content = contexts[i]
                without = [contexts[i]] if elsewhere else [c for c in contexts if c[1] in hidden[content]]
                found.append(effects.predict(group, content, without=without, genes=genes))
                noise.append(effects.noise_of_error(found[-1], i, genes))
            mean, sd = np.stack([f.mean for f in found]), np.stack([f.sd for f in found])
            return LeftOut(rows, genes, mean, sd), np.stack(noise)

        by_shift, noise = left_out("shift")
        observed = self.effects("shift").seen
        shift, own_noise = observed.change[np.ix_(rows, genes)], observed.variance[np.ix_(rows, genes)]
        share, made, sd = 0.0, by_shift.mean, by_shift.sd
        if self.seen.dispersion is not None:
            by_levels, _ = left_out("levels")
            controls = [list(self._pairs.values())[i][0] for i in rows]
            scales = [BothScales.of(control, genes, self.seen.scale) for control in controls]
            by_own = np.stack([of.levels(d)[0] for of, d in zip(scales, made, strict=True)])
            levels = self.effects("levels").seen.change[np.ix_(rows, genes)]
            share = stacked_share(levels, by_own, by_levels.mean)
            change = by_own + share * (by_levels.mean - by_own)
            made = np.stack([of.shift(d) for of, d in zip(scales, change, strict=True)])
            sd = np.hypot(sd, made - by_shift.mean)
        skill = expected_skill(shift, made, own_noise, noise)
        wide = stretch(shift - made, sd, np.maximum(noise, 0.0))
        return Worth(share, skill, wide, by_precision=False)


def kind_of(content: Content, others: Sequence[Content]) -> tuple[object, ...]:
    """Return whether a condition is a combination, and how its parts relate to those of other conditions.

    Parameters
    ----------
    content
        Content of the condition.
    others
        Contents of conditions that were seen.
    """
    amounts: dict[str, list[float]] = {}
    for other in others:
        for part, amount in other.parts:
            amounts.setdefault(part, []).append(amount)
    return (len(content.parts) > 1, max((_relation(p, a, amounts) for p, a in content.parts), default=0))


def _relation(part: str, amount: float, amounts: Mapping[str, Sequence[float]]) -> int:
    """Return the relation of the amount of a part to amounts in which it was seen."""
    if not (seen := amounts.get(part)):
        return NEW
    if any(abs(amount - other) <= SAME * max(1.0, other) for other in seen):
        return SEEN
    return INNER if min(seen) < amount < max(seen) else OUTER


def _share_parts(one: Content, other: Content) -> bool:
    """Return whether two conditions have a part in common."""
    return not {part for part, _ in one.parts}.isdisjoint(part for part, _ in other.parts)


Learned = Shown | Structured  # what a change can be learned from
