r"""Log-probability of the counts of a cell straight from its non-zero entries.

A zero needs no ``lgamma``, and it is most of the matrix. With the inverse dispersion :math:`\theta`,
:math:`v = \log\mu - \log\theta` and :math:`L = \log(1 + e^v)`:

    x = 0    log p = -theta L                                                   (NB)
             log p = -mu                                                        (Poisson)
    x > 0    log p = lgamma(x+theta) - lgamma(theta) - lgamma(x+1) - theta L + x (v - L)
             log p = x log mu - mu - lgamma(x+1)
    gated    p(0) = pi_0 + (1 - pi_0) p_base(0),  p(x) = (1 - pi_0) p_base(x),  logit(pi_0) = gate

So one pass over cells x genes serves all zeros, and everything else happens on the non-zeros. Value
and gradient come from the same pass, through the softmax that makes the mean
:math:`\mu = \ell\,\mathrm{softmax}(a)` (or :math:`\mu = e^a` without library size). All operations
are torch's and none of them waits for a device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Nonzeros(NamedTuple):
    """Entries of a CSR batch: value ``x``, gene ``col``, and place ``flat`` in the cells x genes buffer."""

    crow: Tensor
    row: Tensor
    col: Tensor
    flat: Tensor
    x: Tensor

    @classmethod
    def of(cls, counts: Tensor, dtype: torch.dtype) -> Nonzeros:
        crow, col, x = counts.crow_indices(), counts.col_indices(), counts.values()
        rows = torch.arange(counts.shape[0], device=x.device)
        row = torch.repeat_interleave(rows, crow.diff(), output_size=len(x))
        return cls(crow, row, col, row * counts.shape[1] + col, x.to(dtype))

    def sum_by_cell(self, value: Tensor) -> Tensor:
        return torch.segment_reduce(value, "sum", offsets=self.crow)

    def pick(self, per_gene: Tensor) -> Tensor:
        """Entries of a ``(1, G)`` or ``(n, G)`` tensor at the non-zeros."""
        return per_gene[0][self.col] if per_gene.shape[0] == 1 else take(per_gene, self.flat)


def take(dense: Tensor, flat: Tensor) -> Tensor:
    return dense.view(-1).index_select(0, flat)


def count_log_prob(
    counts: Tensor,
    logits: Tensor,
    *,
    log_ell: Tensor | None,
    log_theta: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Sum over genes of the log-probability of sparse ``counts``, one value per cell.

    Parameters
    ----------
    counts
        Sparse CSR tensor, cells x genes.
    logits
        Dense ``(n, G)``: softmax logits of the mean, or its logarithm when ``log_ell`` is ``None``.
    log_ell
        Logarithm of the library size, ``(n, 1)``.
    log_theta
        Logarithm of the inverse dispersion, ``(1, G)`` or ``(n, G)``. ``None`` is a Poisson.
    gate
        Logit of the probability of an extra zero, ``(n, G)``. ``None`` is no zero inflation.
    """
    nz = Nonzeros.of(counts, logits.dtype)
    return _CountLogProb.apply(nz, logits, log_ell, log_theta, gate)


