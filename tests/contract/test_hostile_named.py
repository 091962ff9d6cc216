"""Each kind of hostile input by its name: what it says, or that it works and gives the same numbers."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hostile.cases import HOSTILE, made, plain
from hostile.rules import Refused, attempt, fingerprint
from hostile.strategies import COLUMNS, SHORT, SMALL

import scalloy as sa

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # odd cells are warned of

SAID = {
    "x:inf": "holds NaN or infinite values in 1 cell",
    "x:minus infinity": "holds NaN or infinite values in 1 cell",
    "x:NaN": "holds NaN or infinite values in 1 cell",
    "x:negative": "holds negative values in 1 cell",
    "x:fraction": "not whole numbers, such as 0.25",
    "x:log-normalised": "not whole numbers",
    "x:count of 1e30": "more than 1e+15, which no assay counts",
    "x:more than single precision holds": "more than 1e+15, which no assay counts",
    "x:denormal": "not whole numbers",
    "x:empty cells": "3 cell(s) have no counts in `adata.X`",
    "x:all zero": "40 cell(s) have no counts in `adata.X`",
    "dtype:object": "is a ndarray of object. Expected a numpy array",
    "dtype:complex64": "is a ndarray of complex64. Expected a numpy array",
    "dtype:str": "Expected a numpy array",
    "dtype:S4": "Expected a numpy array",
    "layout:masked array": "is a MaskedArray of int64. Expected a numpy array",
    "layout:no X": "`adata.X` is empty (None)",
    "names:var twice": "Names of genes occur more than once in `adata.var_names`: a",
    "names:var all empty": "Names of genes occur more than once",
    "names:var same as strings": "Names of genes occur more than once in `adata.var_names`: 3",
    "names:var missing": "2 gene(s) have no name (None, NaN) in `adata.var_names`",
    "obs:NaN": "is missing (NaN) in 1 cell",
    "obs:None": "is missing (NaN) in 1 cell",
    "obs:NA": "is missing (NaN) in 1 cell",
    "obs:categorical with NaN": "is missing (NaN) in 1 cell",
    "obs:pandas strings with NA": "is missing (NaN) in 1 cell",
    "obs:all NaN": "is missing (NaN) in 40 cell",
    "obs:mixed": "holds values of kind mixed",
    "obs:same as strings": "holds values of kind mixed",
    "obs:tuples": "holds values of kind mixed",
    "obs:lists": "holds values of kind mixed",
    "obs:bytes": "holds values of kind bytes",
    "obs:dates": "holds values of kind datetime64",
    "obs:durations": "holds values of kind timedelta64",
    "obs:intervals": "holds values of kind interval",
    "obs:complex": "holds values of kind complex",
    "obs:NUL": "holds names with a NUL character",
    "obs:two columns of one name": "is the name of 2 columns of `adata.obs`",
    "obs:none at all": "is not a column of `adata.obs`. Columns: none",
    "obs:score NaN": "is missing (NaN) in 1 cell",
    "obs:score infinite": "but is not in 1 cell(s)",
    "obs:score huge": "but is not in 1 cell(s)",
    "obs:score large": "but is not in 40 cell(s)",
    "obs:score text": "expected numbers",
    "obs:score object": "expected numbers",
    "obs:score object with text": "expected numbers",
    "obs:score categorical": "expected numbers",
    "obs:score complex": "has dtype complex128; expected numbers",
    "obs:score dates": "expected numbers",
    "obs:score nullable with NA": "is missing (NaN) in 1 cell",
    "obs:size zero": "must be positive and finite, but is not in 1 cell(s): cell_0",
    "obs:size negative": "must be positive and finite, but is not in 1 cell(s): cell_0",
    "given:batch_key int": "`batch_key=7` is a int. Expected one name, as str",
    "given:batch_key list": "`batch_key=['batch']` is a list. Expected one name, as str",
    "given:batch_key missing": "`batch_key='nope'` is not a column of `adata.obs`",
    "given:batch_key bytes": "is a bytes. Expected one name",
    "given:labels_key empty list": "`labels_key=[]` should name columns from coarse to fine, each once",
    "given:condition_key tuple": "is a tuple. Expected one name",
    "given:layer int": "`layer=7` is a int. Expected one name",
    "given:layer missing": "`layer='nope'` is not in `adata.layers`. Layers: none",
    "given:categorical_covariate_keys int": "Expected a list of names, as str",
    "given:categorical_covariate_keys ['lane', 'lane']": "names a column more than once",
    "given:continuous_covariate_keys ['lane']": "`continuous_covariate_keys='lane'` has dtype",
    "given:unlabeled_category list": "is a list. Expected the one value",
    "shape:one cell": "has 1 cell(s) and 12 gene(s)",
    "shape:one gene": "has 40 cell(s) and 1 gene(s)",
    "shape:no cells": "`adata` has no cells",
    "shape:no genes": "has 40 cell(s) and 0 gene(s)",
    "shape:a view": "is a view of another AnnData",
}
WORKS = [
    *(
        f"dtype:{k}"
        for k in ("bool", "u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", ">f4", ">i4", "longdouble")
    ),
    *(
        f"layout:{k}"
        for k in ("Fortran", "strided", "reversed", "read-only", "CSR", "CSC", "csr_array", "csc_array")
    ),
    *(f"layout:{k}" for k in ("int64 indices", "unsorted indices", "duplicate entries", "explicit zeros")),
    *(f"layout:{k}" for k in ("read-only CSR", "np.matrix", "DataFrame", "only in a layer")),
    *(f"x:{k}" for k in ("count of 1e9", "count of 2**31", "empty genes", "all one", "huge everywhere")),
    *(f"names:obs {k}" for k in ("int", "twice", "empty", "unicode", "slashes and NUL", "mixed", "missing")),
    *(f"names:var {k}" for k in ("int", "float", "empty", "unicode", "slashes and NUL", "mixed", "bytes")),
    *(
        f"obs:{k}"
        for k in ("unused categories", "ordered categories", "bool", "int", "float", "pandas strings")
    ),
    *(
        f"obs:{k}"
        for k in ("nullable int", "nullable bool", "one cell each", "a category of one cell", "constant")
    ),
    *(
        f"obs:{k}"
        for k in ("empty strings", "the word nan", "slashes", "sparse", "score half", "score nullable")
    ),
    "given:categorical_covariate_keys tuple",
    "given:unlabeled_category 'nobody'",
    "given:all cells unlabelled",
    "given:one label",
    "shape:two cells",
]


def keys_of(case):
    return {**COLUMNS, **case.given}


@pytest.mark.parametrize("name", SAID)
def test_what_is_refused_says_why(name):
    case, adata = made([name])
    before = fingerprint(adata)
    found = attempt(sa.CGMDVAE.setup_anndata, adata, **keys_of(case))
    assert isinstance(found, Refused)
    assert SAID[name] in found.message
    assert fingerprint(adata) == before
    assert not [k for k in adata.uns if k.startswith("_scvi")]


def test_backed_cells_are_refused_by_a_set_up(tmp_path):
    plain().adata().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    found = attempt(sa.VAE.setup_anndata, backed)
    assert "is backed by" in found.message
    assert backed.isbacked
    backed.file.close()


@pytest.mark.parametrize("name", WORKS)
def test_what_works_gives_finite_numbers_in_order(name):
    case, adata = made([name])
    before = fingerprint(adata)
    sa.CGMDVAE.setup_anndata(adata, **keys_of(case))
    model = sa.CGMDVAE(adata, **SMALL)
    model.train(**SHORT)
    expression = model.get_normalized_expression()
    assert np.isfinite(expression.to_numpy()).all()
    assert list(expression.index) == list(adata.obs_names)
    assert model.get_clusters().notna().all()
    assert fingerprint(adata) == before


LAYOUTS = [k for k in HOSTILE if k.startswith("layout:") and k not in {*SAID, "layout:only in a layer"}]


@pytest.fixture(scope="module")
def model():
    adata = plain().adata()
    sa.VAE.setup_anndata(adata)
    model = sa.VAE(adata, **SMALL)
    model.train(**SHORT)
    return model


@pytest.mark.parametrize(
    "name", [*LAYOUTS, *(k for k in WORKS if k.startswith("dtype:i") or k == "dtype:f2")]
)
def test_the_container_does_not_matter(model, name):
    """The same counts give the same code, from whatever array or matrix."""
    adata = made([name])[1]
    if adata is None:
        pytest.skip("anndata does not hold it")
    expected = np.asarray(adata.X.todense() if sp.issparse(adata.X) else adata.X).astype(np.float32)
    z = model.get_latent_representation(ad.AnnData(expected, obs=plain().obs, var=plain().var))
    np.testing.assert_allclose(model.get_latent_representation(adata), z, atol=1e-5)


@pytest.mark.parametrize("name", ["shape:a view", "shape:a view of a mask", "shape:one cell"])
def test_views_and_single_cells_are_fine_where_nothing_is_trained(model, name):
    adata = made([name])[1]
    z = model.get_latent_representation(adata)
    rows = plain().adata().obs_names.get_indexer(adata.obs_names)
    np.testing.assert_allclose(z, model.get_latent_representation()[rows], atol=1e-5)


def test_numbers_for_names_and_names_for_numbers():
    """A model of batches 0 and 1 reads cells of batches "0" and "1"."""
    adata = plain().adata()
    adata.obs["batch"] = np.arange(40) % 2
    sa.VAE.setup_anndata(adata, batch_key="batch")
    model = sa.VAE(adata, **SMALL)
    model.train(**SHORT)
    new = plain().adata()
    new.obs["batch"] = (np.arange(40) % 2).astype(str)
    np.testing.assert_allclose(
        model.get_normalized_expression(new), model.get_normalized_expression(), atol=1e-5
    )
    assert new.obs["batch"].iloc[1] == "1"


def test_a_model_takes_up_cells_of_its_own_kind(tmp_path):
    adata = plain().adata()
    adata.obs["batch"] = np.arange(40) % 2
    sa.VAE.setup_anndata(adata, batch_key="batch")
    sa.VAE(adata, **SMALL).save(tmp_path / "m")
    new = plain().adata()
    new.obs["batch"] = (np.arange(40) % 2).astype(str)
    with pytest.raises(
        TypeError, match=r"holds values of kind string, .* kind integer: 0, 1. .*astype\(int\)"
    ):
        sa.load(tmp_path / "m", new)
    new.obs["batch"] = 2
    with pytest.raises(ValueError, match=r"never seen: 2\. It knows: 0, 1"):
        sa.load(tmp_path / "m", new)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("obsm:missing", "is not in `adata.obsm`. It holds: nothing"),
        ("obsm:text", "Expected a DataFrame or an array of numbers"),
        ("obsm:masked array", "is a MaskedArray of float64. Expected a DataFrame"),
        ("obsm:negative", "Expected values that are raw counts"),
        ("obsm:infinite", "Expected values that are raw counts"),
        ("obsm:two columns of one name", "has variables of the same name: a"),
        ("obsm:no columns", "has no variables"),
        ("obsm:NaN throughout", "'prot' is NaN throughout"),
        ("x:all zero", "'rna' is zero throughout"),
    ],
)
def test_second_modality(name, message):
    adata = made([name])[1]
    found = attempt(sa.POISEVAE.setup_anndata, adata, protein_obsm_key="protein_counts")
    found = found or attempt(sa.POISEVAE, adata, n_chains=8, **SMALL)
    assert message in found.message
