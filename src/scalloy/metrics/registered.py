"""Metrics of a prediction by name: the columns of :func:`scalloy.benchmark.transfer`.

A metric takes a view of the prediction, and of this view the arguments that it has names for:

========================  =======================================================================
view                      arguments
========================  =======================================================================
``"means"``               ``predicted``, ``truth``, ``control``: mean expression by gene;
                          ``mean_shift``: mean change of the other groups; ``sd``: standard
                          deviation of the predicted mean, if the model has one
``"cells"``               ``predicted``, ``truth``, ``control``: expression, cells x genes
``"pcs"``                 ``predicted``, ``truth``: cells in 50 principal components
========================  =======================================================================

Expression is log-normalised. ``predicted`` in ``"means"`` is the expected expression; in ``"cells"`` it is
that of sampled counts, if the model samples any. ``"means of cells"`` has the means of the latter; ``"top
100 means"``, ``"top 1000 means"`` and ``"top 1000 cells"`` have the genes that change most.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from scalloy._arguments import one_of
from scalloy._registry import Registry, check_function, taken_by
from scalloy.metrics import transfer

THREE = ("predicted", "truth", "control")
VIEWS: dict[str, tuple[str, ...]] = {
    "means": (*THREE, "mean_shift", "sd"),
    "cells": THREE,
    "pcs": ("predicted", "truth"),
    "means of cells": THREE,
    "top 100 means": THREE,
    "top 1000 means": THREE,
    "top 1000 cells": THREE,
}
View = Literal["means", "cells", "pcs", "means of cells", "top 100 means", "top 1000 means", "top 1000 cells"]
Metric = Callable[..., float]

#: Metrics by name, each with the view that it takes; :func:`register` adds one.
METRICS: Registry[tuple[Metric, View]] = Registry(
    "sa.metrics.METRICS",
    {
        "skill": (transfer.skill, "means"),
        "pearson_delta": (transfer.pearson_delta, "means"),
        "resid_pearson_delta": (transfer.resid_pearson_delta, "means"),
        "r2_mean": (transfer.r2_mean, "means"),
        "r2_determination": (transfer.r2_determination, "means"),
        "r2_top100": (transfer.r2_mean, "top 100 means"),
        "r2_top1000": (transfer.r2_mean, "top 1000 means"),
        "r2_variance": (transfer.r2_variance, "cells"),
        "r2_variance_top1000": (transfer.r2_variance, "top 1000 cells"),
        "energy_distance": (transfer.energy_distance, "pcs"),
        "mmd": (transfer.mmd, "pcs"),
        "de_overlap": (transfer.de_overlap, "cells"),
        "de_auprc": (transfer.de_auprc, "cells"),
        "weighted_r2": (transfer.weighted_r2, "cells"),
        "skill_of_cells": (transfer.skill, "means of cells"),
        "coverage_90": (transfer.coverage, "means"),
    },
)
RESERVED = ("type", "condition", "method", "seed")  # other columns of the table


def register(name: str, function: Metric, of: View = "means") -> None:
    """Register a metric, so that it becomes a column of :func:`scalloy.benchmark.transfer`.

    Parameters
    ----------
    name
        Name of the column.
    function
        Function that returns a number. Its arguments are some of those of the view, under the same names.
    of
        View of the prediction that the function takes; the table is in :mod:`scalloy.metrics.registered`.

    Examples
    --------
    >>> def bias(predicted, truth):
    ...     return float((predicted - truth).mean())
    >>> sa.metrics.register("bias", bias)
    >>> del sa.metrics.METRICS["bias"]
    """
    check_function("function", function, may=VIEWS[one_of("of", of, VIEWS)])
    METRICS.add(name, (function, of), taken=RESERVED)


def scores(views: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Score a prediction with each metric whose arguments are there.

    Parameters
    ----------
    views
        Arguments by name, for each view.
    """
    found = {}
    for name, (function, of) in METRICS.items():
        given, sd = taken_by(function, views[of]), inspect.signature(function).parameters.get("sd")
        if sd is not None and sd.default is sd.empty and "sd" not in given:
            continue
        value = function(**given)
        if np.ndim(value):
            msg = f"The metric {name!r} returned values of shape {np.shape(value)}. Let it return one number."
            raise ValueError(msg)
        found[name] = float(value)
    return found
