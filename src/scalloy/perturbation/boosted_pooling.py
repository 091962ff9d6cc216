r"""Partial pooling with a correction by boosted trees that is learned across genes.

The change of one gene has been seen in only a handful of other groups, but how changes carry over between
groups has been seen for thousands of genes. So each seen group is left out in turn and predicted by pooling
the others, and boosted trees learn the error of this prediction from all genes,

    d_og - f_og  =  t(f_og, what other groups show, c_og, ...)

The features are available for any group: the pooled change ``f``, the mean change of all other groups and of
similar ones, the standard deviation of the others' changes, the control, its difference from the control of
similar groups, its distance to the level that these reach, and the change that their fold changes would give.
So the trees can learn, for example, that genes which are high already rise less, or that a gene reaches the
same level in every group, and apply it to the group to predict.

The number of trees, which may be zero, minimises the squared error on held-out groups. For this choice the
trees are trained on groups that were pooled without the held-out one; otherwise its effect on the pooled
changes would leak into training. The final trees are trained on each group, pooled from all others and from
all others but one.

The noise of a group's controls is in its features, and with the opposite sign in its change. Trees would
learn from this to pull genes back to what is usual in the other groups, which improves the prediction of the
treated cells but is no effect of the condition. If the profiles of two halves of the controls are given, the
features are from one half and the change is measured against the other, so the trees learn effects only.

Boosted trees: Friedman, Annals of Statistics 2001; stacking: Wolpert, Neural Networks 1992.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from scalloy._by_name import Table, Values, by_name, in_one_order, names_of
from scalloy.perturbation.pooling import Pooled, partial_pooling
from scalloy.perturbation.pooling_with_noise import NoisyPooling
from scalloy.perturbation.similarity import closeness

LEAST = 4  # minimum number of groups for a correction
MOST_GROUPS, MOST_ROWS = 8, 200_000  # groups that are left out in turn, and rows of training data, at most
TREES, LEAF = 100, 50  # maximum number of trees, and minimum number of genes in a leaf
TREE: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_leaf_nodes": 15,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
EPSILON, LARGEST = 0.05, 50.0  # added before taking ratios; cap of the log-expression
AXES: dict[str, tuple[str, ...]] = {
    "control": ("groups", "genes"),
    "shift": ("groups", "genes"),
    "within": ("genes",),
    "inverse_size": ("groups",),
    "noise": ("groups", "genes"),
}


class Rows(NamedTuple):
    """Training data of trees from one group: features of its genes, and errors of its pooled change.

    ``sd`` is the standard deviation of that change, one value for each of the genes.
    """

    features: np.ndarray
    errors: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class LeftOut:
    """Changes of some groups and genes (by position), each group predicted from the others."""

    groups: np.ndarray
    genes: np.ndarray
    mean: np.ndarray  # groups x genes
    sd: np.ndarray


@dataclass
class LearnedPooling:
    """Partial pooling of seen groups with a learned correction, to predict the change of other groups.

    Parameters
    ----------
    control, shift
        Mean expression of the control cells of each group, and its change under the condition, groups x
        genes.
    within
        Variance between the cells of a group, by gene.
    inverse_size
        ``1 / n_control + 1 / n_treated`` of each group.
    noise
        Variance of the error of ``shift``, groups x genes, which then replaces ``within`` times
        ``inverse_size`` (:mod:`scalloy.perturbation.pooling_with_noise`); ``None`` if only these are known.
    halves
        Profiles of two halves of the controls of each group, groups x genes each; ``None`` trains the trees
        on the profiles of all controls.
    seed
        Random seed for the choice of the genes that the trees are trained on, if there are too many.

    Attributes
    ----------
    left_out
        Mean squared error on groups that were left out, without and with the correction (both include the
        noise of the observed changes); ``None`` if there are too few groups.
    n_trees
        Number of trees of the correction.

    Examples
    --------
    >>> control = np.random.default_rng(0).normal(2, 1, (8, 30))  # groups x genes
    >>> noise = {"within": np.ones(30), "inverse_size": np.full(8, 0.1)}
    >>> before, after = sa.baselines.LearnedPooling(control, 0.5 * control, **noise).left_out
    >>> after < before
    True
    """

    control: Table
    shift: Table
    within: Values
    inverse_size: Values
    _: KW_ONLY
    noise: Table | None = None
    halves: tuple[np.ndarray, np.ndarray] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = {k: v for k in AXES if (v := getattr(self, k)) is not None}
        self._genes = names_of("genes", given, AXES)
        vars(self).update(in_one_order(given, AXES))
        self.left_out: tuple[float, float] | None = None
        self.n_trees = 0
        self._settings: dict[str, tuple[float, ...]] = {}
        self._left_out: LeftOut | None = None
        if len(self.control) >= LEAST:
            (found,) = self._pool(np.arange(len(self.control)), self.control.mean(0))
            self._settings = {"shared": (found.shared,), "widths": (found.width,)}
            self._learn()

    def _pool(self, groups: np.ndarray, *profiles: np.ndarray, **settings: tuple[float, ...]) -> list[Pooled]:
        """Pool the changes of these groups for each profile of a group to predict."""
        control, shift, settings = self.control[groups], self.shift[groups], settings or self._settings
        if self.noise is not None:
            noisy = NoisyPooling(control, shift, self.noise[groups], **settings)
            return [noisy.predict(to) for to in profiles]
        sizes = {"within": self.within, "inverse_size": self.inverse_size[groups]}
        return [partial_pooling(control, shift, to, **sizes, **settings) for to in profiles]

    def left_out_predictions(self) -> LeftOut:
        """Return changes of groups, each predicted from the other groups.

        If the correction was learned, these are the groups and genes that it was learned from: at most eight
        groups, those with the most cells, and a sample of the genes if there are very many.

        Examples
        --------
        >>> noise = {"within": np.ones(2), "inverse_size": np.full(3, 0.1)}
        >>> learned = sa.baselines.LearnedPooling(np.ones((3, 2)), np.ones((3, 2)), **noise)
        >>> learned.left_out_predictions().mean.shape
        (3, 2)
        """
        if self._left_out is None:
            every = np.arange(len(self.control))
            found = [self._pool(np.setdiff1d(every, [o]), self.control[o])[0] for o in every]
            mean, sd = (np.stack(v) for v in zip(*((f.mean, f.sd) for f in found), strict=True))
            self._left_out = LeftOut(every, np.arange(self.control.shape[1]), mean, sd)
        return self._left_out

    def left_out_as_if_alike(self) -> np.ndarray:
        """Return the same predictions as if the other groups were equally similar to the one left out.

        Examples
        --------
        >>> noise = {"within": np.ones(2), "inverse_size": np.full(3, 0.1)}
        >>> learned = sa.baselines.LearnedPooling(np.ones((3, 2)), np.ones((3, 2)), **noise)
        >>> learned.left_out_as_if_alike().shape
        (3, 2)
        """
        known, every = self.left_out_predictions(), np.arange(len(self.control))
        alike = {"shared": (1.0,), "widths": (1.0,)}
        found = [self._pool(np.setdiff1d(every, [o]), self.control[o], **alike)[0] for o in known.groups]
        return np.stack([f.mean[known.genes] for f in found])

    def _learn(self) -> None:
        chosen = np.argsort(self.inverse_size, kind="stable")[:MOST_GROUPS]
        rng, n = np.random.default_rng(self.seed), self.control.shape[1]
        some = np.sort(rng.permutation(n)[: max(1, MOST_ROWS // len(chosen) ** 2)])
        alone = {o: self._rows(o, [o], some) for o in chosen}
        pairs = {(i, o): self._rows(o, [i, o], some) for i, o in permutations(chosen, 2)}
        stages = [_stages([v for (i, _), v in pairs.items() if i == o], alone[o].features) for o in chosen]
        missed = [alone[o].errors for o in chosen]
        error = np.mean([np.square(m - s).mean(1) for m, s in zip(missed, stages, strict=True)], axis=0)
        self.n_trees = int(error.argmin())
        self.left_out = float(error[0]), float(error[self.n_trees])
        parts = 1 if self.halves is None else 2
        left = [m - s[self.n_trees] for m, s in zip(missed, stages, strict=True)]  # what is still missed
        mean = self.shift[np.ix_(chosen, some)] - np.stack([v.reshape(parts, -1).mean(0) for v in left])
        sd = np.stack([alone[o].sd for o in chosen]) * np.sqrt(error[self.n_trees] / error[0])
        self._left_out = LeftOut(chosen, some, mean, sd)
        if self.n_trees:
            self._trees = _fitted([*alone.values(), *pairs.values()], self.n_trees, LEAF * len(chosen))

    def _rows(self, o: int, without: list[int], genes: np.ndarray) -> Rows:
        """Return features of a group's genes and the errors of its change pooled without some groups."""
        others = np.setdiff1d(np.arange(len(self.control)), without)
        treated = self.control[o] + self.shift[o]
        if self.halves is None:
            parts = [(self.control[o], self.control[o])]
        else:
            one, other = (half[o] for half in self.halves)
            parts = [(one, other), (other, one)]
        found, features, errors = self._pool(others, *(profile for profile, _ in parts)), [], []
        for (profile, against), pooled in zip(parts, found, strict=True):
            features.append(self._features(others, profile, pooled)[genes])
            errors.append((treated - against - pooled.mean)[genes])
        return Rows(np.concatenate(features), np.concatenate(errors), found[-1].sd[genes])

    def _features(self, groups: np.ndarray, to: np.ndarray, pooled: Pooled) -> np.ndarray:
        """Return the features of each gene for a group with control ``to``, given other groups."""
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

    def predict(self, to: Values, *, corrected: bool = True) -> Pooled:
        """Predict the change of a group from the mean of its control cells.

        The standard deviation is that of partial pooling, scaled by the factor by which the correction
        reduces the root mean squared error on groups that were left out.

        Parameters
        ----------
        to
            Mean expression of the control cells of the group, by gene.
        corrected
            Whether to add the correction, which was learned for groups whose change was not seen.

        Examples
        --------
        >>> noise = {"within": np.ones(2), "inverse_size": np.full(3, 0.1)}
        >>> learned = sa.baselines.LearnedPooling(np.ones((3, 2)), np.ones((3, 2)), **noise)
        >>> learned.predict(np.ones(2)).mean.shape
        (2,)
        """
        every = np.arange(len(self.control))
        if self._genes is not None:
            axes: dict[str, tuple[str, ...]] = {"control": ("genes",), "to": ("genes",)}
            to = in_one_order({"control": self._genes, "to": to}, axes)["to"]
        (pooled,) = self._pool(every, to)
        if not self.n_trees or not corrected:
            return pooled
        assert self.left_out is not None
        mean = pooled.mean + self._trees.predict(self._features(every, to, pooled))
        before, after = self.left_out
        return Pooled(mean, pooled.sd * np.sqrt(after / before), pooled.shared, pooled.width)


