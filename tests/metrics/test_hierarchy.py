"""Metrics of labels that are a tree, against loops over cells."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

import scalloy as sa

PARENTS = {"CD4": "T", "CD8": "T", "naive": "CD4", "T": "lymphoid", "B": "lymphoid"}
NAMES = [*PARENTS, "lymphoid", "mono", None]


def above(name):
    found = set()
    while name is not None:
        found.add(name)
        name = PARENTS.get(name)
    return found


def test_hierarchical_f1_is_that_of_a_loop_over_cells():
    rng = np.random.default_rng(0)
    truth, found = ([NAMES[i] for i in rng.integers(0, len(NAMES), 300)] for _ in range(2))
    pairs = [(above(a), above(b)) for a, b in zip(truth, found, strict=True)]
    shared, true, said = (
        sum(len(s) for s in sets) for sets in ([a & b for a, b in pairs], *zip(*pairs, strict=True))
    )
    precision, recall = shared / said, shared / true
    expected = 2 * precision * recall / (precision + recall)
    assert sa.metrics.hierarchical_f1(truth, found, PARENTS) == pytest.approx(expected)
    named = [np.nan if name is None else name for name in found]
    assert sa.metrics.hierarchical_f1(truth, named, PARENTS) == pytest.approx(expected)
    written = ["?" if name is None else name for name in found]
    given = pd.Series(written, index=[f"c{i}" for i in range(300)])
    cells = pd.Series(truth, index=given.index, dtype=object)
    by_name = sa.metrics.hierarchical_f1(cells, given[::-1], PARENTS, unlabeled_category="?")
    assert by_name == pytest.approx(expected)


def test_without_a_tree_it_is_the_micro_f1():
    rng = np.random.default_rng(1)
    truth, found = (np.array(["a", "b", "c"])[rng.integers(0, 3, 100)] for _ in range(2))
    assert sa.metrics.hierarchical_f1(truth, found, {}) == pytest.approx(
        f1_score(truth, found, average="micro")
    )
    assert sa.metrics.hierarchical_f1(truth, [None] * 100, {}) == 0


def test_what_is_no_tree_or_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`parents` goes in a circle: 'a', 'b'"):
        sa.metrics.hierarchical_f1(["a"], ["a"], {"a": "b", "b": "a"})
    with pytest.raises(ValueError, match="`truth` has 1 labels and `found` 2"):
        sa.metrics.hierarchical_f1(["a"], ["a", "b"], {})


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.9, 1.0])
def test_accuracy_at_coverage_is_that_of_the_first_cells(coverage):
    rng = np.random.default_rng(2)
    correct, score = rng.random(200) < 0.7, rng.permutation(200) / 200
    first = sorted(range(200), key=lambda i: -score[i])[: round(coverage * 200)]
    found = sa.metrics.accuracy_at_coverage(correct, score, coverage)
    assert found == pytest.approx(np.mean([correct[i] for i in first]))
    tied = [
        sa.metrics.accuracy_at_coverage(correct[order], np.zeros(200), coverage)
        for order in (slice(None), slice(None, None, -1))
    ]
    assert tied == pytest.approx([correct.mean()] * 2)  # whatever the order of cells with the same score


@pytest.mark.parametrize("coverage", [0, 1.1])
def test_a_coverage_is_a_share(coverage):
    with pytest.raises(ValueError, match="is a share of the cells: pass a number above 0 and up to 1"):
        sa.metrics.accuracy_at_coverage([1], [1.0], coverage)
