"""Rows of one comparison in the tables that comparisons of donors return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalloy._arguments import few

if TYPE_CHECKING:
    import pandas as pd

UP, DOWN, OTHER = "#c8372d", "#2f6db5", "0.45"  # more, fewer, and nothing that can be told from chance
PAIR = ("group_a", "group_b")


def comparison(
    found: pd.DataFrame, groups: Sequence[str] | None, needed: Sequence[str], made_by: str
) -> pd.DataFrame:
    """Return the rows of a pair of groups, checking that the table is one that a function returned.

    Parameters
    ----------
    found
        Table of comparisons.
    groups
        Names of both groups; ``None`` is the only pair.
    needed
        Columns that the table has if it is the right one.
    made_by
        Name of the function that returns such tables.
    """
    columns = list(getattr(found, "columns", ()))
    if lacks := [name for name in (*PAIR, *needed) if name not in columns]:
        msg = (
            f"`found` lacks the column(s) {few(map(repr, lacks))}. Pass the table that `{made_by}` returned."
        )
        raise ValueError(msg)
    pairs = list(dict.fromkeys(found[list(PAIR)].itertuples(index=False, name=None)))
    if not pairs:
        msg = f"`found` is an empty table. Pass the table that `{made_by}` returned."
        raise ValueError(msg)
    if groups is None and len(pairs) > 1:
        msg = f"`found` holds {len(pairs)} pairs of groups: {few(pairs)}. Pass one of them as `groups=`."
        raise ValueError(msg)
    pair = pairs[0] if groups is None else tuple(groups)
    if pair not in pairs:
        msg = f"`groups={pair}` is not a pair of the table. It has: {few(pairs)}."
        raise ValueError(msg)
    return found[(found[PAIR[0]] == pair[0]) & (found[PAIR[1]] == pair[1])]


def effect_name(rows: pd.DataFrame) -> str:
    """Return the title of the axis with effects on the number of cells."""
    first = rows.iloc[0]
    known = set(rows["relative_to"].dropna()) if "relative_to" in rows else set()
    kind = "share of all cells" if known == {"all cells"} else "number"
    return f"log2 fold of the {kind}, {first['group_b']} over {first['group_a']}"


def donors_of(rows: pd.DataFrame) -> str:
    """Say how many donors were compared, and how."""
    first = rows.iloc[0]
    n_a, n_b = int(first["donors_a"]), int(first["donors_b"])
    if first["design"] == "within donors":
        return f"{n_a} donors in both groups"
    return f"donors: {n_a} {first['group_a']}, {n_b} {first['group_b']}"
