"""Metrics of labels that are a tree, and of predictions that are made for some of the cells only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scalloy._arguments import few
from scalloy._by_name import Values, by_name
from scalloy.metrics._given import numbers


@by_name(truth="cells", found="cells")
def hierarchical_f1(
    truth: Values, found: Values, parents: Mapping[str, str], unlabeled_category: Any = None
) -> float:
    """F1 of labels in a tree, in which a label counts together with all labels above it.

    A prediction of the parent has full precision and misses some recall; one of a sibling shares the parent.
    Precision and recall are sums over the cells (Kiritchenko, Matwin and Famili, BioLINK 2005).

    Parameters
    ----------
    truth, found
        True and predicted label of each cell, of any depth; missing (``None``, NaN) if it has none.
    parents
        Parent of each label that has one.
    unlabeled_category
        Value that stands for no label, as missing values do.

    Examples
    --------
    >>> parents = {"CD4 T": "T", "CD8 T": "T"}
    >>> sa.metrics.hierarchical_f1(["CD4 T", "CD4 T"], ["CD4 T", "CD8 T"], parents)
    0.75
    >>> round(sa.metrics.hierarchical_f1(["CD4 T"], ["T"], parents), 3)
    0.667
    """
    given = [list(v) if pd.api.types.is_list_like(v) else [v] for v in (truth, found)]
    columns = [pd.Series(values, dtype=object) for values in given]
    if len(columns[0]) != len(columns[1]) or len(columns[0]) == 0:
        msg = (
            f"`truth` has {len(columns[0])} labels and `found` {len(columns[1])}. Pass one for each cell in "
            "both, of the same cells."
        )
        raise ValueError(msg)
    if any(column.map(pd.api.types.is_list_like).any() for column in columns):
        msg = "One label for each cell is needed, and `truth` or `found` has several of a cell."
        raise ValueError(msg)
    pairs = pd.DataFrame(dict(enumerate(columns)))
    sums = np.zeros(3)
    for (a, b), n in pairs.value_counts(dropna=False).items():
        true, said = (with_those_above(name, parents, unlabeled_category) for name in (a, b))
        sums += n * np.array([len(true & said), len(true), len(said)])
    return float(2 * sums[0] / max(sums[1] + sums[2], 1))


def with_those_above(name: Any, parents: Mapping[str, str], unlabeled: Any = None) -> set[Any]:
    """Return a label and all labels above it; nothing if there is no label.

    Parameters
    ----------
    name
        Label.
    parents
        Parent of each label that has one.
    unlabeled
        Value that stands for no label, as missing values do.
    """
    out: dict[Any, None] = {}
    while name is not None and not pd.isna(name) and not (unlabeled is not None and name == unlabeled):
        if name in out:
            msg = f"`parents` goes in a circle: {few(map(repr, out))}. Leave out one of these parents."
            raise ValueError(msg)
        out[name] = None
        name = parents.get(name)
    return set(out)


@by_name(correct="cells", score="cells")
def accuracy_at_coverage(correct: Values, score: Values, coverage: float = 0.9) -> float:
    """Share of right predictions among the share ``coverage`` of cells with the highest scores.

    Cells whose scores are equal to the lowest one that is kept count in part.

    Parameters
    ----------
    correct
        Whether each prediction was right.
    score
        Number that is higher the surer the prediction is.
    coverage
        Share of the cells for which predictions are made, above 0 and up to 1.

    Examples
    --------
    >>> sa.metrics.accuracy_at_coverage([True, True, False, False], [0.9, 0.8, 0.7, 0.1], 0.75)
    0.6666666666666666
    """
    correct, score = numbers(1, correct=correct, score=score)
    if not 0 < coverage <= 1:
        msg = f"`coverage={coverage}` is a share of the cells: pass a number above 0 and up to 1."
        raise ValueError(msg)
    n = max(1, round(coverage * len(score)))
    lowest = np.sort(score)[::-1][n - 1]
    above, tied = score > lowest, score == lowest
    right = correct[above].sum() + (n - above.sum()) * correct[tied].mean()
    return float(right / n)
