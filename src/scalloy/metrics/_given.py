"""Checks that the arrays which metrics receive are finite and fit each other.

Series and frames have been matched by name before (:func:`scalloy._by_name.by_name`), arrays and lists go by
position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scalloy.data.arrays import as_array, as_numbers


def numbers(n_axes: int, *, fit: str = "shape", least: int = 1, **given: Any) -> list[np.ndarray]:
    """Check the values of arguments and return them as arrays of finite numbers.

    Parameters
    ----------
    n_axes
        Number of axes that each array must have.
    fit
        Respect in which the arrays must agree: ``"shape"``, ``"rows"`` or ``"columns"``.
    least
        Minimum number of rows of each array.
    **given
        Values by the names of the arguments.
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
    """Check that there is one label for each cell and none is missing, and return the labels as arrays."""
    arrays = [as_array(value) for value in given.values()]
    said = ", ".join(f"`{name}` {x.shape}" for name, x in zip(given, arrays, strict=True))
    if any(x.ndim != 1 or len(x) == 0 for x in arrays) or len({len(x) for x in arrays}) > 1:
        msg = f"One label for each cell is needed, and the same number of cells in each argument: {said}."
        raise ValueError(msg)
    if any(pd.isna(x).any() for x in arrays):
        msg = f"Labels are missing (NaN) in {' or '.join(f'`{k}`' for k in given)}. Leave these cells out."
        raise ValueError(msg)
    return [x.astype(np.float32) if x.dtype == np.float16 else x for x in arrays]  # pandas knows no halves
