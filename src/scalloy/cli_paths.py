"""What a command reads and writes: every path is looked at before any work is done.

A command says in the type of a parameter that it is written (:class:`Writes`); every other path is read.
:func:`checked` is put around every command by :class:`scalloy.cli_files.Commands`.
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
FILES = (*CELLS, *PAGES, *TABLES)  # what the name of a folder may not end in


@dataclass(frozen=True)
class Writes:
    """Mark of a parameter that names what is written.

    Parameters
    ----------
    kind
        What it is, for messages.
    suffixes
        Its name ends in one of these; without any it is a folder.
    over
        Names of the parameters that it may replace: it holds all that was read from them.
    unasked
        Whether what is there may be replaced without ``--force``.
    """

    kind: str
    suffixes: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    unasked: bool = False


def checked(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that first looks at its paths and keys."""
    if hasattr(command, "_checked"):
        return command

    @wraps(command)
    def run(**given: Any) -> Any:
        check(command, given)
        return command(**given)

    run._checked = True  # type: ignore[attr-defined]
    return run


def outputs(command: Callable[..., Any]) -> dict[str, Writes]:
    """Return what a command writes, by the names of its parameters."""
    hints = get_type_hints(command, include_extras=True)
    found = {}
    for name, hint in hints.items():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, Writes):
                found[name] = mark
    return found


def inputs(command: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters that may name something that is read."""
    hints = get_type_hints(command)
    written = outputs(command)
    return [k for k, hint in hints.items() if k not in written and (_has_path(hint) or k == "data")]


def _has_path(hint: Any) -> bool:
    return hint is Path or any(_has_path(part) for part in getattr(hint, "__args__", ()))


def check(command: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """What is written is none of what is read, has a name of its kind, and can be written.

    Parameters
    ----------
    command
        Function of the command.
    given
        Value of each of its parameters.
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
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str | Path)]


def _option(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"


def _check_kind(path: Path, mark: Writes) -> None:
    """The name ends as that of such a file, and no folder is there; or the other way round."""
    from scalloy.data import cells

    if mark.suffixes == CELLS:
        cells.check_kind(path)
        cells.check_place(path)
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
    """What is written does not replace what is read, and does not lie in a store of cells."""
    from scalloy.data import cells

    if not place.exists():
        return
    if _is_same(path, place) and not over:
        msg = f"`{path}` is what {other} is read from: it would be lost. Pass another name to write to."
        raise ValueError(msg)
    out, read = path.resolve(), place.resolve()
    inside = out.is_relative_to(read) and cells.is_store(read)
    if out != read and (inside or (out.suffix == ".zarr" and read.is_relative_to(out))):
        msg = f"`{path}` and `{place}`, from which {other} is read, lie in each other. Pass another name."
        raise ValueError(msg)


def _is_same(first: Path, second: Path) -> bool:
    """Whether both lead to one place, by whatever links."""
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()


def _check_free(path: Path, *, force: bool) -> None:
    """What is there is not written over unasked, and it can be written."""
    from scalloy.data import parts, writing

    path = parts.recovered(path)
    if path.exists() and not force and not (path.is_dir() and writing.is_empty(path)):
        msg = f"`{path}` exists. Pass `--force` to write over it, or another `--out`."
        raise FileExistsError(msg)
    place = parts.through_links(path)
    folder = place if place.is_dir() and place.suffix != ".zarr" else place.parent
    with writing.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with parts.part_of(folder) as part:
            (part / "new").touch()
