"""Cells of donors that a model was not trained on."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
import torch

import scalloy as sa
from scalloy import metrics
from scalloy.benchmark.fit import log_normalised
from scalloy.blocks.networks import Beside, Layer
from scalloy.models._core import conditions

NEW = "donor_3"


@pytest.fixture(scope="module")
def cells():
    """Four donors who differ; types respond in much the same way."""
    adata = sa.datasets.trial(2000, 100, n_types=4, n_donors=4, donor_effect=0.5, seed=0)
    return ad.AnnData(adata.X, obs=adata.obs, var=adata.var)


@pytest.fixture(scope="module")
def model(cells):
    """A model of three of the donors."""
    known = cells[(cells.obs["donor"] != NEW).to_numpy()].copy()
    sa.CGMDVAE.setup_anndata(known, condition_key="condition", labels_key="cell_type", donor_key="donor")
    model = sa.CGMDVAE(known, n_hidden=32, n_latent=5)
    model.train(max_epochs=25, enable_progress_bar=False, accelerator="cpu")
    return model


def new(cells, condition="control"):
    obs = cells.obs
    return cells[((obs["donor"] == NEW) & (obs["condition"] == condition)).to_numpy()].copy()


@pytest.fixture
def quiet():
    """Keep the warning from being an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has donors that the model has never seen")
        warnings.filterwarnings("ignore", message="Far from what was seen")
        yield


def skill_of(predicted, cells, name):
    controls, treated = new(cells), new(cells, "treated")
    of, seen = ((c.obs["cell_type"] == name).to_numpy() for c in (controls, treated))
    truth, before = log_normalised(treated.X)[seen].mean(0), log_normalised(controls.X)[of].mean(0)
    counts = log_normalised(predicted.layers["counts"])
    return [metrics.skill(x[of].mean(0), truth, before) for x in (np.asarray(predicted.X), counts)]


def test_an_unknown_category_is_the_average_of_the_known_ones():
    torch.manual_seed(0)
    layer, x = Layer(5, 8, n_cats=(3, 2), norm="none").eval(), torch.randn(4, 5)
    codes = [torch.tensor([0, -1, 2, -1]), torch.tensor([1, 0, 1, 1])]
    with torch.no_grad():
        found = layer(x, codes)
        first, second = (table.weight for table in layer.covariates.tables)
        for row, (a, b) in enumerate(zip(*codes, strict=True)):
            shift = first.mean(0) if a < 0 else first[a]
            expected = torch.relu(layer.linear(x[row]) + shift + second[b])
            torch.testing.assert_close(found[row], expected)
    beside = Beside(5, n_cats=(3, 1))(x, [codes[0], torch.zeros(4).long()])
    torch.testing.assert_close(beside[:, 5:], torch.eye(4, 3)[[0, 3, 2, 3]] + (codes[0] < 0)[:, None] / 3)


def test_they_are_read_with_a_warning_that_comes_once(model, cells):
    model.reader._told.clear()
    with pytest.warns(UserWarning, match=r"donors that the model has never seen: donor_3\. They are taken"):
        labels = model.predict_labels(new(cells))
    assert (labels.astype(str).to_numpy() == new(cells).obs["cell_type"].astype(str)).mean() > 0.9
    assert np.isfinite(model.get_latent_representation(new(cells))).all()  # a warning would be an error


def test_known_donors_beside_new_ones_are_read_as_before(model, cells, quiet):
    known = cells[(cells.obs["donor"] == "donor_1").to_numpy()][:50].copy()
    both = ad.concat([new(cells), known])
    together = model.get_latent_representation(both)
    np.testing.assert_allclose(together[-50:], model.get_latent_representation(known), atol=1e-5)
    as_donor = {}
    for name in ("donor_0", "donor_1", "donor_2", "somebody"):
        renamed = known.copy()
        renamed.obs["donor"] = name
        as_donor[name] = model.get_latent_representation(renamed)
    apart = {k: np.abs(z - as_donor["somebody"]).mean() for k, z in as_donor.items() if k != "somebody"}
    between = np.abs(as_donor["donor_0"] - as_donor["donor_1"]).mean()
    assert 0.05 * between < min(apart.values()) < max(apart.values()) < 1.5 * between  # in their midst


def test_their_response_is_predicted_from_their_own_controls(model, cells, quiet):
    predicted = model.transfer(new(cells), to="treated")
    same = model.transfer(new(cells), to="treated", context=new(cells))
    np.testing.assert_array_equal(predicted.X, same.X)
    for name in ("type_0", "type_1", "type_2", "type_3"):
        assert min(skill_of(predicted, cells, name)) > 0.3
    assert f"type_0 of {NEW} from control" in predicted.uns["transfer"]["shift"]


def test_so_it_is_in_a_file(model, cells, quiet, tmp_path):
    given = new(cells)
    model.write_transfer(tmp_path / "treated.h5ad", given, to="treated")
    written = ad.read_h5ad(tmp_path / "treated.h5ad")
    np.testing.assert_allclose(written.X, model.transfer(given, to="treated").X, atol=1e-6)
    given.write_h5ad(tmp_path / "given.h5ad")
    backed = ad.read_h5ad(tmp_path / "given.h5ad", backed="r")
    model.write_transfer(tmp_path / "again.h5ad", backed, to="treated")
    np.testing.assert_allclose(ad.read_h5ad(tmp_path / "again.h5ad").X, written.X, atol=1e-6)


def test_a_loaded_model_reads_them_as_well(model, cells, quiet, tmp_path):
    model.save(tmp_path / "model")
    loaded = sa.load(tmp_path / "model")
    found = loaded.get_latent_representation(new(cells))
    np.testing.assert_allclose(found, model.get_latent_representation(new(cells)), atol=1e-5)


