"""Stores on the disk against the same cells in memory."""

from __future__ import annotations

import sys
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as hs

import scalloy as sa
from scalloy.data import chunks, disk, fingerprint
from scalloy.data import store as st
from scalloy.data.batches import CellLoader
from scalloy.data.cell_table import Cells
from scalloy.files import anndata_files

KEYS = {"batch_key": "batch", "condition_key": "condition", "labels_key": "cluster"}


@pytest.fixture
def small(monkeypatch):
    """Buffers so small that a few hundred cells take many."""
    monkeypatch.setattr(disk, "BUFFER", 640)
    monkeypatch.setattr(st, "PART", 900)
    monkeypatch.setattr(chunks, "PIECE", 64)


@pytest.fixture
def store(cells, small, tmp_path):
    return sa.data.write_store(cells, tmp_path / "cells.zarr")


def x_of(adata):
    return adata[:].to_memory().X.toarray() if anndata_files.is_on_disk(adata) else adata.X.toarray()


def halves(cells, tmp_path):
    """Two files of the cells; the second has its genes in another order and categories of its own."""
    first, second = cells[:120].copy(), cells[120:, ::-1].copy()
    second.obs["batch"] = second.obs["batch"].astype(str).replace("batch_1", "another").astype("category")
    for name, part in (("1.h5ad", first), ("2.h5ad", second)):
        part.write_h5ad(tmp_path / name)
    return first, second, [tmp_path / "1.h5ad", tmp_path / "2.h5ad"]


# writing ----------------------------------------------------------------------------------------


def test_a_store_holds_the_cells_in_a_random_order(cells, store):
    order = np.random.default_rng((0, 1)).permutation(200)  # place of each cell
    assert list(store.obs_names[order]) == list(cells.obs_names)
    np.testing.assert_array_equal(x_of(store)[order], cells.X.toarray())
    pd.testing.assert_frame_equal(store.obs.iloc[order], cells.obs)
    assert list(store.var_names) == list(cells.var_names)
    assert anndata_files.is_on_disk(store)
    again = sa.data.open_store(store.X.group.store.root)
    np.testing.assert_array_equal(x_of(again), x_of(store))


@pytest.mark.parametrize("shuffle", [False, True])
def test_files_one_after_the_other(cells, small, tmp_path, shuffle):
    first, second, files = halves(cells, tmp_path)
    store = sa.data.write_store(files, tmp_path / "cells.zarr", shuffle=shuffle)
    order = np.random.default_rng((0, 1)).permutation(200) if shuffle else np.arange(200)
    np.testing.assert_array_equal(x_of(store)[order], cells.X.toarray())
    expected = [*first.obs["batch"].astype(str), *second.obs["batch"].astype(str)]
    assert list(store.obs["batch"].astype(str).iloc[order]) == expected
    assert set(store.obs["batch"].cat.categories) == {"batch_0", "batch_1", "another"}


def test_layers_and_genes_are_chosen(cells, tmp_path):
    cells.layers["counts"], wanted = cells.X.copy(), ["gene_7", "gene_3"]
    cells.X = np.log1p(cells.X.toarray())
    store = sa.data.write_store(cells, tmp_path / "a.zarr", layer="counts", genes=wanted, shuffle=False)
    np.testing.assert_array_equal(x_of(store), cells[:, wanted].layers["counts"].toarray())
    dense = sa.data.write_store(cells, tmp_path / "b.zarr", shuffle=False)  # a dense matrix
    np.testing.assert_array_equal(x_of(dense), cells.X)


def test_what_was_there_stays_until_a_store_is_whole(cells, tmp_path, monkeypatch):
    path = tmp_path / "cells.zarr"
    sa.data.write_store(cells, path)
    with pytest.raises(FileExistsError, match=r"exists. Pass `overwrite=True`"):
        sa.data.write_store(cells[:50].copy(), path)

    def fails(self):
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(chunks.GrowingRows, "close", fails)
        with pytest.raises(RuntimeError):
            sa.data.write_store(cells[:50].copy(), path, overwrite=True)
    assert sa.data.open_store(path).n_obs == 200
    assert sa.data.write_store(cells[:50].copy(), path, overwrite=True).n_obs == 50
    assert [p.name for p in tmp_path.iterdir()] == ["cells.zarr"]


