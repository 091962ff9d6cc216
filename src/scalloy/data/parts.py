"""Parts: what is being written lies in a hidden folder that is locked by the process that writes.

The system releases the lock when that process dies, so the next writer can tell what a dead one has left from
what a living one needs. A folder that is replaced changes places with the new one in one step. Systems that
cannot do that set the old one aside, in the part; if the writer dies between the two steps, the next one to
read or write puts it back (:func:`recovered`).
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
BEFORE = "before"  # in a part: the folder that is being replaced
OLD = 3600  # seconds after which a part without a lock is no longer being written
BETWEEN = 5  # seconds that a folder may be away while it is replaced, without a lock
LOCKED = 600  # seconds to wait for another process that reads or writes


@contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """A hidden folder in ``folder`` for what is being written; it is removed, also by SIGTERM."""
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
        except (FileNotFoundError, BlockingIOError):  # another process took it for one that was left
            continue
        if lock is None or (part.is_dir() and os.path.samestat(os.fstat(lock), part.stat())):
            return part, lock
        os.close(lock)


def remove_parts(folder: Path) -> None:
    """Remove what writers that are dead have left, and put back what they had set aside."""
    with suppress(PermissionError):
        for part in [p for p in folder.iterdir() if PART.fullmatch(p.name)]:
            with suppress(FileNotFoundError, BlockingIOError, PermissionError):
                if part.is_dir():
                    _remove_if_dead(part)
                elif age(part) > OLD:  # files of earlier versions
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
    """Remove a part; what it holds of a folder that is being replaced goes back first."""
    if _restore(part):
        shutil.rmtree(part, ignore_errors=True)


def _restore(part: Path) -> bool:
    """Put back what was set aside, unless something is in its place; whether nothing is left to put back."""
    aside = part / BEFORE
    for old in list(aside.iterdir()) if aside.is_dir() else ():
        if not os.path.lexists(part.parent / old.name):
            with suppress(OSError):
                old.replace(part.parent / old.name)
        if not os.path.lexists(part.parent / old.name):
            return False
    return True


def recovered(path: Path) -> Path:
    """The same path, once a folder that a dead writer had set aside is back there."""
    place, end = through_links(path), time.monotonic() + BETWEEN + 1
    while not os.path.lexists(place) and _is_aside(place) and time.monotonic() < end:
        remove_parts(place.parent)
        time.sleep(0.01)
    return path


def _is_aside(place: Path) -> bool:
    """Whether a writer has set the folder aside."""
    if not place.parent.is_dir():
        return False
    parts = [p for p in place.parent.iterdir() if PART.fullmatch(p.name)]
    return any(os.path.lexists(part / BEFORE / place.name) for part in parts)


def exchanged(first: Path, second: Path) -> bool:
    """Let two folders change places in one step; whether the system can."""
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
    """Put a new folder in the place of another, which ends up in the part."""
    if not exchanged(new, place):
        (part / BEFORE).mkdir()
        place.replace(part / BEFORE / place.name)
        new.replace(place)


class _TerminatedError(BaseException):
    """SIGTERM has come."""


@contextmanager
def _removed_on_termination() -> Iterator[None]:
    """SIGTERM ends the process once what it was writing has been removed, if nobody else listens to it."""
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
    """Be the only process that changes a folder; ``shared``: nobody changes it meanwhile.

    Where folders cannot be locked (Windows, some network disks), nothing is waited for.
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
    """Handle of a folder that is locked until it is closed; ``None`` where there are no such locks."""
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
    """The place that a link leads to: what it names is written, and the link stays."""
    return path.resolve() if path.is_symlink() else path


def age(path: Path) -> float:
    """Seconds since something was last changed."""
    return time.time() - path.stat().st_mtime
