"""Volcano plots: points, colours and counts are those of the table, and names are legible."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import scalloy as sa
from scalloy.pl._tables import DOWN, UP

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def made(n=200, seed=0):
    """A table with more genes up than down."""
    rng = np.random.default_rng(seed)
    change = rng.normal(0.1, 1, n)
    pvalue = 10.0 ** -(4 * np.abs(change) + rng.random(n))
    table = {
        "cell_type": "B_$",
        "group_a": "control",
        "group_b": "treated",
        "gene": [f"gene_{i}_$" for i in range(n)],
        "log2_fold_change": change,
        "shrunken": 0.8 * change,
        "pvalue": pvalue,
        "padj": np.minimum(3 * pvalue, 1),
        "note": "",
    }
    return pd.DataFrame(table)


def test_points_are_those_of_the_table():
    table = made()
    ax = sa.pl.volcano(table, n_labels=0)
    y = -np.log10(table["pvalue"])
    up = (table["padj"] <= 0.05) & (table["shrunken"] > 0)
    down = (table["padj"] <= 0.05) & (table["shrunken"] < 0)
    for points, rows in zip(ax.collections, (~up & ~down, up, down), strict=True):
        expected = np.column_stack([table["shrunken"], y])[rows]
        drawn = np.asarray(points.get_offsets())
        np.testing.assert_allclose(drawn[np.argsort(drawn[:, 0])], expected[np.argsort(expected[:, 0])])
    colors = [to_hex(points.get_facecolor()[0]) for points in ax.collections[1:]]
    assert colors == [UP, DOWN]
    assert [text.get_text() for text in ax.texts] == [f"{up.sum()} up", f"{down.sum()} down"]
    line = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(line.get_ydata(), y[up | down].min())
    assert ax.get_title() == "B_$"
    assert ax.get_xlabel() == "shrunken log2 fold change, treated over control"
    ax = sa.pl.volcano(table, n_labels=0, shrunken=False, level=1e-4)
    np.testing.assert_allclose(
        sum(len(points.get_offsets()) for points in ax.collections[1:]), (table["padj"] <= 1e-4).sum()
    )
    np.testing.assert_allclose(
        np.sort(np.concatenate([points.get_offsets()[:, 0] for points in ax.collections])),
        np.sort(table["log2_fold_change"]),
    )
    assert ax.get_xlabel() == "log2 fold change, treated over control"


def boxes_of(ax):
    ax.figure.draw_without_rendering()
    return {text.get_text(): text.get_window_extent() for text in ax.texts}


@pytest.mark.parametrize("seed", range(4))
def test_the_clearest_genes_are_named_and_no_name_hides_another(seed):
    table = made(600, seed=seed)
    ax = sa.pl.volcano(table, n_labels=15)
    boxes = boxes_of(ax)
    clearest = set(table.sort_values("pvalue")["gene"][:15])
    assert set(boxes) == clearest | {text for text in boxes if text.endswith(("up", "down"))}
    found = list(boxes.values())
    assert not [(i, j) for i in range(len(found)) for j in range(i) if found[i].overlaps(found[j])]
    whole = ax.get_window_extent()
    assert all(b.x0 >= whole.x0 and b.x1 <= whole.x1 and b.y1 <= whole.y1 for b in found)
    at = dict(zip(table["gene"], ax.transData.transform(np.column_stack([
        table["shrunken"], -np.log10(table["pvalue"])])), strict=True))  # fmt: skip
    hidden = 0
    for gene in clearest:
        box, point = boxes[gene], at[gene]
        edge = np.clip(point, [box.x0, box.y0], [box.x1, box.y1])
        assert np.hypot(*(edge - point)) < 60 * ax.figure.dpi / 72
        hidden += sum(box.contains(*place) for place in at.values())
    assert hidden <= 2


def test_genes_in_one_place_are_all_named():
    table = made(30).assign(log2_fold_change=3.0, shrunken=3.0, pvalue=1e-9, padj=1e-8)
    ax = sa.pl.volcano(table, n_labels=8)
    found = list(boxes_of(ax).values())
    assert len(found) == 10
    assert not [(i, j) for i in range(len(found)) for j in range(i) if found[i].overlaps(found[j])]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 0.5]
    assert lines  # that lead to those names that are further away
    for line in lines:
        np.testing.assert_allclose(line.get_xydata()[0], [3.0, 9.0])


def test_few_genes_are_named_if_few_are_significant():
    table = made()
    table["padj"] = np.where(np.arange(len(table)) < 2, 0.01, 0.9)
    named = set(boxes_of(sa.pl.volcano(table)))
    assert {"gene_0_$", "gene_1_$"} < named
    assert len(named) == 4
    nothing = sa.pl.volcano(table.assign(padj=1.0))
    assert [text.get_text() for text in nothing.texts] == ["0 up", "0 down"]


def test_a_p_value_of_zero_is_drawn():
    table = made()
    table.loc[3, ["pvalue", "padj", "shrunken"]] = [0.0, 0.0, 2.0]
    ax = sa.pl.volcano(table, n_labels=1)
    assert ax.get_ylim()[1] > 300
    assert table["gene"][3] in boxes_of(ax)


def test_a_comparison_is_chosen():
    table = made()
    both = pd.concat([table, table.assign(cell_type="T", shrunken=-table["shrunken"])])
    ax = sa.pl.volcano(both, "T", n_labels=0)
    assert ax.get_title() == "T"
    assert len(ax.collections[0].get_offsets()) < len(table)
    with pytest.raises(
        ValueError, match=r"`found` holds 2 populations: B_\$, T. Pass one of them as `population"
    ):
        sa.pl.volcano(both)
    with pytest.raises(ValueError, match=r"`population='NK'` is not known. Pass one of: B_\$, T"):
        sa.pl.volcano(both, "NK")
    with pytest.raises(ValueError, match=r"but the table has no populations. Leave it out"):
        sa.pl.volcano(table.drop(columns="cell_type"), "B")
    assert sa.pl.volcano(table.drop(columns="cell_type"), n_labels=0).get_title() == ""
    pairs = pd.concat([table, table.assign(group_b="other")])
    with pytest.raises(ValueError, match=r"holds 2 pairs of groups.*Pass one of them as `groups=`"):
        sa.pl.volcano(pairs, "B_$")
    assert sa.pl.volcano(pairs, groups=("control", "other")).get_xlabel().endswith("other over control")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) 'padj'. Pass the table that `compare.expr"):
        sa.pl.volcano(table.drop(columns="padj"))


def test_interactions_and_tables_without_replicates():
    table = made()
    levels = pd.concat([table.assign(level=name, against="a") for name in ("b", "c")])
    with pytest.raises(ValueError, match=r"2 levels of an interaction.*found\[found\['level'\] == 'b'\]"):
        sa.pl.volcano(levels)
    ax = sa.pl.volcano(levels[levels["level"] == "c"], n_labels=0)
    assert ax.get_xlabel() == "difference in shrunken log2 fold change, c from a, treated over control"
    alone = table.assign(pvalue=np.nan, padj=np.nan, note="a single donor")
    with pytest.raises(ValueError, match=r"There are no p-values to draw: a single donor. See the column"):
        sa.pl.volcano(alone)


def test_tables_of_real_counts():
    cells = sa.datasets.trial(600, 30, n_types=2, n_donors=6)
    found = sa.compare.expression(cells, groupby="condition", by="cell_type", donor_key="donor")
    ax = sa.pl.volcano(found, "type_1")
    here = found[(found["cell_type"] == "type_1") & (found["padj"] <= 0.05)]
    assert [text.get_text() for text in ax.texts[:2]] == [
        f"{(here['shrunken'] > 0).sum()} up",
        f"{(here['shrunken'] < 0).sum()} down",
    ]
    assert [text.get_text() for text in ax.texts[2:]] == here["gene"][:10].tolist()
