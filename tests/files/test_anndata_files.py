"""Cells into files of every kind and back; zarr stores of which nobody knows who made them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import scalloy as sa
from scalloy.files import anndata_files as files
from scalloy.files import reading


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_what_is_written_is_read(cells, kind, tmp_path):
    path = tmp_path / f"new folder/cells.{kind}"
    for _ in range(2):  # the second time over the first
        files.write(cells, path)
    again = sa.data.read(path)
    assert (again.X != cells.X).nnz == 0
    assert list(again.obs["lane"]) == list(cells.obs["lane"])
    np.testing.assert_array_equal(again.obsm["protein_counts"], cells.obsm["protein_counts"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_name_says_the_kind(cells, tmp_path):
    with pytest.raises(ValueError, match=r"cannot hold this AnnData. Let its name end in .h5ad, .zarr"):
        files.write(cells, tmp_path / "cells.h5mu")


def test_a_store_that_could_not_be_written_leaves_the_old_one(cells, tmp_path, monkeypatch):
    path = tmp_path / "cells.zarr"
    files.write(cells, path)

    def broken(_, part):
        part.mkdir()
        (part / "begun").write_text("")
        raise OSError("half way")

    monkeypatch.setattr(files, "_write_zarr", broken)
    with pytest.raises(OSError, match="half way"):
        files.write(cells[:10].copy(), path)
    assert sa.data.read(path).n_obs == cells.n_obs
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_stores_that_lead_out_or_declare_more_than_they_hold(cells, tmp_path):
    path = tmp_path / "cells.zarr"
    files.write(cells, path)
    (path / ".zmetadata").unlink(missing_ok=True)  # says all of it again
    if (root := path / "zarr.json").is_file():  # as does this one, of newer stores
        told = json.loads(root.read_text())
        root.write_text(json.dumps({k: v for k, v in told.items() if k != "consolidated_metadata"}))
    about = next(p for p in path.rglob("*") if p.parent.name == "data" and p.name in {".zarray", "zarr.json"})
    whole = about.read_text()
    about.write_text(json.dumps({**json.loads(whole), "shape": [10**12]}))
    with pytest.raises(
        reading.DamagedFileError, match=r"its arrays declare \d+,\d+,.* bytes, of which .* are stored"
    ):
        sa.data.read(path)
    about.write_text(whole)
    secret = tmp_path / "secret"
    secret.mkdir()
    (path / "uns" / "more").symlink_to(secret)
    with pytest.raises(reading.DamagedFileError, match="more is a link, which may lead out of the store"):
        sa.data.read(path)
    with pytest.raises(IsADirectoryError, match="is a folder, but not a zarr store"):
        sa.data.read(secret)
