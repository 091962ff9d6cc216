"""Pictures of evidence and of counts: what is drawn is what was given."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import scalloy as sa

mpl.use("Agg")


def frame():
    rows = [
        {
            "likelihood": k,
            "model": m,
            "seed": s,
            "gain": g + s,
            "gain_se": 0.5,
            "marginal_ll": g - 100,
            "se": 2,
        }
        for k, g in (("nb", 0.0), ("poisson", -9.0), ("zinb", 0.4))
        for m in ("VAE", "GMVAE")
        for s in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_evidence_with_intervals_best_on_top():
    ax = sa.pl.likelihoods(frame())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["poisson", "nb", "zinb"]
    first = ax.containers[0]
    np.testing.assert_allclose(
        np.asarray(first.lines[0].get_xdata(), float), [0.5, -8.5, 0.9]
    )  # means over seeds
    ends = np.array([s[:, 0] for s in first.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends[0], [0.5 - 0.98, 0.5 + 0.98])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["VAE", "GMVAE"]
    ax = sa.pl.likelihoods(frame(), by=["likelihood"], value="marginal_ll")
    np.testing.assert_allclose(np.asarray(ax.containers[0].lines[0].get_xdata(), float), [-100, -109, -99.6])
    assert ax.get_legend() is None
    with pytest.raises(ValueError, match="`value='gain'` is not known"):
        sa.pl.likelihoods(frame().drop(columns="gain"))


def test_counts_of_genes_observed_against_expected():
    table = pd.DataFrame(
        {
            "mean_observed": [0.001, 0.1, 2.0],
            "zeros_observed": [0.999, 0.95, 0.4],
            "zeros_expected": [0.999, 0.9, 0.2],
            "variance_observed": [0.001, 0.2, 8.0],
            "variance_expected": [0.001, 0.1, 4.0],
        }
    )
    ax = sa.pl.counts(table)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[0.95, 0.9], [0.4, 0.2]])
    assert ax.get_title() == "mean error 0.1250"
    ax = sa.pl.counts(table, "variance", least=0, title="poisson")
    assert len(ax.collections[0].get_offsets()) == 3
    assert ax.get_title().startswith("poisson, mean factor 1.59")  # 2^(2/3)
    with pytest.raises(ValueError, match=r"`of='zeroes'` is not known.*Did you mean 'zeros'"):
        sa.pl.counts(table, "zeroes")


def test_every_term_by_epoch(cells, quick):
    sa.GMVAE.setup_anndata(cells)
    model = sa.GMVAE(cells, n_clusters=2, n_hidden=8)
    model.train(**quick)
    axes = sa.pl.terms(model)
    said = [ax.get_ylabel().removesuffix(" (nats per cell)") for ax in axes]
    assert said[:2] == ["-ELBO", "reconstruction"]
    assert set(said[2:]) == {"kl_z", "kl_y"}
    drawn = axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, model.history["reconstruction_loss_train"].iloc[:, 0].astype(float))
    ax = sa.pl.counts(model, "mean", least=0)
    assert ax.get_title().startswith("nb, mean factor")
