"""Bad input: what was given, what was expected, what to do."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scalloy as sa
from scalloy.data import checks
from scalloy.data.genes import aligned


def setup(adata, **kwargs):
    sa.VAE.setup_anndata(adata, **kwargs)


def test_missing_key_names_the_columns_and_guesses(cells):
    with pytest.raises(KeyError, match=r"`batch_key='bach'` is not a column.*Columns:.*mean 'batch'"):
        setup(cells, batch_key="bach")
    with pytest.raises(KeyError, match="`continuous_covariate_keys='nope'`"):
        setup(cells, continuous_covariate_keys=["score", "nope"])


def test_missing_values_in_a_key(cells):
    cells.obs.loc[cells.obs_names[:12], "lane"] = None
    with pytest.raises(ValueError, match=r"`batch_key='lane'` is missing \(NaN\) in 12 .*and 2 more"):
        setup(cells, batch_key="lane")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (-1.0, "holds negative values in 1 cell"),
        (np.nan, "holds NaN or infinite values in 1 cell"),
        (np.inf, "holds NaN or infinite values in 1 cell"),
        (1.5, "not whole numbers, such as 1.5, in 1 cell"),
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_bad_counts_are_found_and_their_cells_named(cells, bad, message, dense):
    x = cells.X.toarray()
    x[3, 2] = bad
    cells.X = x if dense else sp.csr_matrix(x)
    with pytest.raises(ValueError, match=message) as error:
        setup(cells)
    assert "cell_3" in str(error.value)
    if np.isfinite(bad):
        setup(cells, allow_non_counts=True)


def test_empty_cells_and_genes(cells):
    x = cells.X.toarray()
    x[5], x[:, 7] = 0, 0
    cells.X = sp.csr_matrix(x)
    with pytest.raises(ValueError, match=r"1 cell\(s\) have no counts in `adata.X`: cell_5.*filter_cells"):
        setup(cells)
    cells = cells[cells.obs_names != "cell_5"].copy()
    with pytest.warns(UserWarning, match=r"1 gene\(s\) have no counts.*gene_7"):
        setup(cells)


def test_objects_that_cannot_be_modelled(cells, tmp_path):
    with pytest.raises(TypeError, match=r"`adata` is a ndarray. Expected an AnnData"):
        setup(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"`adata` is a view.*adata.copy\(\)"):
        setup(cells[:50])
    with pytest.raises(ValueError, match=r"1 cell\(s\) and 40 gene"):
        setup(cells[:1].copy())
    with pytest.raises(ValueError, match=r"200 cell\(s\) and 1 gene"):
        setup(cells[:, :1].copy())
    cells.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"is backed by.*to_memory\(\)"):
        setup(backed)
    backed.file.close()
    cells.layers["text"] = np.full(cells.shape, "a")
    with pytest.raises(TypeError, match="Expected a numpy array or a scipy sparse"):
        setup(cells, layer="text")
    with pytest.raises(KeyError, match=r"`layer='counts'` is not in `adata.layers`. Layers: .*mean"):
        setup(cells, layer="counts")


def test_names_that_occur_twice(cells):
    cells.var_names = ["a", "a", *cells.var_names[2:]]
    with pytest.raises(ValueError, match=r"Names of genes occur more than once.*: a. Call"):
        setup(cells)
    cells.var_names = [f"g{i}" for i in range(40)]
    cells.obs_names = ["c", "c", *cells.obs_names[2:]]
    with pytest.warns(UserWarning, match="Names of cells occur more than once"):
        setup(cells)


def test_size_factor_must_be_positive_numbers(cells):
    cells.obs["size"] = 1.0
    cells.obs.loc["cell_4", "size"] = 0.0
    with pytest.raises(ValueError, match=r"must be positive and finite, but is not in 1 cell\(s\): cell_4"):
        setup(cells, size_factor_key="size")
    with pytest.raises(TypeError, match="expected numbers"):
        setup(cells, continuous_covariate_keys=["lane"])


def test_few():
    assert checks.few(range(3)) == "0, 1, 2"
    assert checks.few(range(12)).endswith("9, and 2 more")


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_genes_that_lack_are_zero_in_every_kind_of_matrix(kind):
    x = np.arange(1.0, 13.0).reshape(3, 4)
    adata = ad.AnnData(kind(x), layers={"counts": kind(2 * x)})
    adata.var_names = list("abcd")
    made = aligned(adata, ["c", "lacks", "a", "d"], max_missing=0.5)
    expected = np.c_[x[:, 2], np.zeros(3), x[:, [0, 3]]]
    for found, wanted in ((made.X, expected), (made.layers["counts"], 2 * expected)):
        np.testing.assert_array_equal(found.toarray() if sp.issparse(found) else found, wanted)


def test_other_genes(cells, quick):
    model = sa.VAE(cells)
    model.train(**quick)
    with pytest.raises(ValueError, match="lacks 2 of the 40 genes of the model: gene_0, gene_1"):
        model.get_latent_representation(cells[:, 2:].copy())


@pytest.mark.parametrize("kind", ["csr", "csc"])
def test_matrices_that_point_outside_of_themselves(cells, kind):
    """Compiled loops would read whatever lies there."""
    good = cells.X.asformat(kind)
    for part, at, value in {
        "csr": [("indices", 3, 40), ("indices", 3, -1), ("indptr", 5, 0), ("indptr", -1, 10**7)],
        "csc": [("indices", 3, 200), ("indptr", 5, 0)],
    }[kind]:
        broken = good.copy()
        getattr(broken, part)[at] = value
        adata = sa.datasets.simulate(200, 40, seed=1)
        adata.layers._data["broken"] = broken
        with pytest.raises(ValueError, match=f"is a broken {kind.upper()} matrix: its indices lie outside"):
            sa.VAE.setup_anndata(adata, layer="broken")
