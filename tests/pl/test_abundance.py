"""Forest plots of populations, and dots of neighbourhoods: what is drawn is what the tables say."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_hex

import scalloy as sa
from scalloy.pl._tables import DOWN, OTHER, UP

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def table():
    made = {
        "cell_type": ["B", "T", "NK", "rare", "none"],
        "group_a": "old",
        "group_b": "young_$x",
        "share_a": [0.2, 0.5, 0.1, 0.004, np.nan],
        "share_b": [0.4, 0.3, 0.1, 0.001, np.nan],
        "effect": [1.0, -0.8, 0.1, -1.5, np.nan],
        "lower": [0.5, -1.2, -0.4, -9.0, np.nan],
        "upper": [1.5, -0.4, 0.6, 6.0, np.nan],
        "padj": [0.01, 0.1, 0.8, 0.5, np.nan],
        "relative_to": "unchanged populations",
        "unchanged": [False, False, True, False, False],
        "donors_a": 4,
        "donors_b": 5,
        "design": "across donors",
        "note": ["", "", "", "", "Nothing is left"],
    }
    return pd.DataFrame(made)


def dots(ax):
    """Place, edge and face of each dot that stands for an effect."""
    circles = [line for line in ax.lines if line.get_marker() == "o"]
    return {
        int(line.get_ydata()[0]): (
            float(line.get_xdata()[0]),
            to_hex(line.get_color()),
            to_hex(line.get_markerfacecolor()),
        )
        for line in circles
    }


def test_effects_are_in_order_with_their_colours(table):
    ax = sa.pl.abundance(table)
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == ["none", "rare", "T", "NK", "B"]
    up, down, grey, white = (to_hex(c) for c in (UP, DOWN, OTHER, "w"))
    assert dots(ax) == {
        1: (-1.5, grey, grey),
        2: (-0.8, down, down),
        3: (0.1, grey, white),
        4: (1.0, up, up),
    }
    stricter = dots(sa.pl.abundance(table, level=0.05))
    assert [stricter[y][1] for y in (2, 4)] == [grey, up]


def test_intervals_are_those_of_the_table_and_cut_off_with_an_arrow(table):
    ax = sa.pl.abundance(table)
    drawn = {int(line.get_ydata()[0]): line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2}
    for y, (low, high) in {2: (-1.2, -0.4), 3: (-0.4, 0.6), 4: (0.5, 1.5)}.items():
        np.testing.assert_allclose(drawn[y], [low, high])
    low, high = ax.get_xlim()
    assert -3 < low < drawn[1][0]
    assert drawn[1][1] < high < 3
    arrows = {line.get_marker(): line.get_xydata()[0] for line in ax.lines if line.get_marker() in "<>"}
    np.testing.assert_allclose(arrows["<"], [drawn[1][0], 1])
    np.testing.assert_allclose(arrows[">"], [drawn[1][1], 1])


def test_texts_say_what_was_compared(table):
    ax = sa.pl.abundance(table)
    assert ax.get_xlabel() == "log2 fold of the number, young_$x over old"
    assert ax.get_title(loc="left") == "donors: 4 old, 5 young_$x"
    said = [text.get_text() for text in ax.texts]
    assert said == [
        *("Nothing is left", "share of cells", "", "0.40%", "50.0%", "10.0%", "20.0%", "old"),
        *("", "0.10%", "30.0%", "10.0%", "40.0%", "young_$x"),
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "more in young_$x (FDR 10%)",
        "fewer in young_$x (FDR 10%)",
        "not significant",
        "taken not to change",
    ]
    shares = table.assign(relative_to="all cells", design="within donors", donors_b=4, unchanged=False)
    ax = sa.pl.abundance(shares[:1])
    assert ax.get_xlabel() == "log2 fold of the share of all cells, young_$x over old"
    assert ax.get_title(loc="left") == "4 donors in both groups"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["more in young_$x (FDR 10%)"]


def test_no_text_hides_another(table):
    ax = sa.pl.abundance(table.assign(cell_type=["B", "T" * 30, "NK", "rare", "none"], group_a="old" * 6))
    ax.figure.draw_without_rendering()
    texts = [t for t in [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label] if t.get_text()]
    boxes = [t.get_window_extent() for t in texts] + [ax.get_legend().get_window_extent()]
    pairs = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert not pairs
    whole = ax.figure.get_window_extent()
    assert all(b.x0 >= whole.x0 and b.x1 <= whole.x1 and b.y0 >= whole.y0 for b in boxes)


def test_a_pair_is_chosen(table):
    both = pd.concat([table, table.assign(group_b="middle", effect=-table["effect"])])
    ax = sa.pl.abundance(both, groups=("old", "middle"))
    assert ax.get_xlabel().endswith("middle over old")
    assert dots(ax)[3][0] == 0.8
    with pytest.raises(ValueError, match=r"`found` holds 2 pairs of groups: \('old', 'young_\$x'\)"):
        sa.pl.abundance(both)
    with pytest.raises(ValueError, match=r"`groups=\('middle', 'old'\)` is not a pair of the table. It has"):
        sa.pl.abundance(both, groups=("middle", "old"))


def test_other_tables_are_refused(table, dotted):
    with pytest.raises(
        ValueError, match=r"lacks the column\(s\) 'effect'. Pass the table that `compare.abun"
    ):
        sa.pl.abundance(table.drop(columns="effect"))
    with pytest.raises(ValueError, match=r"`found` is an empty table. Pass the table that"):
        sa.pl.abundance(table[:0])
    found, _ = dotted
    with pytest.raises(ValueError, match=r"holds neighbourhoods. Call `pl.neighbourhoods"):
        sa.pl.abundance(found)


def test_real_tables_of_clusters_without_replicates():
    """No intervals, and names of nodes that tell them apart."""
    made = {
        "n_clusters": [2, 3],
        "cluster": ["1", "1"],
        "divided": ["1", "1"],
        "group_a": "a",
        "group_b": "b",
    }
    rest = {"share_a": 0.5, "share_b": 0.5, "effect": [0.3, 0.2], "lower": np.nan, "upper": np.nan}
    more = {"padj": np.nan, "unchanged": False, "donors_a": 1, "donors_b": 1, "design": "no replicates"}
    ax = sa.pl.abundance(pd.DataFrame(made | rest | more))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["1 (of 3)", "1 (of 2)"]
    assert [place[0] for place in dots(ax).values()] == [0.2, 0.3]


# neighbourhoods ---------------------------------------------------------------------------------


@pytest.fixture
def dotted():
    """A table of neighbourhoods, and the cells."""
    names = [f"cell_{i}" for i in range(12)]
    obs = pd.DataFrame({"type": ["B"] * 4 + ["T"] * 4 + ["NK_$"] * 4}, index=names)
    xy = np.random.default_rng(0).normal(size=(12, 3))
    adata = AnnData(np.ones((12, 2), dtype=np.float32), obs=obs, obsm={"X_umap": xy})
    made = {
        "cell": ["cell_9", "cell_0", "cell_5", "cell_4", "cell_1"],
        "n_cells": [10, 20, 10, 10, 10],
        "radius": 1.0,
        "group_a": "x",
        "group_b": "y",
        "effect": [2.0, -1.0, 0.3, 0.31, np.nan],
        "padj": [0.01, 0.1, 0.5, 0.2, np.nan],
        "relative_to": "unchanged populations",
        "donors_a": 3,
        "donors_b": 3,
        "design": "within donors",
    }
    return pd.DataFrame(made), adata


def test_dots_stand_in_the_row_of_their_label(dotted):
    found, adata = dotted
    ax = sa.pl.neighbourhoods(found, adata[::-1].copy(), groupby="type")  # cells in another order
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["B", "T", "NK_$"]  # by mean effect
    grey, colored = ax.collections
    np.testing.assert_allclose(sorted(grey.get_offsets()[:, 0]), [0.3, 0.31])
    np.testing.assert_array_equal(np.round(grey.get_offsets()[:, 1]), [1, 1])
    assert len(set(grey.get_offsets()[:, 1])) == 2  # side by side
    np.testing.assert_allclose(colored.get_offsets(), [[-1, 0], [2, 2]])
    np.testing.assert_allclose(colored.get_array(), [-1, 2])
    red, blue = colored.cmap(colored.norm(2.0)), colored.cmap(colored.norm(-2.0))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert [text.get_text() for text in ax.texts] == ["1 of 1", "0 of 2", "1 of 1"]
    assert ax.get_title(loc="left") == "2 of 4 neighbourhoods change (FDR 10%)\n3 donors in both groups"
    assert ax.get_xlabel() == "log2 fold of the number, y over x"
    assert ax.get_ylabel() == "type"


def test_dots_of_a_crowded_label_stay_in_their_row(dotted):
    _, adata = dotted
    many = pd.concat([dotted[0][:4]] * 50).assign(cell=np.resize(adata.obs_names, 200), padj=0.5)
    many["effect"] = np.random.default_rng(0).normal(size=200)
    ax = sa.pl.neighbourhoods(many, adata, groupby="type")
    at = ax.collections[0].get_offsets()
    assert np.abs(at[:, 1] - np.round(at[:, 1])).max() <= 0.4 + 1e-9
    assert len(np.unique(np.round(at, 9), axis=0)) == 200
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    type_of = adata.obs["type"].loc[many["cell"]].to_numpy()
    place = dict(zip(np.round(at[:, 0], 9), np.round(at[:, 1]).astype(int), strict=True))
    assert [rows[place[x]] for x in np.round(many["effect"], 9)] == type_of.tolist()


def test_neighbourhoods_lie_at_their_centres(dotted):
    found, adata = dotted
    ax = sa.pl.neighbourhoods(found, adata, basis="X_umap")
    cells, rings, colored = ax.collections
    xy = adata.obsm["X_umap"][:, :2]
    np.testing.assert_allclose(cells.get_offsets(), xy)
    np.testing.assert_allclose(rings.get_offsets(), xy[[5, 4]])
    np.testing.assert_allclose(colored.get_offsets(), xy[[0, 9]])
    np.testing.assert_allclose(colored.get_array(), [-1, 2])
    np.testing.assert_allclose(colored.get_sizes()[0] / colored.get_sizes()[1], 2)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("umap 1", "umap 2")
    assert ax.figure.axes[1].get_ylabel() == "log2 fold of the number, y over x"
    none = sa.pl.neighbourhoods(found, adata, basis="X_umap", level=1e-3)
    assert len(none.figure.axes) == 1  # nothing has a colour


def test_cells_that_do_not_fit_are_refused(dotted):
    found, adata = dotted
    with pytest.raises(ValueError, match=r"Pass either `groupby=`, a column of labels, or `basis=`"):
        sa.pl.neighbourhoods(found, adata)
    with pytest.raises(ValueError, match=r"Pass either `groupby=`"):
        sa.pl.neighbourhoods(found, adata, groupby="type", basis="X_umap")
    with pytest.raises(ValueError, match=r"1 centre\(s\) of neighbourhoods are not among the cells: cell_9"):
        sa.pl.neighbourhoods(found, adata[:9].copy(), groupby="type")
    with pytest.raises(KeyError, match=r"`groupby='typ'` is not a column"):
        sa.pl.neighbourhoods(found, adata, groupby="typ")
    with pytest.raises(KeyError, match=r"`basis='X_tsne'` is not in"):
        sa.pl.neighbourhoods(found, adata, basis="X_tsne")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) 'cell'"):
        sa.pl.neighbourhoods(found.drop(columns="cell"), adata, groupby="type")
    adata.obs_names = ["cell_0", *adata.obs_names[:-1]]
    with pytest.raises(ValueError, match=r"occur more than once, so no centre is found"):
        sa.pl.neighbourhoods(found, adata, groupby="type")


def test_a_model_has_its_cells(cells, quick):
    sa.VAE.setup_anndata(cells, batch_key="batch")
    model = sa.VAE(cells, n_hidden=8, n_latent=2)
    model.train(**quick)
    cells.obs["donor"] = np.resize(["a", "b", "c"], cells.n_obs)
    asked = {"groupby": "condition", "donor_key": "donor", "by": "neighbourhoods"}
    found = sa.compare.abundance(model, **asked, reference="control", n_neighbors=20)
    ax = sa.pl.neighbourhoods(found, model, groupby="cluster", groups=("control", "treated_1"))
    n = len(found[found["group_b"] == "treated_1"])
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == n
