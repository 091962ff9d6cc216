"""Conditions with structure in models: from the set-up to predictions of what was never seen, and back."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scalloy as sa
from scalloy.blocks.composed import Composed, Composition
from scalloy.models._core import targets
from scalloy.models._core.changes import shown
from scalloy.perturbation import condition_effects

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
SMALL = {"n_hidden": 8, "n_latent": 3}
ASKED = {"factors": "drug", "dose": "dose"}
VARIANTS = {
    "CGMDVAE": {},
    "CGMDVAE shared": {"conditioning": "shared"},
    "CGMDVAE interaction": {"conditioning": "interaction"},
    "CGMDVAE full": {
        "conditioning": "full",
        "n_w": 2,
        "w_prior": "condition",
        "assignment": "amortised",
        "weights": "condition",
    },
    "TRVAE": {"n_layers": 2},
}
NEW = {
    "a dose between": {"drug_0": 0.5},
    "a dose beyond": {"drug_0": 30.0},
    "a combination": {"drug_0": 0.5, "drug_3": 1.0},
    "a described drug": {"drug_4": 1.0},
    "all of it": {"drug_0": 30.0, "drug_4": 1.0, "drug_1": 0.1},
}
BEYOND = {"a dose beyond", "a described drug", "all of it"}
GENES = 24


def screened(**more):
    given = {"n_types": 2, "n_drugs": 4, "n_unseen": 1, "n_pairs": 3, "doses": (0.1, 1.0), "seed": 1, **more}
    return sa.datasets.screen(360, GENES, **given)


def class_of(name):
    return getattr(sa, name.split()[0])


def set_up(name, cells, **more):
    asked = sa.Conditions(**{**ASKED, "descriptors": "descriptors", **more})
    class_of(name).setup_anndata(cells, conditions=asked, labels_key="cell_type")


def trained(name, cells, epochs=1):
    model = class_of(name)(cells, **SMALL, **VARIANTS[name])
    model.train(max_epochs=epochs, **QUIET)
    return model


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def controls(cells, n=12):
    return cells[(cells.obs["drug"] == "control").to_numpy()][:n].copy()


@pytest.fixture(scope="module", autouse=True)
def _soon():
    """Weights of covariances that are learned in few steps will do here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(condition_effects, "STEPS", 3)
        patched.setattr(condition_effects, "DILUTIONS", (0.0,))
        yield


@pytest.fixture(scope="module")
def screen():
    return screened()


@pytest.fixture(scope="module", params=VARIANTS)
def model(request, screen):
    cells = screen.copy()
    set_up(request.param, cells)
    return trained(request.param, cells)


@pytest.fixture(scope="module")
def one(screen):
    """A model for what all models do alike."""
    cells = screen.copy()
    set_up("CGMDVAE interaction", cells)
    return trained("CGMDVAE interaction", cells)


# set-up -------------------------------------------------------------------------------------------


def test_the_set_up_writes_a_column_with_names(screen):
    cells = screen.copy()
    set_up("CGMDVAE", cells)
    names = cells.obs["conditions"].astype(str)
    assert set(names[cells.obs["drug"] == "control"]) == {"control"}
    one = (cells.obs["drug"] == "drug_2+drug_3") & (cells.obs["dose"] == "0.1+1")
    assert set(names[one]) == {"drug_2 0.1+drug_3 1"}
    assert [k for k in cells.obs if k not in screen.obs and not k.startswith("_scvi")] == ["conditions"]
    again = names.copy()
    set_up("TRVAE", cells)
    assert list(cells.obs["conditions"]) == list(again)
    set_up("CGMDVAE", cells, key_added="state")
    assert list(cells.obs["state"]) == list(again)


def test_conditions_and_condition_key_say_the_same_thing_twice(screen):
    cells, asked = screen.copy(), sa.Conditions(**ASKED)
    with pytest.raises(ValueError, match="`condition_key='drug'` and `conditions=` both say"):
        sa.CGMDVAE.setup_anndata(cells, conditions=asked, condition_key="drug")
    with pytest.raises(TypeError, match=r"`conditions='drug'` is a str. Expected `sa.Conditions"):
        sa.CGMDVAE.setup_anndata(cells, conditions="drug")
    with pytest.raises(TypeError, match="is a dict"):
        sa.CGMDVAE.setup_anndata(cells, conditions=ASKED)
    assert "conditions" not in cells.obs
    with pytest.raises(TypeError, match=r"`conditions` is no argument of `VAE.setup_anndata`"):
        sa.VAE.setup_anndata(cells, conditions=asked)
    with pytest.raises(ValueError, match="both name the column 'conditions'"):
        sa.CGMDVAE.setup_anndata(cells, conditions=asked, batch_key="conditions")
    sa.CGMDVAE.setup_anndata(
        cells, conditions=asked, condition_key="conditions"
    )  # as a model's registry has it


