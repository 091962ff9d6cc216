"""Weights of a mixture by the names that :class:`scalloy.CGMDVAE` takes as ``weights``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from scalloy._registry import Registry, check_function
from scalloy.blocks.mixtures import Dirichlet, Empirical, Fixed, Local, Weights

#: Classes and functions that make weights, by name, each with whether components that have such weights may
#: be merged into clusters; :func:`register` adds one.
WEIGHTS: Registry[tuple[Callable[..., Weights], bool]] = Registry(
    "scalloy.blocks.mixture_weights.WEIGHTS",
    {
        "global": (lambda n_clusters, *, alpha: Dirichlet(n_clusters, alpha=alpha), True),
        "condition": (Dirichlet, True),
        "empirical": (lambda n_clusters: Empirical(n_clusters), True),
        "uniform": (lambda n_clusters: Fixed(torch.ones(n_clusters)), False),
        "local": (Local, False),
    },
)


def register(name: str, make: Callable[..., Weights], *, merges: bool = True) -> None:
    """Register weights of a mixture, so that :class:`~scalloy.CGMDVAE` takes their name as ``weights``.

    Parameters
    ----------
    name
        Name of the weights; models are saved with it.
    make
        Class or function that returns :class:`Weights`, given the number of components. It is also given
        ``n_conditions`` and ``alpha`` (the concentration), as far as it has arguments of these names.
    merges
        Whether more components than clusters are made and merged in the end, if there are no labels. This
        suits weights that are learned.
    """
    check_function("make", make, ("n_clusters",), may=("n_conditions", "alpha"))
    WEIGHTS.add(name, (make, merges))