@by_name(control="groups genes", shift="groups genes", to="genes", within="genes", inverse_size="groups")
def learned_pooling(
    control: Table, shift: Table, to: Values, *, within: Values, inverse_size: Values
) -> Pooled:
    """Predict the change of one group with :class:`LearnedPooling` in a single call.

    Parameters
    ----------
    control, shift
        Mean expression of the control cells of each seen group, and its change under the condition, groups x
        genes.
    to
        Mean expression of the control cells of the group to predict, by gene.
    within
        Variance between the cells of a group, by gene.
    inverse_size
        ``1 / n_control + 1 / n_treated`` of each seen group.

    Examples
    --------
    >>> noise = {"within": np.ones(2), "inverse_size": np.full(3, 0.1)}
    >>> sa.baselines.learned_pooling(np.ones((3, 2)), np.ones((3, 2)), np.ones(2), **noise).mean.shape
    (2,)
    """
    return LearnedPooling(control, shift, within, inverse_size).predict(to)


def _fitted(rows: list[Rows], n_trees: int, leaf: int) -> HistGradientBoostingRegressor:
    made = HistGradientBoostingRegressor(max_iter=n_trees, min_samples_leaf=leaf, **TREE)
    return made.fit(*(np.concatenate(part) for part in zip(*((r.features, r.errors) for r in rows))))


def _stages(rows: list[Rows], features: np.ndarray) -> np.ndarray:
    """Return the correction for a left-out group after 0, 1, ... trees trained on the others."""
    return np.stack([np.zeros(len(features)), *_fitted(rows, TREES, LEAF).staged_predict(features)])
