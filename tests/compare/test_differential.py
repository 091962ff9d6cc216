"""Differential expression by a model with donors beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from studies import counts

import scalloy as sa


@pytest.fixture(scope="module")
def study():
    adata = counts(4, 4, genes=80, changed=10)
    adata.obs["third"] = pd.Categorical(np.array(["x", "y", "z"])[np.arange(adata.n_obs) % 3])
    sa.VAE.setup_anndata(adata)
    model = sa.VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    return model, adata


def test_columns_of_donors_are_those_of_expression(study):
    model, adata = study
    ask = {"groupby": "group", "group1": "b", "group2": "a", "mode": "change", "silent": True}
    table = model.differential_expression(**ask, donor_key="donor")
    truth = sa.compare.expression(adata, groupby="group", donor_key="donor").set_index("gene")
    for name in ("log2_fold_change", "pvalue", "padj"):
        np.testing.assert_allclose(table[f"donor_{name}"], truth[name].reindex(table.index))
    assert (table[["donors_1", "donors_2"]] == 4).all(axis=None)
    without = model.differential_expression(**ask)
    pd.testing.assert_frame_equal(without, table[without.columns])
    assert "treat cells as independent" in without.attrs["note"]
    assert "summed counts of donors" in table.attrs["note"]
    raw = np.log2((table["raw_normalized_mean1"] + 1e-3) / (table["raw_normalized_mean2"] + 1e-3))
    assert table["donor_log2_fold_change"].corr(raw) > 0.8  # of the first group over the second


def test_each_group_against_the_rest_and_given_cells(study):
    model, adata = study
    table = model.differential_expression(groupby="third", silent=True, donor_key="donor")
    assert table["comparison"].unique().tolist() == ["x vs Rest", "y vs Rest", "z vs Rest"]
    other = adata.copy()
    other.obs["of"] = np.where(other.obs["third"] == "y", "b", "a")
    truth = sa.compare.expression(other, groupby="of", donor_key="donor").set_index("gene")
    own = table[table["group1"] == "y"]
    np.testing.assert_allclose(own["donor_pvalue"], truth["pvalue"].reindex(own.index))
    assert truth["design"].unique().tolist() == ["within donors"]
    chosen = [
        "third == 'y'",
        (adata.obs["third"] == "y").to_numpy(),
        np.flatnonzero(adata.obs["third"] == "y"),
    ]
    for idx in chosen:
        found = model.differential_expression(idx1=idx, silent=True, donor_key="donor")
        np.testing.assert_allclose(found["donor_pvalue"], truth["pvalue"].reindex(found.index))


def test_new_cells_with_genes_in_another_order(study):
    model, adata = study
    ask = {"groupby": "group", "group1": "b", "group2": "a", "silent": True, "donor_key": "donor"}
    first = model.differential_expression(**ask)["donor_pvalue"].sort_index()
    turned = model.differential_expression(adata[:, ::-1].copy(), **ask)["donor_pvalue"].sort_index()
    np.testing.assert_allclose(first, turned, rtol=1e-4)


def test_too_few_donors_are_left_without_p_values(study):
    model, adata = study
    few = adata[adata.obs["donor"].isin(["d00", "d05"])].copy()
    table = model.differential_expression(
        few, groupby="group", group1="b", group2="a", silent=True, donor_key="donor"
    )
    assert table["donor_pvalue"].isna().all()
    assert (table[["donors_1", "donors_2"]] == 1).all(axis=None)
    with pytest.raises(KeyError, match="`donor_key='nope'` is not a column"):
        model.differential_expression(groupby="group", group1="b", silent=True, donor_key="nope")
