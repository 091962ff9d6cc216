"""One pass over cells x genes in numba, for the CPU: what :func:`scalloy.blocks.fused.all_zero` computes.

Written so that LLVM turns the loops into vector instructions: no branches, float32 throughout, and ``exp``
and ``log`` as polynomials (Moshier's Cephes coefficients, ``exp`` for arguments up to zero only). A row is
read once and stays in the nearest cache, where the same in torch takes a dozen passes through memory.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

F = np.float32
ZERO, HALF, ONE = F(0), F(0.5), F(1)
SMALLEST, LOG2_E, LN2_HIGH, LN2_LOW = F(-87.3), F(1.442695041), F(0.693359375), F(-2.12194440e-4)
E0, E1, E2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
E3, E4, E5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)
L0, L1, L2 = F(7.0376836292e-2), F(-1.1514610310e-1), F(1.1676998740e-1)
L3, L4, L5 = F(-1.2420140846e-1), F(1.4249322787e-1), F(-1.6668057665e-1)
L6, L7, L8 = F(2.0000714765e-1), F(-2.4999993993e-1), F(3.3333331174e-1)
ROOT_HALF = F(0.7071067811865476)
MANTISSA, HALF_BITS = np.int32(0x007FFFFF), np.int32(0x3F000000)
SHIFT, BIAS, BIAS_HALF = np.int32(23), np.int32(127), np.int32(126)
FAST = {"contract", "nsz", "nnan", "ninf", "arcp", "reassoc"}


@intrinsic
def _bits(context, x):
    return types.int32(types.float32), lambda c, b, s, a: b.bitcast(a[0], ir.IntType(32))


@intrinsic
def _float(context, i):
    return types.float32(types.int32), lambda c, b, s, a: b.bitcast(a[0], ir.FloatType())


@njit(inline="always")
def _exp(x):
    """``exp(x)`` for ``x <= 0``."""
    x = max(x, SMALLEST)
    n = np.int32(x * LOG2_E - HALF)
    k = F(n)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    return (p * r * r + r + ONE) * _float(np.int32((n + BIAS) << SHIFT))


@njit(inline="always")
def _log(x):
    """``log(x)`` for a normal positive ``x``."""
    i = _bits(x)
    m = _float(np.int32((i & MANTISSA) | HALF_BITS))
    k = F(np.int32((i >> SHIFT) - BIAS_HALF))
    low = m < ROOT_HALF
    k = k - ONE if low else k
    m = m + m - ONE if low else m - ONE
    p = (((((((L0 * m + L1) * m + L2) * m + L3) * m + L4) * m + L5) * m + L6) * m + L7) * m + L8
    z = m * m
    return m + (p * m * z + LN2_LOW * k - HALF * z) + LN2_HIGH * k


@njit(nogil=True, fastmath=FAST, error_model="numpy")
def _rows(a, ell, theta, gate, rho, dt, dv, dgate, value, log_norm):
    n_genes = a.shape[1]
    for n in range(a.shape[0]):
        a_n, rho_n, dt_n, dv_n = a[n], rho[n], dt[n], dv[n]
        theta_n = theta[n % theta.shape[0]]
        top = a_n[0]
        for g in range(n_genes):
            top = max(top, a_n[g])
        total = ZERO
        for g in range(n_genes):
            e = _exp(a_n[g] - top)
            rho_n[g] = e
            total += e
        share, size, sum_n = ONE / total, ell[n], ZERO
        log_norm[n] = top + _log(total)
        for g in range(n_genes):
            rho_n[g] *= share
            mu, t = rho_n[g] * size, theta_n[g]
            if t >= ZERO:  # NB
                u = mu / t
                w = max(ONE + u, ONE)
                zero = -t * (_log(w) + (u - (w - ONE)) / w)  # log1p
                d = -mu / w
            else:  # a negative theta stands for infinity: Poisson
                zero = d = -mu
            if gate is None:
                sum_n += zero
            else:
                c = gate[n, g]
                odds = zero - c
                e1, e2 = _exp(-abs(odds)), _exp(-abs(c))
                s1, s2 = ONE / (ONE + e1), ONE / (ONE + e2)
                base = s1 if odds >= ZERO else e1 * s1
                closed = s2 if c >= ZERO else e2 * s2
                sum_n += min(max(zero, c), ZERO) + _log((ONE + e1) * s2)
                dgate[n, g] = (e1 * s1 if odds >= ZERO else s1) - closed
                zero, d = zero * base, d * base
            dt_n[g] = zero
            dv_n[g] = d
        value[n] = sum_n


@cache
def _helpers(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="scalloy")


def serves(logits: Tensor, log_ell: Tensor | None) -> bool:
    """Whether the kernel can do it: float32 on a CPU, and a mean tied to the library size."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and log_ell is not None


def all_zero(
    logits: Tensor, log_ell: Tensor, log_theta: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, ...]:
    """Same as :func:`scalloy.blocks.fused.all_zero`."""
    rho, dt, dv = (torch.empty_like(logits) for _ in range(3))
    dgate = None if gate is None else torch.empty_like(logits)
    value, log_norm = torch.empty(len(logits)), torch.empty(len(logits))
    theta = torch.full((1, logits.shape[1]), -1.0) if log_theta is None else log_theta.exp()
    per_row: list[Any] = [logits.contiguous(), log_ell[:, 0].exp(), theta, gate, rho, dt, dv, dgate]
    per_row += [value, log_norm]
    arrays = [None if t is None else t.detach().contiguous().numpy() for t in per_row]
    n_threads = min(torch.get_num_threads(), len(logits))
    bounds = np.linspace(0, len(logits), n_threads + 1).astype(int)

    def run(first: int, last: int) -> None:
        shared = len(theta) == 1
        _rows(*(x if x is None or (i == 2 and shared) else x[first:last] for i, x in enumerate(arrays)))

    parts = list(pairwise(bounds))
    waiting = [_helpers(n_threads).submit(run, *part) for part in parts[1:]]
    run(*parts[0])
    for other in waiting:
        other.result()
    return value, rho, log_norm.unsqueeze(-1), dv, dt if log_theta is not None else None, dgate
