"""Validity check of the indices of sparse matrices."""

from __future__ import annotations

from typing import Any

import numpy as np


def within(x: Any) -> bool:
    """Return whether all indices of a sparse matrix are in range; compiled loops would read out of bounds."""
    if x.format == "coo":  # scipy checks these when the matrix is made
        return True
    major, minor = x.shape if x.format == "csr" else x.shape[::-1]
    starts, places = x.indptr, x.indices
    if len(starts) != major + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
        return False
    whole = starts[-1] <= min(len(places), len(x.data))
    return bool(whole and (len(places) == 0 or 0 <= places.min() <= places.max() < minor))
