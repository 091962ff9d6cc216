"""Reading h5ad and h5mu files of which nobody knows who made them.

An HDF5 file may declare arrays far larger than what it holds, point into other files, be cut off anywhere,
and bring HDF5 itself to a crash or a loop without end. :func:`read` has another process read it through first
(:mod:`scalloy.data.structure`), and whatever fails is said of the file.
"""

from __future__ import annotations

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

from scalloy.data import structure, writing
from scalloy.data.checks import within

SECONDS, PER_SECOND = 30, 2 << 20  # for a look at a file, and bytes in each further one


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
    """An AnnData from a ``.h5ad``, or a MuData from a ``.h5mu``, after a look at what it declares.

    Parameters
    ----------
    path
        The file.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no file `{path}`."
        raise FileNotFoundError(msg)
    kind = "h5mu file" if path.suffix == ".h5mu" else "h5ad file"
    with refused(path, kind):
        check_structure(path)
        data = mudata.read_h5mu(path) if path.suffix == ".h5mu" else anndata.read_h5ad(path)
        check_sparse(data)
        return data


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
    """A file of :func:`scalloy.data.writing.put_digested`, with one of these names, which hold its digest."""
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
