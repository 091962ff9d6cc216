"""Adjustment of p-values for multiple testing, where some tests may be missing or overlap."""

from __future__ import annotations

import numpy as np


def adjusted(pvalue: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Return p-values adjusted by Benjamini & Hochberg, NaN where a p-value is missing.

    Parameters
    ----------
    pvalue
        P-values.
    weight
        Weight of each test; ``None`` is the same for all. Benjamini & Hochberg, Scandinavian Journal of
        Statistics 24 (1997). Neighbourhoods that overlap count for less (Lun et al., Nature Methods 2017).
    """
    out, known = np.full(len(pvalue), np.nan), np.flatnonzero(np.isfinite(pvalue))
    if not len(known):
        return out
    p, w = pvalue[known], np.ones(len(known)) if weight is None else weight[known]
    order = np.argsort(p, kind="stable")
    ratio = p[order] * w.sum() / np.cumsum(w[order])
    out[known[order]] = np.minimum(1, np.minimum.accumulate(ratio[::-1])[::-1])
    return out
