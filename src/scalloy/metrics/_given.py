"""What metrics are given: arrays of finite numbers that fit each other, or the message why not.

Values of pandas are matched by their names, whatever their order (:func:`by_name`); arrays by position.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from scalloy.data.arrays import as_numbers
from scalloy.data.checks import few, twice_in

P = ParamSpec("P")
R = TypeVar("R")
Values = np.ndarray | pd.Series
Table = np.ndarray | pd.DataFrame
PANDAS = (pd.Series, pd.DataFrame)
OWN = "_"  # an axis that has nothing to do with those of other arguments
FEW = 5  # names in a message, of each of two arguments

# names ---------------------------------------------------------------------------------------


def by_name(**axes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take values of pandas, matched by their names; decorates the function.

    Before it is called, Series and frames are brought into the order of the first of them along every axis
    that is called alike, and become arrays. Names that are not the same are refused. Arrays have no names:
    they are taken in the order in which they are, and so is a Series that was made without names.

    Parameters
    ----------
    **axes
        The axes of each argument, such as ``"cells genes"``; ``"_"`` is one of its own.
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
    """Arrays of what pandas holds, in the order of the first along each axis; all else as it is.

    Parameters
    ----------
    given
        Values of some arguments.
    kinds
        The axes of each of them.
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
    """A Series with the names along an axis, in the order of :func:`in_one_order`, if there are any."""
    named = _named(axis, given, kinds)
    return pd.Series(0.0, index=next(iter(named.values()))) if named else None


def _named(axis: str, given: dict[str, Any], kinds: dict[str, tuple[str, ...]]) -> dict[str, pd.Index]:
    """Names along an axis: the numbers that pandas gives by itself are names among numbers only."""
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
    """Positions at which one has the names of the first one; ``None`` where it has them in its order."""
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


# values --------------------------------------------------------------------------------------


def numbers(n_axes: int, *, fit: str = "shape", least: int = 1, **given: Any) -> list[np.ndarray]:
    """Arrays of finite numbers.

    Parameters
    ----------
    n_axes
        Of each.
    fit
        In what they agree: their ``"shape"``, their ``"rows"``, or their ``"columns"``.
    least
        Rows of each.
    **given
        By the names of the arguments.
    """
    arrays = [as_numbers(value, f"`{name}`", n_axes) for name, value in given.items()]
    said = ", ".join(f"`{name}` {x.shape}" for name, x in zip(given, arrays, strict=True))
    if min(len(x) for x in arrays) < least:
        msg = f"At least {least} row(s) are needed: {said}. Pass more cells, or genes."
        raise ValueError(msg)
    part = {"shape": slice(None), "rows": slice(1), "columns": slice(1, None)}[fit]
    if len({x.shape[part] for x in arrays}) > 1:
        msg = f"The arrays must have the same {fit}: {said}. Bring them into the same order and size."
        raise ValueError(msg)
    return arrays


def labels(**given: Any) -> list[np.ndarray]:
    """Names or numbers of types and clusters, one for each cell, none missing."""
    arrays = [np.asarray(value) for value in given.values()]
    said = ", ".join(f"`{name}` {x.shape}" for name, x in zip(given, arrays, strict=True))
    if any(x.ndim != 1 or len(x) == 0 for x in arrays) or len({len(x) for x in arrays}) > 1:
        msg = f"One label for each cell is needed, and as many of each: {said}."
        raise ValueError(msg)
    if any(pd.isna(x).any() for x in arrays):
        msg = f"Labels are missing (NaN) in {' or '.join(f'`{k}`' for k in given)}. Leave these cells out."
        raise ValueError(msg)
    return arrays
