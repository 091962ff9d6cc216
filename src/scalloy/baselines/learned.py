r"""Partial pooling, corrected by what is learned across genes.

A group's change of one gene has been seen in a handful of other groups, but how changes carry over has been
seen for thousands of genes: each group that was seen is left out in turn and pooled from the others, and
boosted trees learn from all genes what was missed,

    d_og - f_og  =  t(f_og, what other groups show, c_og, ...)

of features that every group has: the pooled change ``f``, the mean change of all others and of similar ones
and how far they differ, the control, how it lies to that of similar groups, the distance to the level that
these reach, and the change that their ratios would give. So where a gene that is high already rises less, or
reaches the same level everywhere, this is found and used for the group to predict. The number of trees is
the one which misses least of groups that the trees have not seen; it may be none.

Boosted trees: Friedman, Annals of Statistics 2001; stacking: Wolpert, Neural Networks 1992.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from scalloy.baselines.pooling import Pooled, partial_pooling
from scalloy.baselines.shifts import closeness

LEAST = 4  # groups to learn from
MOST_GROUPS, MOST_ROWS = 12, 60_000  # that are left out in turn, and of all of them in training
TREES = 100
TREE: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 50,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
EPSILON = 0.05  # added to expression before ratios


@dataclass
class LearnedPooling:
    """Changes of groups that were seen, and what was learned of how they carry over to others.

    Parameters
    ----------
    control, shift
        Mean of the controls and its change, groups x genes.
    within
        Variance between cells of a group, by gene.
    inverse_size
        ``1 / n_control + 1 / n_treated`` of the groups.
    seed
        Of the genes that the trees see where there are too many.

    Attributes
    ----------
    left_out
        Mean over groups that were left out of the squared change that was missed, noise taken off: by
        partial pooling, and after the correction; ``None`` where there are too few groups.
    n_trees
        Of the correction.
    """

    control: np.ndarray
    shift: np.ndarray
    within: np.ndarray
    inverse_size: np.ndarray
    seed: int = 0

    def __post_init__(self) -> None:
        self.left_out: tuple[float, float] | None = None
        self.n_trees = 0
        self._settings: dict[str, tuple[float, ...]] = {}
        if len(self.control) >= LEAST:
            found = self._pool(np.arange(len(self.control)), self.control.mean(0))
            self._settings = {"shared": (found.shared,), "widths": (found.width,)}
            self._learn()

    def _pool(self, groups: np.ndarray, to: np.ndarray) -> Pooled:
        return partial_pooling(
            self.control[groups],
            self.shift[groups],
            to,
            within=self.within,
            inverse_size=self.inverse_size[groups],
            **self._settings,
        )

    def _learn(self) -> None:
        every = np.arange(len(self.control))
        chosen = np.argsort(self.inverse_size, kind="stable")[:MOST_GROUPS]
        rng, n = np.random.default_rng(self.seed), self.control.shape[1]
        some = np.sort(rng.permutation(n)[: max(1, MOST_ROWS // len(chosen))])
        x, missed, noise = [], [], []
        for o in chosen:
            others = every[every != o]
            pooled = self._pool(others, self.control[o])
            x.append(self._features(others, self.control[o], pooled)[some])
            missed.append((self.shift[o] - pooled.mean)[some])
            noise.append(n * float((self.within * self.inverse_size[o]).mean()))
        errors = np.mean([_staged(x, missed, i) for i in range(len(chosen))], axis=0)
        self.n_trees = int(errors.argmin())
        self.left_out = tuple(n * errors[i] - np.mean(noise) for i in (0, self.n_trees))
        if self.n_trees:
            made = HistGradientBoostingRegressor(max_iter=self.n_trees, **TREE)
            self._trees = made.fit(np.concatenate(x), np.concatenate(missed))

    def _features(self, groups: np.ndarray, to: np.ndarray, pooled: Pooled) -> np.ndarray:
        """Of each gene, of a group with the control ``to`` and what these others have shown."""
        control, shift = self.control[groups], self.shift[groups]
        near = closeness(control, to)
        level, before = near @ (control + shift), near @ control
        log = [np.log(np.expm1(v.clip(0)) + EPSILON) for v in (to, control, control + shift)]
        by_ratio = np.log1p((np.exp(log[0] + near @ (log[2] - log[1])) - EPSILON).clip(0)) - to
        spread = shift.std(0)
        return np.stack(
            [pooled.mean, shift.mean(0), near @ shift, spread, to, to - before, level - to, by_ratio], axis=1
        )

    def predict(self, to: np.ndarray) -> Pooled:
        """Change of a group by its mean control.

        Its standard deviation is that of partial pooling, brought down by as much as the correction brings
        down what is missed of groups that were left out.
        """
        every = np.arange(len(self.control))
        pooled = self._pool(every, to)
        if not self.n_trees:
            return pooled
        assert self.left_out is not None
        mean = pooled.mean + self._trees.predict(self._features(every, to, pooled))
        before, after = (max(v, 0.0) for v in self.left_out)
        factor = np.sqrt(after / before) if 0 < after < before else 1.0
        return Pooled(mean, pooled.sd * factor, pooled.shared, pooled.width)

    def missed(self, found: Pooled) -> float:
        """Squared change, summed over genes, that such a prediction is expected to miss."""
        if self.left_out is None or self.left_out[1] <= 0:
            return float(np.square(found.sd).sum())
        return float(self.left_out[1])


def learned_pooling(
    control: np.ndarray, shift: np.ndarray, to: np.ndarray, *, within: np.ndarray, inverse_size: np.ndarray
) -> Pooled:
    """Change of one group: :class:`LearnedPooling` in one call, like :func:`partial_pooling`.

    Parameters
    ----------
    control, shift, within, inverse_size
        As in :class:`LearnedPooling`.
    to
        Control of the group to predict.
    """
    return LearnedPooling(control, shift, within, inverse_size).predict(to)


def _staged(x: list[np.ndarray], missed: list[np.ndarray], i: int) -> np.ndarray:
    """Mean square that is missed of a group by each number of trees, from 0, that have seen the others."""
    seen = [j for j in range(len(x)) if j != i]
    made = HistGradientBoostingRegressor(max_iter=TREES, **TREE)
    made.fit(*(np.concatenate([of[j] for j in seen]) for of in (x, missed)))
    stages = [0.0 * missed[i], *made.staged_predict(x[i])]
    return np.array([np.square(missed[i] - s).mean() for s in stages])