class _CountLogProb(torch.autograd.Function):
    """Keeps three buffers of cells x genes, each filled once and corrected at the non-zeros:

    ``rho`` the softmax, ``dv`` the derivative by ``log mu``, and ``dt`` that by ``log theta`` plus ``dv``.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        nz: Nonzeros,
        logits: Tensor,
        log_ell: Tensor | None,
        log_theta: Tensor | None,
        gate: Tensor | None,
    ) -> Tensor:
        rho, log_mu = _mean(nz, logits, log_ell)
        zero, dv = _at_zero(rho, log_ell, log_theta)
        zero_nz = take(zero, nz.flat)
        value_nz, dv_nz, dt_nz = _at_nonzero(nz, log_mu, zero_nz, log_theta)
        if gate is None:
            value, dgate = zero.sum(-1) + nz.sum_by_cell(value_nz - zero_nz), None
        else:
            value, zero, dgate = _gated(nz, gate, zero, dv, value_nz)
        dv.view(-1)[nz.flat] = dv_nz
        if log_theta is not None:
            zero.view(-1)[nz.flat] = dt_nz
        ctx.free, ctx.shape_theta = log_ell is None, None if log_theta is None else log_theta.shape
        ctx.save_for_backward(rho, dv, zero if log_theta is not None else None, dgate)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rho, dv, dt, dgate = ctx.saved_tensors
        total, column = dv.sum(-1, keepdim=True), grad.unsqueeze(-1)
        dlogits = None
        if ctx.needs_input_grad[1]:
            dlogits = dv if ctx.free else torch.addcmul(dv, rho, total, value=-1.0)
            dlogits = dlogits * column if ctx.free else dlogits.mul_(column)
        dell = total * column if ctx.needs_input_grad[2] else None
        dtheta = None
        if ctx.needs_input_grad[3]:
            shared = ctx.shape_theta[0] == 1
            dtheta = (grad @ dt - grad @ dv).unsqueeze(0) if shared else (dt - dv).mul_(column)
        return None, dlogits, dell, dtheta, dgate * column if ctx.needs_input_grad[4] else None


def _mean(nz: Nonzeros, logits: Tensor, log_ell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax (or mean) of every entry, and ``log mu`` at the non-zeros, which never underflows."""
    at_nz = take(logits, nz.flat)
    if log_ell is None:
        return logits.exp(), at_nz
    rho = torch.softmax(logits, -1)
    log_normaliser = logits.amax(-1, keepdim=True) - rho.amax(-1, keepdim=True).log()
    return rho, at_nz + (log_ell - log_normaliser).view(-1)[nz.row]


def _at_zero(rho: Tensor, log_ell: Tensor | None, log_theta: Tensor | None) -> tuple[Tensor, Tensor]:
    """``log p(0)`` and its derivative by ``log mu``, for every entry."""
    mu = rho.clone() if log_ell is None else rho * log_ell.exp()
    if log_theta is None:
        zero = mu.neg_()
        return zero, zero.clone()
    theta = log_theta.exp()
    ratio = mu.mul_((-log_theta).exp())
    zero = torch.log1p(ratio).mul_(-theta)
    return zero, ratio.div_(ratio + 1).mul_(-theta)


def _at_nonzero(
    nz: Nonzeros, log_mu: Tensor, zero: Tensor, log_theta: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``log p(x)``, its derivative by ``log mu``, and that by ``log theta`` plus the former."""
    x, factorial = nz.x, torch.lgamma(nz.x + 1)
    if log_theta is None:
        return x * log_mu + zero - factorial, x + zero, None
    theta = log_theta.exp()
    theta_nz = nz.pick(theta)
    v = log_mu - nz.pick(log_theta)
    value = (torch.lgamma(x + theta_nz) - nz.pick(torch.lgamma(theta))) - factorial
    value = value + x * F.logsigmoid(v) + zero
    dv = x * torch.sigmoid(-v) - theta_nz * torch.sigmoid(v)
    return value, dv, theta_nz * (torch.digamma(x + theta_nz) - nz.pick(torch.digamma(theta))) + zero


def _gated(
    nz: Nonzeros, gate: Tensor, zero: Tensor, dv: Tensor, value_nz: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Zero inflation on top: the value, ``dt`` and the derivative by the gate (``dv`` is weighted in place)."""
    odds = zero - gate
    from_base = torch.sigmoid(odds)  # probability that an observed zero came from the counts
    inflated = F.softplus(odds).add_(gate)
    closed = torch.sigmoid(gate)
    value = (inflated - F.softplus(gate)).sum(-1)
    value = value + nz.sum_by_cell(value_nz - take(inflated, nz.flat))
    dgate = (1 - from_base).sub_(closed)
    dgate.view(-1)[nz.flat] = -take(closed, nz.flat)
    dv.mul_(from_base)
    return value, zero * from_base, dgate
