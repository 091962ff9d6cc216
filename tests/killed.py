"""What `data/test_writing.py` has a process do: its children are killed while they write."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from scalloy.files import atomic_write, staging

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def in_child(do):
    """Identity of a process that does something."""
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            do()
        finally:
            os._exit(0)
    return pid


def ended_by(pid):
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_if_it_lives(pid, seconds=5):
    """Ctrl-C may end within a callback, which forgets it; such a process is killed a little later."""
    end = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def around_renames(before, after, *, exchange):
    """Call functions around each step that moves something."""

    def around(do):
        def run(*args):
            inside = {Path(args[0]).parent.name, Path(args[1]).parent.name}
            if Path(args[0]).name != "new" and staging.BEFORE not in inside:
                return do(*args)  # zarr moves its own files
            before()
            out = do(*args)
            after()
            return out

        return run

    Path.replace = around(Path.replace)
    staging.exchanged = around(staging.exchanged) if exchange else lambda *_: False


# at each rename ---------------------------------------------------------------------------------


def whole(version):
    def content(part):
        part.mkdir()
        for name in "ab":
            (part / name).write_text(version)

    return content


def held(place):
    """The version in a folder or a file, if it is whole."""
    found = {p.read_text() for p in place.iterdir()} if place.is_dir() else {place.read_text()}
    return found.pop() if len(found) == 1 else None


def put(place, version):
    if place.suffix == ".zarr":
        atomic_write.put_folder(place, whole(version))
    else:
        atomic_write.put(place, version.encode())


def killed_at(place, number, when, signum, *, exchange):
    """Write over a place, and be killed before or after the rename of this number; what is found then."""
    put(place, "old")

    def write():
        seen = {"before": 0, "after": 0}

        def count(moment):
            seen[moment] += 1
            if moment == when and seen[moment] == number:
                os.kill(os.getpid(), signum)

        around_renames(lambda: count("before"), lambda: count("after"), exchange=exchange)
        put(place, "new")

    by = ended_by(in_child(write))
    left = [p.name for p in place.parent.iterdir() if p != place]
    found = held(staging.recovered(place))
    put(place, "newest")
    after = sorted(p.name for p in place.parent.iterdir())
    return {"by": by, "left": len(left), "held": found, "then": held(place), "after": after}


def every_point(folder):
    out = []
    for name, exchange in (("a.zarr", True), ("a.zarr", False), ("a.h5ad", True)):
        for number in (1, 2, 3):
            for when in ("before", "after"):
                for signum in SIGNALS:
                    place = folder / f"{len(out)}" / name
                    place.parent.mkdir(parents=True)
                    found = killed_at(place, number, when, signum, exchange=exchange)
                    out.append({**found, "signal": int(signum), "name": name, "exchange": exchange})
    return out


# at any moment ----------------------------------------------------------------------------------


def any_moment(folder, kills):
    """A store that is written over and over by children, whose renames are slow."""
    import anndata as ad
    import numpy as np

    from scalloy import data
    from scalloy.files import anndata_files

    rng, place, lost, versions = random.Random(1), folder / "cells.zarr", [], set()

    def version(number):
        adata = ad.AnnData(np.full((30, 5), number, dtype=np.float32))
        adata.obs["version"] = str(number)
        return adata

    anndata_files.write(version(0), place)
    for kill in range(kills):
        listens, tells = os.pipe()

        def write(kill=kill, tells=tells):
            before = lambda: (os.write(tells, b"."), time.sleep(0.03))  # noqa: E731
            around_renames(before, lambda: time.sleep(0.03), exchange=kill % 2 == 0)
            for number in range(1, 1000):
                anndata_files.write(version(1000 * kill + number), place)

        pid = in_child(write)
        for _ in range(rng.randint(1, 3)):
            os.read(listens, 1)
        time.sleep(rng.uniform(0, 0.1))  # around a rename
        os.kill(pid, SIGNALS[kill % 3])
        kill_if_it_lives(pid)
        os.close(listens)
        os.close(tells)
        try:
            adata = data.read(place)
            found = {*adata.X.ravel().astype(int), *adata.obs["version"].astype(int)}
            versions |= found
            if len(found) != 1:
                lost.append(f"{kill}: mixed {found}")
        except Exception as error:  # noqa: BLE001 (whatever is wrong is counted)
            lost.append(f"{kill}: {error}")
            anndata_files.write(version(0), place)
    anndata_files.write(version(0), place)
    return {"lost": lost, "versions": len(versions), "after": sorted(p.name for p in folder.iterdir())}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = every_point(folder) if len(sys.argv) == 2 else any_moment(folder, int(sys.argv[2]))
    print(json.dumps(result))
