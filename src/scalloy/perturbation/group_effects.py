"""Expression changes of groups of cells between conditions, and prediction of changes that were not seen.

The predicted shift of a group (a label or cluster) is a weighted mean of two estimates with different errors:
the shift that the decoder predicts for these cells, and the one pooled from other groups
(:mod:`scalloy.perturbation.boosted_pooling`). The latter is better at the size of a change (:func:`trusted`),
and its uncertainty sets the weight of the decoder (:func:`weight`). Both are changes of mean log-normalised
expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scalloy.perturbation.boosted_pooling import LearnedPooling
from scalloy.perturbation.similarity import squared_distances, typical_distance

Piece = tuple[np.ndarray, np.ndarray | None]
Names = Sequence[str] | np.ndarray
AT_LEAST = 10  # minimum number of cells of a group under a condition


@dataclass(frozen=True)
class Moments:
    """Mean and variance over the cells of a group under a condition, by gene.

    ``rate`` is the share of each gene in all counts of these cells, or `None` if the data are not counts.
    """

    mean: np.ndarray
    variance: np.ndarray
    n: int
    rate: np.ndarray | None = None


@dataclass
class Shift:
    """Change of the mean expression of a group, its standard deviation, and the groups it was learned from.

    ``sd`` is the standard error for the mean of as many treated cells as there are controls: uncertainty of
    the prediction plus sampling noise of the means. ``far`` says that the group is unlike all that were seen
    (or that none was), ``seen`` that its own change was seen.
    """

    mean: np.ndarray
    sd: np.ndarray
    others: list[str]
    far: bool
    seen: bool = False


@dataclass
class Shown:
    """Moments by group and condition, with a cache of the pooling learned from them."""

    moments: dict[tuple[str, str], Moments]
    _learned: dict[tuple[str, ...], LearnedPooling] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Names, conditions: Names, pieces: Iterable[Piece]) -> Shown:
        """Compute the moments of each group and condition with enough cells, piece by piece.

        Parameters
        ----------
        groups, conditions
            Group and condition of each cell.
        pieces
            Expression and raw counts of successive cells; counts are ``None`` if the data are not counts.
        """
        sums: Any = 0
        codes, pairs = pd.MultiIndex.from_arrays([groups, conditions]).factorize()
        n, begin, are_counts = np.bincount(codes), 0, True
        for x, raw in pieces:
            are_counts = raw is not None
            rows = codes[begin : begin + len(x)]
            begin += len(x)
            member = sp.csr_matrix((np.ones(len(x)), (rows, range(len(x)))), (len(pairs), len(x)))
            values = (x, np.square(x), 0 * x if raw is None else raw)
            sums = sums + np.stack([member @ v for v in values])
        mean, square = sums[:2] / n[:, None]
        variance = (square - np.square(mean)).clip(0)
        rate = sums[2] / np.maximum(sums[2].sum(1, keepdims=True), 1e-12)
        rates = rate if are_counts else [None] * len(pairs)
        kept = np.flatnonzero(n >= AT_LEAST)
        return cls({tuple(pairs[i]): Moments(mean[i], variance[i], int(n[i]), rates[i]) for i in kept})

    def learned(self, groups: Sequence[str], source: str, to: str) -> LearnedPooling:
        """Return the pooling learned from the changes of these groups between two conditions."""
        key = (source, to, *groups)
        if key not in self._learned:
            pairs = [[self.moments[g, c] for g in groups] for c in (source, to)]
            control, treated = (np.stack([m.mean for m in of]) for of in pairs)
            within = np.mean([m.variance for of in pairs for m in of], axis=0)
            inverse_size = sum(1 / np.array([m.n for m in of]) for of in pairs)
            self._learned[key] = LearnedPooling(control, treated - control, within, inverse_size)
        return self._learned[key]

    def seen_rates(self, group: str, source: str, to: str, now: np.ndarray) -> np.ndarray | None:
        """Apply the seen change of a group's rates to the rates ``now``; return ``None`` if none was seen."""
        before, after = (self.moments.get((group, c)) for c in (source, to))
        if before is None or after is None or before.rate is None or after.rate is None:
            return None
        factor = np.divide(after.rate, before.rate, out=np.zeros_like(now), where=before.rate > 0)
        return np.where(before.rate > 0, now * factor, now + after.rate)

    def shift(self, own: np.ndarray, cells: np.ndarray, group: str, source: str, to: str) -> Shift:
        """Predict the shift of a group; fall back to the decoder's ``own`` if no other group was seen."""
        others = [g for g, c in self.moments if c == source and (g, to) in self.moments]
        control = cells.mean(0)
        if source == to or not others:
            return Shift(own, np.full_like(own, np.nan), others, far=source != to)
        if group in others:  # its change was seen
            seen = self.moments[group, to].mean - self.moments[group, source].mean
            return Shift(seen, np.sqrt(2 * cells.var(0) / len(cells)), others, far=False, seen=True)
        learned = self.learned(others, source, to)
        found = learned.predict(control)
        own = own * trusted(own, found.mean)
        share = weight(own, found.mean, float(np.square(found.sd).sum()))
        mean = found.mean + share * (own - found.mean)
        known = learned.control
        far = squared_distances(control[None], known).min() > typical_distance(known)
        return Shift(mean, found.sd_of_mean(cells), others, bool(far))


def trusted(own: np.ndarray, others: np.ndarray) -> float:
    """Return the factor by which to scale the decoder's shift, given the shift pooled from other groups.

    It brings the decoder's shift to between once and twice the length of the others' shift projected on it. A
    decoder has learned less about pairs of group and condition that it has not seen, and changes such cells
    too little. If the other groups agree on no change, the decoder's shift is noise.
    """
    size = max(0.0, float(own @ others) / max(float(own @ own), 1e-12))
    return float(np.clip(1.0, size, 2 * size))


def weight(own: np.ndarray, others: np.ndarray, missed: float) -> float:
    """Return the weight of the decoder's shift that minimises the expected squared error.

    With ``e`` the variance of the others' error and ``r`` the covariance of both errors, summed over genes,
    the weight is ``(e - r) / |own - others|^2``. ``missed`` is the expected value of ``e``, and the decoder
    is assumed to share half of the others' error, ``r = e / 2``. The weight is at most 1/2.
    """
    return float(np.clip(missed / 2 / max(float(np.square(own - others).sum()), 1e-12), 0.0, 0.5))
