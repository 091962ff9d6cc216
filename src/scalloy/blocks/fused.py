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
:math:`\mu = \ell\,\mathrm{softmax}(a)` (or :math:`\mu = e^a` without library size). On a CPU that is a
numba loop over cells (:mod:`scalloy.blocks.kernels`), on a GPU a Triton kernel with a program for each
(:mod:`scalloy.blocks.on_gpu`), elsewhere torch operations that never wait for a device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scalloy.blocks import kernels, on_gpu
from scalloy.blocks.sparse import dense, stacked


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
    """Sum over genes of the log-probability of ``counts``, one value per cell.

    Parameters
    ----------
    counts
        Sparse CSR tensor, cells x genes; dense where :func:`scalloy.blocks.on_gpu.serves`.
    logits
        Dense ``(..., n, G)``: softmax logits of the mean, or its logarithm when ``log_ell`` is ``None``. With
        several samples of each cell all else broadcasts.
    log_ell
        Logarithm of the library size, ``(n, 1)``.
    log_theta
        Logarithm of the inverse dispersion, ``(1, G)`` or ``(n, G)``. ``None`` is a Poisson.
    gate
        Logit of the probability of an extra zero, ``(n, G)``. ``None`` is no zero inflation.
    """
    shape = logits.shape
    if len(shape) > 2:
        counts = counts if on_gpu.serves(logits) else stacked(counts, shape[:-2].numel())
        logits = logits.flatten(0, -2)
        log_ell, gate = _flat(log_ell, shape), _flat(gate, shape)
        shared = log_theta is None or log_theta.shape == (1, shape[-1])
        log_theta = log_theta if shared else _flat(log_theta, shape)
    return _CountLogProb.apply(counts, logits, log_ell, log_theta, gate).view(shape[:-1])


def _flat(value: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Rows for all samples of all cells."""
    return None if value is None else value.expand(*shape[:-1], value.shape[-1]).flatten(0, -2)


class _CountLogProb(torch.autograd.Function):
    """The derivatives of each cell are ready after the forward pass, and only multiplied by its weight."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        counts: Tensor,
        logits: Tensor,
        log_ell: Tensor | None,
        log_theta: Tensor | None,
        gate: Tensor | None,
    ) -> Tensor:
        found: tuple[Tensor | None, ...]
        if kernels.serves(logits, log_ell):
            found = kernels.in_numba(counts, logits, log_ell, log_theta, gate)
        elif on_gpu.serves(logits):
            found = on_gpu.log_prob(dense(counts), logits, log_ell, log_theta, gate)
        else:
            found = in_torch(counts, logits, log_ell, log_theta, gate)
        value, *derivatives = found
        ctx.shared_theta = log_theta is not None and len(log_theta) == 1
        ctx.save_for_backward(*derivatives)
        return value  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        total, dlogits, dtheta, dgate = ctx.saved_tensors
        column, (_, logits, log_ell, theta, gate) = grad.unsqueeze(-1), ctx.needs_input_grad
        return (
            None,
            dlogits * column if logits else None,
            total.unsqueeze(-1) * column if log_ell else None,
            (grad.unsqueeze(0) @ dtheta if ctx.shared_theta else dtheta * column) if theta else None,
            dgate * column if gate else None,
        )


def category_log_prob(nz: Nonzeros, logits: Tensor) -> Tensor:
    """Sum over genes of the log-probability of categories: the first one where no count is, else ``nz.x``.

    ``logits`` is ``(n, K, G)``; categories come before genes so that all loops run along genes.
    """
    return _CategoryLogProb.apply(logits, nz.row, nz.col, nz.x.long())


class _CategoryLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, row: Tensor, col: Tensor, category: Tensor) -> Tensor:  # type: ignore[override]
        k, n_genes = logits.shape[1:]
        first = row * (k * n_genes) + col
        own = first + category * n_genes
        log_sum = torch.logsumexp(logits, 1)
        value = (logits[:, 0] - log_sum).sum(-1)
        ctx.save_for_backward(logits, log_sum, first, own)
        return value.index_add(0, row, take(logits, own) - take(logits, first))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, log_sum, first, own = ctx.saved_tensors
        slope = (logits - log_sum.unsqueeze(1)).exp_().neg_()
        slope[:, 0] += 1
        one = slope.new_ones(()).expand(len(own))
        slope.view(-1).index_add_(0, first, one, alpha=-1).index_add_(0, own, one)
        return slope.mul_(grad[:, None, None]), None, None, None


