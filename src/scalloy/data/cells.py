"""Cells into a file of their kind: h5ad, h5mu or zarr, whole or not at all."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import anndata

from scalloy.data import writing
from scalloy.data.checks import few
from scalloy.data.disk import is_on_disk, whole_of
from scalloy.data.modalities import is_mudata

KINDS = {".h5ad": "AnnData", ".h5mu": "MuData", ".zarr": "AnnData or MuData"}


def check_kind(path: Path, data: Any = None) -> None:
    """The name ends as that of a file which can hold ``data`` (or anything at all)."""
    kind = "MuData" if is_mudata(data) else "AnnData"
    fits = [k for k, of in KINDS.items() if data is None or kind in of]
    if path.suffix not in fits:
        what = "is of a kind that is not written" if data is None else f"cannot hold this {kind}"
        msg = f"`{path}` {what}. Let its name end in {few(fits)}."
        raise ValueError(msg)


def check_place(path: Path) -> None:
    """What is there is a file where a file is to be written, and a zarr store where one is."""
    if path.suffix != ".zarr":
        if path.is_dir():
            msg = f"`{path}` is a folder. Pass the name of a file."
            raise IsADirectoryError(msg)
        return
    if path.is_file():
        msg = f"`{path}` is a file, and a zarr store is a folder. Pass another name."
        raise NotADirectoryError(msg)
    if path.is_dir() and not is_store(path) and any(path.iterdir()):
        msg = f"`{path}` is a folder that holds something else than a zarr store. Pass another name."
        raise IsADirectoryError(msg)


def check_apart(path: Path, *sources: Any) -> None:
    """What is written does not take the place of cells that stay on the disk while they are read.

    Parameters
    ----------
    path
        What is written.
    *sources
        Cells, or names of files.
    """
    for source in sources:
        place = _place_of(source)
        if place is not None and place.exists() and path.exists() and path.samefile(place):
            msg = f"`{path}` is what the cells are read from: they would be lost. Pass another name."
            raise ValueError(msg)


def _place_of(source: Any) -> Path | None:
    """Where cells lie on the disk; nowhere if they are in memory."""
    if isinstance(source, str | Path):
        return Path(source)
    whole = whole_of(source)[0]
    if is_on_disk(whole):
        group = whole.X.group
        root = getattr(group, "store", None)
        return Path(group.file.filename) if root is None else Path(getattr(root, "root", ""))
    return Path(source.filename) if isinstance(source, anndata.AnnData) and source.isbacked else None


def is_store(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def write(data: Any, path: Path) -> None:
    """Write an AnnData or a MuData as the ending of ``path`` says; what was there stays until that is done.

    Parameters
    ----------
    data
        The cells.
    path
        Ends in ``.h5ad``, ``.h5mu`` (MuData) or ``.zarr``.
    """
    check_kind(path, data)
    check_place(path)
    with writing.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zarr":
            writing.put_folder(path, partial(_write_zarr, data))
        else:
            writing.put(path, partial(_write_h5mu if is_mudata(data) else write_h5ad, data))


def write_h5ad(adata: anndata.AnnData, path: Path) -> None:
    """As ``adata.write_h5ad``, also of texts as the newest pandas holds them."""
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(path)


def _write_h5mu(mdata: Any, path: Path) -> None:
    with anndata.settings.override(allow_write_nullable_strings=True):
        mdata.write_h5mu(path)


def _write_zarr(data: Any, path: Path) -> None:
    if is_mudata(data):  # mudata has NumPy's integer there after reading h5mu, which zarr does not write
        data._axis = int(data.axis)
    with anndata.settings.override(allow_write_nullable_strings=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Writing zarr v2")
        data.write_zarr(path)
