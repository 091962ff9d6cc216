"""What metrics are given: arrays of finite numbers that fit each other, or the message why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scalloy.data.arrays import as_numbers


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