def test_rows_of_the_networks_are_those_of_parts(one):
    design = one.reader.structure.design
    tables = [m for m in one.module.modules() if isinstance(m, Composed)]
    assert tables
    assert {len(t.weight) for t in tables} == {design.n_columns}
    index, _ = design.rows(design.contents)
    every = [m for m in one.module.modules() if isinstance(m, Composition)]
    order = [design.names.index(name) for name in one.conditions]
    for m in every:
        np.testing.assert_array_equal(m.index, index[order])
    before = [t.weight.detach().clone() for t in tables]
    one.train(max_epochs=1, **QUIET)  # every column is trained
    for t, old in zip(tables, before, strict=True):
        seen = np.unique(index)
        assert (t.weight.detach() != old)[seen].any(1).all()


# predictions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", NEW)
def test_what_was_never_seen_is_predicted(model, new, tmp_path):
    cells, to = controls(model.adata), NEW[new]
    state = {k: v.clone() for k, v in model.module.state_dict().items()}
    seen = quietly(model.transfer, cells, to="drug_0 1")
    made = quietly(model.transfer, cells, to=to)
    name = "+".join(f"{part} {dose:g}" for part, dose in sorted(to.items()))
    assert np.isfinite(made.X).all()
    assert (made.X >= 0).all()
    assert set(made.obs["conditions"]) == {name}
    assert list(made.obs["conditions"].cat.categories) == [*model.conditions, name]
    assert set(made.obs["drug"]) == {"+".join(sorted(to))}
    doses = list(dict.fromkeys(f"{to[k]:g}" for k in sorted(to)))
    assert set(made.obs["dose"]) == {"+".join(doses)}
    assert made.obs["transfer_far"].all() == (new in BEYOND)
    assert not np.allclose(made.X, seen.X)
    made.write_h5ad(tmp_path / "made.h5ad")
    back = ad.read_h5ad(tmp_path / "made.h5ad")
    assert set(back.obs["conditions"]) == {name}
    both = ad.concat([cells, made])
    both.write_h5ad(tmp_path / "both.h5ad")
    again = quietly(model.transfer, cells, to="drug_0 1")  # and the model is as it was
    np.testing.assert_array_equal(again.X, seen.X)
    assert all(torch.equal(v, state[k]) for k, v in model.module.state_dict().items())
    assert [len(m.index) for m in model.module.modules() if isinstance(m, Composition)] == [
        len(model.conditions) for m in model.module.modules() if isinstance(m, Composition)
    ]


def test_a_dose_next_to_one_that_was_seen_is_decoded_like_it(model):
    """The decoder has a row for a new condition, which is close to those of similar ones."""
    cells = controls(model.adata)
    seen, near, control = (
        model.transfer(cells, to=to, route="decoder").X
        for to in ("drug_0 0.1", {"drug_0": 0.100001}, "control")
    )
    np.testing.assert_allclose(near, seen, rtol=1e-3, atol=1e-4)
    assert np.abs(seen - control).max() > 1e-3
    far, edge = (quietly(model.transfer, cells, to={"drug_0": d}, route="decoder").X for d in (1e4, 1.0))
    np.testing.assert_allclose(far, edge, rtol=1e-4, atol=1e-5)


def test_every_route_predicts_what_was_never_seen(model):
    cells = controls(model.adata)
    for route in model.ROUTES:
        if route == "style" and not model.init_params_["non_kwargs"].get("n_w"):
            continue
        made = quietly(model.transfer, cells, to=NEW["all of it"], route=route, n_samples=2)
        assert np.isfinite(made.X).all(), route
        assert np.isfinite(made.layers["counts"].toarray()).all()


