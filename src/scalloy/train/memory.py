"""Keep large buffers mapped between the steps of training.

A step allocates and frees the same few buffers of cells x genes. glibc gives the larger ones back to the
system each time, and the next step waits for every page to be mapped and cleared again: with 512 cells and
2,000 genes that was measured at up to 5,000 page faults and a quarter of the time of a step.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20  # of a threshold for mmap that glibc accepts, and where its own adaptation ends
DURING = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: 1 << 30}
AFTER = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: 2 * LARGEST}


def give_back() -> None:
    """Return freed memory to the system, where glibc can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(ctypes.c_size_t(0))


@contextlib.contextmanager
def buffers_stay_mapped() -> Iterator[None]:
    """While this lasts freed memory stays with the process; afterwards it goes back to the system."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):  # not glibc
        yield
        return
    try:
        for option, value in DURING.items():
            mallopt(option, ctypes.c_int(value))
        yield
    finally:
        for option, value in AFTER.items():
            mallopt(option, ctypes.c_int(value))
        give_back()
