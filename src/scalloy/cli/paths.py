"""Checks of the paths that a command reads and writes, made before any work is done.

Parameters for paths that are written are annotated with :class:`Writes`; every other path is read.
:class:`scalloy.cli.console.Commands` wraps every command in :func:`checked`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

CELLS = (".h5ad", ".h5mu", ".zarr")
PAGES = (".html", ".htm")
TABLES = (".csv",)
PICTURES = (".png", ".pdf", ".svg")
FILES = (*CELLS, *PAGES, *TABLES, *PICTURES)  # endings that the name of a folder may not have


@dataclass(frozen=True)
class Writes:
    """Annotation of a parameter that names a file or folder to write.

    Parameters
    ----------
    kind
        Kind of output, for messages.
    suffixes
        Endings that the name may have; without any, the output is a folder.
    over
        Names of input parameters whose file may be replaced, because the output holds all that was read.
    unasked
        Whether existing output may be replaced without ``--force``.
    """

    kind: str
    suffixes: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    unasked: bool = False


def checked(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that checks its paths and keys before it runs."""
    if hasattr(command, "_checked"):
        return command

    @wraps(command)
    def run(**given: Any) -> Any:
        check(command, given)
        return command(**given)

    run._checked = True  # type: ignore[attr-defined]
    return run


def outputs(command: Callable[..., Any]) -> dict[str, Writes]:
    """Return the outputs of a command by the names of its parameters."""
    hints = get_type_hints(command, include_extras=True)
    found = {}
    for name, hint in hints.items():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, Writes):
                found[name] = mark
    return found


def inputs(command: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters that may name an input."""
    hints = get_type_hints(command)
    written = outputs(command)
    return [k for k, hint in hints.items() if k not in written and (_has_path(hint) or k == "data")]


def _has_path(hint: Any) -> bool:
    """Tell whether a type is a path, or contains one."""
    return hint is Path or any(_has_path(part) for part in getattr(hint, "__args__", ()))


def check(command: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise unless every output has a proper name, replaces no input, and can be written.

    Parameters
    ----------
    command
        Function of the command.
    given
        Value of each parameter of the command.
    """
    from scalloy import _keys

    if given.get("key_added") is not None:
        _keys.check_key("key_added", given["key_added"])
    written = {k: (Path(given[k]), mark) for k, mark in outputs(command).items() if given.get(k) is not None}
    read = [(k, Path(p)) for k in inputs(command) for p in _listed(given.get(k))]
    for name, (path, mark) in written.items():
        _check_kind(path, mark)
        for other, place in read:
            _check_apart(path, place, other, over=other in mark.over)
        for other, (place, _) in written.items():
            if other != name and mark.suffixes and _is_same(path, place):
                msg = f"`{path}` is named twice, to be written by {_option(name)} and {_option(other)}."
                raise ValueError(msg)
    for path, mark in written.values():
        _check_free(path, force=mark.unasked or bool(given.get("force")))


def _listed(value: Any) -> list[str | Path]:
    """Return the paths and texts in a value, which may be a list or a single one."""
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str | Path)]


def _option(name: str) -> str:
    """Return the option of a parameter as it is typed."""
    return f"`--{name.replace('_', '-')}`"


def _check_kind(path: Path, mark: Writes) -> None:
    """Raise if the name has a wrong ending, or if there is a folder in place of a file or vice versa."""
    from scalloy.files import anndata_files

    if mark.suffixes == CELLS:
        anndata_files.check_kind(path)
        anndata_files.check_place(path)
    elif mark.suffixes:
        if path.suffix.lower() not in mark.suffixes:
            msg = f"`{path}` is to be a {mark.kind}. Let its name end in {' or '.join(mark.suffixes)}."
            raise ValueError(msg)
        if path.is_dir():
            msg = f"`{path}` is a folder. Pass the name of a file."
            raise IsADirectoryError(msg)
    elif path.suffix.lower() in FILES or (path.exists() and not path.is_dir()):
        msg = f"`{path}` is, or is called like, a file, and the {mark.kind} is a folder. Pass a folder."
        raise NotADirectoryError(msg)


def _check_apart(path: Path, place: Path, other: str, *, over: bool) -> None:
    """Raise if an output would replace an input, or if one lies inside the store of the other."""
    from scalloy.files import anndata_files

    if not place.exists():
        return
    if _is_same(path, place) and not over:
        msg = f"`{path}` is where {other} is read from: it would be lost. Pass another name to write to."
        raise ValueError(msg)
    out, read = path.resolve(), place.resolve()
    inside = out.is_relative_to(read) and anndata_files.is_store(read)
    if out != read and (inside or (out.suffix == ".zarr" and read.is_relative_to(out))):
        msg = f"Of `{path}` and `{place}` (read as {other}) one lies inside the other. Pass another name."
        raise ValueError(msg)


def _is_same(first: Path, second: Path) -> bool:
    """Tell whether two paths lead to the same place, through any links."""
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()


def _check_free(path: Path, *, force: bool) -> None:
    """Raise if an output exists and ``force`` is not set, or if it cannot be written."""
    from scalloy.files import atomic_write, staging

    path = staging.recovered(path)
    if path.exists() and not force and not (path.is_dir() and atomic_write.is_empty(path)):
        msg = f"`{path}` exists. Pass `--force` to write over it, or another `--out`."
        raise FileExistsError(msg)
    place = staging.through_links(path)
    folder = place if place.is_dir() and place.suffix != ".zarr" else place.parent
    with atomic_write.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with staging.part_of(folder) as part:
            (part / "new").touch()
