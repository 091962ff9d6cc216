"""Simple predictions of structured conditions: doses, times, combinations and unseen perturbations.

    method                 predicted change of a type under a condition with parts p
    "no change"            0
    "generic response"     mean of all changes that were seen in the type
    "additive"             sum over p of the effect of p alone, at the nearest dose and time that were seen
    "scaled sum"           the same times a weight, by least squares over the combinations that were seen
    "mean of the parts"    mean over p of the same as in "additive"
    "nearest dose"         the effect of the same parts together at the nearest doses and time
    "linear in log dose"   sum over p of slope_p x strength, by least squares through the origin
    "interpolation"        sum over p of the effect between the neighbouring doses and times
    "kernel regression"    as "additive"; parts that were never seen alone from their descriptors

Effects are taken in the type if it was seen under the condition, otherwise they are averaged over the types
that were. With times, the change of the control over time is added to each but the first. Strengths and times
are those of :mod:`scalloy.perturbation.design`; a part that was never seen alone adds nothing, except in the
last method. Changes are on a logarithmic scale, so sums are the additive null of combinations, and what a
combination does beyond it is its interaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
from sklearn import config_context
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import pairwise_kernels
from sklearn.model_selection import KFold

from scalloy._registry import Registry
from scalloy.baselines.contexts import Contexts, between
from scalloy.perturbation.design import Content
from scalloy.perturbation.similarity import typical_distance

FOLDS = 10  # maximum number of folds in which settings of the kernel regression are chosen
FEWEST = 4  # perturbations below which descriptors are not used
RIDGES, WIDTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0), (0.5, 1.0, 2.0, 4.0)
Asked = Content | Mapping[str, float]


def no_change(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict that nothing changes.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.
    """
    return np.zeros(seen.changes.shape[1])


def generic_response(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict the mean of all changes that were seen in the type, whatever the condition.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [0.0, 2.0]])  # contexts x genes
    >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"D": 1.0}], changes)
    >>> sa.baselines.generic_response(seen, "T", {"E": 1.0}).tolist()
    [0.5, 1.0]
    """
    content = seen.asked(to)
    if not content.parts:
        return _drift(seen, group, content)
    sets = {tuple(part for part, _ in c.parts) for c in seen.contents if c.parts}
    every = [change for parts in sorted(sets) for _, _, change in seen.effects(parts, group)]
    return _drift(seen, group, content) + np.mean(every or [no_change(seen, group, to)], axis=0)


def additive_null(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict the sum of the effects of the parts alone, each at its nearest dose and time.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [0.0, 2.0]])  # contexts x genes
    >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"D": 1.0}], changes)
    >>> sa.baselines.additive_null(seen, "T", {"A": 1.0, "D": 1.0}).tolist()
    [1.0, 2.0]
    """
    content = seen.asked(to)
    return _drift(seen, group, content) + _of_parts(seen, group, content, _nearest).sum(0)


def scaled_sum(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict the sum of the effects of the parts, times a weight that fits combinations that were seen.

    There is one weight for all genes and types, by least squares over the seen combinations of parts that
    were all seen alone. So it knows how much noise sums add up, and how far combinations saturate. Without
    such combinations, and for single parts, it is the additive null.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [0.0, 2.0], [0.5, 1.0]])  # contexts x genes
    >>> drugs = [{"A": 1.0}, {"D": 1.0}, {"A": 1.0, "D": 1.0}]
    >>> seen = sa.baselines.Contexts.of(["T"] * 3, drugs, changes)
    >>> sa.baselines.scaled_sum(seen, "T", {"A": 1.0, "D": 1.0}).tolist()
    [0.5, 1.0]
    """
    content = seen.asked(to)
    parts = _of_parts(seen, group, content, _nearest).sum(0)
    return _drift(seen, group, content) + (_weight(seen) if len(content.parts) > 1 else 1.0) * parts


def mean_of_parts(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict the mean of the effects of the parts alone, each at its nearest dose and time.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [0.0, 2.0]])  # contexts x genes
    >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"D": 1.0}], changes)
    >>> sa.baselines.mean_of_parts(seen, "T", {"A": 1.0, "D": 1.0}).tolist()
    [0.5, 1.0]
    """
    content = seen.asked(to)
    n = max(1, len(content.parts))
    return _drift(seen, group, content) + _of_parts(seen, group, content, _nearest).sum(0) / n


