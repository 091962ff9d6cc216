"""Plot of the null distribution of a comparison of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from scalloy.compare.groups import key_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def null(frame: pd.DataFrame, row: int = 0, *, ax: Axes | None = None) -> Axes:
    """Draw the statistics of the permutations as a histogram and the observed one as a line.

    Parameters
    ----------
    frame
        Table that :func:`scalloy.compare.groups` returned.
    row
        Number of the row with the comparison, from 0.
    ax
        Axes to draw into; ``None`` makes new ones.

    Examples
    --------
    >>> found = sa.compare.groups(model, groupby="condition", n_permutations=99)
    >>> ax = sa.pl.null(found)
    """
    draws = frame.attrs.get("null")
    if draws is None:
        msg = "`frame` does not hold its permutations (`frame.attrs['null']`): pass what `groups` returned."
        raise ValueError(msg)
    shown = frame.iloc[row]
    by = list(frame.columns[: frame.columns.get_loc("group_a")])
    values = draws[key_of(shown, by[0] if by else None)]
    if not values:
        msg = f"Row {row} was not tested: {shown['note']}."
        raise ValueError(msg)
    ax = plt.subplots(figsize=(4.4, 3), layout="constrained")[1] if ax is None else ax
    ax.hist(values, bins=40, color="0.7", label=f"{len(values):,} permutations, {shown['design']}")
    ax.axvline(shown["statistic"], color="tab:red", label="observed")
    title = ", ".join(
        [
            *(str(shown[c]) for c in by),
            f"{shown['group_a']} and {shown['group_b']}",
            f"p = {shown['pvalue']:.3g}",
        ]
    )
    ax.set_title(title, fontsize="medium")
    ax.set(xlabel="statistic", ylabel="permutations")
    ax.legend(frameon=False, fontsize="small")
    return ax
