"""Log-probability of counts and its gradient in one pass on the CPU, written in numba.

The results are those of :func:`scalloy.kernels.count_log_prob.in_torch`. They are computed one row (cell) at
a time, so that everything stays in the nearest cache; the same in torch takes about twenty passes through
memory. The code is written so that LLVM turns its loops into vector instructions: no branches, float32, and
``exp`` and ``log`` as polynomials (Moshier's Cephes coefficients; ``exp`` for arguments up to zero).
``lgamma(x + t) - lgamma(t)`` comes from Stirling's series of both terms, subtracted by hand, which loses less
precision than the difference of two large numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from scalloy.kernels import threads

F = np.float32
ZERO, HALF, ONE, TWO, THREE, FOUR = F(0), F(0.5), F(1), F(2), F(3), F(4)
SMALLEST, LOG2_E, LN2_HIGH, LN2_LOW = F(-87.3), F(1.442695041), F(0.693359375), F(-2.12194440e-4)
E0, E1, E2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
E3, E4, E5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)
L0, L1, L2 = F(7.0376836292e-2), F(-1.1514610310e-1), F(1.1676998740e-1)
L3, L4, L5 = F(-1.2420140846e-1), F(1.4249322787e-1), F(-1.6668057665e-1)
L6, L7, L8 = F(2.0000714765e-1), F(-2.4999993993e-1), F(3.3333331174e-1)
S0, S1, S2 = F(1 / 12), F(-1 / 360), F(1 / 1260)  # Stirling's series of lgamma
D0, D1, D2 = F(-1 / 12), F(1 / 120), F(-1 / 252)  # Stirling's series of digamma
ROOT_HALF = F(0.7071067811865476)
MANTISSA, HALF_BITS = np.int32(0x007FFFFF), np.int32(0x3F000000)
SHIFT, BIAS, BIAS_HALF = np.int32(23), np.int32(127), np.int32(126)
FAST = {"contract", "nsz", "nnan", "ninf", "arcp", "reassoc"}
ROWS = 4  # cells that a thread takes at a time


@intrinsic
def _bits(context, x):
    return types.int32(types.float32), lambda c, b, s, a: b.bitcast(a[0], ir.IntType(32))


@intrinsic
def _float(context, i):
    return types.float32(types.int32), lambda c, b, s, a: b.bitcast(a[0], ir.FloatType())


@njit(forceinline=True, fastmath=FAST, error_model="numpy")
def _exp(x):
    """Return ``exp(x)`` for ``x <= 0``."""
    x = max(x, SMALLEST)
    n = np.int32(x * LOG2_E - HALF)
    k = F(n)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    return (p * r * r + r + ONE) * _float(np.int32((n + BIAS) << SHIFT))


@njit(forceinline=True, fastmath=FAST, error_model="numpy")
def _split(x):
    """Return ``m`` and ``k`` with ``x = (1 + m) 2^k`` and ``1 + m`` between the square roots of 1/2 and 2."""
    i = _bits(x)
    m = _float(np.int32((i & MANTISSA) | HALF_BITS))
    k = F(np.int32((i >> SHIFT) - BIAS_HALF))
    low = m < ROOT_HALF
    return (m + m - ONE if low else m - ONE), (k - ONE if low else k)


@njit(forceinline=True, fastmath=FAST, error_model="numpy")
def _log_of(m, k):
    p = (((((((L0 * m + L1) * m + L2) * m + L3) * m + L4) * m + L5) * m + L6) * m + L7) * m + L8
    z = m * m
    return m + (p * m * z + LN2_LOW * k - HALF * z) + LN2_HIGH * k


@njit(forceinline=True, fastmath=FAST, error_model="numpy")
def _log(x):
    """Return ``log(x)`` for a positive, normal float ``x``."""
    m, k = _split(x)
    return _log_of(m, k)


@njit(forceinline=True, fastmath=FAST, error_model="numpy")
def _log1p(u):
    """Return ``log(1 + u)`` for ``u >= 0``.

    Where ``1 + u`` is not scaled (``k`` is zero), ``m`` is replaced by ``u``, which has no rounding error.
    """
    m, k = _split(ONE + u)
    return _log_of(u if k == ZERO else m, k)


@njit(forceinline=True, fastmath=FAST, error_model="numpy")
def _rising(x, t):
    """Return ``lgamma(x + t) - lgamma(t)``; both arguments are moved up by four, where the series holds."""
    s = t + FOUR
    y, more = ONE / (s + x), ONE / s
    y2, more2 = y * y, more * more
    tail = y * (S0 + y2 * (S1 + y2 * S2)) - more * (S0 + more2 * (S1 + more2 * S2))
    moved = (s - HALF) * _log1p(x * more) + x * (_log(s + x) - ONE) + tail
    back = ((t + ONE) / (t + x + ONE)) * ((t + TWO) / (t + x + TWO)) * ((t + THREE) / (t + x + THREE))
    return moved + _log(t / (t + x)) + _log(back)


@njit(forceinline=True, fastmath=FAST, error_model="numpy")
def _log_slope(x, t):
    """Return the derivative of ``_rising`` by ``log t``: ``t (digamma(x + t) - digamma(t))``."""
    s = t + FOUR
    y, more = ONE / (s + x), ONE / s
    y2, more2 = y * y, more * more
    tail = y2 * (D0 + y2 * (D1 + y2 * D2)) - more2 * (D0 + more2 * (D1 + more2 * D2))
    moved = _log1p(x * more) + HALF * (more - y) + tail
    back = ONE / ((t + ONE) * (t + x + ONE)) + ONE / ((t + TWO) * (t + x + TWO))
    back += ONE / ((t + THREE) * (t + x + THREE))
    return t * (moved + x * back) + x / (t + x)


@njit(fastmath=FAST, error_model="numpy")
def _zeros(nb, gated, mean, theta, gate, dv, dt, dgate):
    """Treat the counts of all genes as zero: return the value and the sum of ``dv``."""
    value = total = ZERO
    for g in range(len(mean)):
        mu = mean[g]
        if nb is not None:
            t = theta[g]
            u = mu / t
            zero, d = -t * _log1p(u), -mu / (ONE + u)
        else:
            zero = d = -mu
        if gated is not None:
            c = gate[g]
            odds = zero - c
            e1, e2 = _exp(-abs(odds)), _exp(-abs(c))
            s1, s2 = ONE / (ONE + e1), ONE / (ONE + e2)
            base = s1 if odds >= ZERO else e1 * s1
            closed = s2 if c >= ZERO else e2 * s2
            value += min(max(zero, c), ZERO) + _log((ONE + e1) * s2)
            dgate[g] = (e1 * s1 if odds >= ZERO else s1) - closed
            zero, d = zero * base, d * base
        else:
            value += zero
        if nb is not None:
            dt[g] = zero - d
        dv[g] = d
        total += d
    return value, total


@njit(fastmath=FAST, error_model="numpy")
def _others(nb, gated, logits, shift, mean, theta, gate, col, x, dv, dt, dgate, held):
    """Correct for the non-zero counts: return the changes of the value and of the sum of ``dv``."""
    n = len(col)
    mu, log_mu, t, c, dv_new, dt_new = held[0], held[1], held[2], held[3], held[4], held[5]
    for i in range(n):
        mu[i], log_mu[i] = mean[col[i]], logits[col[i]] + shift
        if nb is not None:
            t[i] = theta[col[i]]
        if gated is not None:
            c[i] = gate[col[i]]
    value = total = ZERO
    for i in range(n):
        if nb is not None:
            u, log_u = mu[i] / t[i], log_mu[i] - _log(t[i])
            softplus = _log1p(u if u < ONE else ONE / u)
            above, below = max(log_u, ZERO), min(log_u, ZERO)
            zero = -t[i] * (softplus + above)
            more = _rising(x[i], t[i]) + x[i] * (below - softplus)
            dv_new[i] = (x[i] - mu[i]) / (ONE + u)
            dt_new[i] = _log_slope(x[i], t[i]) + zero - dv_new[i]
        else:
            zero, more = -mu[i], x[i] * log_mu[i]
            dv_new[i] = x[i] - mu[i]
        value += more - _rising(x[i], ONE)
        if gated is not None:
            value += zero - max(zero, c[i]) - _log(ONE + _exp(-abs(zero - c[i])))
        total += dv_new[i]
    for i in range(n):
        g = col[i]
        total -= dv[g]
        dv[g] = dv_new[i]
        if nb is not None:
            dt[g] = dt_new[i]
        if gated is not None:
            closed = _exp(-abs(c[i]))
            dgate[g] = -(ONE if c[i] >= ZERO else closed) / (ONE + closed)
    return value, total


@njit(fastmath=FAST, error_model="numpy")
def _softmax(logits, size, mean):
    """Fill in the mean of a cell; return what to add to its logits to get the logarithm of the mean."""
    top = logits[0]
    for g in range(len(logits)):
        top = max(top, logits[g])
    total = ZERO
    for g in range(len(logits)):
        e = _exp(logits[g] - top)
        mean[g] = e
        total += e
    scale = size / total
    for g in range(len(logits)):
        mean[g] *= scale
    return _log(scale) - top


@njit(fastmath=FAST, error_model="numpy")
def _sum(values):
    total = ZERO
    for g in range(len(values)):
        total += values[g]
    return total


@njit(fastmath=FAST, error_model="numpy")
def _through_softmax(mean, size, total, dv):
    """Turn derivatives by the logarithm of the mean into derivatives by the logits."""
    share = total / size
    for g in range(len(mean)):
        dv[g] -= mean[g] * share


@njit(error_model="numpy")
def _cells(args, nb, gated):
    """Process all cells; ``nb`` and ``gated`` are ``True`` or ``None``, so numba compiles each case apart."""
    n, n_genes, n_theta, widest = args[1], args[2], args[3], args[4]
    logits = threads.floats(args[5], (n, n_genes))
    size = threads.floats(args[6], (n,))
    theta = threads.floats(args[7], (n_theta, n_genes))
    gate = threads.floats(args[8], (1 if gated is None else n, n_genes))
    crow = threads.integers(args[9], (n + 1,))
    col, x = threads.integers(args[10], (crow[n],)), threads.floats(args[11], (crow[n],))
    value, total = threads.floats(args[12], (n,)), threads.floats(args[13], (n,))
    dv = threads.floats(args[14], (n, n_genes))
    dt = threads.floats(args[15], (1 if nb is None else n, n_genes))
    dgate = threads.floats(args[16], (1 if gated is None else n, n_genes))
    mean, held = np.empty(n_genes, np.float32), np.empty((6, widest), np.float32)
    first = ROWS * threads.next_piece(args)
    while first < n:
        for i in range(first, min(first + ROWS, n)):
            j, g = (0 if nb is None else i), (0 if gated is None else i)
            theta_i, own = theta[i if n_theta > 1 else 0], slice(crow[i], crow[i + 1])
            shift = _softmax(logits[i], size[i], mean)
            v0, t0 = _zeros(nb, gated, mean, theta_i, gate[g], dv[i], dt[j], dgate[g])
            of = dv[i], dt[j], dgate[g], held
            v1, t1 = _others(nb, gated, logits[i], shift, mean, theta_i, gate[g], col[own], x[own], *of)
            value[i], total[i] = v0 + v1, t0 + t1
            _through_softmax(mean, size[i], total[i], dv[i])
            broken = _sum(logits[i]) + (_sum(gate[i]) if gated else ZERO)
            value[i] += ZERO * broken  # NaN if an input is NaN: max() above may have lost it
        first = ROWS * threads.next_piece(args)


def _poisson(args):
    _cells(args, None, None)


def _zip(args):
    _cells(args, None, True)


def _nb(args):
    _cells(args, True, None)


def _zinb(args):
    _cells(args, True, True)


def serves(logits: Tensor, log_ell: Tensor | None) -> bool:
    """Return whether the kernel applies: float32 on a CPU, with a mean tied to the library size."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and log_ell is not None


