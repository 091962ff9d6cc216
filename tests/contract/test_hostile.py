"""Hostile AnnData through all that takes one: it works, or an error of ours says why; nothing is changed.

``SCALLOY_HOSTILE=2000`` tries that many of each kind instead of a few.
"""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
from hostile.cases import made, plain
from hostile.rules import Refused, attempt, fingerprint
from hostile.strategies import COLUMNS, SHORT, SMALL, mild, names, seeds, tried
from hypothesis import assume, given
from hypothesis import strategies as st

import scalloy as sa

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # odd cells are warned of

SIZES = {"GMVAE": {"n_clusters": 3}, "POISEVAE": {"n_chains": 8}}
CLASSES = ("AE", "VAE", "BetaVAE", "GMVAE", "CGMDVAE", "TRVAE", "BetaVSC", "POISEVAE")


def arguments(cls, odd):
    """Columns of the plain case, and what is odd, as far as the set-up takes them."""
    known = inspect.signature(cls.setup_anndata).parameters
    return {k: v for k, v in {**COLUMNS, **odd}.items() if k in known}


def fitted(name, adata, **odd):
    """A trained model, or why not."""
    cls = getattr(sa, name)
    if isinstance(done := attempt(cls.setup_anndata, adata, **arguments(cls, odd)), Refused):
        return done
    model = attempt(cls, adata, **SMALL, **SIZES.get(name, {}))
    if not isinstance(model, Refused) and isinstance(done := attempt(model.train, **SHORT), Refused):
        return done
    return model


GETTERS = {
    "get_latent_representation": {},
    "get_normalized_expression": {},
    "get_elbo": {"return_mean": False},
    "get_reconstruction_error": {"return_mean": False},
    "get_marginal_ll": {"n_mc_samples": 2, "return_mean": False},
    "posterior_predictive_sample": {},
    "get_gene_statistics": {},
    "get_latent_genes": {"n_genes": 2},
    "get_traversal": {"latent": 0, "n_steps": 2},
    "annotate": {"copy": True},
    "get_cluster_probabilities": {},
    "get_clusters": {},
    "predict_labels": {"soft": True},
    "get_unknown_score": {},
    "get_active": {},
    "get_sparsity": {},
    "transfer": {"to": "stim", "n_samples": 2},
}
OF_HELD_OUT = ("get_elbo", "get_reconstruction_error", "get_marginal_ll")  # by default
BY_GENE = ("get_gene_statistics", "get_latent_genes", "get_traversal")


def ask(model, getter, adata):
    """One getter, and whether its answer can be true."""
    first = {"cells": adata} if getter == "transfer" else {"adata": adata}
    found = attempt(getattr(model, getter), **first, **GETTERS[getter])
    if isinstance(found, Refused):
        return found
    values = found["reconstruction_loss"] if isinstance(found, dict) else found
    if getter == "transfer":
        values = pd.DataFrame(found.X, index=found.obs["transfer_of"])
    if getter == "annotate":
        values = pd.DataFrame(found.obsm[f"X_{model.name}"], index=found.obs_names)
    cells = model.adata if adata is None else adata
    if getter not in BY_GENE:
        held_out = adata is None and getter in OF_HELD_OUT
        assert held_out or len(values) == cells.n_obs
        if isinstance(values, pd.DataFrame | pd.Series):
            assert list(values.index) == list(cells.obs_names)
    numbers = values.select_dtypes("number") if isinstance(values, pd.DataFrame) else values
    if getattr(numbers, "dtype", None) != "category":
        assert np.isfinite(np.asarray(numbers, dtype=float)).all()
    return found


def one_getter(model):
    """A getter that this model has."""
    return st.sampled_from([name for name in GETTERS if hasattr(model, name)])


# set-up, training, and back -----------------------------------------------------------------------


@tried(300)
@given(st.sampled_from(CLASSES), names(), seeds)
def test_set_up(name, wrong, seed):
    case, adata = made(wrong, seed)
    assume(adata is not None)
    before, cls = fingerprint(adata), getattr(sa, name)
    given = arguments(cls, case.given)
    attempt(cls.setup_anndata, adata, **given)
    assert fingerprint(adata) == before
    assert not isinstance(attempt(cls.setup_anndata, plain(seed).adata(), **arguments(cls, {})), Refused)


@tried(80)
@given(st.sampled_from(CLASSES), mild, seeds, st.data())
def test_from_set_up_to_getters(name, wrong, seed, data):
    case, adata = made(wrong, seed)
    assume(adata is not None)
    before = fingerprint(adata)
    model = fitted(name, adata, **case.given)
    if not isinstance(model, Refused):
        for getter in data.draw(st.lists(one_getter(model), min_size=3, max_size=3, unique=True)):
            ask(model, getter, None)
        if hasattr(model, "generate"):
            assert attempt(model.generate, 3).n_obs == 3
    assert fingerprint(adata) == before


