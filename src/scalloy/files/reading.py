"""Reading of untrusted h5ad and h5mu files and zarr stores.

An HDF5 file may declare arrays far larger than what it holds, point into other files, be cut off anywhere, or
make HDF5 itself crash or loop forever. So :func:`read` first lets another process read the whole file
(:mod:`scalloy.files.hdf5_check`) and reports any failure as an error about the file. A zarr store is a
folder: it may not contain links, name unsafe codecs or declare far more data than it holds.
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

from scalloy._arguments import few
from scalloy._registry import NotRegisteredError
from scalloy.files import atomic_write, codecs, hdf5_check
from scalloy.files.sparse_check import within
from scalloy.files.staging import recovered

SECONDS, PER_SECOND = 30, 2 << 20  # base time limit of a check, and bytes per additional second
EMPTY = 1 << 30  # bytes that a zarr store may always declare: chunks of zeros are not stored


class DamagedFileError(ValueError):
    """Error for a file that does not hold what it should."""


@contextmanager
def refused(path: Path, kind: str) -> Iterator[None]:
    """Turn any error from an untrusted file into a :class:`DamagedFileError` that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        own = isinstance(error, DamagedFileError | ValueError)
        what = str(error) if own else f"{type(error).__name__}: {error}"
        or_else = ", or import what registers that name" if isinstance(error, NotRegisteredError) else ""
        msg = f"`{path}` is damaged, or not a valid {kind}: {what[:500]}. Get another copy of it{or_else}."
        raise DamagedFileError(msg) from error


def read(path: str | Path) -> Any:
    """Read an AnnData or a MuData from an h5ad or h5mu file or a zarr store, after checking that it is safe.

    Parameters
    ----------
    path
        Path of an ``.h5ad`` or ``.h5mu`` file, or of the folder of a zarr store.

    Examples
    --------
    >>> adata.write_h5ad(folder / "cells.h5ad")
    >>> sa.data.read(folder / "cells.h5ad").shape
    (200, 40)
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
        msg = f"`{path}` is a folder, but not a zarr store. Pass an h5ad or h5mu file, or a zarr store."
        raise IsADirectoryError(msg)
    with refused(path, "zarr store"):
        check_store(path)
        data = mudata.read_zarr(path)
        check_sparse(data)
        return data


def check_store(path: Path) -> None:
    """Check that a zarr store has no links, no unsafe codecs, and declares no more data than is plausible."""
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
    if declared > EMPTY + hdf5_check.RATIO * held:
        msg = f"its arrays declare {declared:,} bytes, of which {held:,} are stored"
        raise DamagedFileError(msg)


def check_codecs(path: Path) -> None:
    """Check that decoding the arrays of a zarr store cannot execute code."""
    if unknown := codecs.unknown_codecs(path):
        msg = f"its arrays are decoded by {few(unknown)}, which may run any code, or is not known"
        raise DamagedFileError(msg)


def check_structure(path: Path) -> None:
    """Check an HDF5 file with :mod:`scalloy.files.hdf5_check` in a process that may crash or hang."""
    command = [sys.executable, "-I", hdf5_check.__file__, str(path)]
    seconds = SECONDS + path.stat().st_size / PER_SECOND
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        msg = f"it could not be read through within {seconds:.0f} s"
        raise DamagedFileError(msg) from None
    if found.returncode == hdf5_check.REFUSED:
        raise DamagedFileError(found.stdout.strip() or "it cannot be read")
    if found.returncode:
        msg = f"reading it through ended with code {found.returncode} {found.stderr[-200:]}"
        raise DamagedFileError(msg)


def check_sparse(data: Any) -> None:
    """Check that the indices of each sparse matrix are in range, which the loops of scipy do not check."""
    parts = list(data.mod.values()) if hasattr(data, "mod") else [data]
    for part in parts:
        held = [part.X, None if part.raw is None else part.raw.X]
        for mapping in (part.layers, part.obsm, part.varm, part.obsp, part.varp):
            held += list(mapping.values())
        for matrix in held:
            if sp.issparse(matrix) and not within(matrix):
                msg = f"a sparse matrix of {matrix.shape[0]} x {matrix.shape[1]} has indices outside of it"
                raise DamagedFileError(msg)


def digested(folder: Path, name: Any, names: re.Pattern[str]) -> Path:
    """Return the path of a file that :func:`.put_named` wrote, after checking its name and digest."""
    if not isinstance(name, str) or not names.fullmatch(name):
        msg = f"it names the file {str(name)[:100]!r}, which is not allowed"
        raise DamagedFileError(msg)
    if not (folder / name).is_file():
        msg = f"it lacks {name}"
        raise DamagedFileError(msg)
    if atomic_write.digest(folder / name) != re.split(r"[-.]", name)[1]:
        msg = f"{name} is not what was saved"
        raise DamagedFileError(msg)
    return folder / name


def grouped(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split keys of the form ``"group/name"`` into one dictionary per group."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in named.items():
        group, _, name = key.partition("/")
        out.setdefault(group, {})[name] = value
    return out