def in_numba(
    counts: Tensor, logits: Tensor, log_ell: Tensor, log_theta: Tensor | None, gate: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Compute the results of :func:`scalloy.kernels.count_log_prob.in_torch` with the numba kernel."""
    (n, n_genes), nothing = logits.shape, torch.empty(1, logits.shape[1])
    nb, gated = log_theta is not None, gate is not None
    crow, logits = counts.crow_indices().long(), logits.contiguous()
    theta = nothing if log_theta is None else log_theta.exp().contiguous()
    gate = None if gate is None else gate.contiguous()
    value, total = torch.empty(n), torch.empty(n)
    dlogits = torch.empty_like(logits)
    dtheta = None if log_theta is None else torch.empty_like(logits)
    dgate = None if gate is None else torch.empty_like(logits)
    tensors = [logits, log_ell.exp().contiguous(), theta, nothing if gate is None else gate]
    tensors += [crow, counts.col_indices().long(), counts.values().float(), value, total, dlogits]
    tensors += [nothing if t is None else t for t in (dtheta, dgate)]
    widest = int(crow.diff().max()) if n else 0
    function = (_zinb if nb else _zip) if gated else (_nb if nb else _poisson)
    threads.run(function, n, n_genes, len(theta), widest, *tensors)
    return value, total, dlogits, dtheta, dgate
