"""Time for which threads of OpenMP wait for each other actively before they sleep.

GNU's OpenMP, with which torch computes on Linux, lets a thread turn 300,000 times in a loop before it sleeps.
If another process has taken a core, threads spend nearly all of the time waiting for one that does not run.
With 1,000 turns they do not, and with all cores free nothing is slower.
"""

from __future__ import annotations

import os

TURNS = 1000


def briefly() -> None:
    """Let threads wait briefly, unless the environment says how; it is read when torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(TURNS))
