"""Pictures of latent spaces, clusters and traversals: what is drawn is what was given."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scalloy as sa

mpl.use("Agg")


@pytest.fixture
def placed(cells):
    rng = np.random.default_rng(0)
    cells.obsm["X_umap"] = rng.normal(size=(200, 2))
    cells.obsm["X_z"] = (
        rng.normal(size=(200, 5)) + 6 * (cells.obs["cluster"] == "cluster_1").to_numpy()[:, None]
    )
    yield cells
    plt.close("all")


def test_categories_with_the_colours_of_uns(placed):
    placed.obs["cluster"] = placed.obs["cluster"].astype("category")
    placed.uns["cluster_colors"] = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#ff00ff"]
    ax = sa.pl.latent(placed, "cluster")
    xy, shade = ax.collections[0].get_offsets(), ax.collections[0].get_facecolors()
    names = placed.obs["cluster"].cat.categories
    for point, color in list(zip(np.asarray(xy), shade, strict=True))[:20]:
        row = np.abs(placed.obsm["X_umap"] - point).sum(1).argmin()
        given = placed.uns["cluster_colors"][names.get_loc(placed.obs["cluster"].iloc[row])]
        np.testing.assert_allclose(color[:3], mpl.colors.to_rgb(given))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(names)


ODD = ["_none", "__x", "$5", "a$b$", "T"]


def test_legends_show_names_as_they_are(placed):
    """Names that matplotlib would leave out (``_``) or read as mathematics (``$``), in every legend."""
    placed.obs["odd"] = pd.Categorical(np.resize(ODD, 200), categories=ODD)
    ax = sa.pl.latent(placed, "odd")
    drawn = ax.get_legend()
    ax.figure.canvas.draw()
    assert [t.get_text() for t in drawn.get_texts()] == ODD
    assert not any(t.get_parse_math() for t in drawn.get_texts())
    colors = {tuple(np.round(mpl.colors.to_rgb(h.get_color()), 4)) for h in drawn.legend_handles}
    assert colors == {tuple(c) for c in np.round(ax.collections[0].get_facecolors()[:, :3], 4)}
    assert len(colors) == len(ODD)
    ax = sa.pl.latent(placed, "odd", legend="on data")
    assert {t.get_text() for t in ax.texts} == set(ODD)
    assert not any(t.get_parse_math() for t in ax.texts)
    ax = sa.pl.clusters(placed, "cluster", "odd", kind="composition")
    drawn = ax.get_legend()
    shown = dict(zip([t.get_text() for t in drawn.get_texts()], drawn.legend_handles, strict=True))
    share = pd.crosstab(placed.obs["odd"], placed.obs["cluster"], normalize="columns")
    assert set(shown) == set(ODD)
    for bars, name in zip(ax.containers, ODD, strict=True):
        assert [b.get_height() for b in bars] == pytest.approx(list(share.loc[name]))
        assert shown[name].get_facecolor() == bars[0].get_facecolor()


def test_genes_with_an_underscore_are_in_the_legend(cells, quick):
    cells.var_names = [f"_{name}" for name in cells.var_names]
    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, n_hidden=8, n_latent=2)
    model.train(**quick)
    ax = sa.pl.traversal(model, 0, n_genes=3)
    assert len(ax.get_legend().get_texts()) == 3
    assert all(t.get_text().startswith("_gene") for t in ax.get_legend().get_texts())


def test_numbers_genes_and_several_colourings(placed):
    axes = sa.pl.latent(placed, ["score", "gene_3", "cluster", "batch"], legend="none")
    assert axes.shape == (4,)
    values = axes[1].collections[0].get_array()
    np.testing.assert_allclose(np.sort(values), np.sort(placed.X[:, 3].toarray().ravel()))
    assert [ax.get_title() for ax in axes] == ["score", "gene_3", "cluster", "batch"]
    assert axes[2].get_legend() is None
    with pytest.raises(ValueError, match="`ax` has 1 axes for 2 colourings"):
        sa.pl.latent(placed, ["score", "batch"], ax=plt.subplots()[1])


def test_names_on_the_data_and_missing_values_in_grey(placed):
    kinds = placed.obs["cluster"].astype(object)
    kinds[:5] = np.nan
    placed.obs["kind"] = pd.Categorical(kinds)
    ax = sa.pl.latent(placed, "kind", legend="on data")
    written = {t.get_text(): t.get_position() for t in ax.texts}
    assert set(written) == set(placed.obs["cluster"])
    for name, place in written.items():
        own = (placed.obs["kind"] == name).to_numpy()
        np.testing.assert_allclose(place, np.median(placed.obsm["X_umap"][own], 0))
    grey = (np.abs(ax.collections[0].get_facecolors()[:, :3] - 0.8) < 1e-6).all(1)
    assert grey.sum() == 5


def test_many_categories_are_told_apart(placed):
    placed.obs["many"] = [f"type {i % 40}" for i in range(200)]
    ax = sa.pl.latent(placed, "many")
    assert len(np.unique(ax.collections[0].get_facecolors(), axis=0)) == 40
    assert ax.get_legend()._ncols == 2


@pytest.fixture
def numerous():
    """2,000 cells with 500 labels, of which the first have more cells, and 300 clusters."""
    many = ad.AnnData(obs=pd.DataFrame(index=[f"cell {i}" for i in range(2000)]))
    many.obsm["X_umap"] = np.random.default_rng(0).normal(size=(2000, 2))
    label = np.r_[np.arange(500), np.repeat(np.arange(30), 50)]
    many.obs["label"] = pd.Categorical([f"type {i}" for i in label], [f"type {i}" for i in range(500)])
    many.obs["found"] = [f"cluster {i}" for i in np.resize(np.arange(300), 2000)]
    return many


def test_hundreds_of_categories_leave_room_for_the_cells(numerous):
    ax = sa.pl.latent(numerous, "label")
    ax.figure.canvas.draw()
    named = [t.get_text() for t in ax.get_legend().get_texts()]
    assert named[:30] == [f"type {i}" for i in range(30)]
    assert (len(named), named[-1]) == (46, "and 455 more")
    height = ax.get_legend().get_window_extent().height
    assert height < ax.figure.bbox.height
    assert ax.get_position().width > 0.4
    assert len(ax.collections[0].get_offsets()) == 2000
    plt.close("all")


def test_hundreds_of_clusters_and_labels(numerous):
    ax = sa.pl.clusters(numerous, "found", "label", kind="composition")
    assert ax.figure.get_size_inches().max() <= 40
    heights = np.zeros((len(ax.containers), 300))
    for i, bars in enumerate(ax.containers):  # what is zero is not drawn
        for bar in bars:
            heights[i, round(bar.get_x() + bar.get_width() / 2)] = bar.get_height()
    np.testing.assert_allclose(heights.sum(0), 1)
    named = [bars.get_label() for bars in ax.containers]
    assert (len(named), named[-1]) == (46, "455 others")
    table = pd.crosstab(numerous.obs["label"], numerous.obs["found"], normalize="columns")
    np.testing.assert_allclose(heights[:45], table.loc[named[:45]])
    np.testing.assert_allclose(heights[45], table.drop(index=named[:45]).sum())
    ax = sa.pl.clusters(numerous, "found", "label")
    assert ax.figure.get_size_inches().max() <= 40
    assert ax.images[0].get_array().shape == (500, 300)
    plt.close("all")


@pytest.mark.parametrize("method", ["umap", "tsne", "pca"])
def test_a_latent_space_is_embedded_and_nothing_written(placed, method):
    before = set(placed.obsm), set(placed.uns), set(placed.obsp)
    ax = sa.pl.latent(placed, "cluster", use_rep="X_z", method=method, perplexity=20)
    xy = np.asarray(ax.collections[0].get_offsets())
    assert xy.shape == (200, 2)
    assert (set(placed.obsm), set(placed.uns), set(placed.obsp)) == before
    again = sa.pl.embedding(placed.obsm["X_z"], method, perplexity=20)
    np.testing.assert_allclose(np.sort(xy[:, 0]), np.sort(again[:, 0]), rtol=1e-5)
    apart = (placed.obs["cluster"] == "cluster_1").to_numpy()
    assert sa.metrics.knn_accuracy(again, apart) > 0.95


def test_three_dimensions(placed):
    ax = sa.pl.latent(placed, "cluster", use_rep="X_z", method="pca", n_dims=3)
    assert ax.name == "3d"
    assert len(ax.collections[0]._offsets3d) == 3
    with pytest.raises(ValueError, match=r"`n_dims=3`, but `adata.obsm\['X_umap'\]` has 2 columns"):
        sa.pl.latent(placed, "cluster", n_dims=3)


def test_a_model_is_drawn_in_its_own_latent_space(placed, quick):
    sa.VAE.setup_anndata(placed)
    model = sa.VAE(placed, n_hidden=8, n_latent=2)
    model.train(**quick)
    ax = sa.pl.latent(model, "cluster", method="pca")
    truth = sa.pl.embedding(model.get_latent_representation(), "pca")
    np.testing.assert_allclose(
        np.sort(np.asarray(ax.collections[0].get_offsets())[:, 0]), np.sort(truth[:, 0]), rtol=1e-5
    )
    ax = sa.pl.traversal(model, 1, n_genes=3)
    steps = model.get_traversal(1)
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert set(drawn) == set((steps.max() - steps.min()).nlargest(3).index)
    for gene, line in drawn.items():
        np.testing.assert_allclose(line, steps[gene])
    assert [line.get_label() for line in sa.pl.traversal(model, 0, genes=["gene_5"]).lines] == ["gene_5"]
    with pytest.raises(KeyError, match="which the model does not know"):
        sa.pl.traversal(model, 0, genes=["nope"])


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("by", ["condition", "type_of_the_cells_by_hand"])
@pytest.mark.parametrize("own", [True, False])
def test_names_beside_few_rows_are_not_cut(cells, rows, by, own):
    cells.obs[by] = [f"r{i % rows}" for i in range(cells.n_obs)]
    ax = None if own else plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    ax = sa.pl.clusters(cells, "cluster", by, ax=ax)
    ax.figure.draw_without_rendering()
    for part in ax.figure.axes:
        label = part.yaxis.label
        assert label.get_text().split()[-1] == by
        box, whole = label.get_window_extent(), ax.figure.bbox
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1


def test_clusters_against_labels(cells):
    cells.obs["found"] = pd.Categorical(cells.obs["cluster"].map(lambda c: "f" + c[-1]))
    cells.obs.loc[cells.obs_names[:7], "found"] = "f0"
    ax = sa.pl.clusters(cells, "found", "cluster")
    table = pd.crosstab(cells.obs["cluster"], cells.obs["found"], normalize="index")
    shown = pd.DataFrame(
        np.asarray(ax.images[0].get_array()),
        index=[t.get_text() for t in ax.get_yticklabels()],
        columns=[t.get_text() for t in ax.get_xticklabels()],
    )
    np.testing.assert_allclose(shown.to_numpy(), table.loc[shown.index, shown.columns].to_numpy())
    assert (shown.to_numpy().argmax(1) == np.arange(5)).all()
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {0}
    ax = sa.pl.clusters(cells, "cluster", "found")  # names that are too long to stand side by side
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {90}
    ax = sa.pl.clusters(cells, "found", "batch", kind="composition")
    share = pd.crosstab(cells.obs["batch"], cells.obs["found"], normalize="columns")
    heights = np.array([[bar.get_height() for bar in bars] for bars in ax.containers])
    np.testing.assert_allclose(heights, share.to_numpy())
    np.testing.assert_allclose(heights.sum(0), 1)
    cells.obs["kind"] = pd.Categorical(np.resize(["A", "C"], 200), categories=["A", "B", "C"])
    cells.uns["kind_colors"] = ["#ff0000", "#00ff00", "#0000ff"]  # one without cells keeps its colour
    ax = sa.pl.clusters(cells, "found", "kind", kind="composition")
    assert [bars[0].get_facecolor()[:3] for bars in ax.containers] == [(1, 0, 0), (0, 0, 1)]
    plt.close("all")
    with pytest.raises(KeyError, match="`by='nope'` is not a column"):
        sa.pl.clusters(cells, "found", "nope")
    with pytest.raises(ValueError, match="`kind='pie'` is not known"):
        sa.pl.clusters(cells, "found", "cluster", kind="pie")


def test_bad_input(placed):
    with pytest.raises(KeyError, match="nor a gene"):
        sa.pl.latent(placed, "nope")
    with pytest.raises(KeyError, match=r"Run `sc.tl.umap\(adata\)` first"):
        sa.pl.latent(placed, "cluster", basis="X_tsne")
    with pytest.raises(KeyError, match="`use_rep='q'` is not in"):
        sa.pl.latent(placed, "cluster", use_rep="q")
    with pytest.raises(ValueError, match="`perplexity=300` must be at least 1 and below the 200 cells"):
        sa.pl.latent(placed, "cluster", use_rep="X_z", method="tsne", perplexity=300)
    with pytest.raises(ValueError, match="`method='mds'` is not known"):
        sa.pl.latent(placed, "cluster", use_rep="X_z", method="mds")
    with pytest.raises(ValueError, match="`legend='left'` is not known"):
        sa.pl.latent(placed, "cluster", legend="left")
