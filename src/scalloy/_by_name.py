"""Matching of pandas arguments by the names on their axes.

A Series or DataFrame says which cell, gene or group each value belongs to, so two of them are matched by
these names, whatever their order. Arrays have no names and are matched by position.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from scalloy._arguments import few

P = ParamSpec("P")
R = TypeVar("R")
Values = np.ndarray | pd.Series
Table = np.ndarray | pd.DataFrame
PANDAS = (pd.Series, pd.DataFrame)
OWN = "_"  # an axis that is not matched with those of other arguments
FEW = 5  # names of each argument that a message lists


def by_name(**axes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that its pandas arguments are matched by name.

    Before the call, Series and DataFrames that share an axis are brought into the order of the first of them
    and become arrays. An error is raised if their names differ. Arrays, and Series made without names, are
    used in the order in which they are given.

    Parameters
    ----------
    **axes
        Axes of each argument, such as ``"cells genes"``; ``"_"`` is an axis that no other argument shares.
    """
    kinds = {name: tuple(given.split()) for name, given in axes.items()}

    def around(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            given = {k: v for k, v in bound.arguments.items() if k in kinds and v is not None}
            bound.arguments.update(in_one_order(given, kinds))
            return function(*bound.args, **bound.kwargs)

        return called

    return around


def in_one_order(given: dict[str, Any], kinds: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Turn pandas values into arrays in one common order along each axis; leave all other values as they are.

    The order is that of the first named argument along the axis.

    Parameters
    ----------
    given
        Argument values by argument name.
    kinds
        Names of the axes of each argument.
    """
    out = {k: v for k, v in given.items() if isinstance(v, PANDAS) and v.ndim == len(kinds[k])}
    for axis in dict.fromkeys(a for name in out for a in kinds[name] if a != OWN):
        named = _named(axis, given, kinds)
        orders = {k: _order(axis, next(iter(named.items())), (k, v)) for k, v in named.items()}
        others = [k for k in given if axis in kinds[k] and k not in named]
        if others and any(order is not None for order in orders.values()):
            said = " and ".join(f"`{k}`" for k in named)
            msg = (
                f"{said} have the same {axis} in different orders, and `{others[0]}` has no names that would "
                "tell which of them it follows. Pass it as a Series or a frame with names, or bring all into "
                "one order."
            )
            raise ValueError(msg)
        for k, order in orders.items():
            if order is not None:
                out[k] = out[k].take(order, axis=kinds[k].index(axis))
    return {**given, **{k: v.to_numpy() for k, v in out.items()}}


def names_of(axis: str, given: dict[str, Any], kinds: dict[str, tuple[str, ...]]) -> pd.Series | None:
    """Return a Series indexed by the names along an axis, in the order of :func:`in_one_order`, if any."""
    named = _named(axis, given, kinds)
    return pd.Series(0.0, index=next(iter(named.values()))) if named else None


def _named(axis: str, given: dict[str, Any], kinds: dict[str, tuple[str, ...]]) -> dict[str, pd.Index]:
    """Return the index of each named argument along an axis.

    The default numbering of pandas counts as names only beside other indices that are all whole numbers.
    """
    names = {
        k: v.axes[kinds[k].index(axis)]
        for k, v in given.items()
        if axis in kinds[k] and isinstance(v, PANDAS) and v.ndim == len(kinds[k])
    }
    numbered = {k for k, v in names.items() if isinstance(v, pd.RangeIndex) and _is_default(v)}
    real = {k: v for k, v in names.items() if k not in numbered}
    return names if all(pd.api.types.is_integer_dtype(v.dtype) for v in real.values()) and real else real


def _is_default(index: pd.RangeIndex) -> bool:
    return index.start == 0 and index.step == 1


def _order(axis: str, first: tuple[str, pd.Index], other: tuple[str, pd.Index]) -> np.ndarray | None:
    """Return positions that bring ``other`` into the order of ``first``, or ``None`` if it has that order."""
    (a, wanted), (b, given) = first, other
    if a == b or wanted.equals(given):
        return None
    wanted, given = (pd.Index([str(name) for name in index]) for index in (wanted, given))
    if wanted.equals(given):
        return None
    lacking, surplus = wanted.difference(given), given.difference(wanted)
    if len(lacking) or len(surplus):
        parts = [(a, lacking), (b, surplus)]
        said = " ".join(f"{len(v)} only in `{k}`: {few(v, FEW)}." for k, v in parts if len(v))
        msg = (
            f"`{a}` and `{b}` do not have the same {axis}. {said} Bring them to the same names, as with "
            "`.loc[names]`, or pass arrays (`.to_numpy()`) to go by position."
        )
        raise ValueError(msg)
    if len(twice := twice_in(wanted).append(twice_in(given)).unique()):
        msg = (
            f"`{a}` and `{b}` have their {axis} in different orders, and some names more than once: "
            f"{few(twice)}. Make the names unique, or bring both into one order."
        )
        raise ValueError(msg)
    return given.get_indexer(wanted)


def twice_in(names: pd.Index) -> pd.Index:
    """Return the names (as text) that occur more than once."""
    names = names.astype(str)
    return names[names.duplicated()].unique()
