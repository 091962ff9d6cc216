"""Staging folders (*parts*): hidden, locked folders that hold files while they are being written.

The operating system releases the lock when the writing process dies, so the next writer can tell leftovers
from files that are still being written. Where the system allows it, an old folder swaps places with the new
one in a single step. Otherwise the old folder is first set aside inside the part; if the writer dies before
the new one is in place, the next process to read or write puts the old one back (:func:`recovered`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PART = re.compile(r"\.[0-9a-f]{16}\.part")
BEFORE = "before"  # subfolder of a part that holds the folder being replaced
OLD = 3600  # seconds after which a part that cannot be locked counts as left over
BETWEEN = 5  # seconds that replacing a folder may take where there are no locks
LOCKED = 600  # seconds to wait for a folder that another process has locked


@contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """Provide a hidden staging folder in ``folder``; it is removed at the end, also upon SIGTERM."""
    remove_parts(folder)
    with _removed_on_termination():
        part, lock = _new_part(folder)
        try:
            yield part
        finally:
            _discard(part)
            if lock is not None:
                os.close(lock)


def _new_part(folder: Path) -> tuple[Path, int | None]:
    while True:
        part = folder / f".{secrets.token_hex(8)}.part"
        part.mkdir(mode=0o700)
        try:
            lock = _lock(part)
        except (FileNotFoundError, BlockingIOError):  # another process took it for a leftover
            continue
        if lock is None or (part.is_dir() and os.path.samestat(os.fstat(lock), part.stat())):
            return part, lock
        os.close(lock)


def remove_parts(folder: Path) -> None:
    """Remove the parts of writers that died, and put back the folders that they had set aside."""
    with suppress(PermissionError):
        for part in [p for p in folder.iterdir() if PART.fullmatch(p.name)]:
            with suppress(FileNotFoundError, BlockingIOError, PermissionError):
                if part.is_dir():
                    _remove_if_dead(part)
                elif age(part) > OLD:  # earlier versions used files
                    part.unlink()


def _remove_if_dead(part: Path) -> None:
    lock = _lock(part)
    try:
        if lock is not None or age(part) > OLD:
            _discard(part)
        elif (part / BEFORE).is_dir() and age(part / BEFORE) > BETWEEN:
            _restore(part)
    finally:
        if lock is not None:
            os.close(lock)


def _discard(part: Path) -> None:
    """Put back any folder set aside in a part, then remove the part."""
    if _restore(part):
        shutil.rmtree(part, ignore_errors=True)


def _restore(part: Path) -> bool:
    """Put back what was set aside unless its place is taken; return whether nothing remains to put back."""
    aside = part / BEFORE
    for old in list(aside.iterdir()) if aside.is_dir() else ():
        if not os.path.lexists(part.parent / old.name):
            with suppress(OSError):
                old.replace(part.parent / old.name)
        if not os.path.lexists(part.parent / old.name):
            return False
    return True


def recovered(path: Path) -> Path:
    """Return ``path`` after putting back a folder that a dead writer had set aside."""
    place, end = through_links(path), time.monotonic() + BETWEEN + 1
    while not os.path.lexists(place) and _is_aside(place) and time.monotonic() < end:
        remove_parts(place.parent)
        time.sleep(0.01)
    return path


def _is_aside(place: Path) -> bool:
    """Return whether a writer has set the folder aside."""
    if not place.parent.is_dir():
        return False
    parts = [p for p in place.parent.iterdir() if PART.fullmatch(p.name)]
    return any(os.path.lexists(part / BEFORE / place.name) for part in parts)


def exchanged(first: Path, second: Path) -> bool:
    """Swap two folders in one step; return `False` if the system cannot do that."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(number, os.strerror(number), str(second))


def exchange(new: Path, place: Path, part: Path) -> None:
    """Put a new folder in the place of an old one, which ends up in the part."""
    if not exchanged(new, place):
        (part / BEFORE).mkdir()
        place.replace(part / BEFORE / place.name)
        new.replace(place)


class _TerminatedError(BaseException):
    """Exception that a SIGTERM raises."""


@contextmanager
def _removed_on_termination() -> Iterator[None]:
    """Clean up before SIGTERM ends the process, unless the program handles SIGTERM itself."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    asked = []

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        asked.append(True)
        raise _TerminatedError

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)


# locks ------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock a folder exclusively for changes, or with ``shared`` only against changes by other processes.

    Where folders cannot be locked (Windows, some network disks), nothing is locked and nothing waits.
    """
    end = time.monotonic() + LOCKED
    while True:
        try:
            lock = _lock(folder, shared=shared)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                msg = (
                    f"`{folder}` has been locked by another process for {LOCKED} s. Wait until it is "
                    "done, or pass another folder"
                )
                raise TimeoutError(errno.ETIMEDOUT, msg) from None
            time.sleep(0.005)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, shared: bool = False) -> int | None:
    """Lock a folder and return a handle that holds the lock until closed, or `None` without lock support."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except OSError as error:
        if handle is not None:
            os.close(handle)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None
    return handle


def through_links(path: Path) -> Path:
    """Return the target of a symbolic link, so that writing replaces the target and keeps the link."""
    return path.resolve() if path.is_symlink() else path


def age(path: Path) -> float:
    """Return the seconds since a file or folder was last modified."""
    return time.time() - path.stat().st_mtime
