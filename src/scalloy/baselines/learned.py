r"""Partial pooling, corrected by what is learned across genes.

A group's change of one gene has been seen in a handful of other groups, but how changes carry over has been
seen for thousands of genes: each group that was seen is left out in turn and pooled from the others, and
boosted trees learn from all genes what was missed,

    d_og - f_og  =  t(f_og, what other groups show, c_og, ...)

of features that every group has: the pooled change ``f``, the mean change of all others and of similar ones
and how far they differ, the control, how it lies to that of similar groups, the distance to the level that
these reach, and the change that their ratios would give. So where a gene that is high already rises less, or
reaches the same level everywhere, this is found and used for the group to predict.

The number of trees is the one which misses least of a group that is left out, by trees that have learned
from groups pooled without it; it may be none. (Pooled with it, they would know it by what it did to the
others.) What they learn from in the end is each group, pooled from all others and from all others but one.

Boosted trees: Friedman, Annals of Statistics 2001; stacking: Wolpert, Neural Networks 1992.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from scalloy.baselines.pooling import Pooled, partial_pooling
from scalloy.baselines.shifts import closeness
from scalloy.metrics._given import Table, Values, by_name, in_one_order, names_of

LEAST = 4  # groups to learn from
MOST_GROUPS, MOST_ROWS = 8, 200_000  # that are left out in turn, and of all that is learned from
TREES, LEAF = 100, 50  # at most, and genes of a leaf at least
TREE: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_leaf_nodes": 15,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
EPSILON, LARGEST = 0.05, 50.0  # added to expression before ratios; logarithm above which it is no logarithm
Rows = tuple[np.ndarray, np.ndarray]
AXES: dict[str, tuple[str, ...]] = {
    "control": ("groups", "genes"),
    "shift": ("groups", "genes"),
    "within": ("genes",),
    "inverse_size": ("groups",),
}


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
        Squared change, mean over genes and groups that were left out, which is missed (noise of that change
        included): by partial pooling, and after the correction; ``None`` where there are too few groups.
    n_trees
        Of the correction.
    """

    control: Table
    shift: Table
    within: Values
    inverse_size: Values
    seed: int = 0

    def __post_init__(self) -> None:
        given = {k: getattr(self, k) for k in AXES}
        self._genes = names_of("genes", given, AXES)
        vars(self).update(in_one_order(given, AXES))
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
        chosen = np.argsort(self.inverse_size, kind="stable")[:MOST_GROUPS]
        rng, n = np.random.default_rng(self.seed), self.control.shape[1]
        some = np.sort(rng.permutation(n)[: max(1, MOST_ROWS // len(chosen) ** 2)])
        alone = {o: self._rows(o, [o], some) for o in chosen}
        pairs = {(i, o): self._rows(o, [i, o], some) for i, o in permutations(chosen, 2)}
        errors = [_staged([v for (i, _), v in pairs.items() if i == o], alone[o]) for o in chosen]
        error = np.mean(errors, axis=0)
        self.n_trees = int(error.argmin())
        self.left_out = float(error[0]), float(error[self.n_trees])
        if self.n_trees:
            self._trees = _fitted([*alone.values(), *pairs.values()], self.n_trees, LEAF * len(chosen))

    def _rows(self, o: int, without: list[int], genes: np.ndarray) -> Rows:
        """Features of a group's genes, pooled without some groups, and what that misses."""
        others = np.setdiff1d(np.arange(len(self.control)), without)
        pooled = self._pool(others, self.control[o])
        features = self._features(others, self.control[o], pooled)
        return features[genes], (self.shift[o] - pooled.mean)[genes]

    def _features(self, groups: np.ndarray, to: np.ndarray, pooled: Pooled) -> np.ndarray:
        """Of each gene, of a group with the control ``to`` and what these others have shown."""
        control, shift = self.control[groups], self.shift[groups]
        near = closeness(control, to)
        level, before = near @ (control + shift), near @ control
        log = [np.log(np.expm1(v.clip(0, LARGEST)) + EPSILON) for v in (to, control, control + shift)]
        reached = (log[0] + near @ (log[2] - log[1])).clip(None, LARGEST)
        by_ratio = np.log1p((np.exp(reached) - EPSILON).clip(0)) - to
        return np.stack(
            [pooled.mean, shift.mean(0), near @ shift, shift.std(0), to, to - before, level - to, by_ratio],
            axis=1,
        )

    def predict(self, to: Values) -> Pooled:
        """Change of a group by its mean control.

        Its standard deviation is that of partial pooling, brought down by as much as the correction brings
        down what is missed of groups that were left out.
        """
        every = np.arange(len(self.control))
        if self._genes is not None:
            axes = {"control": ("genes",), "to": ("genes",)}
            to = in_one_order({"control": self._genes, "to": to}, axes)["to"]
        pooled = self._pool(every, to)
        if not self.n_trees:
            return pooled
        assert self.left_out is not None
        mean = pooled.mean + self._trees.predict(self._features(every, to, pooled))
        before, after = self.left_out
        return Pooled(mean, pooled.sd * np.sqrt(after / before), pooled.shared, pooled.width)


@by_name(control="groups genes", shift="groups genes", to="genes", within="genes", inverse_size="groups")
def learned_pooling(
    control: Table, shift: Table, to: Values, *, within: Values, inverse_size: Values
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


def _fitted(rows: list[Rows], n_trees: int, leaf: int) -> HistGradientBoostingRegressor:
    made = HistGradientBoostingRegressor(max_iter=n_trees, min_samples_leaf=leaf, **TREE)
    return made.fit(*(np.concatenate(part) for part in zip(*rows, strict=True)))


def _staged(rows: list[Rows], left_out: Rows) -> np.ndarray:
    """Mean square missed of a group by each number of trees, from 0, that have learned from others."""
    x, missed = left_out
    stages = [0.0 * missed, *_fitted(rows, TREES, LEAF).staged_predict(x)]
    return np.array([np.square(missed - s).mean() for s in stages])
