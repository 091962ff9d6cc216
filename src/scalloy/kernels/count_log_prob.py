r"""Log-probability of the counts of a cell, computed from its non-zero entries.

Most counts are zero, and a zero needs no ``lgamma``. With the inverse dispersion :math:`\theta`,
:math:`v = \log\mu - \log\theta` and :math:`L = \log(1 + e^v)`:

    x = 0    log p = -theta L                                                   (NB)
             log p = -mu                                                        (Poisson)
    x > 0    log p = lgamma(x+theta) - lgamma(theta) - lgamma(x+1) - theta L + x (v - L)
             log p = x log mu - mu - lgamma(x+1)
    gated    p(0) = pi_0 + (1 - pi_0) p_base(0),  p(x) = (1 - pi_0) p_base(x),  logit(pi_0) = gate

One pass over cells x genes treats every count as zero; everything else is computed at the non-zeros only.
The same pass gives the value and its gradient, through the softmax of the mean
:math:`\mu = \ell\,\mathrm{softmax}(a)` (or through :math:`\mu = e^a` without a library size). On a CPU this
is a numba loop over cells (:mod:`scalloy.kernels.cpu`). On a GPU it is a Triton kernel with one program per
cell, which reads dense counts (:mod:`scalloy.kernels.gpu`). Elsewhere it is a sequence of torch operations
that never wait for the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scalloy.kernels import cpu, gpu
from scalloy.kernels.csr import dense, stacked


class Nonzeros(NamedTuple):
    """Non-zero entries of a CSR batch.

    ``x`` is the value of each entry, ``row`` its cell, ``col`` its gene, and ``flat`` its position in the
    flattened cells x genes matrix; ``crow`` holds the row pointers.
    """

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
        """Pick the entries of a ``(1, G)`` or ``(n, G)`` tensor at the non-zeros."""
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
    """Sum the log-probability of ``counts`` over genes, one value per cell.

    Parameters
    ----------
    counts
        Counts, cells x genes, as a sparse CSR tensor. They may also be dense where
        :func:`scalloy.kernels.gpu.serves` accepts ``logits``.
    logits
        Softmax logits of the mean, or the logarithm of the mean if ``log_ell`` is ``None``: dense
        ``(..., n, G)``. Leading dimensions are samples of each cell; all other arguments broadcast to them.
    log_ell
        Logarithm of the library size, ``(n, 1)``.
    log_theta
        Logarithm of the inverse dispersion, ``(1, G)`` or ``(n, G)``. ``None`` means Poisson counts.
    gate
        Logit of the probability of an extra zero, ``(n, G)``. ``None`` means no zero inflation.
    """
    shape = logits.shape
    if len(shape) > 2:
        counts = counts if gpu.serves(logits) else stacked(counts, shape[:-2].numel())
        logits = logits.flatten(0, -2)
        log_ell, gate = _flat(log_ell, shape), _flat(gate, shape)
        shared = log_theta is None or log_theta.shape == (1, shape[-1])
        log_theta = log_theta if shared else _flat(log_theta, shape)
    return _CountLogProb.apply(counts, logits, log_ell, log_theta, gate).view(shape[:-1])


def _flat(value: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Expand to all samples of all cells, one row for each."""
    return None if value is None else value.expand(*shape[:-1], value.shape[-1]).flatten(0, -2)


class _CountLogProb(torch.autograd.Function):
    """Log-probability per cell, with all derivatives computed in the forward pass.

    The backward pass only multiplies them by the incoming gradient of each cell.
    """

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
        if cpu.serves(logits, log_ell):
            found = cpu.in_numba(counts, logits, log_ell, log_theta, gate)
        elif gpu.serves(logits):
            found = gpu.log_prob(dense(counts), logits, log_ell, log_theta, gate)
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
    """Sum the log-probability of categories over genes, one value per cell.

    A zero is in the first category, a non-zero entry in category ``nz.x``. ``logits`` is ``(n, K, G)``:
    categories come before genes so that all loops run along genes.
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
    """Compute the log-probability with torch operations, on any device and in any precision.

    All counts are first treated as zero; the result is then corrected at the non-zeros. Returns the
    log-probability per cell, and its derivatives with respect to ``log_ell``, ``logits``, ``log_theta``
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
    """Compute log-probability and derivatives as if every count were zero.

    Returns the log-probability per cell, the softmax ``rho``, the logarithm of its normaliser, the derivative
    ``dv`` with respect to ``log mu``, the sum ``dt`` of ``dv`` and the derivative with respect to
    ``log theta``, and the derivative ``dgate`` with respect to the gate.
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
    from_base = torch.sigmoid(zero - gate)  # probability that a zero is a count of zero, not an extra zero
    value = (torch.logaddexp(zero, gate) - F.softplus(gate)).sum(-1)
    dgate = torch.sigmoid(gate - zero) - torch.sigmoid(gate)
    dt = zero * from_base if log_theta is not None else None
    return value, rho, log_norm, dv * from_base, dt, dgate


def _at_nonzero(
    nz: Nonzeros, log_mu: Tensor, log_theta: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return ``log p(x) - log p(0)`` and the values of ``dv``, ``dt`` and ``dgate``, at the non-zeros."""
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
