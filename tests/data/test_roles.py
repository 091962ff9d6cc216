"""Columns in one role each, and names of cells without a label that occur."""

from __future__ import annotations

import warnings

import pytest

import scalloy as sa

SAME = [
    {"batch_key": "condition", "condition_key": "condition"},
    {"categorical_covariate_keys": ["lane", "condition"], "condition_key": "condition"},
    {"categorical_covariate_keys": ["batch"], "batch_key": "batch"},
    {"labels_key": "cluster", "batch_key": "cluster"},
    {"labels_key": "cluster", "condition_key": "cluster"},
    {"labels_key": "cluster", "categorical_covariate_keys": ["cluster"]},
    {"batch_key": "score", "continuous_covariate_keys": ["score"]},
]


@pytest.mark.parametrize("given", SAME, ids=str)
def test_a_column_has_one_role(cells, given):
    before = set(cells.obs), set(cells.uns)
    with pytest.raises(ValueError, match=r"both name the column '.*Each column has one role"):
        sa.CGMDVAE.setup_anndata(cells, **given)
    assert (set(cells.obs), set(cells.uns)) == before


@pytest.mark.parametrize("model", [sa.VAE, sa.GMVAE, sa.TRVAE, sa.POISEVAE])
def test_so_it_has_in_every_model(cells, model):
    with pytest.raises(ValueError, match="`batch_key` and `labels_key` both name the column 'batch'"):
        model.setup_anndata(cells, batch_key="batch", labels_key="batch")


def test_a_size_factor_may_be_a_covariate_as_well(cells):
    cells.obs["size"] = cells.X.sum(1)
    sa.VAE.setup_anndata(cells, size_factor_key="size", continuous_covariate_keys=["size"])


def test_columns_that_divide_cells_alike(cells):
    cells.obs["donor"] = cells.obs["condition"].astype(str).map({"control": "d1", "treated_1": "d0"})
    with pytest.warns(
        UserWarning, match=r"`batch_key='donor'` and `condition_key='condition'` divide the cells"
    ):
        sa.CGMDVAE.setup_anndata(cells, batch_key="donor", condition_key="condition")
    cells.obs.iloc[0, cells.obs.columns.get_loc("donor")] = "d2"  # within a condition: nothing to be said
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sa.CGMDVAE.setup_anndata(cells, batch_key="donor", condition_key="condition")
    assert not [w for w in said if "divide the cells" in str(w.message)]


@pytest.mark.parametrize(
    ("named", "wanted"),
    [("Unkown", "Unknown"), ("unknown", "Unknown"), ("UNKNOWN", "Unknown"), (" Unknown", "Unknown")],
)
def test_a_misspelled_category_is_no_cell_type(cells, named, wanted):
    cells.obs["type"] = ["T", "B", wanted, wanted] * 50
    match = rf"`unlabeled_category='{named}'` is the label of no cell, and '{wanted}' would .*Did you mean"
    with pytest.raises(ValueError, match=match):
        sa.CGMDVAE.setup_anndata(cells, labels_key="type", unlabeled_category=named)
    sa.CGMDVAE.setup_anndata(cells, labels_key="type", unlabeled_category=wanted)
    assert sa.CGMDVAE(cells, n_hidden=8).labels == ["B", "T"]


def test_a_number_is_not_its_text(cells):
    cells.obs["type"] = [1, 2, -1, 3] * 50
    with pytest.raises(ValueError, match=r"`unlabeled_category='-1'` .*Did you mean -1\?"):
        sa.CGMDVAE.setup_anndata(cells, labels_key="type", unlabeled_category="-1")
    with pytest.warns(UserWarning, match="No cell has the label `unlabeled_category=10`"):
        sa.CGMDVAE.setup_anndata(cells, labels_key="type", unlabeled_category=10)


def test_a_category_that_does_not_occur_yet_is_said_and_allowed(cells, quick):
    match = (
        r"No cell has the label `unlabeled_category='Unknown'`: all 200 cells count as labelled.*cluster_0"
    )
    with pytest.warns(UserWarning, match=match):
        sa.CGMDVAE.setup_anndata(cells, labels_key="cluster", unlabeled_category="Unknown")
    model = sa.CGMDVAE(cells, n_hidden=8, n_latent=3)
    assert model.labels == [f"cluster_{k}" for k in range(5)]
    model.train(**quick)
    query = cells[:50].copy()
    query.obs["cluster"] = "Unknown"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mapped = sa.CGMDVAE.load_query_data(query, model)
        again = sa.CGMDVAE.load_query_data(cells[:50].copy(), model)  # all labelled: a query is not asked
    assert mapped.labels == again.labels == model.labels


def test_a_category_needs_labels(cells):
    with pytest.raises(ValueError, match="Pass `labels_key=` as well"):
        sa.CGMDVAE.setup_anndata(cells, unlabeled_category="Unknown")


def test_models_that_were_saved_with_a_column_in_two_roles_are_read(cells, quick, tmp_path, monkeypatch):
    from scalloy.models._core import setup

    monkeypatch.setattr(setup, "check_roles", lambda *_: None)  # as it was before there was this check
    sa.CGMDVAE.setup_anndata(cells, batch_key="condition", condition_key="condition")
    model = sa.CGMDVAE(cells, n_hidden=8, n_latent=3)
    model.train(**quick)
    model.save(tmp_path / "m")
    monkeypatch.undo()
    again = sa.load(tmp_path / "m", cells.copy())
    assert again.get_latent_representation(cells.copy()).shape == (200, 3)
