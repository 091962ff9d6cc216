"""Changes of groups of cells between conditions, and prediction of changes that were not seen.

The change of a group (a label or cluster) is predicted twice, on two scales with different virtues:

    shift      change of the mean over cells of log-normalised expression; a few cells with very many counts
               of a gene do not sway it
    levels     change of the logarithm of the group's rates (:mod:`scalloy.perturbation.pseudobulk`), whose
               noise is known from the counts; genes with few counts are judged by what their counts can tell

Each is a weighted mean of two estimates with different errors: the change that the decoder predicts for
these cells, and the one pooled from other groups (:mod:`scalloy.perturbation.boosted_pooling`). The latter is
better at the size of a change (:func:`trusted`), and its uncertainty sets the weight of the decoder
(:func:`weight`). Rates are predicted from both scales (:func:`combined`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scalloy.perturbation.boosted_pooling import LEAST, LearnedPooling, LeftOut
from scalloy.perturbation.group_moments import Moments
from scalloy.perturbation.left_out import ExpectedSkill, expected_skill, kinship, stacked_share, stretch
from scalloy.perturbation.pooling import Pooled
from scalloy.perturbation.pseudobulk import SCALE, level, rate_at
from scalloy.perturbation.similarity import squared_distances, typical_distance


@dataclass
class Shift:
    """Change of the mean expression of a group, its standard deviation, and the groups it was learned from.

    ``sd`` is the standard error for the mean of as many treated cells as there are controls: uncertainty of
    the prediction plus sampling noise of the means. ``far`` says that the group is unlike all that were seen
    (or that none was), ``seen`` that its own change was seen. ``uncertainty`` is the part of ``sd`` that is
    due to the prediction, or `None` if it was not pooled.
    """

    mean: np.ndarray
    sd: np.ndarray
    others: list[str]
    far: bool
    seen: bool = False
    uncertainty: np.ndarray | None = None


@dataclass(frozen=True)
class Worth:
    """Value of predictions of a change, judged by groups that were left out in turn.

    ``share`` is how far the scale of levels is believed, ``skill`` the skill to expect for another group,
    ``stretch`` the factor by which standard deviations have to be larger, and ``kinship`` how far similar
    groups respond alike. Predictions on the two scales are weighted by their precision, too, unless
    ``by_precision`` is false.
    """

    share: float
    skill: ExpectedSkill
    stretch: float = 1.0
    kinship: float = 1.0
    by_precision: bool = True


@dataclass
class Shown:
    """Moments by group and condition, with a cache of the poolings learned from them.

    ``dispersion`` is the negative binomial dispersion of each gene, or `None` if the data are not counts, and
    ``scale`` the total count to which cells were scaled before the logarithm. The change of a group with
    fewer than ``well_seen`` cells on either side is not taken as it is, but pooled with those of others.
    """

    moments: dict[tuple[str, str], Moments]
    dispersion: np.ndarray | None = None
    scale: float = 1e4
    well_seen: float = 0
    _learned: dict[tuple[str, ...], LearnedPooling] = field(default_factory=dict)
    _worth: dict[tuple[str, ...], Worth] = field(default_factory=dict)

    def others(self, source: str, to: str) -> list[str]:
        """List the groups that were seen under both conditions."""
        return [g for g, c in self.moments if c == source and (g, to) in self.moments]

    def pairs(self, source: str, to: str) -> dict[str, tuple[Moments, Moments]]:
        """Return the moments of each group before and after a change, if it was seen under both conditions.

        Parameters
        ----------
        source, to
            Conditions before and after.
        """
        return {g: (self.moments[g, source], self.moments[g, to]) for g in self.others(source, to)}

    def is_well_seen(self, group: str, source: str, to: str) -> bool:
        """Return whether the change of a group was seen in enough cells to be taken as it is."""
        sizes = [m.n for c in (source, to) if (m := self.moments.get((group, c))) is not None]
        return len(sizes) == 2 and min(sizes) >= self.well_seen

    def learned(self, groups: Sequence[str], source: str, to: str) -> LearnedPooling:
        """Return the pooling learned from the changes of these groups between two conditions."""
        key = (source, to, *groups)
        if key not in self._learned:
            pairs, inverse_size = self._under_both(groups, source, to)
            control, treated = (np.stack([m.mean for m in of]) for of in pairs)
            within = np.mean([m.variance for of in pairs for m in of], axis=0)
            self._learned[key] = LearnedPooling(control, treated - control, within, inverse_size)
        return self._learned[key]

    def _under_both(
        self, groups: Sequence[str], source: str, to: str
    ) -> tuple[list[list[Moments]], np.ndarray]:
        """Return the moments of groups under either condition, and their inverse sizes."""
        pairs = [[self.moments[g, c] for g in groups] for c in (source, to)]
        return pairs, np.sum([[1 / m.n for m in of] for of in pairs], axis=0)

    def learned_levels(self, groups: Sequence[str], source: str, to: str) -> LearnedPooling | None:
        """Return the pooling learned from the changes of these groups' levels; ``None`` without counts."""
        key = ("levels", source, to, *groups)
        if self.dispersion is None:
            return None
        if key not in self._learned:
            pairs, inverse_size = self._under_both(groups, source, to)
            bulks = [[m.bulk for m in of if m.bulk is not None] for of in pairs]
            control, treated = (np.stack([level(v.rate) for v in of]) for of in bulks)
            noise = sum(np.stack([v.level_variance(self.dispersion) for v in of]) for of in bulks)
            halves = zip(*(v.halves or (v.rate, v.rate) for v in bulks[0]), strict=True)
            one, other = (level(np.stack(half)) for half in halves)
            within = np.mean(noise, axis=0)
            self._learned[key] = LearnedPooling(
                control, treated - control, within, inverse_size, noise=noise, halves=(one, other)
            )
        return self._learned[key]

    def level_change(
        self, own: np.ndarray, before: np.ndarray, group: str, source: str, to: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Predict the change of a group's levels and its standard deviation, by gene.

        It is ``None`` if no other group was seen under both conditions, or if the data are not counts.

        Parameters
        ----------
        own
            Change that the decoder predicts.
        before
            Levels of the control cells.
        group, source, to
            Group, and conditions before and after.
        """
        others = self.others(source, to)
        if source == to or not others or (learned := self.learned_levels(others, source, to)) is None:
            return None
        found = learned.predict(before, corrected=group not in others)
        return with_decoder(own, found, self.worth(others, source, to).kinship), found.sd

    def worth(self, groups: Sequence[str], source: str, to: str) -> Worth:
        """Return what predictions of these groups from each other were worth."""
        key = (source, to, *groups)
        if key not in self._worth:
            self._worth[key] = self._judged(groups, source, to)
        return self._worth[key]

    def _judged(self, groups: Sequence[str], source: str, to: str) -> Worth:
        """Leave out each group in turn, and judge its prediction on both scales."""
        if len(groups) < 2:
            return Worth(1.0, ExpectedSkill(np.nan, np.nan, np.nan, len(groups)))
        learned = self.learned(groups, source, to)
        left_out = learned.left_out_predictions()
        genes, chosen = left_out.genes, [groups[o] for o in left_out.groups]
        pairs = [(self.moments[g, source], self.moments[g, to]) for g in chosen]
        noise = np.stack([(a.variance / a.n + b.variance / b.n)[genes] for a, b in pairs])
        one = both = left_out.mean
        if (by_levels := self.learned_levels(groups, source, to)) is not None:
            levels = by_levels.left_out_predictions()
            both = np.stack(
                [
                    BothScales.of(control, genes, self.scale).combined(left_out, levels, k)
                    for k, (control, _) in enumerate(pairs)
                ]
            )
        shift = np.asarray(learned.shift)[np.ix_(left_out.groups, genes)]
        share = stacked_share(shift, one, both)
        made = one + share * (both - one)
        sd = np.hypot(left_out.sd, made - one)
        kin = 1.0
        if len(groups) >= LEAST:
            kin = kinship(shift, left_out.mean, learned.left_out_as_if_alike(), noise)
        return Worth(share, expected_skill(shift, made, noise), stretch(shift - made, sd, noise), kin)

    def seen_rates(
        self, group: str, source: str, to: str, now: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Apply the seen change of a group's rates to the rates ``now``; return ``None`` if none was seen.

        The second array is the standard deviation of the change of levels, due to the counts.
        """
        before, after = (self.moments.get((group, c)) for c in (source, to))
        if before is None or after is None or before.bulk is None or after.bulk is None:
            return None
        assert self.dispersion is not None
        old, new = before.bulk.rate, after.bulk.rate
        factor = np.divide(new, old, out=np.zeros_like(now), where=old > 0)
        noise = before.bulk.level_variance(self.dispersion) + after.bulk.level_variance(self.dispersion)
        return np.where(old > 0, now * factor, now + new), np.sqrt(noise)

    def shift(self, own: np.ndarray, cells: np.ndarray, group: str, source: str, to: str) -> Shift:
        """Predict the shift of a group; fall back to the decoder's ``own`` if no other group was seen."""
        others, control = self.others(source, to), cells.mean(0)
        if source == to or not others:
            return Shift(own, np.full_like(own, np.nan), others, far=source != to)
        if self.is_well_seen(group, source, to):
            seen = self.moments[group, to].mean - self.moments[group, source].mean
            return Shift(seen, np.sqrt(2 * cells.var(0) / len(cells)), others, far=False, seen=True)
        learned = self.learned(others, source, to)
        found, known = learned.predict(control, corrected=group not in others), learned.control
        far = squared_distances(control[None], known).min() > typical_distance(known)
        mean = with_decoder(own, found, self.worth(others, source, to).kinship)
        return Shift(mean, found.sd_of_mean(cells), others, bool(far), uncertainty=found.sd)


def with_decoder(own: np.ndarray, pooled: Pooled, kinship: float = 1.0) -> np.ndarray:
    """Return the weighted mean of the decoder's change and the one pooled from other groups.

    Parameters
    ----------
    own
        Change that the decoder predicts.
    pooled
        Change pooled from other groups, with its uncertainty.
    kinship
        How far similar groups respond alike (:mod:`scalloy.perturbation.left_out`).
    """
    own = own * trusted(own, pooled.mean)
    share = weight(own, pooled.mean, float(np.square(pooled.sd).sum()), kinship)
    return pooled.mean + share * (own - pooled.mean)


def trusted(own: np.ndarray, others: np.ndarray) -> float:
    """Return the factor by which to scale the decoder's shift, given the shift pooled from other groups.

    It brings the decoder's shift to between once and twice the length of the others' shift projected on it. A
    decoder has learned less about pairs of group and condition that it has not seen, and changes such cells
    too little. If the other groups agree on no change, the decoder's shift is noise.
    """
    size = max(0.0, float(own @ others) / max(float(own @ own), 1e-12))
    return float(np.clip(1.0, size, 2 * size))


def weight(own: np.ndarray, others: np.ndarray, missed: float, kinship: float = 1.0) -> float:
    """Return the weight of the decoder's shift that minimises the expected squared error.

    With ``e`` the variance of the others' error and ``r`` the covariance of both errors, summed over genes,
    the weight is ``(e - r) / |own - others|^2``, at most 1/2. ``missed`` is the expected value of ``e``. A
    decoder knows the cells that it predicts, which helps as far as cells that are alike respond alike. So the
    part ``1 - kinship`` of the others' error is taken to be the decoder's, too, and half of the rest.
    """
    shared = missed * (1 - kinship / 2)
    return float(np.clip((missed - shared) / max(float(np.square(own - others).sum()), 1e-12), 0.0, 0.5))


@dataclass(frozen=True)
class BothScales:
    """Conversion of shifts of some cells and genes into changes of their levels, and back.

    It is as if the counts of a gene were spread over cells after a change as they were before.
    """

    rate: np.ndarray
    mean: np.ndarray
    part: np.ndarray  # of the scaled counts of a gene in those that its mean logarithm amounts to

    @classmethod
    def of(cls, control: Moments, genes: np.ndarray, scale: float) -> BothScales:
        """Find the conversion for the cells before a change.

        Parameters
        ----------
        control
            Moments of the cells.
        genes
            Positions of the genes.
        scale
            Total count to which cells were scaled before the logarithm.
        """
        assert control.bulk is not None
        rate, mean = control.bulk.rate[genes], control.mean[genes]
        part = np.divide(np.expm1(mean), scale * rate, out=np.full_like(rate, np.nan), where=rate > 0)
        usual = np.median(part[part > 0]) if (part > 0).any() else 1.0
        return cls(rate, mean, scale * np.where(part > 0, part, usual))

    def levels(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the change of levels that corresponds to a shift, and its derivative by the shift."""
        then = np.expm1(self.mean + shift)
        after = np.maximum(self.rate + (then - np.expm1(self.mean)) / self.part, 0.0)
        slope = (1 + np.maximum(then, 0.0)) / self.part * SCALE / (1 + SCALE * after)
        return level(after) - level(self.rate), slope

    def shift(self, change: np.ndarray) -> np.ndarray:
        """Return the shift that corresponds to a change of levels."""
        now, more = np.expm1(self.mean), rate_at(level(self.rate) + change) - self.rate
        return np.log1p(np.maximum(now + self.part * more, 0.0)) - self.mean

    def combined(self, by_shift: LeftOut, by_levels: LeftOut, k: int) -> np.ndarray:
        """Return the shift of the ``k``-th group that was left out, predicted on both scales."""
        change, slope = self.levels(by_shift.mean[k])
        sds = by_shift.sd[k] * slope, by_levels.sd[k]
        return self.shift(combined(change, by_levels.mean[k], *sds)[0])


def combined(
    by_shift: np.ndarray,
    by_levels: np.ndarray,
    sd_shift: np.ndarray,
    sd_levels: np.ndarray,
    share: float = 1.0,
    *,
    by_precision: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the change of levels from the two scales on which it was predicted, and its standard deviation.

    The two are weighted by their precision, and the second as far as it is believed. They have been learned
    from the same cells, so their errors are taken to be fully correlated.

    Parameters
    ----------
    by_shift
        Change of levels that corresponds to the shift of the mean log-normalised expression.
    by_levels
        Change of levels that was predicted as such.
    sd_shift, sd_levels
        Standard deviations of the two, in units of levels.
    share
        How far the second prediction is believed (:mod:`scalloy.perturbation.left_out`).
    by_precision
        Whether precision counts, too; otherwise ``share`` is the weight of the second prediction.
    """
    uncertain = np.square(sd_shift)
    total = np.maximum(uncertain + np.square(sd_levels), 1e-18)
    weight = share * uncertain / total if by_precision else share
    return by_shift + weight * (by_levels - by_shift), sd_shift + weight * (sd_levels - sd_shift)
