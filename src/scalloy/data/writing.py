"""Files that are there whole or not at all, and what it means when one cannot be written."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
PART = re.compile(r"\.[0-9a-f]{16}\.part")
OLD = 3600  # seconds after which a part is no longer being written
Content = bytes | Callable[[Path], None]


def put(path: Path, content: Content) -> None:
    """Write ``content`` (or let it write itself) as ``path``: until that is done, what was there stays."""
    part = _written(path.parent, content)
    try:
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent)


def put_folder(path: Path, content: Callable[[Path], None]) -> None:
    """Let ``content`` write a folder as ``path``: until that is done, what was there stays.

    A folder cannot replace another in one step: the old one is moved aside first, and back if that fails.
    """
    part, old = (path.parent / f".{secrets.token_hex(8)}.part" for _ in range(2))
    try:
        content(part)
        if path.exists():
            path.replace(old)
        try:
            part.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
    finally:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
    _sync(path.parent)


def put_digested(folder: Path, stem: str, suffix: str, content: Content) -> str:
    """Write ``content`` into ``folder`` under a name that holds its digest, and return the name."""
    part = _written(folder, content)
    try:
        name = f"{stem}-{digest(part)}{suffix}"
        part.replace(folder / name)
    finally:
        part.unlink(missing_ok=True)
    return name


def digest(path: Path) -> str:
    """The first 16 digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def remove_parts(folder: Path) -> None:
    """Remove what a writing that was killed has left."""
    for part in folder.iterdir():
        if PART.fullmatch(part.name) and part.is_file() and time.time() - part.stat().st_mtime > OLD:
            part.unlink(missing_ok=True)


def remove_others(folder: Path, names: re.Pattern[str], keep: Container[str]) -> None:
    """Remove the files of these names that are no longer needed."""
    for file in list(folder.iterdir()):
        if names.fullmatch(file.name) and file.name not in keep:
            file.unlink(missing_ok=True)


def _written(folder: Path, content: Content) -> Path:
    """The content in a file beside its place, safely on the disk."""
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        if isinstance(content, bytes):
            part.write_bytes(content)
        else:
            content(part)
        _sync(part)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def _sync(path: Path) -> None:
    """Wait until the disk has it; folders cannot be waited for on every system."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of a failure to write whether the disk is full or writing is not allowed, and what to do."""
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
