"""Argument checks whose messages say what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np


def few(names: Iterable[Any], n: int = 10) -> str:
    """List at most ``n`` names, followed by the number of names left out."""
    names = [str(name) for name in names]
    more = f", and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


LARGEST = 1e15  # largest value that is still safe to compute with in single precision


def one_of(argument: str, given: Any, known: Collection[str]) -> str:
    """Return ``given`` if it is one of the known strings; otherwise raise and suggest the closest one."""
    if given not in list(known):
        close = difflib.get_close_matches(str(given), list(known), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        msg = f"`{argument}={given!r}` is not known. Pass one of: {few(known)}.{hint}"
        raise ValueError(msg)
    return str(given)


def category(argument: str, given: Any, known: Sequence[str]) -> str:
    """Return the name of a category given by name or by value, such as ``1`` for ``"1.0"``."""
    name: Any = given if given is None or isinstance(given, str) else str(given)
    if name not in known and isinstance(given, Real) and not isinstance(given, bool):
        same = [k for k in known if _as_number(k) == float(given)]
        name = same[0] if same else given
    return one_of(argument, name, known)


def _as_number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return float("nan")


def positive(**arguments: float) -> None:
    """Check that sizes and weights are finite and above zero."""
    for name, value in arguments.items():
        if not isinstance(value, Real) or isinstance(value, bool | np.bool_) or not 0 < value < float("inf"):
            msg = f"`{name}={value!r}` must be above zero: pass a finite number."
            raise ValueError(msg)


def whole(**arguments: int) -> None:
    """Check that counts of things are whole numbers of at least one."""
    for name, value in arguments.items():
        if not isinstance(value, Integral) or isinstance(value, bool | np.bool_) or value < 1:
            msg = f"`{name}={value!r}` must be above zero: pass a whole number from 1."
            raise ValueError(msg)


def totals(own: str | None = "", **arguments: Any) -> None:
    """Check totals to which cells are scaled; the value ``own`` (if set) keeps each cell's own total."""
    for name, value in arguments.items():
        if own != "" and (value is own or (isinstance(value, str) and value == own)):
            continue
        if not isinstance(value, Real) or isinstance(value, bool | np.bool_) or not 0 < value <= LARGEST:
            or_own = "" if own == "" else f", or {own!r} for each cell's own"
            msg = (
                f"`{name}={value!r}` is not a total of counts. Pass a number above zero and up to "
                f"{LARGEST:.0e}{or_own}."
            )
            raise ValueError(msg)


def shares(**arguments: float) -> None:
    """Check that shares are at least zero and below one."""
    for name, value in arguments.items():
        if not 0 <= value < 1:
            msg = f"`{name}={value}` is a share: pass a number from 0 to below 1."
            raise ValueError(msg)


def check_latent(latent: int, n_latent: int) -> None:
    """Check that ``latent`` is the number of an existing latent dimension."""
    if latent not in range(n_latent):
        msg = f"`latent={latent}` is not one of the {n_latent} latents, which begin at 0."
        raise ValueError(msg)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called the package, however deep the call is.

    Parameters
    ----------
    message
        Text of the warning.
    category
        Class of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "scalloy":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
