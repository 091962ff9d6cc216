"""Atomic writing of AnnData and MuData objects as h5ad, h5mu or zarr."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from anndata import AnnData
from anndata.abc import CSRDataset
from mudata import MuData

from scalloy._arguments import few
from scalloy.files import atomic_write

KINDS = {".h5ad": "AnnData", ".h5mu": "MuData", ".zarr": "AnnData or MuData"}


def check_kind(path: Path, data: Any = None) -> None:
    """Check that the ending of a file name fits ``data``, or is a known one if ``data`` is `None`."""
    kind = "MuData" if is_mudata(data) else "AnnData"
    fits = [k for k, of in KINDS.items() if data is None or kind in of]
    if path.suffix not in fits:
        what = "has an ending that is not supported" if data is None else f"cannot hold this {kind}"
        msg = f"`{path}` {what}. Let its name end in {few(fits)}."
        raise ValueError(msg)


def check_place(path: Path) -> None:
    """Check that writing would replace nothing but a file, or for a zarr store nothing but a zarr store."""
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
    """Check that writing would not replace a file from which cells are still being read.

    Parameters
    ----------
    path
        File or store to write.
    *sources
        Cells, or names of files.
    """
    for source in sources:
        place = _place_of(source)
        if place is not None and place.exists() and path.exists() and path.samefile(place):
            msg = f"`{path}` is what the cells are read from: they would be lost. Pass another name."
            raise ValueError(msg)


def _place_of(source: Any) -> Path | None:
    """Return the path of cells that are on disk, or `None` if they are in memory."""
    if isinstance(source, str | Path):
        return Path(source)
    whole = whole_of(source)[0]
    if is_on_disk(whole):
        group = whole.X.group
        root = getattr(group, "store", None)
        return Path(group.file.filename) if root is None else Path(getattr(root, "root", ""))
    return Path(source.filename) if isinstance(source, anndata.AnnData) and source.isbacked else None


def is_store(path: Path) -> bool:
    """Return whether a folder is a zarr store."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def write(data: Any, path: Path) -> None:
    """Write an AnnData or a MuData in the format given by the ending of ``path``.

    A file or store of this name is replaced only once the new one is complete.

    Parameters
    ----------
    data
        Cells to write.
    path
        Path that ends in ``.h5ad``, ``.h5mu`` (MuData) or ``.zarr``.
    """
    check_kind(path, data)
    check_place(path)
    with atomic_write.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zarr":
            atomic_write.put_folder(path, partial(_write_zarr, data))
        else:
            atomic_write.put(path, partial(_write_h5mu if is_mudata(data) else write_h5ad, data))


def write_h5ad(adata: anndata.AnnData, path: Path) -> None:
    """Call ``adata.write_h5ad`` with support for the nullable strings of recent pandas versions."""
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(path)


def _write_h5mu(mdata: Any, path: Path) -> None:
    with anndata.settings.override(allow_write_nullable_strings=True):
        mdata.write_h5mu(path)


def _write_zarr(data: Any, path: Path) -> None:
    if is_mudata(data):  # after reading h5mu this is a NumPy integer, which zarr cannot write
        data._axis = int(data.axis)
    with anndata.settings.override(allow_write_nullable_strings=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Writing zarr v2")
        data.write_zarr(path)


def is_on_disk(adata: Any) -> bool:
    """Return whether the counts of an AnnData stay on disk, as after :func:`scalloy.data.open_store`."""
    if not isinstance(adata, AnnData) or adata.isbacked or adata.is_view:  # `.X` would be read now
        return False
    return isinstance(adata.X, CSRDataset)


def whole_of(adata: Any) -> tuple[Any, np.ndarray | None]:
    """Return the on-disk AnnData behind a view and the rows of the view; any other object and `None`."""
    if isinstance(adata, AnnData) and adata.is_view:
        whole = adata._adata_ref
        if is_on_disk(whole) and adata.var_names.equals(whole.var_names):
            return whole, np.arange(whole.n_obs)[adata._oidx]
    return adata, None


def is_mudata(data: Any) -> bool:
    """Return whether ``data`` is a MuData."""
    return isinstance(data, MuData)
