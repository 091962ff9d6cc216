"""Atomic writing of files and folders, with clear errors if writing fails.

Everything is first written into a hidden staging folder, a *part* (:mod:`scalloy.files.staging`). A new file
is then renamed over the old one; a new folder swaps places with the old one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from scalloy.files.staging import OLD, PART, age, exchange, locked, part_of, recovered, through_links

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
Content = bytes | Callable[[Path], None]


# a file, a folder, several files ----------------------------------------------------------------


def put(path: Path, content: Content) -> None:
    """Write a file from bytes or by calling ``content``; the old file is replaced once that is complete."""
    path = through_links(path)
    with part_of(path.parent) as part:
        new = part / "new"
        _write(new, content)
        _take_mode(new, path)
        new.replace(path)
        _sync(path.parent)


def put_folder(path: Path, content: Callable[[Path], None]) -> None:
    """Let ``content`` write a folder; the old folder is replaced once that is complete."""
    path = recovered(through_links(path))
    with part_of(path.parent) as part:
        new = part / "new"
        content(new)
        _sync_all(new)
        if not os.path.lexists(path):
            new.replace(path)
        else:
            _take_mode(new, path)
            exchange(new, path, part)
        _sync(path.parent)


def put_named(
    folder: Path,
    index: str,
    contents: Mapping[str, tuple[str, Content]],
    about: Callable[[dict[str, str]], bytes],
    names: re.Pattern[str],
    unnamed: Collection[str] = (),
) -> None:
    """Write files and an index that names them, so that at any time the index and its files are complete.

    Several processes may do this in one folder. Each removes the files named by the index that it replaced,
    and old files of this kind that no index names.

    Parameters
    ----------
    folder
        Folder of the files and the index.
    index
        File name of the index, which is put in place last.
    contents
        Suffix and content of each file by the stem of its name; its digest is appended to the stem.
    about
        Function that returns the content of the index, given the file name for each stem.
    names
        Pattern that the names of such files match.
    unnamed
        Files that belong to an index in which no file is named.
    """
    with part_of(folder) as part:
        files = {}
        for stem, (suffix, content) in contents.items():
            _write(part / stem, content)
            files[stem] = f"{stem}-{digest(part / stem)}{suffix}"
        _write(part / index, about(files))
        for name in (*files, index):
            _take_mode(part / name, folder / index)
        with locked(folder):
            before = _named_by(folder / index, names, unnamed)
            for stem, name in files.items():
                (part / stem).replace(folder / name)
            (part / index).replace(folder / index)
            _sync(folder)
            for file in list(folder.iterdir()):
                if file.name in files.values() or not (names.fullmatch(file.name) or file.name in unnamed):
                    continue
                if file.name in before or age(file) > OLD:  # otherwise it may be the file of another process
                    file.unlink(missing_ok=True)


def _named_by(index: Path, names: re.Pattern[str], unnamed: Collection[str]) -> set[str]:
    """Return the names of the files that belong to an index."""
    if not index.is_file():
        return set()
    found = re.finditer(names.pattern.encode(), index.read_bytes())
    return {match.group().decode() for match in found} or set(unnamed)


def digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing but staging folders, as interrupted writers leave them behind."""
    return all(PART.fullmatch(p.name) for p in folder.iterdir())


# the disk ---------------------------------------------------------------------------------------


def _take_mode(new: Path, place: Path) -> None:
    """Give a new file or folder the owner, group and permissions of the one that it replaces."""
    if os.name == "nt" or not place.exists():
        return
    was = place.stat()
    for owner in ((-1, was.st_gid), (was.st_uid, -1)):
        with suppress(OSError):
            os.chown(new, *owner)
    mode = stat.S_IMODE(was.st_mode)
    new.chmod(mode if new.stat().st_gid == was.st_gid else mode & ~0o070)


def _write(place: Path, content: Content) -> None:
    """Write the content of a file and wait until it is on disk."""
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        content(place)
    _sync(place)


def _sync_all(folder: Path) -> None:
    for inner, _, names in os.walk(folder):
        for name in names:
            _sync(Path(inner) / name)


def _sync(path: Path) -> None:
    """Flush a file or folder to disk; on Windows folders cannot be flushed and are skipped."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Explain why writing failed (disk full, no permission, a file in the way) and what to do."""
    try:
        yield
    except OSError as error:
        number = error.errno
        if number is None and (found := re.search(r"errno = (\d+)", str(error))):  # HDF5 has it in its text
            number = int(found[1])
        if number in FULL:
            msg = (
                f"`{path}` could not be written: the disk or your quota is full, or the file too large. What "
                "was there before is as it was. Free some space, or pass a folder on another disk"
            )
            raise OSError(number, msg) from error
        if number in REFUSED:
            msg = (
                f"`{path}` may not be written to (read-only, or not yours). What was there before is as it "
                "was. Pass a folder that you may write to"
            )
            raise PermissionError(number, msg) from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            msg = f"`{path}` is, or lies below, a file. Pass a folder"
            raise NotADirectoryError(errno.ENOTDIR, msg) from error
        raise