@tried(40)
@given(st.sampled_from(CLASSES), mild, names("given", "names:var", "shape"), seeds)
def test_save_and_load(tmp_path_factory, name, wrong, other, seed):
    """What was trained on odd data comes back, and takes up other odd data or says why not."""
    case, adata = made(wrong, seed)
    assume(adata is not None)
    model = fitted(name, adata, **case.given)
    if isinstance(model, Refused):
        return
    folder = tmp_path_factory.mktemp("model") / "m"
    model.save(folder)
    z = model.get_latent_representation()
    again = sa.load(folder, adata)
    np.testing.assert_array_equal(again.get_latent_representation(), z)
    copy = adata.copy()
    np.testing.assert_allclose(sa.load(folder).get_latent_representation(copy), z, atol=1e-4)
    cells = made(other, seed)[1]
    if cells is not None:
        before = fingerprint(cells)
        attempt(sa.load, folder, cells)
        assert fingerprint(cells) == before


# a trained model and new cells --------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One of each class with its cells, and one without."""
    found = {}
    for name in CLASSES:
        found[name] = fitted(name, plain().adata())
        found[name].save(folder := tmp_path_factory.mktemp("models") / name)
        found[f"{name} without cells"] = sa.load(folder)
    return found


@tried(250)
@given(st.sampled_from(CLASSES), st.booleans(), names("given"), seeds, st.data())
def test_new_cells(models, name, with_cells, wrong, seed, data):
    model = models[name if with_cells else f"{name} without cells"]
    adata = made(wrong, seed)[1]
    assume(adata is not None)
    before = fingerprint(adata)
    ask(model, data.draw(one_getter(model)), adata)
    assert fingerprint(adata) == before


@tried(40)
@given(
    names("given"), seeds, st.sampled_from([("prot", "rna"), ("rna", "prot"), ("prot", None), ("rna", None)])
)
def test_one_modality_from_the_other(models, wrong, seed, which):
    adata = made(wrong, seed)[1]
    assume(adata is not None)
    before = fingerprint(adata)
    found = attempt(models["POISEVAE"].predict, which[0], from_=which[1], adata=adata, n_samples=2)
    if not isinstance(found, Refused):
        assert np.isfinite(found.to_numpy()).all()
        assert list(found.index) == list(adata.obs_names)
    assert fingerprint(adata) == before


@tried(30)
@given(st.sampled_from(["CGMDVAE", "TRVAE"]), names("given"), seeds)
def test_scgens_call(models, name, wrong, seed):
    adata = made(wrong, seed)[1]
    assume(adata is not None)
    before = fingerprint(adata)
    attempt(models[name].predict, "ctrl", "stim", adata_to_predict=adata, n_samples=2)
    assert fingerprint(adata) == before


@tried(30)
@given(st.sampled_from(CLASSES), mild, seeds)
def test_query(models, name, wrong, seed):
    """A second study is set up as the first was, in an object of its own."""
    adata = made(wrong, seed)[1]
    assume(adata is not None)
    before = fingerprint(adata)
    query = attempt(getattr(sa, name).load_query_data, adata, models[name])
    if not isinstance(query, Refused):
        attempt(query.train, **SHORT)
        assert np.isfinite(query.get_latent_representation()).all()
    assert fingerprint(adata) == before


INDICES = [
    5,
    "abc",
    {1, 2},
    [[1], [1, 2]],
    [[1, 2]],
    [0.5],
    ["1"],
    [None],
    [True],
    [999],
    [-41],
    np.zeros((2, 2)),
    [],
]


@pytest.mark.parametrize("indices", INDICES, ids=repr)
def test_rows_that_are_none(models, indices):
    for name in ("get_latent_representation", "get_normalized_expression", "get_elbo", "get_marginal_ll"):
        found = attempt(getattr(models["VAE"], name), indices=indices)
        assert isinstance(found, Refused)
        assert isinstance(found.error, IndexError | ValueError)
        assert "`indices`" in found.message


@pytest.mark.parametrize(
    "thing", [None, 3, "text", np.ones((4, 12)), pd.DataFrame(np.ones((4, 12))), [1], {}]
)
@pytest.mark.parametrize("name", CLASSES)
def test_what_is_no_anndata(models, name, thing):
    cls = getattr(sa, name)
    refused = [attempt(cls.setup_anndata, thing)]
    if thing is not None:  # that is the model's own cells
        refused += [ask(models[name], getter, thing) for getter in GETTERS if hasattr(cls, getter)]
    assert all(isinstance(found, Refused) for found in refused)
