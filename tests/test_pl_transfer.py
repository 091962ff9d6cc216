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