def test_beyond_is_warned_of_and_within_is_not(one):
    cells = controls(one.adata)
    for to, message in {
        30.0: "'drug_0 30' lies beyond what the model has seen: 'drug_0' was seen from 0.1 to 1, not at 30",
        None: "'drug_4 1' lies beyond what the model has seen: 'drug_4' was never seen",
    }.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            one.transfer(cells, to={"drug_4": 1.0} if to is None else {"drug_0": to})
        assert [w for w in said if str(w.message).startswith(message)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        one.transfer(cells, to={"drug_0": 0.3})
    assert not [w for w in said if "beyond" in str(w.message)]


def test_what_is_beyond_is_flagged_by_every_route(model):
    cells = controls(model.adata)
    for route in model.ROUTES:
        if route == "style" and not model.init_params_["non_kwargs"].get("n_w"):
            continue
        known = "has the skill to expect" if route == "auto" else "nothing is known of the skill"
        for new in ("a combination", "a dose beyond"):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                made = model.transfer(cells, to=NEW[new], route=route)
            beyond = [str(w.message) for w in said if "lies beyond what the model has seen" in str(w.message)]
            assert len(beyond) == (new in BEYOND), (route, new)
            assert all(known in message for message in beyond)
            assert made.obs["transfer_far"].dtype == bool
            assert made.obs["transfer_far"].all() == made.obs["transfer_far"].any() == (new in BEYOND)


@pytest.mark.parametrize("route", ["auto", "decoder"])
def test_a_seen_condition_by_name_and_by_parts_is_the_same(model, route):
    cells = controls(model.adata)
    by_name = quietly(model.transfer, cells, to="drug_2 0.1+drug_3 1", route=route)
    for to in (
        {"drug_3": 1, "drug_2": 0.1},
        {"drug": "drug_3+drug_2", "dose": "1+0.1"},
        {"drug_2": np.float32(0.1), "drug_3": np.int8(1), "drug_0": 0},
    ):
        made = quietly(model.transfer, cells, to=to, route=route)
        np.testing.assert_array_equal(made.X, by_name.X)
        assert (made.layers["counts"] != by_name.layers["counts"]).nnz == 0
        pd.testing.assert_frame_equal(made.obs, by_name.obs)
    to_control = quietly(model.transfer, cells, to={}, route=route)
    assert set(to_control.obs["drug"]) == {"control"}
    assert set(to_control.obs["conditions"]) == {"control"}


def test_cells_alone_and_together_are_predicted_the_same(model):
    cells, to = controls(model.adata), NEW["a combination"]
    whole = quietly(model.transfer, cells, to=to)
    for some in (cells[[3]], cells[::-1], cells[4:7]):
        part = quietly(model.transfer, some.copy(), to=to)
        names = [f"{name}-drug_0 0.5+drug_3 1" for name in some.obs_names]
        np.testing.assert_allclose(part[names].X, whole[names].X, rtol=1e-4, atol=1e-5)


def test_cells_are_matched_by_whatever_they_have(one):
    """Without the column of names, with genes in another order, or with that column only."""
    cells, to = controls(one.adata), NEW["a dose between"]
    whole = quietly(one.transfer, cells, to=to)
    z = one.get_latent_representation(cells)
    bare = ad.AnnData(cells.X, obs=cells.obs[["cell_type", "drug", "dose"]], var=cells.var)
    numeric = bare.copy()
    numeric.obs["dose"] = 0.0
    turned = bare[:, ::-1].copy()
    named = ad.AnnData(cells.X, obs=cells.obs[["cell_type", "conditions"]], var=cells.var)
    for given in (bare, numeric, turned, named):
        before = given.obs.copy()
        made = quietly(one.transfer, given, to=to)
        np.testing.assert_allclose(made[:, whole.var_names].X, whole.X, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.get_latent_representation(given), z, atol=1e-5)
        pd.testing.assert_frame_equal(given.obs, before)
        assert set(made.obs["conditions"]) == {"drug_0 0.5"}
    stale = cells.copy()
    stale.obs["conditions"] = "drug_1 1"  # the columns of the user count, and not what was made of others
    np.testing.assert_allclose(one.get_latent_representation(stale), z, atol=1e-5)
    with pytest.raises(KeyError, match="is not a column"):
        one.transfer(ad.AnnData(cells.X, obs=cells.obs[["cell_type", "drug"]], var=cells.var), to=to)


READ = r"has conditions that the model has never seen: .*Their cells are read with the effects of their parts"


def as_under(cells, drug, dose):
    """The same cells as if they had been under another condition."""
    changed = cells.copy()
    changed.obs["drug"], changed.obs["dose"] = drug, dose
    return changed


def test_cells_under_conditions_of_known_parts_are_read(model):
    """Together with others, which are read as before to the last bit, and in any order."""
    known = controls(model.adata)
    new = as_under(known[:5], "drug_1+drug_2+drug_4", "0.4+7+1")
    other = as_under(known[5:8], "drug_3", "0.2")
    cells = ad.concat([known, new, other], index_unique="-")
    z = model.get_latent_representation(known)
    sizes = [len(m.index) for m in model.module.modules() if isinstance(m, Composition)]
    model.reader._told.clear()
    with pytest.warns(UserWarning, match=READ) as said:
        found = model.get_latent_representation(cells)
    ours = [str(w.message) for w in said if w.category is UserWarning]  # libraries warn, too
    assert "'drug_1 0.4+drug_2 7+drug_4 1', 'drug_3 0.2'" in ours[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of each condition once
        turned = model.get_latent_representation(cells[::-1].copy())
    np.testing.assert_array_equal(found[:12], z)
    np.testing.assert_allclose(turned[::-1], found, atol=1e-6)
    np.testing.assert_allclose(model.get_latent_representation(new), found[12:17], atol=1e-6)
    assert not np.allclose(found[12:17], z[:5], atol=1e-4)  # the same counts under another condition
    assert [len(m.index) for m in model.module.modules() if isinstance(m, Composition)] == sizes
    assert np.isfinite(model.get_elbo(cells, return_mean=False)).all()
    assert np.isfinite(model.get_marginal_ll(cells, n_mc_samples=2))
    assert model.get_normalized_expression(cells).shape == (20, GENES)
    noted = model.annotate(cells, copy=True)
    np.testing.assert_allclose(noted.obsm[f"X_{model.name}"], found, atol=1e-6)
    if hasattr(model, "predict_labels"):
        assert len(model.predict_labels(cells)) == 20


def test_cells_under_new_conditions_with_a_learned_style(screen):
    """Which has no prior for them, so they have that of the average condition, and no penalty."""
    cells = screen.copy()
    set_up("CGMDVAE", cells)
    model = sa.CGMDVAE(cells, **SMALL, n_w=2, w_prior="condition")
    model.train(max_epochs=1, **QUIET)
    new = as_under(controls(cells), "drug_0+drug_3", "0.5+1")
    both = ad.concat([controls(cells), new], index_unique="-")
    assert np.isfinite(quietly(model.get_elbo, both, return_mean=False)).all()
    assert np.isfinite(quietly(model.annotate, both, copy=True).obsm["X_cgmdvae"]).all()
    made = quietly(model.transfer, new, to={"drug_1": 0.2}, route="style")
    assert np.isfinite(made.layers["counts"].toarray()).all()


def test_a_new_condition_is_read_by_the_rows_of_its_parts(model):
    """A module that knows the condition as a category gives its cells the same codes."""
    cells = as_under(controls(model.adata), "drug_0+drug_3", "0.5+1")
    found = quietly(model.get_latent_representation, cells)
    target = targets.target_of(model, {"drug_0": 0.5, "drug_3": 1.0})
    with targets.knowing(model, target) as code, torch.no_grad():
        (batch,) = model.reader.batches(controls(model.adata))
        batch.c[:] = code
        expected = model.module.encode(batch)["z"].mean
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_cells_next_to_a_seen_condition_are_read_like_its_cells(one):
    seen = as_under(controls(one.adata), "drug_0", "0.1")
    near = as_under(controls(one.adata), "drug_0", "0.100001")
    z = quietly(one.get_latent_representation, near)
    np.testing.assert_allclose(z, one.get_latent_representation(seen), atol=1e-4)


def test_cells_under_conditions_with_unknown_parts_are_refused(one):
    cells = as_under(controls(one.adata), "drug_1+nobody", "1")
    for call in (one.get_latent_representation, lambda c: one.transfer(c, to={}), one.annotate):
        with pytest.raises(ValueError, match="conditions with 'nobody', which the model has neither"):
            call(cells)
    named = ad.AnnData(cells.X, obs=cells.obs[["cell_type"]].assign(conditions="drug_0 0.5"), var=cells.var)
    with pytest.raises(ValueError, match=r"never seen: drug_0 0\.5"):  # a mere name has no parts
        one.get_latent_representation(named)
    new = as_under(controls(one.adata), "drug_1", "0.4")
    with pytest.raises(ValueError, match=r"never seen: drug_1 0\.4"):  # codes of scvi-tools are of seen ones
        one.get_from_registry(new, "condition")


def test_cells_that_are_not_read_to_the_end_leave_the_model_right(one):
    cells = as_under(controls(one.adata), "drug_1", "0.4")
    before = quietly(one.get_latent_representation, cells)
    batches = one.reader.batches(cells, batch_size=5)
    next(batches)
    np.testing.assert_array_equal(one.get_latent_representation(cells), before)
    del batches
    np.testing.assert_array_equal(one.get_latent_representation(cells), before)


@pytest.mark.parametrize("new", ["a combination", "all of it"])
def test_predictions_of_what_was_never_seen_can_be_read(model, new):
    made = quietly(model.transfer, controls(model.adata), to=NEW[new])
    assert np.isfinite(quietly(model.get_latent_representation, made)).all()
    back = quietly(model.transfer, made, to="control")
    name = model.reader.structure.design.name_of(targets.target_of(model, NEW[new]).content)
    assert set(back.obs["transfer_from"]) == {name}
    assert set(back.obs["drug"]) == {"control"}
    onward = quietly(model.transfer, made, to={"drug_2": 0.3, "drug_3": 0.2}, route="decoder")
    assert np.isfinite(back.X).all()
    assert np.isfinite(onward.layers["counts"].toarray()).all()


def test_predictions_are_read_alone_together_and_from_a_file(one, tmp_path):
    cells = controls(one.adata)
    made = quietly(one.transfer, cells, to=NEW["all of it"])
    z = quietly(one.get_latent_representation, made)
    counted = made.copy()
    counted.X = counted.layers["counts"]
    both = ad.concat([cells, counted])
    np.testing.assert_allclose(one.get_latent_representation(both)[len(cells) :], z, atol=1e-6)
    made.write_h5ad(tmp_path / "made.h5ad")
    back = ad.read_h5ad(tmp_path / "made.h5ad")
    np.testing.assert_allclose(one.get_latent_representation(back), z, atol=1e-6)
    same = quietly(one.transfer, made, to=NEW["all of it"])  # from a new condition to itself
    assert (same.layers["counts"] != made.layers["counts"]).nnz == 0
    whole = quietly(one.transfer, made, to="control", context=made)
    for part in (made[:3], made[::-1]):  # each cell by itself, if groups start at the same cells
        alone = quietly(one.transfer, part.copy(), to="control", context=made)
        np.testing.assert_allclose(alone.X, whole[alone.obs_names].X, rtol=1e-4, atol=1e-5)


def test_a_change_from_a_new_condition_is_the_inverse_of_that_to_it(one):
    """Means of a group come back to where they were, up to what uncertain effects are drawn to zero."""
    to, cells = NEW["a combination"], one.adata[(one.adata.obs["drug"] == "control").to_numpy()].copy()
    there = quietly(one.transfer, cells, to=to)
    back = quietly(one.transfer, there, to="control")
    for group in ("type_0", "type_1"):
        name = one.reader.structure.design.name_of(targets.target_of(one, to).content)
        assert f"{group} from {name}" in back.uns["transfer"]["shift"]
    structured = shown(one, 1e4)[2]
    forth = structured.predicted("shift", "type_0", "control", name).mean
    np.testing.assert_allclose(structured.predicted("shift", "type_0", name, "control").mean, -forth)


def test_expression_of_new_conditions_is_compared(one):
    cells = controls(one.adata)
    both = ad.concat([cells, as_under(cells, "drug_0", "0.5")], index_unique="-")
    genes = quietly(
        one.differential_expression, both, groupby="drug", group1="drug_0", group2="control", silent=True
    )
    assert len(genes) == GENES
    seen = ad.concat([cells, as_under(cells, "drug_0", "0.1")], index_unique="-")
    other = quietly(
        one.differential_expression, seen, groupby="drug", group1="drug_0", group2="control", silent=True
    )
    assert not np.allclose(genes["scale1"], other.loc[genes.index, "scale1"], rtol=1e-3)


def test_a_prediction_can_be_read_as_cells(one):
    made = quietly(one.transfer, controls(one.adata), to="drug_2 0.1+drug_3 1")
    z = one.get_latent_representation(made)
    assert np.isfinite(z).all()
    back = quietly(one.transfer, made, to="control")
    assert set(back.obs["transfer_from"]) == {"drug_2 0.1+drug_3 1"}


@pytest.mark.parametrize("to", [NEW["a combination"], "drug_1 1"])
def test_written_predictions_are_those_of_transfer(one, to, tmp_path, monkeypatch):
    monkeypatch.setattr("scalloy.models._core.conditions.DECODED_ENTRIES", 5 * GENES)  # several pieces
    cells = controls(one.adata)
    quietly(one.write_transfer, tmp_path / "made.h5ad", cells, to=to)
    written, made = ad.read_h5ad(tmp_path / "made.h5ad"), quietly(one.transfer, cells, to=to)
    np.testing.assert_allclose(np.asarray(written.X), made.X, rtol=1e-5, atol=1e-6)
    for key in ("conditions", "drug", "dose", "transfer_far", "transfer_group"):
        assert list(written.obs[key].astype(str)) == list(made.obs[key].astype(str))


def test_the_models_own_cells_are_predicted_too(one):
    made = quietly(one.transfer, to=NEW["a combination"])
    assert made.n_obs == one.adata.n_obs
    assert np.isfinite(made.X).all()


def test_predict_takes_names(one):
    made, change = quietly(one.predict, "control", "drug_1 1", adata_to_predict=controls(one.adata))
    assert set(made.obs["dose"].astype(float)) == {1.0}
    assert np.isfinite(change).all()


# files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_cells", [True, False])
def test_a_saved_model_knows_the_design_and_predicts_the_same(model, with_cells, tmp_path):
    cells = controls(model.adata)
    settings = {"to": NEW["all of it"], "route": "auto" if with_cells else "decoder"}
    made = quietly(model.transfer, cells, **settings)
    model.save(tmp_path / "model", save_anndata=with_cells)
    back = sa.load(tmp_path / "model")
    design, before = back.reader.structure.design, model.reader.structure.design
    assert design.contents == before.contents
    np.testing.assert_array_equal(design.descriptors, before.descriptors)
    np.testing.assert_array_equal(quietly(back.transfer, cells, **settings).X, made.X)
    if not with_cells:
        with pytest.raises(ValueError, match="loaded without them"):
            quietly(back.transfer, cells, to=NEW["all of it"])
        own = model.adata.copy()
        del own.obs["conditions"]
        again = type(model).load(tmp_path / "model", own)  # cells that were never set up
        np.testing.assert_array_equal(
            quietly(again.transfer, cells, to=NEW["a combination"]).X,
            quietly(model.transfer, cells, to=NEW["a combination"]).X,
        )


# further uses -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_of_conditions_with_structure(one, tmp_path):
    quietly(one.report, tmp_path / "page.html")
    assert "drug_2 0.1+drug_3 1" in (tmp_path / "page.html").read_text()


def test_getters_work_as_with_names(model):
    cells = controls(model.adata)
    assert model.get_latent_representation(cells).shape == (12, 3)
    assert np.isfinite(model.get_normalized_expression(cells).to_numpy()).all()
    assert np.isfinite(model.get_elbo(cells, return_mean=False)).all()
    noted = model.annotate(cells, copy=True)
    assert f"X_{model.name}" in noted.obsm
    assert len(quietly(model.get_transfer_groups, cells)) > 0
    assert "drug_2 0.1+drug_3 1" in model.conditions
    if hasattr(model, "generate"):
        made = model.generate(6)
        assert made.n_obs == 6
        assert set(made.obs["conditions"]) <= set(model.conditions)


def test_times_are_predicted_too():
    cells = screened(times=(2.0, 8.0), n_pairs=0)
    set_up("CGMDVAE", cells, time="time")
    model = trained("CGMDVAE", cells)
    assert "control at 2" in model.conditions
    start = cells[((cells.obs["drug"] == "control") & (cells.obs["time"] == 2)).to_numpy()][:9].copy()
    made = quietly(model.transfer, start, to={"drug_0": 0.5, "time": 4})
    assert set(made.obs["time"]) == {4.0}
    assert set(made.obs["dose"]) == {0.5}
    assert not made.obs["transfer_far"].any()
    late = quietly(model.transfer, start, to={"time": 20.0})
    assert late.obs["transfer_far"].all()
    assert np.isfinite(late.X).all()
    with pytest.raises(ValueError, match="says no time"):
        model.transfer(start, to={"drug_0": 0.5})
    curve = quietly(model.dose_response, "drug_0", [0.1, 0.5], beside={"time": 4}, genes=["gene_1"])
    assert np.isfinite(curve["log_fold_change"]).all()


@pytest.mark.parametrize("entry", ["frame", "array", "sparse"])
def test_amounts_in_obsm(screen, entry, tmp_path):
    """Predictions have them as well, so that they can be read by the model and written."""
    cells = screen.copy()
    names = [f"drug_{i}" for i in range(4)]
    table = pd.DataFrame(0.0, index=cells.obs_names, columns=names)
    for cell, drug, dose in zip(cells.obs_names, cells.obs["drug"], cells.obs["dose"], strict=True):
        doses = dose.split("+") * (1 if "+" in dose else 2)
        for part, amount in zip(drug.split("+"), doses, strict=False):
            if part != "control":
                table.loc[cell, part] = float(amount)
    cells.obs = cells.obs[["cell_type"]]
    cells.obsm["amounts"] = {"frame": table, "array": table.to_numpy(), "sparse": sp.csr_matrix(table)}[entry]
    set_up("CGMDVAE", cells, factors="amounts", dose=None, descriptors=None)
    model = trained("CGMDVAE", cells)
    part = "drug_0" if entry == "frame" else "0"
    start = cells[(cells.obs["conditions"] == "control").to_numpy()][:9].copy()
    new = quietly(model.transfer, start, to={part: 0.5})
    assert set(new.obs["conditions"]) == {f"{part} 0.5"}
    assert "amounts" not in new.obs
    found = new.obsm["amounts"]
    assert type(found) is type(start.obsm["amounts"])
    values = found.toarray() if sp.issparse(found) else np.asarray(found)
    np.testing.assert_array_equal(values, np.tile([0.5, 0, 0, 0], (9, 1)))
    new.write_h5ad(tmp_path / "new.h5ad")
    assert np.isfinite(quietly(model.get_latent_representation, new)).all()
    seen = quietly(model.transfer, start, to={part: 1.0})
    assert np.isfinite(model.get_latent_representation(seen)).all()


def test_several_columns(screen):
    """A combination of two drugs in two columns is predicted, and its columns are read again."""
    cells = screen.copy()
    split = cells.obs["drug"].astype(str).str.split("+")
    cells.obs["first"] = split.str[0]
    cells.obs["second"] = [v[1] if len(v) > 1 else "control" for v in split]
    sa.CGMDVAE.setup_anndata(cells, conditions=sa.Conditions(["first", "second"]), labels_key="cell_type")
    model = trained("CGMDVAE", cells)
    assert "drug_2+drug_3" in model.conditions
    made = quietly(model.transfer, controls(cells), to={"drug_3": 1, "drug_1": 1, "drug_0": 1})
    assert set(made.obs["first"]) == {"drug_0"}
    assert set(made.obs["second"]) == {"drug_1+drug_3"}
    seen = quietly(model.transfer, controls(cells), to={"first": "drug_3", "second": "drug_2"})
    assert set(seen.obs["conditions"]) == {"drug_2+drug_3"}
    model.get_latent_representation(seen)


OTHER = {
    "donors": {"labels_key": "cell_type", "donor_key": "donor"},
    "batches": {"labels_key": "cell_type", "batch_key": "donor"},
    "clusters": {},
    "some labels": {"labels_key": "some", "unlabeled_category": "Unknown"},
    "no counts": {"labels_key": "cell_type", "layer": "log", "allow_non_counts": True},
}


@pytest.mark.parametrize("other", OTHER)
def test_with_whatever_else_is_set_up(screen, other):
    cells = screen.copy()
    cells.obs["donor"] = np.resize(["d1", "d2", "d3"], cells.n_obs)
    cells.obs["some"] = np.where(np.arange(cells.n_obs) % 3, cells.obs["cell_type"].astype(str), "Unknown")
    cells.layers["log"] = np.log1p(cells.X.toarray())
    asked = sa.Conditions(**ASKED, descriptors="descriptors")
    sa.CGMDVAE.setup_anndata(cells, conditions=asked, **OTHER[other])
    more = {"gene_likelihood": "normal"} if other == "no counts" else {}
    model = sa.CGMDVAE(cells, **SMALL, **more)
    model.train(max_epochs=1, **QUIET)
    start = controls(cells)
    made = quietly(model.transfer, start, to=NEW["all of it"])
    assert np.isfinite(made.X).all()
    from_other = quietly(model.transfer, cells[(cells.obs["drug"] == "drug_1").to_numpy()].copy(), to={})
    assert np.isfinite(from_other.X).all()
    if other == "donors":
        start.obs["donor"] = "new"
        assert np.isfinite(quietly(model.transfer, start, to=NEW["a combination"]).X).all()
    curve = quietly(model.dose_response, "drug_0", [0.5])
    assert np.isfinite(curve["sd"]).all()
    assert np.isfinite(quietly(model.interactions)["se"]).all()


def test_with_controls_only_descriptions_are_all_there_is(screen):
    cells = screen[(screen.obs["drug"] == "control").to_numpy()].copy()
    set_up("CGMDVAE", cells)
    model = trained("CGMDVAE", cells)
    made = quietly(model.transfer, controls(cells), to={"drug_4": 1.0})
    assert np.isfinite(made.X).all()
    assert made.obs["transfer_far"].all()


def test_cells_on_the_disk(one, tmp_path):
    cells = controls(one.adata)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    quietly(one.write_transfer, tmp_path / "made.h5ad", backed, to=NEW["a combination"])
    made = ad.read_h5ad(tmp_path / "made.h5ad")
    np.testing.assert_allclose(
        np.asarray(made.X), quietly(one.transfer, cells, to=NEW["a combination"]).X, rtol=1e-5, atol=1e-6
    )


# a second study -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CGMDVAE interaction", "CGMDVAE full", "TRVAE"])
def test_a_second_study_with_new_drugs_and_doses(name, screen, tmp_path):
    drug, dose = screen.obs["drug"].astype(str), screen.obs["dose"].astype(str)
    old = ~(drug.str.contains("drug_3") | ((drug == "drug_0") & (dose == "0.1"))).to_numpy()
    reference, query = screen[old].copy(), screen[~old | (np.arange(360) % 7 == 0)].copy()
    set_up(name, reference)
    model = trained(name, reference, epochs=2)
    before = query.copy()
    z, cells = model.get_latent_representation(), controls(reference)
    design = model.reader.structure.design
    weights = {
        k: m.weight.detach().clone() for k, m in model.module.named_modules() if isinstance(m, Composed)
    }
    model.save(tmp_path / "reference")
    mapped = type(model).load_query_data(query, tmp_path / "reference")
    grown = mapped.reader.structure.design
    assert mapped.conditions[: len(model.conditions)] == model.conditions
    assert grown.parts == design.parts  # all are described
    assert "drug_3 1" in mapped.conditions
    assert not grown.beyond(grown.contents[-1])
    np.testing.assert_array_equal(mapped.get_latent_representation(reference), z)
    mapped.train(max_epochs=2, **QUIET)
    np.testing.assert_array_equal(mapped.get_latent_representation(reference), z)
    new = {k: m.weight.detach() for k, m in mapped.module.named_modules() if isinstance(m, Composed)}
    for key, old_weight in weights.items():
        assert torch.equal(new[key][: len(old_weight)], old_weight)
    made = quietly(mapped.transfer, cells, to={"drug_3": 0.5, "drug_1": 1.0})
    assert np.isfinite(made.X).all()
    pd.testing.assert_frame_equal(query.obs, before.obs)
    mapped.save(tmp_path / "mapped")
    again = sa.load(tmp_path / "mapped", query)
    np.testing.assert_array_equal(again.get_latent_representation(), mapped.get_latent_representation())


def test_a_second_study_with_a_drug_that_the_model_knows_nothing_of(screen):
    drug = screen.obs["drug"].astype(str)
    old = ~drug.str.contains("drug_3").to_numpy()
    reference, query = screen[old].copy(), screen[~old | (drug == "control").to_numpy()].copy()
    set_up("CGMDVAE interaction", reference, descriptors=None)
    model = trained("CGMDVAE interaction", reference, epochs=2)
    z = model.get_latent_representation()
    mapped = sa.CGMDVAE.load_query_data(query, model)
    design, grown = model.reader.structure.design, mapped.reader.structure.design
    assert grown.parts == (*design.parts, "drug_3")
    assert grown.n_columns == design.n_columns + design.width
    known = dict(model.module.named_parameters())
    mapped.train(max_epochs=2, **QUIET)
    np.testing.assert_array_equal(mapped.get_latent_representation(reference), z)
    moved = 0
    for key, value in mapped.module.named_parameters():
        if value.shape != known[key].shape:
            assert torch.equal(value[: len(known[key])], known[key])
            more = value[len(known[key]) :]
            moved += not torch.allclose(more, known[key].mean(0).expand_as(more))
    assert moved
    made = quietly(mapped.transfer, controls(reference), to={"drug_3": 0.4, "drug_0": 1.0})
    assert np.isfinite(made.X).all()


def test_a_second_study_needs_descriptors_of_its_drugs(screen):
    cells = screen.copy()
    set_up("CGMDVAE", cells)
    model = trained("CGMDVAE", cells)
    query = screen[:50].copy()
    query.obs["drug"] = query.obs["drug"].astype(str).str.replace("drug_1", "drug_9")
    with pytest.raises(ValueError, match="no descriptors of 'drug_9'"):
        sa.CGMDVAE.load_query_data(query, model)


# odd requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ("", ValueError),
        (" ", ValueError),
        ("drug_0", ValueError),
        ("nobody", ValueError),
        (None, TypeError),
        (7, TypeError),
        ({"": 1.0}, ValueError),
        ({"drug_0": np.nan}, ValueError),
        ({"drug_0": -1.0}, ValueError),
        ({"drug_0": np.inf}, ValueError),
        ({"drug_0": "1"}, ValueError),
        ({"drug": ""}, ValueError),
        ({"drug": "drug_0", "dose": ""}, ValueError),
        ({"dose": 1.0}, ValueError),
    ],
)
def test_odd_requests_are_refused_and_leave_nothing_behind(one, to, error):
    cells = controls(one.adata)
    before = quietly(one.transfer, cells, to="drug_0 1")
    for call in (one.transfer, lambda cells, to: one.write_transfer("never.h5ad", cells, to)):
        with pytest.raises(error, match="`to"):
            call(cells, to=to)
    np.testing.assert_array_equal(quietly(one.transfer, cells, to="drug_0 1").X, before.X)


