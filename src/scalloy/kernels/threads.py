"""Run a compiled function in the threads that torch computes with.

torch's OpenMP workers keep spinning for some milliseconds after each operation, so a second pool of threads
would only compete with them for the cores. A work function reads its arguments from an array of 64-bit
integers. The first of them is a counter, from which each thread takes its next piece of work until none is
left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic
from torch import Tensor


@intrinsic
def next_piece(context, counter):
    """Take the next number from the counter; no two threads get the same one."""
    signature = types.int64(types.CPointer(types.int64))
    one = ir.Constant(ir.IntType(64), 1)
    return signature, lambda c, b, s, a: b.atomic_rmw("add", a[0], one, "monotonic")


@intrinsic
def _floats_at(context, address):
    signature = types.CPointer(types.float32)(types.int64)
    return signature, lambda c, b, s, a: b.inttoptr(a[0], ir.FloatType().as_pointer())


@intrinsic
def _integers_at(context, address):
    signature = types.CPointer(types.int64)(types.int64)
    return signature, lambda c, b, s, a: b.inttoptr(a[0], ir.IntType(64).as_pointer())


@njit
def floats(address, shape):
    """Return the float32 array at an address."""
    return carray(_floats_at(address), shape)


@njit
def integers(address, shape):
    """Return the int64 array at an address."""
    return carray(_integers_at(address), shape)


def run(work: Callable, *arguments: Tensor | int) -> None:
    """Run ``work`` in all threads on integers and on contiguous tensors, which are passed by address."""
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    packed = np.array([0, *values], dtype=np.int64)
    if parallel := _parallel():
        parallel(_compiled(work).address, packed.ctypes.data, torch.get_num_threads(), 0)
    else:
        _compiled(work).ctypes(packed.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))


SIGNATURE = types.void(types.CPointer(types.int64))
SECONDS = 600  # time limit for compiling


@cache
def _compiled(work: Callable) -> Any:
    """Compile a module-level function, and keep the machine code beside its file if that folder is writable.

    Code that is read back rounds differently from code that a process has just compiled. So another process
    compiles it, and every process that uses it reads it back: the first training gives the same results as
    all later ones.

    numba compiles the function anew when its file has changed, but does not look at what that file imports:
    after a change to this module, touch ``cpu.py`` and ``csr.py``.
    """
    try:
        made = CFunc(work, normalize_signature(SIGNATURE), locals={}, options={"error_model": "numpy"})
        made.enable_caching()
        if made._cache.load_overload(made._sig, made._targetdescr.target_context) is None:
            _compile_elsewhere(work)
        made.compile()
    except RuntimeError:  # numba finds no folder where it can keep the code
        return cfunc(SIGNATURE, error_model="numpy")(work)
    return made


def _compile_elsewhere(work: Callable) -> None:
    """Compile a function in a separate process and keep the code; if that fails, the caller compiles it.

    That process imports nothing from the user's working directory (``-P``), which may contain a ``numba.py``.
    """
    code = "import sys; from scalloy.kernels import threads; threads.keep(*sys.argv[1:])"
    command = [sys.executable, "-P", "-c", code, work.__module__, work.__name__]
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if os.path.isabs(p))}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, env=around, capture_output=True, timeout=SECONDS, check=False)


def keep(module: str, name: str) -> None:
    """Compile a function of a module and keep the machine code."""
    cfunc(SIGNATURE, cache=True, error_model="numpy")(getattr(import_module(module), name))


@cache
def _parallel() -> Any:
    """Return ``GOMP_parallel`` of the OpenMP library that torch is linked with; ``None`` if it has none."""
    try:
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function
