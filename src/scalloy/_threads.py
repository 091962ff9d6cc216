"""Number of threads that computing may take: no more than there are cores for them.

Threads of OpenMP wait for each other actively. If there are more of them than cores that this process may
use, each waits for one that does not run, and everything takes ten times as long. But ``torch`` looks at the
cores of the machine, not at the quota of a container, and compiled loops of other packages (numba's, behind
scanpy's neighbours and UMAP) set the number for the whole process, even if ``OMP_NUM_THREADS`` says less.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of the container: microseconds of a core in a period, and the period


def keep_to_cores() -> None:
    """Reduce the number of torch's threads to what the process may use, if it is more."""
    if torch.get_num_threads() > (most := available()):
        torch.set_num_threads(most)


@cache
def available() -> int:
    """Return how many threads may compute: by ``OMP_NUM_THREADS``, or else by affinity and quota."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, math.ceil(min(_quota(), cores)))))


def _quota() -> float:
    """Return the cores that a container may use; infinity if nothing says so."""
    try:
        share, period = QUOTA.read_text().split()
        return math.inf if share == "max" else int(share) / int(period)
    except (OSError, ValueError):
        return math.inf
