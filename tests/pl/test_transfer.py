"""Pictures of predictions: what is drawn is what was given."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import scalloy as sa

mpl.use("Agg")


def test_genes_are_drawn_at_their_changes_and_the_most_changed_are_named():
    rng = np.random.default_rng(0)
    control = rng.random(40)
    truth = control + np.r_[2.0, -1.5, np.zeros(38)]
    predicted = control + 0.5 * (truth - control)
    ax = sa.pl.transfer(predicted, truth, control, genes=[f"g{i}" for i in range(40)], n_named=2)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.c_[truth - control, predicted - control])
    assert [t.get_text() for t in ax.texts] == ["g0", "g1"]
    assert "skill 0.75, correlation of the change 1.00" in ax.get_title()
    ax = sa.pl.transfer(predicted, truth, control, change=False)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.c_[truth, predicted])
    assert not ax.texts


def test_series_are_drawn_by_the_names_of_their_genes():
    rng, names = np.random.default_rng(0), [f"g{i}" for i in range(40)]
    control = pd.Series(rng.random(40), names)
    truth = control + np.r_[2.0, -1.5, np.zeros(38)]
    predicted = control + 0.5 * (truth - control)
    mixed = predicted, truth.sample(frac=1, random_state=1), control.sample(frac=1, random_state=2)
    for genes in (None, names[::-1]):
        ax = sa.pl.transfer(*mixed, genes=genes, n_named=2)
        np.testing.assert_allclose(
            ax.collections[0].get_offsets(), np.c_[truth - control, predicted - control]
        )
        assert [t.get_text() for t in ax.texts] == ["g0", "g1"]
    symbols = pd.Series([f"symbol {n}" for n in names], names)
    ax = sa.pl.transfer(*mixed, genes=symbols.sample(frac=1, random_state=3), n_named=2)
    assert [t.get_text() for t in ax.texts] == ["symbol g0", "symbol g1"]
    with pytest.raises(ValueError, match="in different orders, and `genes` has no names"):
        sa.pl.transfer(*mixed, genes=list(symbols))
    with pytest.raises(ValueError, match="`genes` has 3 names, and there are 40 genes"):
        sa.pl.transfer(*(v.to_numpy() for v in mixed), genes=names[:3])
    with pytest.raises(ValueError, match="do not have the same genes"):
        sa.pl.transfer(predicted, truth, control.rename({"g3": "stranger"}))


def test_names_do_not_lie_upon_each_other():
    control = np.zeros(40)
    truth = np.r_[2.0, 1.99, -1.5, np.zeros(37)]
    ax = sa.pl.transfer(truth, truth, control, genes=[f"g{i}" for i in range(40)], n_named=2)
    assert [t.get_text() for t in ax.texts] == ["g0", "g2"]


def test_bars_by_type():
    frame = pd.DataFrame(
        [
            {"type": t, "condition": "treated", "method": m, "seed": s, "skill": v + 0.1 * s}
            for t, v in (("B", 0.5), ("T", 0.7))
            for m, s in (("ceiling", -1), ("mean shift", -1), ("CGMDVAE", 0), ("CGMDVAE", 1))
        ]
    )
    ax = sa.pl.held_out(frame)
    heights = {
        bar.get_label(): [p.get_height() for p in bar]
        for bar in ax.containers
        if len(bar) == 2 and hasattr(bar[0], "get_height")
    }
    np.testing.assert_allclose(heights["CGMDVAE"], [0.55, 0.75])
    np.testing.assert_allclose(heights["mean shift"], [0.4, 0.6])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["B", "T"]
    with pytest.raises(ValueError, match=r"`metric='r3'` is not in the table. Pass one of: skill"):
        sa.pl.held_out(frame, "r3")


def test_predicted_cells_lie_where_the_treated_ones_do():
    """And those that are no prediction stay with the controls."""
    adata = sa.datasets.simulate(600, 60, n_clusters=1, n_batches=1, effect=2.0, seed=0)
    treated = adata.obs["condition"] == "treated_1"
    half = np.arange(adata.n_obs) % 2 == 0
    control, truth = adata[(~treated).to_numpy()].copy(), adata[(treated & half).to_numpy()].copy()
    other = adata[(treated & ~half).to_numpy()].copy()
    other.layers["counts"] = other.X
    near = {}
    for name, predicted in {"right": other, "no change": control.copy()}.items():
        if name == "no change":
            predicted.layers["counts"] = predicted.X
        ax = sa.pl.joint(control, truth, predicted)
        xy = np.asarray(ax.collections[0].get_offsets())
        colours = ax.collections[0].get_facecolors()[:, :3]
        legend = {t.get_text(): mpl.colors.to_rgb(h.get_color()) for t, h in zip(*legend_of(ax), strict=True)}
        of = {k: xy[np.isclose(colours, c).all(1)] for k, c in legend.items()}
        assert {k: len(v) for k, v in of.items()} == {
            "control": control.n_obs,
            "treated": truth.n_obs,
            "predicted": predicted.n_obs,
        }
        centres = {k: v.mean(0) for k, v in of.items()}
        distance = {k: np.linalg.norm(centres["predicted"] - centres[k]) for k in ("control", "treated")}
        near[name] = min(distance, key=distance.get)
    assert near == {"right": "treated", "no change": "control"}


def legend_of(ax):
    legend = ax.get_legend()
    return legend.get_texts(), legend.legend_handles