def nearest_dose(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict the effect of the same parts at the nearest doses and time; without one, the additive null.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [3.0, 0.0]])  # contexts x genes
    >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"A": 9.0}], changes)
    >>> sa.baselines.nearest_dose(seen, "T", {"A": 7.0}).tolist()
    [3.0, 0.0]
    """
    content = seen.asked(to)
    together = _nearest(seen, group, *seen.position(content))
    if together is None or not content.parts:
        return additive_null(seen, group, content)
    return _drift(seen, group, content) + together


def linear_in_log_dose(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict effects that are proportional to the strength of each part, by least squares for each gene.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [2.0, 0.0]])  # contexts x genes
    >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"A": 3.0}], changes)
    >>> sa.baselines.linear_in_log_dose(seen, "T", {"A": 7.0}).tolist()  # log(1 + 7) = 3 log(1 + 1)
    [3.0, 0.0]
    """
    content = seen.asked(to)
    return _drift(seen, group, content) + _of_parts(seen, group, content, _on_the_line).sum(0)


def interpolation(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict effects between those at the neighbouring doses and times, and the last ones beyond them.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [3.0, 4.0]])  # contexts x genes
    >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"A": 7.0}], changes)
    >>> sa.baselines.interpolation(seen, "T", {"A": 3.0}).round(9).tolist()  # log(1 + 3) lies half-way
    [2.0, 2.0]
    """
    content = seen.asked(to)
    return _drift(seen, group, content) + _of_parts(seen, group, content, _on_the_curve).sum(0)


def kernel_regression(seen: Contexts, group: str, to: Asked) -> np.ndarray:
    """Predict the effects of parts that were never seen alone from the descriptors of all parts.

    The regression is scikit-learn's kernel ridge, on the effects of the seen parts at the nearest strength.
    Kernel, width and ridge are chosen by cross-validation over the seen parts, for all types together.
    Without descriptors, or with fewer than four seen parts, it is the mean of these effects.

    Parameters
    ----------
    seen, group, to
        Changes that were seen, type to predict, and condition to predict.

    Examples
    --------
    >>> described = {f"drug_{i}": [i] for i in range(9)}
    >>> drugs = [name for name in described if name != "drug_6"]
    >>> effects = np.outer([0, 1, 2, 3, 4, 5, 7, 8], [1.0, 2.0])  # drugs x genes
    >>> told = {"descriptors": described}
    >>> seen = sa.baselines.Contexts.of(["T"] * 8, [{name: 1.0} for name in drugs], effects, **told)
    >>> sa.baselines.kernel_regression(seen, "T", {"drug_6": 1.0}).round().tolist()
    [6.0, 12.0]
    """
    content = seen.asked(to)
    return _drift(seen, group, content) + _of_parts(seen, group, content, _nearest_or_described).sum(0)


Structured = Callable[[Contexts, str, Asked], np.ndarray]
#: Methods by name, in the order of the table above.
STRUCTURED: Registry[Structured] = Registry(
    "sa.baselines.STRUCTURED",
    {
        "no change": no_change,
        "generic response": generic_response,
        "additive": additive_null,
        "scaled sum": scaled_sum,
        "mean of the parts": mean_of_parts,
        "nearest dose": nearest_dose,
        "linear in log dose": linear_in_log_dose,
        "interpolation": interpolation,
        "kernel regression": kernel_regression,
    },
)

# effects of parts ----------------------------------------------------------------------------------

Effect = Callable[[Contexts, str, dict[str, float], float], np.ndarray | None]


def _drift(seen: Contexts, group: str, content: Content) -> np.ndarray:
    """Return the change of the control of a type over time."""
    return seen.drift(group, seen.position(content)[1])


def _of_parts(seen: Contexts, group: str, content: Content, effect: Effect) -> np.ndarray:
    """Return the effect of each part alone, parts x genes; 0 if it is not known."""
    strengths, time = seen.position(content)
    found = [effect(seen, group, {part: u}, time) for part, u in strengths.items()]
    return np.array([np.zeros(seen.changes.shape[1]) if e is None else e for e in [None, *found]])


def _weight(seen: Contexts) -> float:
    """Return the weight of the sum of parts that fits the combinations that were seen."""
    if "weight" not in seen.found:
        known = {c.parts[0][0] for c in seen.contents if len(c.parts) == 1}
        x, y = [np.zeros(1)], [np.zeros(1)]
        for group, content, change in zip(seen.types, seen.contents, seen.changes, strict=True):
            if len(content.parts) > 1 and known.issuperset(part for part, _ in content.parts):
                x.append(_of_parts(seen, group, content, _nearest).sum(0))
                y.append(change - _drift(seen, group, content))
        sums, changes = np.concatenate(x), np.concatenate(y)
        seen.found["weight"] = float(sums @ changes / (sums @ sums)) if sums.any() else 1.0
    return seen.found["weight"]


def _nearest(seen: Contexts, group: str, strengths: dict[str, float], time: float) -> np.ndarray | None:
    """Return the effect of parts together at the nearest strengths and time."""
    known = seen.effects(list(strengths), group)

    def distance(of: tuple[dict[str, float], float, np.ndarray]) -> float:
        return sum(abs(of[0][p] - u) for p, u in strengths.items()) + abs(of[1] - time)

    return min(known, key=distance)[2] if known else None


def _on_the_line(seen: Contexts, group: str, strengths: dict[str, float], time: float) -> np.ndarray | None:
    """Return the effect of a part by a line through the origin, at the nearest time."""
    ((part, u),) = strengths.items()
    if not (known := seen.effects([part], group)):
        return None
    near = min(known, key=lambda of: abs(of[1] - time))[1]
    x, y = zip(*((of[0][part], of[2]) for of in known if of[1] == near), strict=True)
    return u * (np.array(x) @ np.array(y)) / np.square(x).sum()


def _on_the_curve(seen: Contexts, group: str, strengths: dict[str, float], time: float) -> np.ndarray | None:
    """Return the effect of a part between its neighbours in strength and time."""
    ((part, u),) = strengths.items()
    curves: dict[float, dict[float, np.ndarray]] = {}
    for at, t, change in seen.effects([part], group):
        curves.setdefault(t, {0.0: np.zeros(len(change))})[at[part]] = change
    return between({t: between(curve, u) for t, curve in curves.items()}, time) if curves else None


def _nearest_or_described(
    seen: Contexts, group: str, strengths: dict[str, float], time: float
) -> np.ndarray | None:
    """Return the effect of a part at the nearest dose, or from descriptors if it was never seen alone."""
    if (known := _nearest(seen, group, strengths, time)) is not None:
        return known
    ((part, u),) = strengths.items()
    return _described(seen, part, u, time).get(group)


def _described(seen: Contexts, part: str, u: float, time: float) -> dict[str, np.ndarray]:
    """Predict the effect of a part on every type from descriptors."""
    key = ("described", part, u, time)
    if key not in seen.found:
        alone = sorted({c.parts[0][0] for c in seen.contents if len(c.parts) == 1})
        groups = sorted({*seen.types})
        y = np.array([np.concatenate([_nearest(seen, g, {p: u}, time) for g in groups]) for p in alone])
        at = dict(zip(seen.design.parts, [] if seen.design.descriptors is None else seen.design.descriptors))
        if len(alone) < FEWEST or part not in at:
            found = y.mean(0) if alone else np.zeros(len(groups) * seen.changes.shape[1])
        else:
            found = _regressed(np.array([at[p] for p in alone]), y, np.asarray(at[part]))
        seen.found[key] = dict(zip(groups, np.split(found, len(groups)), strict=True))
    return seen.found[key]


def _regressed(x: np.ndarray, y: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Predict by kernel ridge regression with settings by cross-validation; far away it is the mean."""
    middle, scale = x.mean(0), np.sqrt(np.square(x - x.mean(0)).sum(1).mean()) or 1.0
    x, to = (x - middle) / scale, (to - middle) / scale
    every, n = np.vstack([x, to]), len(x)
    gammas = [1 / (width * (typical_distance(x) or 1.0)) for width in WIDTHS]
    kernels = [pairwise_kernels(every, metric="rbf", gamma=gamma) for gamma in gammas]
    kernels.append(pairwise_kernels(every, metric="linear"))
    folds = list(KFold(min(n, FOLDS), shuffle=True, random_state=0).split(x))

    def predicted(kernel: np.ndarray, ridge: float, seen: np.ndarray, new: np.ndarray) -> np.ndarray:
        mean, model = y[seen].mean(0), KernelRidge(alpha=ridge, kernel="precomputed")
        model.fit(kernel[np.ix_(seen, seen)], y[seen] - mean)
        return mean + model.predict(kernel[np.ix_(new, seen)])

    def missed(settings: tuple[np.ndarray, float]) -> float:
        found = [np.square(predicted(*settings, kept, out) - y[out]).mean() for kept, out in folds]
        return float(np.mean(found))

    with config_context(assume_finite=True, skip_parameter_validation=True):
        best = min(product(kernels, RIDGES), key=missed)
        return predicted(*best, np.arange(n), np.array([n]))[0]
