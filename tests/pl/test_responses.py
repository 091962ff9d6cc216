"""Dose curves and combinations beside their parts: what is drawn is what the tables say."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import scalloy as sa

mpl.use("Agg")


@pytest.fixture
def curves():
    dose = np.array([0, 0.1, 1.0, 10.0, 20.0])
    parts = []
    for group, slope in (("T", 0.3), ("B", -0.5)):
        for gene, factor in (("weak", 0.1), ("strong", 2.0)):
            mean = slope * factor * np.log1p(dose)
            made = {"group": group, "dose": dose, "gene": gene, "log_fold_change": mean}
            parts.append(pd.DataFrame({**made, "low": mean - 0.1, "high": mean + 0.1, "beyond": dose > 10}))
    return pd.concat(parts, ignore_index=True)


def test_genes_that_change_most_come_first_and_lines_are_the_table(curves):
    first, second = sa.pl.dose_response(curves)
    assert [first.get_title(), second.get_title()] == ["strong", "weak"]
    whole, inner = first.lines[:2]
    here = curves[(curves["gene"] == "strong") & (curves["group"] == "T")]
    np.testing.assert_allclose(whole.get_ydata(), here["log_fold_change"])
    np.testing.assert_allclose(inner.get_xdata(), here["dose"][~here["beyond"]])
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["T", "B"]
    assert first.get_xscale() == "symlog"


def test_interactions_that_are_found_are_named():
    made = {"additive": [0.0, 1.0, -1.0], "observed": [0.1, 3.0, -1.0], "p_value": [0.5, 1e-6, 0.9]}
    table = pd.DataFrame({"group": "T", "combination": "A+B", "gene": ["x", "y", "z"], **made})
    ax = sa.pl.interactions(table.assign(q_value=[0.8, 1e-5, 0.9]))
    assert [text.get_text() for text in ax.texts] == ["y"]
    assert ax.get_title() == "A+B, T"
    assert [len(of.get_offsets()) for of in ax.collections] == [2, 1]


def test_what_the_tables_lack_is_refused(curves):
    with pytest.raises(ValueError, match="`genes` names 'none', which the table lacks"):
        sa.pl.dose_response(curves, ["none"])
    table = pd.DataFrame({"group": ["T"], "combination": ["A+B"]})
    with pytest.raises(
        ValueError, match=r"`combination='A' is not in the table|is not in the table. It has: A\+B"
    ):
        sa.pl.interactions(table, "A")
