"""Predictions of the change of a group of cells from the changes of other groups, as functions of arrays.

Rows are groups, columns are genes; ``control`` and ``shift`` are means of log-normalised expression and their
changes under the condition. Frames and Series are matched by the names of their groups and genes, arrays by
position; predictions have the genes in the order of ``control``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from sklearn.cross_decomposition import PLSRegression

from scalloy._by_name import Table, Values, by_name
from scalloy._registry import Registry
from scalloy.perturbation.similarity import closeness, squared_distances, typical_distance

LEFT_OUT = 20  # maximum number of groups that are left out in turn to choose settings
_by_name = by_name(control="groups genes", shift="groups genes", to="genes")


@_by_name
def mean_shift(control: Table, shift: Table, to: Values) -> np.ndarray:
    """Predict the mean change of the other groups, whatever the group.

    Parameters
    ----------
    control, shift
        Mean expression of the controls of the other groups and its change, groups x genes.
    to
        Mean expression of the controls of the group to predict, by gene.

    Examples
    --------
    >>> control, shift = np.array([[0, 1], [1, 0]]), np.array([[2, 0], [4, 0]])
    >>> sa.baselines.mean_shift(control, shift, to=np.array([0, 1])).tolist()
    [3.0, 0.0]
    """
    return shift.mean(0) + 0 * to


@_by_name
def nearest_type(control: Table, shift: Table, to: Values) -> np.ndarray:
    """Predict the change of the group whose control correlates most with that of the group to predict.

    Parameters
    ----------
    control, shift
        Mean expression of the controls of the other groups and its change, groups x genes.
    to
        Mean expression of the controls of the group to predict, by gene.
    """
    return shift[np.argmax([np.corrcoef(c, to)[0, 1] for c in control])]


@_by_name
def weighted_shift(control: Table, shift: Table, to: Values, *, sharpness: float = 3.0) -> np.ndarray:
    """Predict a mean change with weights that fall with the distance between the controls.

    The weights are ``exp(-sharpness ||c - to||^2 / m)``, with ``m`` the median of the squared distances.

    Parameters
    ----------
    control, shift
        Mean expression of the controls of the other groups and its change, groups x genes.
    to
        Mean expression of the controls of the group to predict, by gene.
    sharpness
        Rate at which weights fall; 0 gives the mean shift, infinity the change of the nearest group.
    """
    return closeness(control, to, sharpness) @ shift


@_by_name
def ridge_on_pcs(
    control: Table, shift: Table, to: Values, *, n_pcs: int = 2, ridge: float = 0.05
) -> np.ndarray:
    """Predict by the mean change plus a ridge regression on principal components of the controls.

    Parameters
    ----------
    control, shift
        Mean expression of the controls of the other groups and its change, groups x genes.
    to
        Mean expression of the controls of the group to predict, by gene.
    n_pcs
        Number of principal components.
    ridge
        Ridge penalty, relative to the sum of squared scores of a component (mean over components).
    """
    middle, mean = control.mean(0), shift.mean(0)
    axes = np.linalg.svd(control - middle, full_matrices=False)[2][:n_pcs]
    z = (control - middle) @ axes.T
    penalty = ridge * np.square(z).sum(0).mean() * np.eye(z.shape[1])
    slope = np.linalg.solve(z.T @ z + penalty, z.T @ (shift - mean))
    return mean + (to - middle) @ axes.T @ slope


@_by_name
def ridge_by_gene(control: Table, shift: Table, to: Values, *, ridge: float = 0.1) -> np.ndarray:
    """Predict by the mean change plus a ridge regression of each gene's change on its own control.

    Parameters
    ----------
    control, shift
        Mean expression of the controls of the other groups and its change, groups x genes.
    to
        Mean expression of the controls of the group to predict, by gene.
    ridge
        Ridge penalty, which is added to the sum of squares of the centred control.
    """
    x, d = control - control.mean(0), shift - shift.mean(0)
    slope = (x * d).sum(0) / (np.square(x).sum(0) + ridge)
    return shift.mean(0) + slope * (to - control.mean(0))


@_by_name
def partial_least_squares(control: Table, shift: Table, to: Values, *, n_components: int = 2) -> np.ndarray:
    """Predict by a partial least squares regression (scikit-learn's) of changes on controls.

    Parameters
    ----------
    control, shift
        Mean expression of the controls of the other groups and its change, groups x genes.
    to
        Mean expression of the controls of the group to predict, by gene.
    n_components
        Number of components; at most one less than the number of groups are used.
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
    """Predict by the mean change plus a kernel ridge regression of the deviations from it on the controls.

    The prediction is ``mean(D) + k' (K + ridge I)^-1 (D - mean(D))``. Here ``D`` are the changes,
    ``K_ij = exp(-||c_i - c_j||^2 / (width m))``, ``k`` is the kernel between the other groups and the one to
    predict, and ``m`` is the median squared distance between two of the other groups.

    Parameters
    ----------
    control, shift
        Mean expression of the controls of the other groups and its change, groups x genes.
    to
        Mean expression of the controls of the group to predict, by gene.
    ridge
        Ridge penalty, which is added to the diagonal of the kernel.
    width
        Width of the kernel in units of ``m``.

    Examples
    --------
    >>> control, shift = np.array([[0, 1], [1, 0]]), np.array([[2, 0], [4, 0]])
    >>> predicted = sa.baselines.kernel_ridge(control, shift, to=np.array([0, 1]))  # a group like the first
    >>> predicted.round(2).tolist()
    [2.14, 0.0]
    """
    mean, scale = shift.mean(0), width * typical_distance(control)
    if scale == 0:
        return mean
    between = np.exp(-squared_distances(control, control) / scale)
    towards = np.exp(-squared_distances(to[None], control)[0] / scale)
    return mean + towards @ np.linalg.solve(between + ridge * np.eye(len(control)), shift - mean)


Shift = Callable[..., np.ndarray]
#: Predictors by name, each with the settings from which :func:`tuned` chooses;
#: :func:`scalloy.baselines.register` adds one.
SHIFTS: Registry[tuple[Shift, dict[str, tuple]]] = Registry(
    "sa.baselines.SHIFTS",
    {
        "mean shift": (mean_shift, {}),
        "nearest type": (nearest_type, {}),
        "similarity-weighted": (weighted_shift, {"sharpness": (0.5, 1.0, 3.0, 10.0)}),
        "ridge on PCs": (ridge_on_pcs, {"n_pcs": (1, 2, 3), "ridge": (0.01, 0.05, 0.2, 1.0)}),
        "kernel ridge": (kernel_ridge, {"ridge": (0.01, 0.03, 0.1, 0.3, 1.0), "width": (0.5, 1.0, 2.0, 4.0)}),
        "ridge by gene": (ridge_by_gene, {"ridge": (0.01, 0.1, 1.0)}),
        "partial least squares": (partial_least_squares, {"n_components": (1, 2, 3)}),
    },
)


@by_name(control="groups genes", shift="groups genes")
def tuned(name: str, control: Table, shift: Table) -> dict[str, Any]:
    """Choose the settings of a predictor by its squared error on groups that are left out one at a time.

    Of more than 20 groups, 20 are left out, evenly spread over their order. The result is empty, which leaves
    the defaults, if there is nothing to choose or there are fewer than three groups.

    Parameters
    ----------
    name
        Name of the predictor, a key of :data:`SHIFTS`.
    control, shift
        Mean expression of the controls of the groups and its change, groups x genes.

    Examples
    --------
    >>> control = np.random.default_rng(0).normal(size=(8, 30))  # groups x genes
    >>> list(sa.baselines.tuned("kernel ridge", control, shift=0.5 * control))
    ['ridge', 'width']
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
