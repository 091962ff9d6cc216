"""Triton kernels for the GPU: one writes CSR rows as dense counts, one computes their log-probability.

The log-probability and its derivatives are those of :func:`scalloy.kernels.count_log_prob.in_torch`, computed
one row (cell) at a time in a single kernel; the same in torch takes about forty kernels. Counts are dense
here: a kernel that writes every entry gains nothing from knowing which of them are zero. The gamma functions
are those of :mod:`scalloy.kernels.cpu`: ``lgamma(x + t) - lgamma(t)`` comes from Stirling's series of both
terms, subtracted by hand.

Set ``SCALLOY_TRITON=0`` in the environment to use torch operations instead.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch installs it where it is supported
    triton = None

AT_ONCE = 2048  # largest number of entries of a row that a program takes at once


def serves(value: Tensor) -> bool:
    """Return whether these kernels accept ``value``: float32 on a GPU, with Triton installed."""
    wanted = os.environ.get("SCALLOY_TRITON", "1") != "0"
    return wanted and triton is not None and value.is_cuda and value.dtype == torch.float32


def width(n: int) -> int:
    """Return the number of entries that a program takes at once."""
    return min(AT_ONCE, triton.next_power_of_2(n))


if triton is not None:

    @triton.jit
    def _log1p(u):
        """Return ``log(1 + u)`` for ``u >= 0``; uses the series of ``artanh`` for small ``u``."""
        s = u / (2 + u)
        s2 = s * s
        small = 2 * s * (1 + s2 * (1 / 3 + s2 * (1 / 5 + s2 * (1 / 7 + s2 / 9))))
        return tl.where(u < 0.25, small, tl.log(1 + u))

    @triton.jit
    def _softplus(v):
        return tl.maximum(v, 0) + _log1p(tl.exp(-tl.abs(v)))

    @triton.jit
    def _stirling(y):
        """Return the terms of Stirling's series of ``lgamma(1 / y)`` in odd powers of ``y``."""
        y2 = y * y
        return y * (1 / 12 + y2 * (-1 / 360 + y2 / 1260))

    @triton.jit
    def _stirling_slope(y):
        """Return the terms of Stirling's series of ``digamma(1 / y)`` in even powers of ``y``."""
        y2 = y * y
        return y2 * (-1 / 12 + y2 * (1 / 120 - y2 / 252))

    @triton.jit
    def _rising(x, t):
        """Return ``lgamma(x + t) - lgamma(t)``; both are moved up by four, where the series holds."""
        s = t + 4
        y, more = 1 / (s + x), 1 / s
        moved = (s - 0.5) * _log1p(x * more) + x * (tl.log(s + x) - 1) + _stirling(y) - _stirling(more)
        back = ((t + 1) / (t + x + 1)) * ((t + 2) / (t + x + 2)) * ((t + 3) / (t + x + 3))
        return moved + tl.log(t / (t + x)) + tl.log(back)

    @triton.jit
    def _log_slope(x, t):
        """Return the derivative of ``_rising`` by ``log t``: ``t (digamma(x + t) - digamma(t))``."""
        s = t + 4
        y, more = 1 / (s + x), 1 / s
        moved = _log1p(x * more) + 0.5 * (more - y) + _stirling_slope(y) - _stirling_slope(more)
        back = 1 / ((t + 1) * (t + x + 1)) + 1 / ((t + 2) * (t + x + 2)) + 1 / ((t + 3) * (t + x + 3))
        return t * (moved + x * back) + x / (t + x)

    @triton.jit
    def _entries(log_mu, x, log_theta, gate, NB: tl.constexpr, GATED: tl.constexpr):
        """Return the log-probability of entries and its derivatives by log mu, log theta and the gate."""
        if NB:
            theta = tl.exp(log_theta)
            v = log_mu - log_theta
            softplus, open_ = _softplus(v), tl.sigmoid(v)
            zero, dv = -theta * softplus, x * (1 - open_) - theta * open_
            value = zero + _rising(x, theta) + x * (v - softplus) - _rising(x, 1.0)
            dtheta = _log_slope(x, theta) + zero
        else:
            zero = -tl.exp(log_mu)
            dv = x + zero
            value = zero + x * log_mu - _rising(x, 1.0)
            dtheta = zero
        dgate = zero
        if GATED:
            is_zero = x == 0
            odds = zero - gate
            from_base = tl.where(is_zero, tl.sigmoid(odds), 1.0)
            either = tl.maximum(zero, gate) + _log1p(tl.exp(-tl.abs(odds)))
            value = tl.where(is_zero, either, value) - _softplus(gate)
            dgate = tl.where(is_zero, tl.sigmoid(-odds), 0.0) - tl.sigmoid(gate)
            dv, dtheta = dv * from_base, dtheta * from_base
        return value, dv, dtheta - dv, dgate

    @triton.jit
    def _row(
        logits,
        counts,
        log_ell,
        log_theta,
        gate,
        value,
        total,
        dlogits,
        dtheta,
        dgate,
        n_genes,
        n_cells,
        theta_stride,
        LIBRARY: tl.constexpr,
        NB: tl.constexpr,
        GATED: tl.constexpr,
        WIDTH: tl.constexpr,
    ):
        """Process one cell (or one sample of it)."""
        row = tl.program_id(0).to(tl.int64)
        first, cell = row * n_genes, (row % n_cells) * n_genes
        lane = tl.arange(0, WIDTH)
        shift = 0.0
        if LIBRARY:
            top, mass = tl.full([WIDTH], -1e30, tl.float32), tl.zeros([WIDTH], tl.float32)
            for start in range(0, n_genes, WIDTH):
                g = start + lane
                a = tl.load(logits + first + g, mask=g < n_genes, other=-1e30)
                higher = tl.maximum(top, a)
                mass = mass * tl.exp(top - higher) + tl.where(g < n_genes, tl.exp(a - higher), 0.0)
                top = higher
            peak = tl.max(top, 0)
            shift = tl.load(log_ell + row) - (peak + tl.log(tl.sum(mass * tl.exp(top - peak), 0)))
        sum_value, sum_dv = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
        for start in range(0, n_genes, WIDTH):
            g = start + lane
            inside = g < n_genes
            log_mu = tl.load(logits + first + g, mask=inside, other=0.0) + shift
            x = tl.load(counts + cell + g, mask=inside, other=0.0)
            t = tl.load(log_theta + row * theta_stride + g, mask=inside, other=0.0) if NB else log_mu
            c = tl.load(gate + first + g, mask=inside, other=0.0) if GATED else log_mu
            p, dv, dt, dc = _entries(log_mu, x, t, c, NB, GATED)
            sum_value += tl.where(inside, p, 0.0)
            sum_dv += tl.where(inside, dv, 0.0)
            tl.store(dlogits + first + g, dv, mask=inside)
            if NB:
                tl.store(dtheta + first + g, dt, mask=inside)
            if GATED:
                tl.store(dgate + first + g, dc, mask=inside)
        slope = tl.sum(sum_dv, 0)
        tl.store(value + row, tl.sum(sum_value, 0))
        tl.store(total + row, slope)
        if LIBRARY:
            tl.debug_barrier()
            share = slope * tl.exp(-tl.load(log_ell + row))
            for start in range(0, n_genes, WIDTH):
                g = start + lane
                inside = g < n_genes
                mu = tl.exp(tl.load(logits + first + g, mask=inside, other=0.0) + shift)
                dv = tl.load(dlogits + first + g, mask=inside, other=0.0)
                tl.store(dlogits + first + g, dv - mu * share, mask=inside)

    @triton.jit
    def _written(indptr, col, values, rows, out, n_genes, WIDTH: tl.constexpr):
        """Write one cell of a CSR matrix as a dense row."""
        place = tl.program_id(0).to(tl.int64)
        row, lane, first = tl.load(rows + place), tl.arange(0, WIDTH), place * n_genes
        zeros = tl.zeros([WIDTH], tl.float32)
        for start in range(0, n_genes, WIDTH):
            tl.store(out + first + start + lane, zeros, mask=start + lane < n_genes)
        tl.debug_barrier()
        begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
        for start in range(begin, end, WIDTH):
            e = start + lane
            g = tl.load(col + e, mask=e < end, other=0)
            tl.store(out + first + g, tl.load(values + e, mask=e < end, other=0.0), mask=e < end)


