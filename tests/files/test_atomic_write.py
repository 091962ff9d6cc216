"""Files and folders: whole at every moment, whatever ends the writing, with the modes and links they had."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scalloy as sa
from scalloy.files import anndata_files, atomic_write, staging

KILLED = Path(__file__).parents[1] / "killed.py"


def killed(*args):
    done = subprocess.run(
        [sys.executable, KILLED, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def whole(version):
    def content(part):
        part.mkdir()
        (part / "a").write_text(version)

    return content


# whatever ends it -------------------------------------------------------------------------------


def test_killed_at_each_rename(tmp_path):
    found = killed(tmp_path)
    assert {(f["name"], f["exchange"], f["signal"]) for f in found if f["by"]} == {
        (name, exchange, int(signum))
        for name, exchange in (("a.zarr", True), ("a.zarr", False), ("a.h5ad", True))
        for signum in (signal.SIGTERM, signal.SIGKILL)
    }
    for case in found:
        assert case["held"] in {"old", "new"}, case
        assert case["then"] == "newest", case
        assert case["after"] == [case["name"]], case
        assert case["signal"] == signal.SIGKILL or not case["left"], case
    assert {f["held"] for f in found if not f["exchange"]} == {"old", "new"}


def test_killed_at_any_moment(tmp_path):
    found = killed(tmp_path, 6)
    assert not found["lost"]
    assert found["after"] == ["cells.zarr"]


@pytest.mark.slow
def test_killed_at_any_moment_many_times(tmp_path):
    found = killed(tmp_path, 200)
    assert not found["lost"]
    assert found["versions"] > 50
    assert found["after"] == ["cells.zarr"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_failure_keeps_the_old(tmp_path, exchange, monkeypatch):
    """The new one cannot be put in its place, nor is anything left."""
    place = tmp_path / "a.zarr"
    atomic_write.put_folder(place, whole("old"))
    replace = Path.replace

    def fails(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    monkeypatch.setattr(staging, "exchanged", lambda *_: False)
    if exchange:
        monkeypatch.setattr(staging, "exchange", lambda new, place, _: new.replace(place))
        monkeypatch.setattr(atomic_write, "exchange", staging.exchange)
    with pytest.raises(OSError, match="Input/output"):
        atomic_write.put_folder(place, whole("new"))
    monkeypatch.undo()
    assert (place / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_a_store_that_was_set_aside_is_found(tmp_path):
    """A writer died between the two steps: whatever comes next puts the old one back."""
    adata = ad.AnnData(np.eye(3, dtype=np.float32))
    for read in (
        sa.data.read,
        sa.data.open_store,
        lambda p: anndata_files.write(adata, p),
        lambda p: sa.data.write_store(adata, p, overwrite=True),
    ):
        place = tmp_path / "a.zarr"
        sa.data.write_store(adata, place, overwrite=True)
        aside = tmp_path / f".{'0' * 16}.part" / staging.BEFORE
        aside.mkdir(parents=True)
        place.rename(aside / place.name)
        read(place)
        assert os.listdir(tmp_path) == ["a.zarr"]
        assert sa.data.read(place).n_obs == 3


def test_an_existing_store_that_was_set_aside_is_not_written_over_unasked(tmp_path):
    adata = ad.AnnData(np.eye(3, dtype=np.float32))
    place = tmp_path / "a.zarr"
    sa.data.write_store(adata, place)
    aside = tmp_path / f".{'0' * 16}.part" / staging.BEFORE
    aside.mkdir(parents=True)
    place.rename(aside / place.name)
    with pytest.raises(FileExistsError, match="Pass `overwrite=True`"):
        sa.data.write_store(adata, place)


def test_parts_of_the_living_stay(tmp_path):
    with staging.part_of(tmp_path) as living:
        (living / "new").write_text("mine")
        dead, old = (tmp_path / f".{c * 16}.part" for c in "ab")
        dead.mkdir()
        old.write_text("of an earlier version")
        fresh = tmp_path / f".{'c' * 16}.part"
        fresh.write_text("of an earlier version, and being written")
        os.utime(old, (0, 0))
        os.utime(living, (0, 0))
        mine = tmp_path / ".mine.part"
        mine.mkdir()
        atomic_write.put(tmp_path / "a.csv", b"1")
        assert {p.name for p in tmp_path.iterdir()} == {"a.csv", living.name, fresh.name, mine.name}
        assert (living / "new").read_text() == "mine"
    assert not living.exists()


def test_without_locks_age_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "fcntl", None)
    new, old = (tmp_path / f".{c * 16}.part" for c in "ab")
    new.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    atomic_write.put(tmp_path / "a.csv", b"1")
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", new.name}


def test_termination_of_a_thread_or_with_a_listener_is_left_alone(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with staging.part_of(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
    worker = threading.Thread(target=atomic_write.put, args=(tmp_path / "a.csv", b"1"))
    worker.start()
    worker.join()
    assert (tmp_path / "a.csv").read_text() == "1"
    assert signal.getsignal(signal.SIGTERM) is before


# locks ------------------------------------------------------------------------------------------


def test_a_lock_excludes_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "LOCKED", 0.05)
    late = pytest.raises(TimeoutError, match=r"has been locked by another process for 0.05 s\. Wait until")
    both = staging.locked(tmp_path, shared=True), staging.locked(tmp_path, shared=True)
    with both[0], both[1], late, staging.locked(tmp_path):
        pass
    with staging.locked(tmp_path):
        pass
    monkeypatch.setattr(staging, "LOCKED", 60)
    order = []

    def late():
        with staging.locked(tmp_path):
            order.append("second")

    with staging.locked(tmp_path):
        worker = threading.Thread(target=late)
        worker.start()
        time.sleep(0.05)
        order.append("first")
    worker.join()
    assert order == ["first", "second"]


# modes and links --------------------------------------------------------------------------------


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_modes_and_links_stay(tmp_path, name):
    adata = ad.AnnData(np.eye(3, dtype=np.float32))
    place, link, folder = tmp_path / "real" / name, tmp_path / name, tmp_path / "real"
    folder.mkdir()
    before = os.umask(0o022)
    try:
        anndata_files.write(adata, place)
        assert mode(place) == (0o644 if place.is_file() else 0o755)
        place.chmod(0o600 if place.is_file() else 0o700)
        wanted = mode(place)
        link.symlink_to(place)
        for given in (place, link):
            adata.X = adata.X + 1
            anndata_files.write(adata, given)
            assert mode(place) == wanted
            assert link.is_symlink()
            assert sa.data.read(place).X[0, 0] == adata.X[0, 0]
        assert os.listdir(folder) == [name]
        dangling = tmp_path / f"dangling.{name[2:]}"
        dangling.symlink_to(folder / f"later.{name[2:]}")
        anndata_files.write(adata, dangling)
        assert dangling.is_symlink()
        assert sa.data.read(folder / f"later.{name[2:]}").n_obs == 3
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
def test_owners_stay(tmp_path):
    place = tmp_path / "a.csv"
    place.write_text("1")
    os.chown(place, 1234, 4321)
    place.chmod(0o640)
    atomic_write.put(place, b"2")
    assert (place.stat().st_uid, place.stat().st_gid, mode(place)) == (1234, 4321, 0o640)


def test_files_of_a_group_that_cannot_be_kept_are_not_opened_to_another(tmp_path, monkeypatch):
    place = tmp_path / "a.csv"
    place.write_text("1")
    if os.geteuid() == 0:
        os.chown(place, -1, 4321)
    else:
        pytest.skip("only root may give files to others")
    place.chmod(0o664)
    monkeypatch.setattr(os, "chown", lambda *_: (_ for _ in ()).throw(PermissionError()))
    atomic_write.put(place, b"2")
    assert mode(place) == 0o604


# places -----------------------------------------------------------------------------------------


def test_a_folder_is_not_replaced_by_cells(tmp_path):
    adata = ad.AnnData(np.eye(3, dtype=np.float32))
    for name in ("a.h5ad", "a.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("mine")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            anndata_files.write(adata, tmp_path / name)
        assert (tmp_path / name / "thesis.tex").read_text() == "mine"
    with pytest.raises(IsADirectoryError, match="holds something else than a zarr store"):
        sa.data.write_store(adata, tmp_path / "a.zarr", overwrite=True)
    (tmp_path / "file.zarr").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file, and a zarr store is a folder"):
        anndata_files.write(adata, tmp_path / "file.zarr")


@pytest.mark.parametrize("kind", ["backed", "view of a backed one", "store", "view of a store", "linked"])
def test_cells_on_the_disk_are_not_written_over(tmp_path, kind, quick):
    """While they are read, or by what does not hold all of them."""
    made = sa.datasets.simulate(60, 20, seed=1)
    made.obs["state"] = np.resize(["a", "b"], 60)
    sa.TRVAE.setup_anndata(made, condition_key="state")
    model = sa.TRVAE(made, n_hidden=8, n_latent=2)
    model.train(**quick)
    if "store" in kind:
        place = tmp_path / "cells.zarr"
        data = sa.data.write_store(made, place)
    else:
        place = tmp_path / "cells.h5ad"
        made.write_h5ad(place)
        data = ad.read_h5ad(place, backed="r")
    data = data[:40] if "view" in kind else data
    if kind == "linked":
        place = tmp_path / "link.h5ad"
        place.symlink_to(tmp_path / "cells.h5ad")
    match = "is what the cells are read from: they would be lost"
    with pytest.raises(ValueError, match=match):
        model.write_annotations(place, data, overwrite=True)
    with pytest.raises(ValueError, match=match):
        model.write_transfer(place, data, "a", overwrite=True)
    if "store" in kind:
        with pytest.raises(ValueError, match=match):
            sa.data.write_store([made, data] if kind == "store" else data, place, overwrite=True)
    assert sa.data.read(place).n_obs == 60
    if kind != "view of a backed one":  # of which anndata makes no pieces
        model.write_annotations(tmp_path / f"other{place.suffix}", data)


def test_a_page_does_not_take_the_place_of_cells(tmp_path, quick):
    made = sa.datasets.simulate(60, 20, seed=1)
    made.write_h5ad(tmp_path / "cells.h5ad")
    model = sa.VAE(made, n_hidden=8, n_latent=2)
    model.train(**quick)
    with pytest.raises(ValueError, match=r"is to be a page\. Let its name end in \.html"):
        model.report(tmp_path / "cells.h5ad", overwrite=True)
    assert sa.data.read(tmp_path / "cells.h5ad").n_obs == 60
