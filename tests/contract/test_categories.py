"""What `annotate` writes goes straight into scanpy: no category without a cell, whatever the model."""

from __future__ import annotations

import anndata as ad
import pandas as pd
import pytest
import scanpy as sc
import torch
from contract.test_models import MODELS, class_of, every, setup

import scalloy as sa
from scalloy.data import chunks
from scalloy.models import LATENT, Annotator
from scalloy.models._core import clusters

KEYS = {"labels_key": "cluster", "unlabeled_category": "none"}


def written(before, after):
    """The columns that are new, and of these the categorical ones."""
    new = [c for c in after.obs if c not in before.obs]
    return new, [c for c in new if isinstance(after.obs[c].dtype, pd.CategoricalDtype)]


@every
def test_only_categories_that_occur(name, cells, quick, tmp_path, monkeypatch):
    setup(name, cells)
    model = MODELS[name](cells)
    model.train(**quick)
    few, own = cells[:7].copy(), model.annotate(copy=True)
    some = model.annotate(few, copy=True)
    for before, after in ((cells, own), (few, some)):
        new, categorical = written(before, after)
        kinds = ("_cluster", "_label")
        assert categorical == [c for c in new if c.endswith(kinds)]
        for column in categorical:
            assert set(after.obs[column].cat.categories) == set(after.obs[column]), column
    monkeypatch.setattr(chunks, "PIECE", 3)
    monkeypatch.setattr(chunks.pieces_of, "__defaults__", (3,))
    model.write_annotations(tmp_path / "few.h5ad", few)
    found = ad.read_h5ad(tmp_path / "few.h5ad")
    for column in written(few, some)[1]:
        assert list(found.obs[column].cat.categories) == list(some.obs[column].cat.categories), column
        assert list(found.obs[column]) == list(some.obs[column])


@pytest.fixture
def annotated(cells, quick):
    """A model with clusters of which some have one cell and some none."""
    cells.obs["cluster"] = cells.obs["cluster"].astype(str)
    cells.obs.loc[cells.obs_names[::2], "cluster"] = "none"
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition", **KEYS)
    model = sa.CGMDVAE(cells, n_hidden=16, n_latent=4, n_clusters=6)
    model.train(**quick)
    names = model.cluster_names
    given = model.get_cluster_probabilities()
    given.iloc[:] = 0.0
    given.iloc[:, 0] = 0.6
    given.iloc[3, 1] = given.iloc[100:, 2] = 0.9
    known = {"clusters": torch.tensor(given.to_numpy())}
    model.annotators = (LATENT, Annotator(lambda *_: known, clusters.CLUSTERS.write))
    assert len(names) > 3
    model.annotate()
    return model, cells, names


@pytest.mark.filterwarnings("ignore:Group counts matches dof")  # scanpy, of a cluster of one cell
def test_the_calls_of_the_docs_run_where_clusters_are_empty_or_have_one_cell(annotated):
    model, cells, names = annotated
    key = "cgmdvae_cluster"
    assert list(cells.obs[key].cat.categories) == names[:3]
    found = model.differential_expression(groupby=key, mode="change", silent=True)
    assert set(found["group1"]) == set(names[:3])
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sizes = cells.obs[key].value_counts()  # the lines of docs/models/cgmdvae.md
    sc.tl.rank_genes_groups(cells, key, groups=list(sizes.index[sizes > 1]))
    assert set(cells.uns["rank_genes_groups"]["names"].dtype.names) == {names[0], names[2]}


def test_generated_cells_have_no_empty_categories(cells, quick):
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition", labels_key="cluster", batch_key="batch")
    model = class_of("CGMDVAE")(cells, n_hidden=16, n_latent=4)
    model.train(**quick)
    made = model.generate(5, cluster=model.cluster_names[0], condition="control")
    for column in made.obs:
        assert set(made.obs[column].astype("category").cat.categories) == set(made.obs[column]), column
