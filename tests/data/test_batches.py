"""Batches against plain indexing of the matrix."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as hs

import scalloy as sa
from scalloy.data.batches import CellLoader
from scalloy.data.cell_table import Cells, as_rows
from scalloy.data.on_device import DeviceCells, DeviceLoader, StagedLoader
from scalloy.data.split import split
from scalloy.data.splitter import CellSplitter


def cells(n=57, g=11, seed=0):
    rng = np.random.default_rng(seed)
    x = sp.csr_matrix(rng.poisson(0.5, (n, g)).astype(np.float32))
    return Cells(x, {"batch": torch.arange(n).reshape(-1, 1)})


def collect(loader):
    batches = list(loader)
    x = np.concatenate([b["X"].to_dense().numpy() for b in batches])
    return x, torch.cat([b["batch"] for b in batches]).numpy().ravel(), [len(b["batch"]) for b in batches]


@settings(deadline=None, max_examples=60)
@given(n=hs.integers(2, 200), size=hs.integers(1, 64), shuffle=hs.booleans(), device=hs.booleans())
def test_every_cell_once_in_equal_batches(n, size, shuffle, device):
    """Both loaders yield each row once, right, in batches that differ by one cell at most."""
    given = cells(n)
    kwargs = {"batch_size": size, "shuffle": shuffle}
    if device:
        store = DeviceCells(given, torch.device("cpu"))
        loader = DeviceLoader(given, store=store, **kwargs)
    else:
        loader = CellLoader(given, **kwargs)
    x, rows, sizes = collect(loader)
    assert sorted(rows) == list(range(n))
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == len(loader)
    np.testing.assert_array_equal(x, given.x.toarray()[rows])
    if not shuffle:
        np.testing.assert_array_equal(rows, np.arange(n))


@pytest.mark.parametrize("dense", [False, True])
def test_batches_that_are_staged_are_the_same_in_the_same_order(dense):
    given = cells()
    if dense:
        given = Cells(given.x.toarray(), given.columns)
    torch.manual_seed(3)
    plain = list(CellLoader(given, batch_size=8, shuffle=True))
    torch.manual_seed(3)
    staged = list(StagedLoader(given, batch_size=8, shuffle=True, device=torch.device("cpu")))
    assert len(staged) == len(plain) == 8
    for one, other in zip(plain, staged, strict=True):
        assert one["X"].layout == other["X"].layout
        assert torch.equal(one["X"].to_dense(), other["X"].to_dense())
        assert torch.equal(one["batch"], other["batch"])


def test_staging_ends_with_its_reader():
    """A reader that leaves early leaves no thread behind, and what fails in there is heard."""
    loader = StagedLoader(cells(), batch_size=8, device=torch.device("meta"))
    batches = iter(loader)
    assert next(batches)["X"].device.type == "meta"
    batches.close()
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if "ThreadPool" in t.name]
    loader.cells.columns["batch"] = torch.arange(3)
    with pytest.raises(IndexError):
        list(loader)


@pytest.mark.parametrize(("resident", "kind"), [(True, DeviceLoader), (False, StagedLoader)])
def test_a_gpu_gets_the_whole_matrix_or_batches_ahead(resident, kind, monkeypatch):
    """Which loader it is, without a GPU: by the device that the strategy names."""
    monkeypatch.setattr("scalloy.data.splitter.DeviceCells", lambda cells, device: device)
    adata = sa.datasets.simulate(60, 20, seed=0)
    sa.VAE.setup_anndata(adata)
    splitter = CellSplitter(sa.VAE(adata).adata_manager, resident=resident)
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    splitter.trainer = SimpleNamespace(strategy=strategy, world_size=1)
    splitter.setup()
    assert type(splitter.train_dataloader()) is kind


def test_no_batch_of_one_cell():
    _, _, sizes = collect(CellLoader(cells(129), batch_size=128))
    assert sizes in ([64, 65], [65, 64])


def test_blocks_do_not_change_the_batches(monkeypatch):
    whole = collect(CellLoader(cells(), batch_size=8))
    monkeypatch.setattr("scalloy.data.batches.GATHER_ENTRIES", 10)
    parts = collect(CellLoader(cells(), batch_size=8))
    np.testing.assert_array_equal(whole[0], parts[0])


def test_order_of_indices_is_kept_and_masks_work():
    _, rows, _ = collect(CellLoader(cells(), [30, 5, 17], batch_size=2))
    np.testing.assert_array_equal(rows, [30, 5, 17])
    mask = np.arange(57) % 2 == 0
    np.testing.assert_array_equal(collect(CellLoader(cells(), mask))[1], np.flatnonzero(mask))


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array, np.asarray])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64, np.float32, np.uint16])
def test_any_format_becomes_the_same_rows(kind, dtype):
    dense = cells().x.toarray().astype(dtype)
    rows = as_rows(kind(dense))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.toarray() if sp.issparse(rows) else rows, dense)


def test_explicit_zeros_and_duplicates_are_mended_in_a_copy():
    x = sp.csr_matrix((np.array([1, 0, 2, 3], np.float32), [0, 1, 2, 2], [0, 4]), shape=(1, 3))
    rows = as_rows(x)
    np.testing.assert_array_equal(rows.toarray(), [[1, 0, 5]])
    assert (rows.data != 0).all()
    assert x.nnz == 4


def test_a_good_matrix_is_not_copied():
    x = cells().x
    assert np.shares_memory(as_rows(x).data, x.data)


@settings(deadline=None)
@given(n=hs.integers(1, 500), train=hs.floats(0.05, 1), seed=hs.integers(0, 99))
def test_split_is_a_partition(n, train, seed):
    parts = split(n, train, seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert train * n - 1e-6 <= len(parts[0]) < train * n + 1
    for a, b in zip(parts, split(n, train, seed=seed), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(deadline=None)
@given(n=hs.integers(1, 300), train=hs.floats(0.05, 1), share=hs.floats(0, 1), seed=hs.integers(0, 99))
def test_cells_that_are_kept_are_trained_on(n, train, share, seed):
    kept = np.random.default_rng(seed).random(n) < share
    parts, plain = split(n, train, seed=seed, kept=kept), split(n, train, seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert [len(part) for part in parts] == [len(part) for part in plain]
    assert kept[parts[0]].sum() == min(kept.sum(), len(parts[0]))
    if not kept.any():
        np.testing.assert_array_equal(parts[0], plain[0])


def test_split_with_a_test_set_and_bad_sizes():
    train, val, test = split(100, 0.7, 0.2)
    assert (len(train), len(val), len(test)) == (70, 20, 10)
    with pytest.raises(ValueError, match="sum to more than 1"):
        split(100, 0.9, 0.2)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        split(100, 1.5)
