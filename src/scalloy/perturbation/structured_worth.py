r"""Value of predictions of conditions with structure, from conditions that are left out in turn.

Two things are judged. How far the scale of levels is believed against that of shifts is learned from contexts
of any kind,

    share  =  sum_k [(y_k - p_k)'(q_k - p_k) - n_k] / |y_k|^2   /   sum_k |q_k - p_k|^2 / |y_k|^2

over contexts on both scales, with the change ``y`` and its predictions ``p`` (from shifts) and ``q`` (from
levels). The noise of the controls is in the change and in both predictions; ``n`` is what it adds. The skill
to expect and the width of intervals are learned from contexts of the same kind as the one that is predicted:
combinations for a combination, inner doses for an inner dose, and parts of which nothing was seen for one
that was never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scalloy.perturbation.boosted_pooling import LeftOut
from scalloy.perturbation.condition_effects import ConditionEffects
from scalloy.perturbation.condition_kernel import Context
from scalloy.perturbation.design import SAME, Content
from scalloy.perturbation.group_effects import BothScales, Worth
from scalloy.perturbation.group_moments import Moments
from scalloy.perturbation.left_out import ExpectedSkill, expected_skill, stretch

MOST_LEFT_OUT, MOST_GENES = 24, 500  # contexts that are left out in turn, and genes that are predicted then
SEEN, INNER, OUTER, NEW = range(4)  # amount of a part: in other conditions too, between, beyond, none seen
KINSHIP = 0.5  # how far the decoder's error is taken to be its own; it has learned from these conditions


class Kind(NamedTuple):
    """Kind of a prediction: was it seen in other groups, is it a combination, and are its parts new?"""

    elsewhere: bool
    combined: bool
    relation: int


@dataclass
class Trials:
    """Contexts that are left out in turn to judge predictions.

    Parameters
    ----------
    shifts, levels
        Gaussian processes on the two scales; the second is ``None`` if the data are not counts.
    controls
        Moments of the control cells of each context.
    scale
        Total count to which cells were scaled before the logarithm.
    """

    shifts: ConditionEffects
    levels: ConditionEffects | None
    controls: Sequence[Moments]
    scale: float
    _share: float | None = None

    def kind(self, group: str, content: Content) -> Kind:
        """Return the kind of the prediction of a condition in a group.

        Parameters
        ----------
        group, content
            Group and condition.
        """
        elsewhere = any(c == content and g != group for g, c in self.shifts.seen.contexts)
        others = [c for _, c in self.shifts.seen.contexts if c != content]
        return Kind(elsewhere, len(content.parts) > 1, relation_of(content, others))

    def worth(self, kind: Kind) -> Worth:
        """Judge predictions of a kind.

        Parameters
        ----------
        kind
            Kind of the prediction.
        """
        hidden = self._hidden(kind)
        alike = self._alike(kind, hidden)
        rows = self._some([i for i, (_, content) in enumerate(self._contexts) if content in alike])
        if len(rows) < 2:
            return Worth(self.share, ExpectedSkill(np.nan, np.nan, np.nan, len(rows)), 1.0, KINSHIP, False)
        of = self._left_out(rows, hidden, kind.elsewhere)
        made, sd = of.combined(self.share)
        skill = expected_skill(of.shift, made, of.noise, of.noise_of_error)
        wide = stretch(of.shift - made, sd, np.maximum(of.noise_of_error, 0.0))
        return Worth(self.share, skill, wide, KINSHIP, by_precision=False)

    @property
    def share(self) -> float:
        """Weight of the scale of levels against that of shifts."""
        if self._share is None:
            rows = self._some([i for i, (_, content) in enumerate(self._contexts) if content.parts])
            self._share = 0.0
            if self.levels is not None and len(rows) > 1:
                hidden = {c: [c] for _, c in self._contexts}
                self._share = self._left_out(rows, hidden, elsewhere=False).share()
        return self._share

    @property
    def _contexts(self) -> list[Context]:
        return self.shifts.seen.contexts

    def _some(self, rows: Sequence[int]) -> np.ndarray:
        """Return some of these rows, not too many."""
        chosen = np.random.default_rng(0).permutation(np.array(rows, dtype=int))[:MOST_LEFT_OUT]
        return np.sort(chosen)

    def _hidden(self, kind: Kind) -> dict[Content, list[Content]]:
        """Return the conditions that are left out together with each one."""
        seen = list(dict.fromkeys(content for _, content in self._contexts if content.parts))
        new = kind.relation == NEW
        return {c: [o for o in seen if o == c or (new and _share_parts(o, c))] for c in seen}

    @staticmethod
    def _alike(kind: Kind, hidden: Mapping[Content, Sequence[Content]]) -> set[Content]:
        """Return conditions that are of a kind if they are left out, or else others like them."""
        found = {c: relation_of(c, [o for o in hidden if o not in hidden[c]]) for c in hidden}
        same = [c for c in hidden if (len(c.parts) > 1) == kind.combined]
        alike = [c for c in same if found[c] == kind.relation]
        return set(next((some for some in (alike, same) if len(some) > 1), hidden))

    def _left_out(
        self, rows: np.ndarray, hidden: Mapping[Content, Sequence[Content]], elsewhere: bool
    ) -> Judged:
        """Predict these contexts from others on both scales, for some of the genes."""
        n_genes = len(self.shifts.size)
        genes = np.sort(np.random.default_rng(1).permutation(n_genes)[:MOST_GENES])
        scales = [_predicted(self.shifts, rows, genes, hidden, elsewhere)]
        if self.levels is not None:
            scales.append(_predicted(self.levels, rows, genes, hidden, elsewhere))
        both = [BothScales.of(self.controls[i], genes, self.scale) for i in rows] if self.levels else []
        return Judged(scales, both)


class OnScale(NamedTuple):
    """Changes that were left out and their predictions on a scale, contexts x genes."""

    change: np.ndarray
    found: LeftOut
    noise: np.ndarray
    noise_of_error: np.ndarray


@dataclass
class Judged:
    """Contexts that were left out, on the scale of shifts, and on that of levels if the data are counts."""

    scales: list[OnScale]
    both: list[BothScales]

    @property
    def shift(self) -> np.ndarray:
        """Observed shifts."""
        return self.scales[0].change

    @property
    def noise(self) -> np.ndarray:
        """Variance of their noise."""
        return self.scales[0].noise

    @property
    def noise_of_error(self) -> np.ndarray:
        """Part of the squared errors that is due to noise."""
        return self.scales[0].noise_of_error

    def combined(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the shifts that are predicted on both scales, and their standard deviations.

        Parameters
        ----------
        share
            How far the scale of levels is believed.
        """
        found = self.scales[0].found
        if not self.both:
            return found.mean, found.sd
        own, levels = self._as_levels(), self.scales[1].found.mean
        made = self._as_shifts(own + share * (levels - own))
        return made, np.hypot(found.sd, made - found.mean)

    def share(self) -> float:
        """Return the weight of levels that minimises the relative squared errors on both scales."""
        shifts, levels = self.scales
        slope = np.square([of.levels(np.zeros(of.mean.shape))[1] for of in self.both])
        shared, of_levels = ((s.noise - s.noise_of_error) / 2 for s in self.scales)
        stacks = [
            (shifts, shifts.found.mean, self._as_shifts(levels.found.mean), of_levels / slope - shared),
            (levels, self._as_levels(), levels.found.mean, of_levels - shared * slope),
        ]
        return stacked_share([Stack(s.change, one, other, s.noise, n) for s, one, other, n in stacks])

    def _as_levels(self) -> np.ndarray:
        """Return the predicted shifts as changes of levels."""
        return np.stack([of.levels(d)[0] for of, d in zip(self.both, self.scales[0].found.mean)])

    def _as_shifts(self, levels: np.ndarray) -> np.ndarray:
        """Return changes of levels as shifts."""
        return np.stack([of.shift(d) for of, d in zip(self.both, levels, strict=True)])


