"""A fingerprint is of the data, however they are stored."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

import scalloy as sa
from scalloy.data import fingerprint


def of(adata):
    sa.VAE.setup_anndata(adata, allow_non_counts=True)
    return fingerprint.of_data(sa.VAE(adata, n_hidden=4, n_latent=2, gene_likelihood="normal").adata_manager)


def test_same_data_in_every_form(cells):
    expected = of(cells.copy())
    for form in (sp.csc_matrix, sp.csr_array, lambda x: x.toarray().astype(np.int64)):
        other = cells.copy()
        other.X = form(other.X)
        assert of(other) == expected
    assert expected["n_cells"] == 200
    few = sa.datasets.blobs(5)  # nearly no zeros: kept as a dense array
    sparse = few.copy()
    sparse.X = sp.csr_matrix(sparse.X)
    assert of(few) == of(sparse)


def test_what_changes_it(cells):
    expected = of(cells.copy())
    one = cells.copy()
    one.X[3, 3] += 1
    turned, renamed, genes = cells[::-1].copy(), cells.copy(), cells.copy()
    renamed.obs_names = [f"{name}_" for name in renamed.obs_names]
    genes.var_names = [f"{name}_" for name in genes.var_names]
    assert {k for k, v in of(one).items() if v != expected[k]} == {"counts"}
    assert {k for k, v in of(turned).items() if v != expected[k]} == {"counts", "cells"}
    assert {k for k, v in of(renamed).items() if v != expected[k]} == {"cells"}
    assert {k for k, v in of(genes).items() if v != expected[k]} == {"genes"}


def test_names_do_not_run_into_each_other():
    assert fingerprint.of_names(["ab", "c"]) != fingerprint.of_names(["a", "bc"])
    assert fingerprint.of_names([1, 2]) == fingerprint.of_names(["1", "2"])
