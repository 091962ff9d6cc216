r"""Covariance of the effects of conditions, from what they have in common.

The effect of a condition c on the level of a gene, against the control, is a sum over its parts, plus what
pairs of parts do together, plus a drift with time that cells without any part have, too:

    f(c)  =  sum_p f_p(u_p, t)  +  sum_{p<q} f_pq(u_p, u_q)  +  f_0(t)

All of these are Gaussian processes, so the covariance of two conditions is a sum of components with weights
w_k >= 0, which are learned (:mod:`scalloy.perturbation.condition_effects`):

    C(c, c')  =  sum_k w_k C_k(c, c')
    C_k       =  sum_{p in c, p' in c'} S(p, p') D(u_p, u'_p') T(t, t')        S, D, T: one of those below

    S   own       1 if p = p', else 0               D   linear   u u'
        common    1                                     rough    min(u, u')
        described exp(-|e_p - e_p'|^2 / 2 l^2)          smooth   (3 m^2 M - m^3) / 2,  m, M = min, max(u, u')
    T   constant  1
        changing  min(t, t')

    pairs    sum of min(u_p, u'_p) min(u_q, u'_q) over pairs that are in both conditions
    drift    min(t, t'), counted from the time of the control

Strengths u (:mod:`scalloy.perturbation.design`) are zero without a part, where all these vanish. So there is
no effect at dose 0. ``linear`` goes on beyond the largest dose as it was, ``rough`` stays where it was, and
``smooth`` bends (it is that of cubic splines). In a combination of n parts, strengths are multiplied by n^-a:
effects together are often less than their sum.

Each component is there twice if there are several groups: shared by all, and independent in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy.spatial.distance import cdist

from scalloy.perturbation.design import Content, Design

Context = tuple[str, Content]  # group and condition


@dataclass(frozen=True)
class Kernel:
    """Components of the covariance of conditions in groups.

    Parameters
    ----------
    design
        Meaning of the conditions.
    scale
        Typical size of the effect of each part, relative to others.
    dilution
        Exponent ``a`` by which strengths fall in combinations.
    several
        Whether there are several groups.
    """

    design: Design
    scale: np.ndarray
    dilution: float = 0.0
    several: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the components."""
        of_parts = [
            f"{s}, {d}, {t}"
            for s in ("own", "common", *(["described"] if self.design.descriptors is not None else []))
            for d in ("linear", *(["rough", "smooth"] if self._bends() else []))
            for t in ("constant", *(["changing"] if self.design.timed else []))
        ]
        names = [*of_parts, "pairs", *(["drift"] if self.design.timed else [])]
        return [f"{k}, {g}" for g in ("shared", "by group")[: 1 + self.several] for k in names]

    def _bends(self) -> bool:
        """Return whether any part was seen at several doses."""
        return self.design.dosed and bool((self.design.highest > self.design.lowest).any())

    def of(self, these: Sequence[Context], those: Sequence[Context]) -> np.ndarray:
        """Return all components between contexts, components x these x those.

        Parameters
        ----------
        these, those
            Groups and conditions.
        """
        (u, t), (v, s) = self._numbers(these), self._numbers(those)
        alike = self._likeness()
        both = np.minimum(t[:, None], s)
        out = self._sums_over_parts(u, v, alike, both)
        out.append(self._pairs(u, v))
        if self.design.timed:
            start = self.design.times([self.design.reference])[0]
            from_start = np.minimum(t, start)[:, None] + np.minimum(s, start) - start
            out.append(both - from_start)
        shared = np.stack(out)
        if not self.several:
            return shared
        groups = [np.array([group for group, _ in contexts]) for contexts in (these, those)]
        return np.concatenate([shared, shared * (groups[0][:, None] == groups[1])])

    def _numbers(self, contexts: Sequence[Context]) -> tuple[np.ndarray, np.ndarray]:
        """Return strengths and times of the conditions."""
        contents = [content for _, content in contexts]
        u = self.design.strengths(contents)
        n = np.maximum((u > 0).sum(1, keepdims=True), 1)
        return u * n**-self.dilution, self.design.times(contents)

    def _likeness(self) -> list[np.ndarray]:
        """Return how alike parts are, in as many ways as there are, times their scales."""
        n, scales = len(self.scale), np.outer(self.scale, self.scale)
        out = [np.diag(np.square(self.scale)), scales]
        if (given := self.design.descriptors) is not None:
            apart = cdist(given, given, "sqeuclidean")
            typical = np.median(apart[np.triu_indices(n, 1)]) if n > 1 else 1.0
            out.append(scales * np.exp(-apart / max(float(typical), 1e-12)))
        return out

    def _sums_over_parts(
        self, u: np.ndarray, v: np.ndarray, alike: list[np.ndarray], both: np.ndarray
    ) -> list[np.ndarray]:
        """Return the components that are sums over pairs of a part of each condition."""
        (p, a), (q, b) = _packed(u), _packed(v)
        curves = CURVES if self._bends() else CURVES[:1]
        sums = [[np.zeros(both.shape) for _ in curves] for _ in alike]
        for i, j in product(range(p.shape[1]), range(q.shape[1])):
            x, y = a[:, i][:, None], b[:, j][None]
            shapes = [curve(x, y) for curve in curves]
            for of_alike, like in zip(sums, alike, strict=True):
                here = like[np.ix_(p[:, i], q[:, j])]
                for total, shape in zip(of_alike, shapes, strict=True):
                    total += here * shape
        flat = [total for of_alike in sums for total in of_alike]
        return [v for total in flat for v in ([total, total * both] if self.design.timed else [total])]

    def _pairs(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the component of pairs of parts."""
        out = np.zeros((len(u), len(v)))
        rows: list[dict[tuple[int, int], list[int]]] = [{}, {}]
        for found, x in zip(rows, (u, v), strict=True):
            for i, row in enumerate(x):
                for pair in combinations(np.flatnonzero(row).tolist(), 2):
                    found.setdefault(pair, []).append(i)
        for p, q in rows[0].keys() & rows[1].keys():
            at = np.ix_(rows[0][p, q], rows[1][p, q])
            size = (self.scale[p] ** 2 + self.scale[q] ** 2) / 2
            out[at] += size * np.minimum(u[:, None, p], v[:, p])[at] * np.minimum(u[:, None, q], v[:, q])[at]
        return out


def _linear(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * v


def _smooth(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    low = np.minimum(u, v)
    return (3 * np.square(low) * np.maximum(u, v) - low**3) / 2


CURVES = (_linear, np.minimum, _smooth)  # covariances of strengths: linear, rough, smooth


def _packed(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of each condition and their strengths, as few columns as there can be."""
    most = max(1, int((u > 0).sum(1).max(initial=0)))
    parts = np.argsort(-u, axis=1, kind="stable")[:, :most]
    return parts, np.take_along_axis(u, parts, 1)