class Stack(NamedTuple):
    """Changes on a scale, and two predictions of them, contexts x genes.

    ``noise`` is the variance of the noise of the changes, and ``apart`` its covariance with the second
    prediction, less that with the first.
    """

    change: np.ndarray
    one: np.ndarray
    other: np.ndarray
    noise: np.ndarray
    apart: np.ndarray


def stacked_share(scales: Sequence[Stack]) -> float:
    """Return the weight of the second prediction that minimises relative squared errors.

    The errors of a context are relative to its change, so that large changes count no more than small ones.

    Parameters
    ----------
    scales
        Changes and predictions on each scale.
    """
    agree, size = 0.0, 0.0
    for of in scales:
        changed = np.maximum(np.square(of.change).sum(1), of.noise.sum(1)) + 1e-12
        apart = of.other - of.one
        agree += float((((of.change - of.one) * apart - of.apart).sum(1) / changed).sum())
        size += float((np.square(apart).sum(1) / changed).sum())
    return float(np.clip(agree / size, 0.0, 1.0)) if size > 0 else 0.0


def _predicted(
    effects: ConditionEffects,
    rows: np.ndarray,
    genes: np.ndarray,
    hidden: Mapping[Content, Sequence[Content]],
    elsewhere: bool,
) -> OnScale:
    """Predict contexts from the others, on one scale."""
    contexts, found, noise = effects.seen.contexts, [], []
    for i in rows:
        group, content = contexts[i]
        without = [contexts[i]] if elsewhere else [c for c in contexts if c[1] in hidden[content]]
        found.append(effects.predict(group, content, without=without, genes=genes))
        noise.append(effects.noise_of_error(found[-1], i, genes))
    mean, sd = np.stack([f.mean for f in found]), np.stack([f.sd for f in found])
    change, own = (v[np.ix_(rows, genes)] for v in (effects.seen.change, effects.seen.variance))
    return OnScale(change, LeftOut(rows, genes, mean, sd), own, np.stack(noise))


def relation_of(content: Content, others: Sequence[Content]) -> int:
    """Return how the parts of a condition relate to those of other conditions; the farthest part counts.

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
    return max((_relation(amount, amounts.get(part, [])) for part, amount in content.parts), default=SEEN)


def _relation(amount: float, seen: Sequence[float]) -> int:
    """Return the relation of the amount of a part to amounts in which it was seen."""
    if not seen:
        return NEW
    if any(abs(amount - other) <= SAME * max(1.0, other) for other in seen):
        return SEEN
    return INNER if min(seen) < amount < max(seen) else OUTER


def _share_parts(one: Content, other: Content) -> bool:
    """Return whether two conditions have a part in common."""
    return not {part for part, _ in one.parts}.isdisjoint(part for part, _ in other.parts)
