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
    {"donor_key": "batch", "batch_key": "batch"},
    {"donor_key": "lane", "categorical_covariate_keys": ["lane"]},
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


@pytest.mark.parametrize("argument", ["donor_key", "batch_key"])
def test_donors_under_one_condition_each_are_warned_of(cells, argument):
    """Four donors: two of controls, two of treated cells; with one cell under both, nothing is said."""
    condition = cells.obs["condition"].astype(str)
    donors = condition + (cells.obs["score"] > 0).map({True: " 1", False: " 2"})
    cells.obs["donor"] = donors
    given = {"condition_key": "condition", argument: "donor"}
    with pytest.warns(UserWarning, match=rf"`{argument}='donor'` is found under one value"):
        sa.CGMDVAE.setup_anndata(cells, **given)
    cells.obs.loc[cells.obs_names[0], "donor"] = next(d for d in donors if d[:7] != donors.iloc[0][:7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sa.CGMDVAE.setup_anndata(cells, **given)


def test_donors_are_removed_like_covariates(cells, quick, tmp_path):
    with pytest.raises(TypeError, match=r"`donor_key` is no argument of `VAE.setup_anndata`"):
        sa.VAE.setup_anndata(cells, donor_key="lane")
    cells.obs["kind"] = ["x", "y"] * 100
    given = {"condition_key": "condition", "categorical_covariate_keys": ["kind"]}
    sa.CGMDVAE.setup_anndata(cells, batch_key="batch", donor_key="lane", **given)
    model = sa.CGMDVAE(cells, n_hidden=8, n_latent=3, seed=1)
    assert model.sizes.n_cats == (4, 2)
    model.train(**quick)
    found = model.get_latent_representation()
    model.save(tmp_path / "model")
    again = sa.load(tmp_path / "model", adata=cells)
    assert again.reader.set_up_with["donor_key"] == "lane"
    assert found == pytest.approx(again.get_latent_representation(), abs=1e-5)
    assert "lane" in model.generate(5).obs
    new = cells[:4].copy()
    new.obs["lane"] = "e"
    with pytest.warns(UserWarning, match=r"donors that the model has never seen: e"):
        model.get_latent_representation(new)
    other = cells.copy()  # as a covariate they are removed in the same way
    sa.CGMDVAE.setup_anndata(
        other, batch_key="batch", **{**given, "categorical_covariate_keys": ["lane", "kind"]}
    )
    plain = sa.CGMDVAE(other, n_hidden=8, n_latent=3, seed=1)
    plain.train(**quick)
    assert found == pytest.approx(plain.get_latent_representation(), abs=1e-5)


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


@pytest.mark.parametrize("kind", [int, str])
def test_numbers_are_alike_only_if_they_are_equal(cells, kind):
    """As text, 10 is as near to 100 as a misspelled word to the right one."""
    cells.obs["type"] = [kind(n) for n in (100, 2, 101, 3)] * 50
    with pytest.warns(UserWarning, match=r"No cell has the label `unlabeled_category='?10'?`"):
        sa.CGMDVAE.setup_anndata(cells, labels_key="type", unlabeled_category=kind(10))


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


@pytest.mark.parametrize("unlabeled", ["Unknown", "10", 7.5])
def test_a_category_of_another_kind_than_the_labels_is_refused(cells, unlabeled):
    """It would make text of whole numbers, or other numbers of them."""
    cells.obs["type"] = [100, 101] * 100
    with pytest.raises(ValueError, match="the labels of 'type' are of kind 'integer': 100, 101"):
        sa.CGMDVAE.setup_anndata(cells, labels_key="type", unlabeled_category=unlabeled)
    cells.obs["type"] = ["a", "b"] * 100
    with pytest.raises(ValueError, match="of kind 'integer', and the labels of 'type' are of kind 'string'"):
        sa.CGMDVAE.setup_anndata(cells, labels_key="type", unlabeled_category=-1)
