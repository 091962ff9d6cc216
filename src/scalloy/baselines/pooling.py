r"""How a group of cells would change, from how others did: partial pooling.

    d_og = f_g(c_o) + e_og       e_og ~ N(0, v_g h_o),   h_o = 1 / n_control + 1 / n_treated
    f_g  ~ GP(0, a_g K)          K(c, c') = rho + (1 - rho) exp(-||c - c'||^2 / (width m))
    a_g  ~ sum_j pi_j delta_j    on a grid

``d_og`` is the change of the mean of gene ``g`` in group ``o``, ``c_o`` the mean of its controls, ``v_g`` the
variance between cells, ``m`` the median squared distance between two groups. How much of a change all groups
share (``rho``), how far it reaches (``width``) and how many genes change by how much (``pi``) have the
highest evidence. So a gene whose changes are within the noise of small groups, or on which the groups
disagree, is predicted to change little or not at all, and a group of few cells counts for little.

Gaussian processes: Rasmussen and Williams (2006), chapters 2 and 5; mixtures of variances whose weights are
learned from all genes: Stephens, "False discovery rates: a new deal", Biostatistics 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from scalloy.baselines.shifts import squared_distances, typical_distance
from scalloy.metrics._given import Table, Values, by_name

SHARED = (0.0, 0.25, 0.5, 0.75, 0.9)
WIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
N_SIZES, SMALLEST, STEPS = 13, 1e-6, 50  # sizes of changes, the least of them in units of the largest
NO_VARIANCE = 1e-8


@dataclass(frozen=True)
class Pooled:
    """A change by gene, its standard deviation, and what was found: the share ``rho`` and the ``width``."""

    mean: np.ndarray
    sd: np.ndarray
    shared: float
    width: float

    @by_name(cells="cells _")
    def sd_of_mean(self, cells: Table) -> np.ndarray:
        """Of what is missed of the mean over as many treated cells as there are of these, in log expression.

        Beside the change, the mean of either is noisy.
        """
        return np.sqrt(np.square(self.sd) + 2 * cells.var(0) / len(cells))


@by_name(control="groups genes", shift="groups genes", to="genes", within="genes", inverse_size="groups")
def partial_pooling(
    control: Table,
    shift: Table,
    to: Values,
    *,
    within: Values,
    inverse_size: Values,
    shared: tuple[float, ...] = SHARED,
    widths: tuple[float, ...] = WIDTHS,
) -> Pooled:
    """Change of a group by those of the others, each for as much as it is worth.

    Parameters
    ----------
    control, shift
        Of the other groups, groups x genes.
    to
        Control of the group to predict.
    within
        Variance between cells of a group, by gene.
    inverse_size
        ``1 / n_control + 1 / n_treated`` of the other groups.
    shared, widths
        Of which those with the highest evidence are taken.
    """
    sizes = np.geomspace(SMALLEST, 1.0, N_SIZES) * max(float(np.square(shift).max()), NO_VARIANCE)
    within = np.maximum(within, NO_VARIANCE)
    scale = typical_distance(control) or float(squared_distances(to[None], control).mean()) or 1.0
    between = squared_distances(control, control) / scale
    towards = squared_distances(to[None], control)[0] / scale

    def fit(rho: float, width: float) -> tuple[Rotated, np.ndarray, float, float]:
        like, near = (rho + (1 - rho) * np.exp(-d / width) for d in (between, towards))
        return Rotated.of(like, shift, within, inverse_size, sizes), near, rho, width

    fits = (fit(*settings) for settings in product(shared, widths))  # of which two are held at once
    best, near, rho, width = max(fits, key=lambda found: found[0].evidence)
    mean, variance = best.predicted(near)
    return Pooled(mean, np.sqrt(variance), rho, width)


@dataclass
class Rotated:
    """Changes in the basis in which the groups are independent, which is the same for all genes.

    With ``w = h^-1/2`` and ``w K w = U diag(lam) U'`` the covariance of ``y = U' (w d)`` is
    ``a diag(lam) + v``.
    """

    basis: np.ndarray  # groups x components, with the weights
    y: np.ndarray
    variance: np.ndarray  # sizes x components x genes
    sizes: np.ndarray
    share: np.ndarray  # posterior probability of each size, sizes x genes
    evidence: float

    @classmethod
    def of(
        cls, like: np.ndarray, shift: np.ndarray, within: np.ndarray, h: np.ndarray, sizes: np.ndarray
    ) -> Rotated:
        w = 1 / np.sqrt(h)
        lam, u = np.linalg.eigh(w[:, None] * like * w)
        basis = w[:, None] * u
        y = basis.T @ shift
        variance = sizes[:, None, None] * lam.clip(0)[:, None] + within
        log_density = -0.5 * (np.square(y) / variance + np.log(variance)).sum(1)
        share, evidence = _shares(log_density)
        return cls(basis, y, variance, sizes, share, evidence)

    def predicted(self, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance by gene of the change of a group that is so near to the others."""
        k = self.basis.T @ near
        each = self.sizes[:, None] * np.einsum("i,jig->jg", k, self.y / self.variance)
        left = self.sizes[:, None] - np.square(self.sizes)[:, None] * np.einsum(
            "i,jig->jg", np.square(k), 1 / self.variance
        )
        mean = (self.share * each).sum(0)
        variance = (self.share * (left.clip(0) + np.square(each))).sum(0) - np.square(mean)
        return mean, variance.clip(0)


def _shares(log_density: np.ndarray) -> tuple[np.ndarray, float]:
    """Posterior of each size by gene, once the weights of the sizes have converged; and the evidence."""
    top = log_density.max(0)
    density = np.exp(log_density - top)
    weights = np.full(len(density), 1 / len(density))
    for _ in range(STEPS):
        joint = weights[:, None] * density
        weights = (joint / joint.sum(0)).mean(1)
    joint = weights[:, None] * density
    total = joint.sum(0)
    return joint / total, float((top + np.log(total)).sum())
