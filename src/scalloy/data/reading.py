"""Reading h5ad and h5mu files and zarr stores of which nobody knows who made them.

An HDF5 file may declare arrays far larger than what it holds, point into other files, be cut off anywhere,
and bring HDF5 itself to a crash or a loop without end. :func:`read` has another process read it through first
(:mod:`scalloy.data.structure`), and whatever fails is said of the file. A zarr store is a folder: nothing in
it may lead out, and it may not declare far more than it holds.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import mudata
import scipy.sparse as sp

from scalloy.data import codecs, structure, writing
from scalloy.data.checks import few, within
from scalloy.data.parts import recovered

SECONDS, PER_SECOND = 30, 2 << 20  # for a look at a file, and bytes in each further one
EMPTY = 1 << 30  # bytes that a zarr store may declare beyond what it holds: zeros are not stored


class DamagedFileError(ValueError):
    """A file does not hold what it should."""


@contextmanager
def refused(path: Path, kind: str) -> Iterator[None]:
    """Whatever goes wrong with a file that is not trusted is said of the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        own = isinstance(error, DamagedFileError | ValueError)
        what = str(error) if own else f"{type(error).__name__}: {error}"
        msg = f"`{path}` is damaged, or no {kind}: {what[:500]}. Get another copy of it."
        raise DamagedFileError(msg) from error


def read(path: str | Path) -> Any:
    """An AnnData from a ``.h5ad``, a MuData from a ``.h5mu``, either from a zarr store; what it declares is \
looked at first.

    Parameters
    ----------
    path
        The file, or the folder of a zarr store.
    """
    path = recovered(Path(path))
    if path.is_dir():
        return _read_zarr(path)
    if not path.is_file():
        msg = f"There is no file `{path}`."
        raise FileNotFoundError(msg)
    kind = "h5mu file" if path.suffix == ".h5mu" else "h5ad file"
    with refused(path, kind):
        check_structure(path)
        data = mudata.read_h5mu(path) if path.suffix == ".h5mu" else anndata.read_h5ad(path)
        check_sparse(data)
        return data


def _read_zarr(path: Path) -> Any:
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        msg = f"`{path}` is a folder, and no zarr store. Pass an h5ad or h5mu file, or a zarr store."
        raise IsADirectoryError(msg)
    with refused(path, "zarr store"):
        check_store(path)
        data = mudata.read_zarr(path)
        check_sparse(data)
        return data


def check_store(path: Path) -> None:
    """No link lies in a zarr store, decoding runs nothing, and no array is far larger than what is stored."""
    import zarr

    held = 0
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            if (Path(folder) / name).is_symlink():
                msg = f"{name} is a link, which may lead out of the store"
                raise DamagedFileError(msg)
        held += sum((Path(folder) / name).stat().st_size for name in names)
    check_codecs(path)
    items = [item for _, item in zarr.open_group(path, mode="r").members(max_depth=None)]
    arrays = [item for item in items if isinstance(item, zarr.Array)]
    declared = sum(math.prod(a.shape) * max(1, a.dtype.itemsize) for a in arrays)
    if declared > EMPTY + structure.RATIO * held:
        msg = f"its arrays declare {declared:,} bytes, of which {held:,} are stored"
        raise DamagedFileError(msg)


def check_codecs(path: Path) -> None:
    """The arrays of a zarr store are decoded without running what they hold."""
    if unknown := codecs.unknown_codecs(path):
        msg = f"its arrays are decoded by {few(unknown)}, which may run any code, or is not known"
        raise DamagedFileError(msg)


def check_structure(path: Path) -> None:
    """Have :mod:`scalloy.data.structure` look at it, in a process that may fail."""
    command = [sys.executable, "-I", structure.__file__, str(path)]
    seconds = SECONDS + path.stat().st_size / PER_SECOND
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        msg = f"it could not be read through within {seconds:.0f} s"
        raise DamagedFileError(msg) from None
    if found.returncode == structure.REFUSED:
        raise DamagedFileError(found.stdout.strip() or "it cannot be read")
    if found.returncode:
        msg = f"reading it through ended with code {found.returncode} {found.stderr[-200:]}"
        raise DamagedFileError(msg)


def check_sparse(data: Any) -> None:
    """Rows and columns of each sparse matrix lie within it: scipy's loops do not look."""
    parts = list(data.mod.values()) if hasattr(data, "mod") else [data]
    for part in parts:
        held = [part.X, None if part.raw is None else part.raw.X]
        for mapping in (part.layers, part.obsm, part.varm, part.obsp, part.varp):
            held += list(mapping.values())
        for matrix in held:
            if sp.issparse(matrix) and not within(matrix):
                msg = f"a sparse matrix of {matrix.shape[0]} x {matrix.shape[1]} points outside of itself"
                raise DamagedFileError(msg)


def digested(folder: Path, name: Any, names: re.Pattern[str]) -> Path:
    """A file of :func:`scalloy.data.writing.put_named`, with one of these names, which hold its digest."""
    if not isinstance(name, str) or not names.fullmatch(name):
        msg = f"it names the file {str(name)[:100]!r}"
        raise DamagedFileError(msg)
    if not (folder / name).is_file():
        msg = f"it lacks {name}"
        raise DamagedFileError(msg)
    if writing.digest(folder / name) != re.split(r"[-.]", name)[1]:
        msg = f"{name} is not what was saved"
        raise DamagedFileError(msg)
    return folder / name


def grouped(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``"group/name"`` to one dictionary for each group."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in named.items():
        group, _, name = key.partition("/")
        out.setdefault(group, {})[name] = value
    return out