def test_a_missing_donor_is_still_an_error(model, cells):
    given = new(cells)
    given.obs["donor"] = given.obs["donor"].astype(object).where(np.arange(given.n_obs) > 0, None)
    with pytest.raises(ValueError, match="donor"):
        model.get_latent_representation(given)
    del given.obs["donor"]
    with pytest.raises(KeyError, match="donor"):
        model.get_latent_representation(given)


def test_a_donor_without_cells_is_new_though_the_column_has_the_category(cells):
    known = (cells.obs["donor"] != NEW).to_numpy()
    trained = ad.AnnData(cells.X[known], obs=cells.obs[known], var=cells.var)  # keeps unused categories
    assert NEW in trained.obs["donor"].cat.categories
    keys = {"condition_key": "condition", "labels_key": "cell_type", "donor_key": "donor"}
    sa.CGMDVAE.setup_anndata(trained, **keys)
    assert NEW in trained.obs["donor"].cat.categories  # what was given stays as it was
    model = sa.CGMDVAE(trained, n_hidden=8, n_latent=3)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    assert model.reader.sizes.n_cats == (3,)
    with pytest.warns(UserWarning, match="never seen: donor_3"):
        model.get_latent_representation(new(cells))


# known donors without own cells under a condition ------------------------------------------------


@pytest.fixture(scope="module", params=["donor_key", "batch_key"])
def lacking(request, cells):
    """A model of all donors, of one of whom it has seen the cells of one type only."""
    obs = cells.obs
    left_out = (obs["donor"] == NEW) & (obs["cell_type"] != "type_3")
    known = cells[~left_out.to_numpy()].copy()
    keys = {"condition_key": "condition", "labels_key": "cell_type", request.param: "donor"}
    sa.CGMDVAE.setup_anndata(known, **keys)
    model = sa.CGMDVAE(known, n_hidden=32, n_latent=5)
    model.train(max_epochs=25, enable_progress_bar=False, accelerator="cpu")
    return model


def of_type(adata, name):
    return adata[(adata.obs["cell_type"] == name).to_numpy()].copy()


@pytest.fixture
def from_others(lacking, cells, quiet):
    """Nine cells at a time, which are too few to start at."""
    some = of_type(new(cells), "type_0")
    parts = [some[i : i + 9].copy() for i in range(0, some.n_obs, 9)]
    return ad.concat([lacking.transfer(part, to="treated") for part in parts]), some


def test_a_known_donor_without_own_cells_starts_at_those_that_are_passed(lacking, cells, quiet, from_others):
    predicted, given = lacking.transfer(new(cells), to="treated"), new(cells)
    lacks, has = ((given.obs["cell_type"].isin(k)).to_numpy() for k in (["type_0", "type_1"], ["type_3"]))
    same = lacking.transfer(given, to="treated", context=given)
    np.testing.assert_allclose(predicted.X[lacks], same.X[lacks], atol=1e-6)
    alone = lacking.transfer(of_type(given, "type_3")[:20].copy(), to="treated")
    np.testing.assert_allclose(predicted.X[has][:20], alone.X, atol=1e-5)  # he has own cells of this type
    others, some = from_others
    truth = log_normalised(of_type(new(cells, "treated"), "type_0").X).mean(0)
    before = log_normalised(some.X).mean(0)
    ours, theirs = (
        metrics.skill(np.asarray(x).mean(0), truth, before)
        for x in (predicted.X[given.obs["cell_type"] == "type_0"], others.X)
    )
    assert ours > 0.5 > 0 > theirs


def test_where_a_known_donor_has_own_controls_no_other_cell_matters(lacking, cells, quiet):
    donor_1 = cells[((cells.obs["donor"] == "donor_1") & (cells.obs["condition"] == "control")).to_numpy()]
    given = ad.concat([new(cells), donor_1])
    together = lacking.transfer(given, to="treated")
    np.testing.assert_allclose(
        together.X[-donor_1.n_obs :], lacking.transfer(donor_1.copy(), to="treated").X, atol=1e-5
    )
    np.testing.assert_allclose(
        together.X[: -donor_1.n_obs], lacking.transfer(new(cells), to="treated").X, atol=1e-5
    )


def test_cells_start_at_all_that_are_passed_whatever_the_pieces(lacking, cells, quiet, tmp_path, monkeypatch):
    given = new(cells)[np.random.default_rng(0).permutation(new(cells).n_obs)].copy()
    whole = np.asarray(lacking.transfer(given, to="treated").X)
    monkeypatch.setattr(conditions, "DECODED_ENTRIES", 7 * given.n_vars)
    given.write_h5ad(tmp_path / "given.h5ad")
    backed = ad.read_h5ad(tmp_path / "given.h5ad", backed="r")
    for name, source in {"memory": given, "backed": backed, "view": backed[np.arange(given.n_obs)]}.items():
        lacking.write_transfer(tmp_path / f"{name}.h5ad", source, to="treated")
        np.testing.assert_allclose(ad.read_h5ad(tmp_path / f"{name}.h5ad").X, whole, atol=1e-5)
    backed.file.close()


def test_known_donors_beside_new_ones_start_at_their_own_cells(model, cells, quiet):
    control = (cells.obs["donor"] == "donor_1") & (cells.obs["condition"] == "control")
    known = of_type(cells[control.to_numpy()], "type_0")[:20].copy()
    both = model.transfer(ad.concat([new(cells), known]), to="treated")
    np.testing.assert_allclose(both.X[-20:], model.transfer(known, to="treated").X, atol=1e-5)
    np.testing.assert_allclose(both.X[:-20], model.transfer(new(cells), to="treated").X, atol=1e-5)
