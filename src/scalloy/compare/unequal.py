"""Warning of groups that vary differently, where tests that assume the same variance are wrong."""

from __future__ import annotations

import numpy as np
from scipy import stats

from scalloy._arguments import warn
from scalloy.compare.count_families import Family
from scalloy.compare.count_models import Fit, residuals

UNEVEN = 2 / 3  # ratio of the numbers of donors above which unequal variances do little harm
TIMES, SURE = 2.0, 1e-3  # ratio of variances, and p-value of it, from which on to warn
INDEPENDENT = 10  # responses that are taken to be independent of each other, at most


def warn_of_unequal(family: Family, counts: np.ndarray, fitted: Fit, group: np.ndarray) -> None:
    """Warn if the smaller group varies much more than the larger one, since p-values are too small then.

    Parameters
    ----------
    family
        Family of the counts.
    counts
        Counts, ``(responses, samples)``.
    fitted
        Fit with the group in the design.
    group
        Group of each sample, 0 or 1.
    """
    sizes = np.bincount(group, minlength=2)
    small = int(np.argmin(sizes))
    if sizes[small] < 2 or sizes[small] > UNEVEN * sizes[1 - small]:
        return
    squares, df = residuals(family, counts, fitted)
    variance = [squares[:, group == k].sum() / max(df[:, group == k].sum(), 1e-12) for k in (0, 1)]
    ratio = variance[small] / max(variance[1 - small], 1e-12)
    free = (sizes - 1) * min(len(counts), INDEPENDENT)
    if ratio >= TIMES and stats.f.sf(ratio, free[small], free[1 - small]) < SURE:
        warn(
            f"The {sizes[small]} samples of the smaller group vary {ratio:.1f} times as much as the "
            f"{sizes[1 - small]} of the larger one, beyond chance. P-values, also of permutations, are too "
            "small then. Look at the samples themselves, or compare with as many of the larger group."
        )
