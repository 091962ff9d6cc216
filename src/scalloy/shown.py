"""What groups of cells have shown under conditions, and how one would change that was not seen.

The shift of a group (their label, or cluster) is a mean of two estimates which err in different ways: what
the decoder says of these cells, and what other groups have shown (:mod:`scalloy.baselines.learned`); how
large a change is the latter know better (:func:`trusted`), and how far they may be off says how much the
decoder counts (:func:`weight`). Both are changes of mean log-normalised expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scalloy.baselines.learned import LearnedPooling
from scalloy.baselines.shifts import squared_distances, typical_distance
from scalloy.blocks.sparse import dense

AT_LEAST = 10  # cells of a group under a condition, to learn from


@dataclass(frozen=True)
class Moments:
    """Mean and variance over the cells of a group under a condition, by gene.

    ``rate`` is the share of each gene in all counts of these cells; data that are no counts have none.
    """

    mean: np.ndarray
    variance: np.ndarray
    n: int
    rate: np.ndarray | None = None


@dataclass
class Shift:
    """Change of mean expression of a group, its standard deviation, and the groups it was learned from.

    The standard deviation is that of the mean of as many treated cells as there are controls: what other
    groups leave open, and the noise of the means. ``seen`` says that the group's own change was seen.
    """

    mean: np.ndarray
    sd: np.ndarray
    others: list[str]
    far: bool
    seen: bool = False


@dataclass
class Shown:
    """Moments of groups by group and condition, and what was learned from them, kept for the next cells."""

    moments: dict[tuple[str, str], Moments]
    _learned: dict[tuple[str, ...], LearnedPooling] = field(default_factory=dict)

    @classmethod
    def by(cls, model: Any, batches: Any, target_sum: float) -> Shown:
        """Take the moments of the model's cells, group by group where there are enough, batch after batch."""
        if model.adata is None:
            msg = (
                "`route='auto'` pools with shifts of the cells that the model was trained on, and it was "
                "loaded without them. Pass `adata=` to `load`, or `route='decoder'`."
            )
            raise ValueError(msg)
        sums: Any = 0
        likelihood = model.module.likelihood
        under = model.adata.obs[model.condition_key].astype(str)
        codes, pairs = pd.MultiIndex.from_arrays([model._groups(None), under]).factorize()
        counts, begin = np.bincount(codes), 0
        for batch in batches:
            x = likelihood.observed(batch.x, target_sum).cpu().numpy()
            raw = dense(batch.x).cpu().numpy() if likelihood.draws_counts else 0 * x
            rows = codes[begin : begin + len(x)]
            begin += len(x)
            member = sp.csr_matrix((np.ones(len(x)), (rows, range(len(x)))), (len(pairs), len(x)))
            sums = sums + np.stack([member @ v for v in (x, np.square(x), raw)])
        mean, square = sums[:2] / counts[:, None]
        variance = (square - np.square(mean)).clip(0)
        rate = sums[2] / np.maximum(sums[2].sum(1, keepdims=True), 1e-12)
        rates = rate if likelihood.draws_counts else [None] * len(pairs)
        kept = [i for i in range(len(pairs)) if counts[i] >= AT_LEAST]
        return cls({tuple(pairs[i]): Moments(mean[i], variance[i], int(counts[i]), rates[i]) for i in kept})

    def learned(self, groups: Sequence[str], source: str, to: str) -> LearnedPooling:
        """From the changes of these groups between two conditions."""
        key = (source, to, *groups)
        if key not in self._learned:
            pairs = [[self.moments[g, c] for g in groups] for c in (source, to)]
            control, treated = (np.stack([m.mean for m in of]) for of in pairs)
            within = np.mean([m.variance for of in pairs for m in of], axis=0)
            inverse_size = sum(1 / np.array([m.n for m in of]) for of in pairs)
            self._learned[key] = LearnedPooling(control, treated - control, within, inverse_size)
        return self._learned[key]

    def seen_rates(self, group: str, source: str, to: str, now: np.ndarray) -> np.ndarray | None:
        """Change the rates ``now`` as those of the group were seen to change; ``None`` if they were not."""
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
    """Factor which brings the decoder's shift to between once and twice the size of the others', along it.

    A decoder has learned less of a pair than of those that it saw, and changes cells of an unseen one too
    little. Where the others agree on no change, what it says is noise.
    """
    size = max(0.0, float(own @ others) / max(float(own @ own), 1e-12))
    return float(np.clip(1.0, size, 2 * size))


def weight(own: np.ndarray, others: np.ndarray, missed: float) -> float:
    """Of the decoder's shift in the mean with the others', with which the least is missed.

    With errors of variance ``e`` (of the others) and covariance ``r``, each summed over genes, it is
    ``(e - r) / |own - others|^2``. ``missed`` is what ``e`` is expected to be, and taken is that the decoder
    misses half of what the others miss, ``r = e / 2``. It counts for as much as the others at most.
    """
    return float(np.clip(missed / 2 / max(float(np.square(own - others).sum()), 1e-12), 0.0, 0.5))
