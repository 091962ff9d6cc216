"""Check of an untrusted HDF5 file, run as a separate program because HDF5 may hang or crash on such a file.

The size that an array declares must be plausible for what is stored, and no array may lie in another file.
Everything is read once in small pieces under a memory limit; the caller limits the time. This module imports
nothing from the rest of the package.
"""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path

import h5py
import numpy as np

RATIO = 1100  # deflate compresses at most 1032 to 1
SMALL = 1 << 20  # bytes that an array may always declare
PIECE = 32 << 20  # bytes read at once
MEMORY = 4 << 30  # limit of the address space in bytes
MOST_ITEMS = 100_000  # maximum number of groups and arrays
REFUSED = 3  # exit code for a file that is refused


class RefusedError(ValueError):
    """Error that says what is wrong with the file."""


def main(path: Path) -> int:
    """Check a file and return 0 if it is good; otherwise print the reason and return ``REFUSED``."""
    with contextlib.suppress(ImportError):  # not available on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        look(path)
    except Exception as error:  # noqa: BLE001 (every error is reported)
        print(error if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}")
        return REFUSED
    return 0


def look(path: Path) -> None:
    """Visit every group, array and attribute of a file, and read all of it."""
    size = path.stat().st_size
    with h5py.File(path, "r") as file:
        waiting: list[h5py.Group] = [file]
        seen = set[int]()
        while waiting:
            group = waiting.pop()
            for name in group:
                item = _inside(group, name)
                address = h5py.h5o.get_info(item.id).addr
                if address in seen or len(seen) > MOST_ITEMS:
                    msg = f"it holds more than {MOST_ITEMS:,} arrays, or {item.name} twice"
                    raise RefusedError(msg)
                seen.add(address)
                for key in item.attrs:
                    item.attrs[key]
                if isinstance(item, h5py.Group):
                    waiting.append(item)
                else:
                    _look_at_array(item, size)


def _inside(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return a group or array, after checking that it lies in this very file."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        msg = f"{group.name}/{name} is a link, which may lead out of the file"
        raise RefusedError(msg)
    item = group[name]
    if not isinstance(item, h5py.Group | h5py.Dataset):
        msg = f"{item.name} is neither a group nor an array"
        raise RefusedError(msg)
    return item


def _look_at_array(item: h5py.Dataset, size: int) -> None:
    if item.external or item.is_virtual:
        msg = f"{item.name} lies in another file"
        raise RefusedError(msg)
    if item.shape is None:
        return
    each = max(1, item.dtype.itemsize)
    declared, stored = math.prod(item.shape) * each, item.id.get_storage_size()
    if declared > SMALL + RATIO * stored:
        msg = f"{item.name} declares {declared:,} bytes, of which {stored:,} are stored"
        raise RefusedError(msg)
    if item.ndim == 0:
        item[()]
        return
    strings = item.dtype.kind == "O"  # stored one by one: together no longer than the file
    row = size // 16 if strings else max(1, declared // max(1, item.shape[0]))
    step, total = int(np.clip(PIECE // max(row, 1), 16, 65_536)), 0
    for first in range(0, item.shape[0], step):
        values = item[first : first + step]
        if strings:
            total += sum(len(v) for v in values.ravel() if isinstance(v, bytes | str))
        if total > size:
            msg = f"the strings of {item.name} are longer than the file"
            raise RefusedError(msg)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
