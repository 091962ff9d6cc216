"""How a group of cells would change, from how other groups did: arrays in, array out.

Rows are groups, columns genes; ``control`` and ``shift`` are means of log-normalised expression and their
change under the condition. Frames and Series are matched by the names of their groups and genes, arrays by
position; predictions have the genes in the order of ``control``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.cross_decomposition import PLSRegression

from scalloy.metrics._given import Table, Values, by_name

LEFT_OUT = 20  # groups at most, to choose settings by
_by_name = by_name(control="groups genes", shift="groups genes", to="genes")


@_by_name
def mean_shift(control: Table, shift: Table, to: Values) -> np.ndarray:
    """Mean change of the other groups, whatever the group.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    """
    return shift.mean(0) + 0 * to


@_by_name
def nearest_type(control: Table, shift: Table, to: Values) -> np.ndarray:
    """Change of the group whose control correlates most.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    """
    return shift[np.argmax([np.corrcoef(c, to)[0, 1] for c in control])]


@_by_name
def weighted_shift(control: Table, shift: Table, to: Values, *, sharpness: float = 3.0) -> np.ndarray:
    """Mean change, weighted by ``exp(-sharpness ||c - to||^2 / m)`` with ``m`` the median of these distances.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    sharpness
        0 is the mean shift, infinity the group at the smallest distance.
    """
    return closeness(control, to, sharpness) @ shift


def closeness(control: np.ndarray, to: np.ndarray, sharpness: float = 3.0) -> np.ndarray:
    """Weights of the other groups in :func:`weighted_shift`; they sum to one."""
    distance = squared_distances(to[None], control)[0]
    weight = -sharpness * distance / max(float(np.median(distance)), 1e-12)
    weight = np.exp(weight - weight.max())
    return weight / weight.sum()


@_by_name
def ridge_on_pcs(
    control: Table, shift: Table, to: Values, *, n_pcs: int = 2, ridge: float = 0.05
) -> np.ndarray:
    """Mean change plus a ridge regression of changes on principal components of the controls.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    n_pcs
        Components.
    ridge
        In units of their mean squared score.
    """
    middle, mean = control.mean(0), shift.mean(0)
    axes = np.linalg.svd(control - middle, full_matrices=False)[2][:n_pcs]
    z = (control - middle) @ axes.T
    penalty = ridge * np.square(z).sum(0).mean() * np.eye(z.shape[1])
    slope = np.linalg.solve(z.T @ z + penalty, z.T @ (shift - mean))
    return mean + (to - middle) @ axes.T @ slope


@_by_name
def ridge_by_gene(control: Table, shift: Table, to: Values, *, ridge: float = 0.1) -> np.ndarray:
    """Mean change plus a regression of each gene's change on its own control.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    ridge
        Added to the sum of squares of the control.
    """
    x, d = control - control.mean(0), shift - shift.mean(0)
    slope = (x * d).sum(0) / (np.square(x).sum(0) + ridge)
    return shift.mean(0) + slope * (to - control.mean(0))


@_by_name
def partial_least_squares(control: Table, shift: Table, to: Values, *, n_components: int = 2) -> np.ndarray:
    """Partial least squares (scikit-learn's) from controls to changes.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    n_components
        At most one less than there are groups.
    """
    n = min(n_components, len(control) - 1)
    if n < 1:
        return shift.mean(0)
    varies = control.std(0) > 0, shift.std(0) > 0
    out = shift.mean(0)
    if not (varies[0].any() and varies[1].any()):
        return out
    fitted = PLSRegression(n, scale=False).fit(control[:, varies[0]], shift[:, varies[1]])
    out[varies[1]] = fitted.predict(to[None, varies[0]])[0]
    return out


@_by_name
def kernel_ridge(
    control: Table, shift: Table, to: Values, *, ridge: float = 0.1, width: float = 1.0
) -> np.ndarray:
    """Mean change plus what groups of similar controls deviate from it.

    It is ``mean(D) + k' (K + ridge I)^-1 (D - mean(D))`` with ``K_ij = exp(-||c_i - c_j||^2 / m)``, ``k`` the
    same towards the group to predict, and ``m`` the median squared distance between two groups.

    Parameters
    ----------
    control, shift
        Of the other groups.
    to
        Control of the group to predict.
    ridge
        On the diagonal of the kernel.
    width
        Factor of ``m``.
    """
    mean, scale = shift.mean(0), width * typical_distance(control)
    if scale == 0:
        return mean
    between = np.exp(-squared_distances(control, control) / scale)
    towards = np.exp(-squared_distances(to[None], control)[0] / scale)
    return mean + towards @ np.linalg.solve(between + ridge * np.eye(len(control)), shift - mean)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between all rows of two arrays."""
    return cdist(a, b, "sqeuclidean")


def typical_distance(control: np.ndarray) -> float:
    """Median squared distance between two groups; 0 where there are no two."""
    pairs = squared_distances(control, control)[np.triu_indices(len(control), 1)]
    return float(np.median(pairs)) if len(pairs) else 0.0


Shift = Callable[..., np.ndarray]
#: Each predictor and the settings from which :func:`tuned` chooses.
SHIFTS: dict[str, tuple[Shift, dict[str, tuple]]] = {
    "mean shift": (mean_shift, {}),
    "nearest type": (nearest_type, {}),
    "similarity-weighted": (weighted_shift, {"sharpness": (0.5, 1.0, 3.0, 10.0)}),
    "ridge on PCs": (ridge_on_pcs, {"n_pcs": (1, 2, 3), "ridge": (0.01, 0.05, 0.2, 1.0)}),
    "kernel ridge": (kernel_ridge, {"ridge": (0.01, 0.03, 0.1, 0.3, 1.0), "width": (0.5, 1.0, 2.0, 4.0)}),
    "ridge by gene": (ridge_by_gene, {"ridge": (0.01, 0.1, 1.0)}),
    "partial least squares": (partial_least_squares, {"n_components": (1, 2, 3)}),
}


@by_name(control="groups genes", shift="groups genes")
def tuned(name: str, control: Table, shift: Table) -> dict[str, Any]:
    """Settings of a predictor with which it misses least of groups that are left out, one at a time.

    Beyond 20 groups, 20 of them are left out, evenly spread over their order.

    Parameters
    ----------
    name
        A key of :data:`SHIFTS`.
    control, shift
        Of the groups that were seen; with fewer than three the defaults stay.
    """
    predict, grid = SHIFTS[name]
    if not grid or len(control) < 3:
        return {}

    left_out = np.unique(np.linspace(0, len(control) - 1, min(len(control), LEFT_OUT)).round().astype(int))
    kept = [np.delete(np.arange(len(control)), i) for i in left_out]

    def missed(settings: dict[str, Any]) -> float:
        rows = zip(left_out, kept, strict=True)
        found = [predict(control[k], shift[k], control[i], **settings) for i, k in rows]
        return float(np.square(np.stack(found) - shift[left_out]).sum())

    return min((dict(zip(grid, values, strict=True)) for values in product(*grid.values())), key=missed)
