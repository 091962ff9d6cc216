"""Sparse counts in torch: simple transformations, and the first layer of every encoder.

On a CPU the product with a CSR batch reads only its non-zeros. The forward pass is torch's
``embedding_bag``; the gradient of the weights is summed gene by gene, so that each row is written only once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor, nn

from scalloy.kernels import gpu, threads

GENES = 64  # genes that a thread takes at a time


def dense(x: Tensor) -> Tensor:
    """Return the same values as a dense tensor."""
    if x.layout != torch.sparse_csr:
        return x
    if not gpu.serves(x):
        return x.to_dense()
    rows = torch.arange(len(x), device=x.device)
    return gpu.rows_of(x.crow_indices(), x.col_indices(), x.values(), rows, x.shape[1])


def map_values(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function with ``f(0) = 0`` entry by entry, keeping a sparse tensor sparse."""
    if x.layout != torch.sparse_csr:
        return function(x)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), function(x.values()), size=x.shape)


def stacked(x: Tensor, times: int) -> Tensor:
    """Repeat the cells of a sparse CSR tensor, one copy below the other."""
    if times == 1:
        return x
    crow, n = x.crow_indices(), x.values().shape[0]
    begins = n * torch.arange(times, dtype=crow.dtype, device=crow.device)
    crow = torch.cat([crow[:1], (crow[1:] + begins.unsqueeze(-1)).flatten()])
    size = (times * x.shape[0], x.shape[1])
    return torch.sparse_csr_tensor(crow, x.col_indices().repeat(times), x.values().repeat(times), size=size)


def cell_totals(x: Tensor) -> Tensor:
    """Sum the counts of each cell, ``(n,)``."""
    if x.layout != torch.sparse_csr:
        return x.sum(-1)
    return torch.segment_reduce(x.values(), "sum", offsets=x.crow_indices())


def log_normalise(x: Tensor, target: float = 1e4) -> Tensor:
    """Scale the counts of each cell to ``target`` and take ``log1p``, as is usual in scanpy."""
    scale = target / cell_totals(x).clamp_min(1e-12)
    if x.layout != torch.sparse_csr:
        return torch.log1p(x * scale.unsqueeze(-1))
    per_entry = torch.repeat_interleave(scale, x.crow_indices().diff(), output_size=x.values().shape[0])
    return map_values(x, lambda v: torch.log1p(v * per_entry))


class SparseLinear(nn.Module):
    """Affine map ``x W + bias`` of a dense or sparse CSR batch; ``W`` is stored genes first."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        like = nn.Linear(n_in, n_out)  # torch's own initialisation
        self.weight = nn.Parameter(like.weight.detach().t().contiguous())
        self.bias = like.bias

    def forward(self, x: Tensor) -> Tensor:
        fast = x.device.type == "cpu" and self.weight.dtype == torch.float32
        if x.layout != torch.sparse_csr or not fast:
            return torch.addmm(self.bias, dense(x), self.weight)
        args = x.crow_indices().long(), x.col_indices().long(), x.values()
        return _SparseTimesDense.apply(*args, self.weight) + self.bias


class _SparseTimesDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crow: Tensor, col: Tensor, value: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(crow, col, value)
        ctx.n_in = weight.shape[0]
        return F.embedding_bag(
            col, weight, crow, mode="sum", per_sample_weights=value, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        crow, col, value = ctx.saved_tensors
        return None, None, None, transposed_product(crow, col, value, grad.contiguous(), ctx.n_in)


def transposed_product(crow: Tensor, col: Tensor, value: Tensor, grad: Tensor, n_genes: int) -> Tensor:
    """Return ``x^T grad`` for a CSR matrix ``x``, in float32 on a CPU."""
    stop = torch.zeros(n_genes, dtype=torch.long)
    row, by_gene = torch.empty_like(col), torch.empty_like(value)
    threads.run(_sort, len(crow) - 1, n_genes, len(col), crow, col, value, stop, row, by_gene)
    out = torch.empty(n_genes, grad.shape[1])
    threads.run(_product, n_genes, *grad.shape, len(col), stop, row, by_gene, grad, out)
    return out


def _sort(args):
    """Sort the entries by gene: fill in the cell and value of each, and where each gene stops."""
    n, n_genes, n_entries = args[1], args[2], args[3]
    crow, stop = threads.integers(args[4], (n + 1,)), threads.integers(args[7], (n_genes,))
    col, row = threads.integers(args[5], (n_entries,)), threads.integers(args[8], (n_entries,))
    value, by_gene = threads.floats(args[6], (n_entries,)), threads.floats(args[9], (n_entries,))
    if threads.next_piece(args) > 0:
        return
    for e in range(n_entries):
        stop[col[e]] += 1
    total = 0
    for g in range(n_genes):
        stop[g], total = total, total + stop[g]
    for i in range(n):
        for e in range(crow[i], crow[i + 1]):
            place = stop[col[e]]
            row[place], by_gene[place] = i, value[e]
            stop[col[e]] += 1


@njit(fastmath=True)
def _add(out, x, row):
    for h in range(len(out)):
        out[h] += x * row[h]


def _product(args):
    """Compute the result row by row; each thread takes ``GENES`` rows at a time."""
    n_genes, n, width, n_entries = args[1], args[2], args[3], args[4]
    stop, row = threads.integers(args[5], (n_genes,)), threads.integers(args[6], (n_entries,))
    value = threads.floats(args[7], (n_entries,))
    grad, out = threads.floats(args[8], (n, width)), threads.floats(args[9], (n_genes, width))
    first = GENES * threads.next_piece(args)
    while first < n_genes:
        for g in range(first, min(first + GENES, n_genes)):
            out[g] = 0
            for e in range(stop[g - 1] if g else 0, stop[g]):
                _add(out[g], value[e], grad[row[e]])
        first = GENES * threads.next_piece(args)