@pytest.mark.parametrize("dose", [1e6, 1e300, 1e-300])
def test_doses_of_any_size_are_predicted(one, dose):
    made = quietly(one.transfer, controls(one.adata), to={"drug_0": dose})
    assert np.isfinite(made.X).all()
    assert np.isfinite(made.layers["counts"].toarray()).all()
    assert made.obs["transfer_far"].all()


def test_an_error_within_a_prediction_leaves_the_model_as_it_was(one, monkeypatch):
    cells = controls(one.adata)
    before = quietly(one.transfer, cells, to="drug_0 1")

    def fails(*args, **kwargs):
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patched:
        patched.setattr("scalloy.models._core.transfer.decode", fails)
        with pytest.raises(RuntimeError, match="interrupted"):
            quietly(one.transfer, cells, to=NEW["a combination"])
    assert {len(m.index) for m in one.module.modules() if isinstance(m, Composition)} == {len(one.conditions)}
    np.testing.assert_array_equal(quietly(one.transfer, cells, to="drug_0 1").X, before.X)


def test_names_and_contents_of_targets(one):
    seen = targets.target_of(one, {"drug_0": 1})
    assert (seen.name, seen.seen) == ("drug_0 1", True)
    new = targets.target_of(one, NEW["a combination"])
    assert (new.name, new.seen) == ("drug_0 0.5+drug_3 1", False)
    with targets.knowing(one, seen) as code:
        assert code == one.conditions.index("drug_0 1")
    design = one.reader.structure.design
    with targets.knowing(one, new) as code:
        assert code == len(one.conditions)
        index, value = design.rows([new.content])
        for m in (m for m in one.module.modules() if isinstance(m, Composition)):
            np.testing.assert_array_equal(m.index[code][: index.shape[1]], index[0])
            np.testing.assert_array_equal(m.value[code][: index.shape[1]], value[0])


def test_odd_names_of_parts(screen):
    """Parts called like conditions, like numbers, or by any letters."""
    odd = {"drug_0": "drug_1 1", "drug_1": "control at 3", "drug_2": "🙂/..", "drug_3": "__array__"}
    cells = screen.copy()
    drug = cells.obs["drug"].astype(str)
    for old, new in odd.items():
        drug = drug.str.replace(old, new, regex=False)
    cells.obs["drug"] = drug
    set_up("CGMDVAE", cells, descriptors=None)
    model = trained("CGMDVAE", cells)
    made = quietly(model.transfer, controls(cells), to={"__array__": 0.5, "🙂/..": 1.0})
    assert set(made.obs["drug"]) == {"__array__+🙂/.."}
    assert np.isfinite(made.X).all()