def test_messages_of_stores(cells, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no store"):
        sa.data.open_store(tmp_path / "none.zarr")
    with pytest.raises(ValueError, match=r"holds no zarr group with no matrix as `.X`"):
        sa.data.open_store(tmp_path)
    with pytest.raises(ValueError, match=r"is not the name of a store. Pass one that ends in `.zarr`"):
        sa.data.write_store(cells, tmp_path / "cells")
    with pytest.raises(ValueError, match=r"`data` is an empty list"):
        sa.data.write_store([], tmp_path / "cells.zarr")
    with pytest.raises(ValueError, match=r"lacks 1 of 2 genes: no_gene. Pass `genes=`"):
        sa.data.write_store(cells, tmp_path / "cells.zarr", genes=["gene_1", "no_gene"])
    with pytest.raises(FileNotFoundError, match=r"There is no file"):
        sa.data.write_store(tmp_path / "none.h5ad", tmp_path / "cells.zarr")
    cells.X = sp.csc_matrix(cells.X)
    cells.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(ValueError, match=r"holds csc as `.X`. Expected a matrix, on the disk dense or CSR"):
        sa.data.write_store(tmp_path / "csc.h5ad", tmp_path / "cells.zarr")
    with pytest.raises(ValueError, match=r"holds nothing as `.layers"):
        sa.data.write_store(cells, tmp_path / "cells.zarr", layer="none")
    cells.var_names = ["twice", "twice", *cells.var_names[2:]]
    with pytest.raises(ValueError, match=r"Names of genes occur more than once in adata: twice"):
        sa.data.write_store(cells, tmp_path / "cells.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["csc.h5ad"]


def test_the_split_of_a_store_does_not_undo_its_shuffling():
    """With one and the same draw for both, the validation set would be the first cells that were given."""
    from scalloy.data.split import split

    for seed in range(3):
        place = st.places(1000, seed)
        _, val, _ = split(1000, seed=seed)
        given = np.argsort(place)[val]  # which of the cells that were given validate
        assert 350 < given.mean() < 650
        assert 0.05 < (given < 500).mean() < 0.95


# reading ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(rows=hs.lists(hs.integers(0, 199), min_size=1, max_size=300), buffer=hs.sampled_from([64, 640, 10**6]))
def test_rows_are_those_of_the_matrix(tmp_path_factory, rows, buffer):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk, "BUFFER", buffer)
        path = tmp_path_factory.getbasetemp() / "rows.zarr"
        x = sp.random(200, 30, 0.2, format="csr", random_state=0, dtype=np.float32)
        if not path.exists():
            sa.data.write_store(AnnData(x), path, shuffle=False)
        read = disk.DiskRows(sa.data.open_store(path).X)
        np.testing.assert_array_equal(read[np.array(rows)].toarray(), x.toarray()[rows])
        part = slice(min(rows), max(rows))
        np.testing.assert_array_equal(read[part].toarray(), x.toarray()[part])
        assert read.nnz == x.nnz
        np.testing.assert_allclose(read.sum(axis=1), x.sum(axis=1).A1, rtol=1e-6)
        np.testing.assert_allclose(read.sum(axis=0), x.sum(axis=0).A1, rtol=1e-6)
        assert (read.min(), read.max()) == (0.0, x.max())


def test_batches_hold_every_cell_once_and_a_buffer_is_of_few_blocks(store):
    sa.VAE.setup_anndata(store, batch_key="batch")
    cells = Cells.of(sa.VAE(store).adata_manager)
    loader = CellLoader(cells, batch_size=16, shuffle=True)
    x, block = x_of(store), max(1, cells.x.per_buffer // disk.BLOCKS)
    orders = []
    for _ in range(2):
        batches = list(loader)
        rows = np.concatenate([b["ind_x"].numpy() for b in batches])
        assert sorted(rows) == list(range(200))
        np.testing.assert_array_equal(np.concatenate([b["X"].to_dense().numpy() for b in batches]), x[rows])
        codes = torch.cat([b["batch"] for b in batches]).numpy().ravel()
        np.testing.assert_array_equal(codes, store.obs["_scvi_batch"].to_numpy()[rows])
        sizes = [len(b["X"]) for b in batches]
        assert max(sizes) - min(sizes) <= 1
        orders.append(rows)
    assert (orders[0] != orders[1]).mean() > 0.9
    cuts = loader.bounds()[loader.cuts()]
    assert len(cuts) > 4
    for a, b in pairwise(cuts):  # the blocks at its ends are shared with the neighbours
        assert len(np.unique(orders[0][a:b] // block)) <= (b - a) / block + 2


def test_the_next_is_made_while_one_is_used():
    made = []

    def make():
        for i in range(5):
            made.append(i)
            yield i

    seen = []
    for i in disk.ahead(make()):
        seen.append(i)
        if i == 0:
            break
    assert seen == [0]
    assert made == [0, 1]
    assert list(disk.ahead(make())) == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        list(disk.ahead(1 / i for i in (1, 0)))


# models -----------------------------------------------------------------------------------------


def without_uuid(registry):
    return {k: v for k, v in registry.items() if "uuid" not in k}


@pytest.mark.parametrize("model", ["VAE", "CGMDVAE", "BetaVSC"])
def test_a_set_up_from_a_store_is_that_of_the_cells_in_memory(store, model):
    cls, memory = getattr(sa, model), store[:].to_memory()
    keys = {k: v for k, v in KEYS.items() if k != "condition_key" or model == "CGMDVAE"}
    more = {"VAE": {"library": "learned"}, "BetaVSC": {"prior": "pseudo"}}.get(model, {})
    made = []
    for cells in (store, memory):
        cls.setup_anndata(cells, **keys, continuous_covariate_keys=["score"])
        made.append(cls(cells, n_hidden=8, **more))
    ours, theirs = (without_uuid(m.adata_manager.registry) for m in made)
    assert repr(ours) == repr(theirs)
    for (name, a), b in zip(made[0].module.state_dict().items(), made[1].module.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_training_from_a_store_is_as_good_and_reads_little_at_once(store, monkeypatch):
    largest = []
    between = disk.DiskRows._between

    def spy(self, first, last):
        largest.append(last - first)
        return between(self, first, last)

    monkeypatch.setattr(disk.DiskRows, "_between", spy)
    monkeypatch.setattr(fingerprint, "AT_ONCE", 32)
    losses = {}
    for name, cells in (("store", store), ("memory", store[:].to_memory())):
        sa.VAE.setup_anndata(cells, batch_key="batch")
        model = sa.VAE(cells, n_hidden=16)
        model.train(30, batch_size=32, enable_progress_bar=False, accelerator="cpu")
        losses[name] = model.history["validation_loss"].to_numpy().ravel()
        model.get_latent_representation()
        model.get_elbo(cells)
    gain = losses["memory"][0] - losses["memory"].min()
    assert abs(losses["store"].min() - losses["memory"].min()) < 0.1 * gain
    assert max(largest) <= disk.DiskRows(store.X).per_buffer + 16 < 100


@pytest.fixture
def trained(store, quick):
    sa.CGMDVAE.setup_anndata(store, **KEYS)
    model = sa.CGMDVAE(store, n_hidden=8, n_latent=3, n_clusters=6)
    model.train(**quick)
    return model


def test_getters_go_through_a_store_in_order(trained, store, tmp_path):
    memory, other = store[:].to_memory(), sa.data.open_store(store.X.group.store.root)
    z = trained.get_latent_representation(memory)
    for cells in (None, store, other):
        np.testing.assert_allclose(trained.get_latent_representation(cells), z, atol=1e-6)
    rows = np.array([150, 3, 3, 77])
    for cells in (None, other):
        np.testing.assert_allclose(trained.get_latent_representation(cells, rows), z[rows], atol=1e-6)
    p = trained.get_cluster_probabilities(memory)
    pd.testing.assert_frame_equal(trained.get_cluster_probabilities(other), p, atol=1e-5)
    assert list(trained.get_clusters(other)) == list(trained.get_clusters(memory))
    expression = trained.get_normalized_expression(memory, return_numpy=True)
    np.testing.assert_allclose(trained.get_normalized_expression(other).shape, expression.shape)
    assert trained.get_elbo(other) == pytest.approx(trained.get_elbo(memory), rel=0.02)
    annotated = trained.annotate(copy=True)
    assert anndata_files.is_on_disk(annotated)
    assert "X_cgmdvae" not in store.obsm
    np.testing.assert_allclose(annotated.obsm["X_cgmdvae"], z, atol=1e-6)


def test_a_view_of_a_store_is_not_read_at_once(trained, store, tmp_path, monkeypatch):
    rows = np.flatnonzero(store.obs["condition"] == "control")
    view, z = store[rows], trained.get_latent_representation()
    of_adata = AnnData.X

    def not_of_views(self):
        assert not self.is_view
        return of_adata.fget(self)

    monkeypatch.setattr(AnnData, "X", property(not_of_views, of_adata.fset))
    np.testing.assert_allclose(trained.get_latent_representation(view), z[rows], atol=1e-6)
    np.testing.assert_allclose(trained.get_latent_representation(view, [2, 0]), z[rows[[2, 0]]], atol=1e-6)
    trained.write_annotations(tmp_path / "found.h5ad", view)
    monkeypatch.undo()
    found = ad.read_h5ad(tmp_path / "found.h5ad")
    assert list(found.obs_names) == list(store.obs_names[rows])
    np.testing.assert_allclose(found.obsm["X_cgmdvae"], z[rows], atol=1e-6)
    turned = store[:, list(store.var_names[::-1])]  # other genes: read as any view is
    np.testing.assert_allclose(trained.get_latent_representation(turned), z, atol=1e-6)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_annotations_are_written_piece_by_piece(trained, store, tmp_path, suffix):
    path = tmp_path / f"found{suffix}"
    trained.write_annotations(path)
    found = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
    trained.annotate(store)
    assert list(found.obs_names) == list(store.obs_names)
    np.testing.assert_allclose(found.obsm["X_cgmdvae"], store.obsm["X_cgmdvae"], atol=1e-6)
    ours, theirs = (a.obsm["cgmdvae_probabilities"] for a in (found, store))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert [str(c) for c in ours] == [str(c) for c in theirs]
    assert list(ours.index) == list(store.obs_names)
    assert list(found.obs["cgmdvae_cluster"]) == list(store.obs["cgmdvae_cluster"])
    assert found.uns["cgmdvae"]["model"] == "CGMDVAE"
    assert set(store.obs) - set(found.obs) == {"_scvi_batch", "_scvi_labels", "_scvi_condition"}
    with pytest.raises(FileExistsError, match=r"exists. Pass `overwrite=True`"):
        trained.write_annotations(path)
    with pytest.raises(ValueError, match=r"has an unknown ending. Pass a name that ends in one of: .h5ad"):
        trained.write_annotations(tmp_path / "found")


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_predictions_are_written_piece_by_piece(trained, store, tmp_path, monkeypatch, suffix):
    from scalloy.models._core import conditions

    path = tmp_path / f"made{suffix}"
    to, memory = "treated_1", store[:60].to_memory()
    trained.write_transfer(path, memory, to, n_samples=2)
    found, expected = sa.data.read(path) if suffix == ".h5ad" else ad.read_zarr(path), None
    expected = trained.transfer(memory, to, n_samples=2)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
    np.testing.assert_array_equal(found.layers["counts"].toarray(), expected.layers["counts"].toarray())
    assert list(found.obs["condition"]) == [to] * 60
    about = {"model": "CGMDVAE", "route": "auto", "to": to, "target_sum": 1e4, "counts": "counts"}
    assert found.uns["transfer"] == about
    monkeypatch.setattr(conditions, "DECODED_ENTRIES", 40 * 50)  # pieces of 50 cells
    assert min(disk.DiskRows(store.X).per_buffer, 50) < 200
    for route in ("auto", "transport"):  # pieces are predicted as the whole is
        trained.write_transfer(path, store, to, overwrite=True, n_samples=2, route=route)
        found = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
        assert list(found.obs["transfer_of"]) == list(store.obs_names)
        whole = trained.transfer(store.to_memory(), to, n_samples=2, route=route)
        np.testing.assert_allclose(found.X, whole.X, atol=1e-4)


def test_models_of_stores_are_saved_and_mapped(trained, store, tmp_path, quick):
    with pytest.raises(ValueError, match=r"would copy the whole store"):
        trained.save(tmp_path / "model", save_anndata=True)
    trained.save(tmp_path / "model")
    loaded = sa.load(tmp_path / "model", adata=sa.data.open_store(store.X.group.store.root))
    z = trained.get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(), z)
    np.testing.assert_array_equal(loaded.validation_indices, trained.validation_indices)
    second = sa.data.open_store(store.X.group.store.root)
    second.obs["batch"] = "new"
    query = sa.CGMDVAE.load_query_data(second, trained)
    query.train(**quick)
    assert query.get_latent_representation().shape == z.shape
    assert trained._data["counts"] == query._data["counts"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "holds negative values"),
        (0.5, "not whole numbers"),
        (np.inf, "NaN or infinite"),
        (0.0, "no counts"),
    ],
)
def test_a_store_is_checked_to_its_last_cell(cells, small, tmp_path, value, message):
    x = cells.X.tolil()
    x[-1] = value
    cells.X = sp.csr_matrix(x)
    store = sa.data.write_store(cells, tmp_path / "cells.zarr", shuffle=False)
    with pytest.raises(ValueError, match=rf"{message}.*cell_199"):
        sa.VAE.setup_anndata(store)


def test_silent_genes_of_a_store_are_named(cells, small, tmp_path):
    x = cells.X.tolil()
    x[:, 3] = 0
    cells.X = sp.csr_matrix(x)
    store = sa.data.write_store(cells, tmp_path / "cells.zarr")
    with pytest.warns(UserWarning, match=r"1 gene.s. have no counts.*gene_3"):
        sa.VAE.setup_anndata(store)


def test_a_damaged_store_is_found(cells, tmp_path):
    import zarr

    store = sa.data.write_store(cells, tmp_path / "cells.zarr")
    zarr.open_group(tmp_path / "cells.zarr")["X/indices"][5] = 4_000_000
    with pytest.raises(
        ValueError, match=r"the store is damaged: rows 0 to 200 point outside of its 40 genes"
    ):
        sa.VAE.setup_anndata(store)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="annbatch needs Python 3.12")
def test_annbatch_reads_our_stores(store):
    annbatch = pytest.importorskip("annbatch", reason="the extra `bench` is not installed")
    options = {"chunk_size": 20, "preload_nchunks": 4, "batch_size": 20}
    loader = annbatch.Loader(**options, shuffle=True, return_index=True)
    loader.add_adata(AnnData(store.X))
    x, n = x_of(store), 0
    for batch in loader:
        np.testing.assert_array_equal(batch["X"].toarray(), x[np.asarray(batch["index"])])
        n += batch["X"].shape[0]
    assert n == 200
