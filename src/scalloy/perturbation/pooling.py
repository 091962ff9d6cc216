r"""Partial pooling: prediction of the change of a group of cells from the changes of other groups.

    d_og = f_g(c_o) + e_og       e_og ~ N(0, v_g h_o),   h_o = 1 / n_control + 1 / n_treated
    f_g  ~ GP(0, a_g K)          K(c, c') = rho + (1 - rho) exp(-||c - c'||^2 / (width m))
    a_g  ~ sum_j pi_j delta_j    on a grid

``d_og`` is the change of the mean of gene ``g`` in group ``o``, ``c_o`` the mean of its controls, ``v_g`` the
variance between cells, and ``m`` the median squared distance between two groups. The share of a change that
is common to all groups (``rho``), the distance over which the rest carries over (``width``) and the
distribution of the sizes of changes over genes (``pi``) maximise the evidence. So a gene whose changes are
within the noise of small groups, or on which the groups disagree, is predicted to change little or not at
all, and a group of few cells counts for little.

Gaussian processes: Rasmussen and Williams (2006), chapters 2 and 5; mixtures of variances whose weights are
learned from all genes: Stephens, "False discovery rates: a new deal", Biostatistics 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from scalloy._by_name import Table, Values, by_name
from scalloy.perturbation.similarity import squared_distances, typical_distance

SHARED = (0.0, 0.25, 0.5, 0.75, 0.9)
WIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
N_SIZES, SMALLEST, STEPS = 13, 1e-6, 50  # number of sizes, smallest relative to the largest, EM steps
NO_VARIANCE = 1e-8


@dataclass(frozen=True)
class Pooled:
    """Predicted change and its standard deviation by gene, with the chosen ``shared`` and ``width``.

    Examples
    --------
    >>> found = sa.baselines.Pooled(mean=np.array([0.5]), sd=np.array([0.3]), shared=0.75, width=2.0)
    >>> found.mean.tolist()
    [0.5]
    """

    mean: np.ndarray
    sd: np.ndarray
    shared: float
    width: float

    @by_name(cells="cells _")
    def sd_of_mean(self, cells: Table) -> np.ndarray:
        """Return the standard error of the predicted mean log-expression of treated cells.

        It covers the uncertainty of the change and the sampling noise of two means, that of the control cells
        and that of as many treated cells.

        Parameters
        ----------
        cells
            Log-expression of the control cells, cells x genes.

        Examples
        --------
        >>> found = sa.baselines.Pooled(mean=np.array([0.5]), sd=np.array([0.3]), shared=0.75, width=2.0)
        >>> found.sd_of_mean(np.array([[1.0], [3.0]])).round(2).tolist()
        [1.04]
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
    """Predict the change of a group by partial pooling of the changes of other groups.

    Parameters
    ----------
    control, shift
        Mean expression of the control cells of the other groups, and its change under the condition, groups x
        genes.
    to
        Mean expression of the control cells of the group to predict, by gene.
    within
        Variance between the cells of a group, by gene.
    inverse_size
        ``1 / n_control + 1 / n_treated`` of each other group.
    shared, widths
        Candidates for ``rho``, the share of a change that all groups have in common, and for the kernel
        width; the pair with the highest evidence is used.

    Examples
    --------
    >>> control = np.array([[1.0, 2.0], [2.0, 1.0], [1.5, 1.5]])  # groups x genes
    >>> shift = np.array([[1.0, 0.2], [1.2, -0.2], [0.8, 0.1]])  # no agreement on gene 2
    >>> noise = {"within": np.ones(2), "inverse_size": np.full(3, 0.1)}
    >>> sa.baselines.partial_pooling(control, shift, np.array([1.0, 1.0]), **noise).mean.round(1).tolist()
    [0.9, 0.0]
    """
    sizes = np.geomspace(SMALLEST, 1.0, N_SIZES) * max(float(np.square(shift).max()), NO_VARIANCE)
    within = np.maximum(within, NO_VARIANCE)
    scale = typical_distance(control) or float(squared_distances(to[None], control).mean()) or 1.0
    between = squared_distances(control, control) / scale
    towards = squared_distances(to[None], control)[0] / scale

    def fit(rho: float, width: float) -> tuple[Rotated, np.ndarray, float, float]:
        like, near = (kernel(rho, width, d) for d in (between, towards))
        return Rotated.of(like, shift, within, inverse_size, sizes), near, rho, width

    pairs = candidates(len(control), shared, widths)
    fits = (fit(*settings) for settings in pairs)  # lazily: two in memory at most
    best, near, rho, width = max(fits, key=lambda found: found[0].evidence)
    mean, variance = best.predicted(near)
    return Pooled(mean, np.sqrt(variance), rho, width)


def candidates(n: int, shared: tuple[float, ...], widths: tuple[float, ...]) -> list[tuple[float, float]]:
    """Return the settings to compare; a single group cannot tell them apart, so the middle is taken."""
    if n > 1:
        return list(product(shared, widths))
    return [(shared[len(shared) // 2], widths[len(widths) // 2])]


def kernel(rho: float, width: float, distance: np.ndarray) -> np.ndarray:
    """Return the kernel of two groups at a squared distance, in units of the typical one."""
    return rho + (1 - rho) * np.exp(-distance / width)


@dataclass
class Rotated:
    """Changes in a basis, common to all genes, in which they are independent.

    With ``w = h^-1/2`` and ``w K w = U diag(lam) U'`` the covariance of ``y = U' (w d)`` is
    ``a diag(lam) + v``.
    """

    basis: np.ndarray  # groups x components, including the weights w
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
        share, evidence = fitted_shares(log_density)
        return cls(basis, y, variance, sizes, share, evidence)

    def predicted(self, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance, by gene, of a group's change; ``near`` is its kernel with the others."""
        k = self.basis.T @ near
        each = self.sizes[:, None] * np.einsum("i,jig->jg", k, self.y / self.variance)
        left = self.sizes[:, None] - np.square(self.sizes)[:, None] * np.einsum(
            "i,jig->jg", np.square(k), 1 / self.variance
        )
        mean = (self.share * each).sum(0)
        variance = (self.share * (left.clip(0) + np.square(each))).sum(0) - np.square(mean)
        return mean, variance.clip(0)


def fitted_shares(log_density: np.ndarray, null: float = 0.0) -> tuple[np.ndarray, float]:
    """Fit the weights of the sizes by EM; return the posterior of each size by gene, and the evidence.

    Parameters
    ----------
    log_density
        Logarithm of the density of each gene's changes for each size, sizes x genes.
    null
        Number of genes of the first size that are added to the observed ones.
    """
    top = log_density.max(0)
    density = np.exp(log_density - top)
    weights = np.full(len(density), 1 / len(density))
    more = np.zeros(len(density))
    more[0] = null
    for _ in range(STEPS):
        joint = weights[:, None] * density
        weights = ((joint / joint.sum(0)).sum(1) + more) / (density.shape[1] + null)
    joint = weights[:, None] * density
    total = joint.sum(0)
    return joint / total, float((top + np.log(total)).sum())