def log_prob(
    counts: Tensor, logits: Tensor, log_ell: Tensor | None, log_theta: Tensor | None, gate: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Compute the results of :func:`scalloy.kernels.count_log_prob.in_torch` from dense ``counts``.

    ``counts`` has one row per cell, even if ``logits`` has several samples of each.
    """
    n, n_genes = logits.shape
    logits, counts = logits.contiguous(), counts.contiguous()
    value, total = logits.new_empty(n), logits.new_empty(n)
    dlogits = torch.empty_like(logits)
    dtheta = None if log_theta is None else torch.empty_like(logits)
    dgate = None if gate is None else torch.empty_like(logits)
    per_row = log_theta is not None and len(log_theta) > 1
    given = (v if v is None else v.contiguous() for v in (log_ell, log_theta, gate))
    nothing = logits  # placeholder for an argument that is not read
    ell, theta, gate = (nothing if v is None else v for v in given)
    slopes = (nothing if v is None else v for v in (dtheta, dgate))
    _row[(n,)](
        logits,
        counts,
        ell,
        theta,
        gate,
        value,
        total,
        dlogits,
        *slopes,
        n_genes,
        len(counts),
        n_genes if per_row else 0,
        LIBRARY=log_ell is not None,
        NB=log_theta is not None,
        GATED=dgate is not None,
        WIDTH=width(n_genes),
        num_warps=8,
    )
    return value, total, dlogits, dtheta, dgate


def rows_of(indptr: Tensor, col: Tensor, values: Tensor, rows: Tensor, n_genes: int) -> Tensor:
    """Return these rows of a CSR matrix as a dense tensor."""
    out = values.new_empty(len(rows), n_genes)
    _written[(len(rows),)](indptr, col, values, rows, out, n_genes, WIDTH=width(n_genes), num_warps=4)
    return out
