"""Picture of labels and clusters: what is drawn is what was counted."""

from __future__ import annotations

import numpy as np
import pytest

import scalloy as sa

LABELS = ["a"] * 6 + ["b"] * 4 + ["c"] * 2
CLUSTERS = [0, 0, 0, 1, 1, 3, 2, 2, 2, 3, 3, 3]


def test_clusters_stand_below_their_label_the_purest_first():
    ax = sa.pl.confusion(LABELS, CLUSTERS)
    rows = [t.get_text() for t in ax.get_yticklabels()]
    columns = [t.get_text().split("\n") for t in ax.get_xticklabels()]
    assert rows == ["a", "b", "c"]
    assert columns == [["0", "3"], ["1", "2"], ["2", "3"], ["3", "4"]]
    drawn = ax.images[0].get_array()
    np.testing.assert_allclose(drawn, [[1, 1, 0, 0.25], [0, 0, 1, 0.25], [0, 0, 0, 0.5]])
    assert {t.get_text() for t in ax.texts} == {"100", "25", "50"}


def test_labels_are_needed_for_each_cell():
    with pytest.raises(ValueError, match="One label for each cell is needed"):
        sa.pl.confusion(LABELS, CLUSTERS[:-1])
