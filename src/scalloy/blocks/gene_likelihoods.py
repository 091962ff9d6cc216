"""Likelihoods by the names that models take as ``gene_likelihood``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from scalloy._registry import Registry, check_function
from scalloy.blocks.likelihoods import (
    NB,
    Bernoulli,
    Dispersion,
    Gaussian,
    Likelihood,
    Piecewise,
    Poisson,
    ZeroInflated,
)


def _poisson(*size: int, library: bool, k_max: int) -> Likelihood:
    base = Poisson(*size, library=library and not k_max)
    return Piecewise(base, k_max, library=library) if k_max else base


def _nb(*size: int, library: bool, k_max: int, n_batch: int, dispersion: Dispersion) -> Likelihood:
    base = NB(*size, library=library and not k_max, n_batch=n_batch, dispersion=dispersion)
    return Piecewise(base, k_max, library=library) if k_max else base


def _zip(*size: int, library: bool) -> Likelihood:
    return ZeroInflated(Poisson(*size, library=library))


def _zinb(*size: int, library: bool, n_batch: int, dispersion: Dispersion) -> Likelihood:
    return ZeroInflated(NB(*size, library=library, n_batch=n_batch, dispersion=dispersion))


#: Classes and functions that make likelihoods, by name; :func:`register` adds one.
LIKELIHOODS: Registry[Callable[..., Likelihood]] = Registry(
    "scalloy.blocks.gene_likelihoods.LIKELIHOODS",
    {
        "nb": _nb,
        "zinb": _zinb,
        "poisson": _poisson,
        "zip": _zip,
        "constrained_poisson": Poisson,
        "gaussian": Gaussian,
        "mse": partial(Gaussian, variance="fixed"),
        "normal": partial(Gaussian, on="given"),
        "bernoulli": Bernoulli,
        "bernoulli_given": partial(Bernoulli, on="given"),
    },
)


def register(name: str, make: Callable[..., Likelihood]) -> None:
    """Register a likelihood, so that models take its name as ``gene_likelihood``.

    Parameters
    ----------
    name
        Name of the likelihood; models are saved with it.
    make
        Class or function that returns a :class:`Likelihood`, given the number of units at the end of the
        decoder and the number of genes. It is also given ``library`` (whether rates are tied to the library
        size), ``dispersion``, ``n_batch`` and ``k_max``, as far as it has arguments of these names.
    """
    check_function("make", make, ("n_hidden", "n_vars"), may=("library", "dispersion", "n_batch", "k_max"))
    LIKELIHOODS.add(name, make)