def in_torch(
    counts: Tensor,
    logits: Tensor,
    log_ell: Tensor | None,
    log_theta: Tensor | None,
    gate: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """On any device, in any precision: everything as if all counts were zero, then corrected at the others.

    Returns the log-probability per cell, and its derivatives by ``log_ell``, ``logits``, ``log_theta``
    (per entry) and ``gate``.
    """
    nz = Nonzeros.of(counts, logits.dtype)
    value, rho, log_norm, dv, dt, dgate = all_zero(logits, log_ell, log_theta, gate)
    log_mu = take(logits, nz.flat)
    if log_ell is not None:
        log_mu = log_mu + (log_ell - log_norm).view(-1)[nz.row]
    difference, *derivatives = _at_nonzero(nz, log_mu, log_theta, gate)
    value = value + nz.sum_by_cell(difference)
    for buffer, entries in zip((dv, dt, dgate), derivatives, strict=True):
        if buffer is not None and entries is not None:
            buffer.view(-1)[nz.flat] = entries
    total = dv.sum(-1)
    dtheta = None if dt is None else dt.sub_(dv)
    dlogits = dv if rho is None else torch.addcmul(dv, rho, total.unsqueeze(-1), value=-1.0)
    return value, total, dlogits, dtheta, dgate


def all_zero(
    logits: Tensor, log_ell: Tensor | None, log_theta: Tensor | None, gate: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The pass over all entries, as if each were zero.

    Returns the log-probability per cell, ``rho`` the softmax, the logarithm of its normaliser, ``dv`` the
    derivative by ``log mu``, ``dt`` that by ``log theta`` plus ``dv``, and ``dgate`` that by the gate.
    """
    if log_ell is None:
        rho, log_norm, mu = None, None, logits.exp()
    else:
        rho = torch.softmax(logits, -1)
        log_norm = logits.amax(-1, keepdim=True) - rho.amax(-1, keepdim=True).log()
        mu = rho * log_ell.exp()
    if log_theta is None:
        zero = mu.neg_()
        dv = zero.clone()
    else:
        theta = log_theta.exp()
        ratio = mu.mul_((-log_theta).exp())
        zero = torch.log1p(ratio).mul_(-theta)
        dv = ratio.div_(ratio + 1).mul_(-theta)
    if gate is None:
        return zero.sum(-1), rho, log_norm, dv, zero if log_theta is not None else None, None
    from_base = torch.sigmoid(zero - gate)  # probability that an observed zero came from the counts
    value = (torch.logaddexp(zero, gate) - F.softplus(gate)).sum(-1)
    dgate = torch.sigmoid(gate - zero) - torch.sigmoid(gate)
    dt = zero * from_base if log_theta is not None else None
    return value, rho, log_norm, dv * from_base, dt, dgate


def _at_nonzero(
    nz: Nonzeros, log_mu: Tensor, log_theta: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """``log p(x) - log p(0)`` at the non-zeros, and what ``dv``, ``dt`` and ``dgate`` are there."""
    x = nz.x
    if log_theta is None:
        zero = -log_mu.exp()
        more, dv, dt = x * log_mu, x + zero, None
    else:
        theta = log_theta.exp()
        theta_nz = nz.pick(theta)
        v = log_mu - nz.pick(log_theta)
        zero = -theta_nz * F.softplus(v)
        more = (torch.lgamma(x + theta_nz) - nz.pick(torch.lgamma(theta))) + x * F.logsigmoid(v)
        dv = x * torch.sigmoid(-v) - theta_nz * torch.sigmoid(v)
        dt = theta_nz * (torch.digamma(x + theta_nz) - nz.pick(torch.digamma(theta))) + zero
    difference = more - torch.lgamma(x + 1)
    if gate is None:
        return difference, dv, dt, None
    gate_nz = take(gate, nz.flat)
    difference = difference + zero - torch.logaddexp(zero, gate_nz)
    return difference, dv, dt, -torch.sigmoid(gate_nz)
