"""Sparse counts in torch: simple transformations, and the first layer of every encoder.

On a CPU the product with a CSR batch reads only its non-zeros: forward is torch's bag of embeddings, and
the gradient of the weights is summed gene by gene, so that the row of a gene is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor, nn

from scalloy.blocks import on_gpu, team

GENES = 64  # of a piece of work


def dense(x: Tensor) -> Tensor:
    """The same values as a dense tensor."""
    if x.layout != torch.sparse_csr:
        return x
    if not on_gpu.serves(x):
        return x.to_dense()
    rows = torch.arange(len(x), device=x.device)
    return on_gpu.rows_of(x.crow_indices(), x.col_indices(), x.values(), rows, x.shape[1])


def map_values(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function with ``f(0) = 0`` entry by entry, keeping a sparse tensor sparse."""
    if x.layout != torch.sparse_csr:
        return function(x)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), function(x.values()), size=x.shape)


def stacked(x: Tensor, times: int) -> Tensor:
    """The cells of a sparse CSR tensor several times, one copy below the other."""
    if times == 1:
        return x
    crow, n = x.crow_indices(), x.values().shape[0]
    begins = n * torch.arange(times, dtype=crow.dtype, device=crow.device)
    crow = torch.cat([crow[:1], (crow[1:] + begins.unsqueeze(-1)).flatten()])
    size = (times * x.shape[0], x.shape[1])
    return torch.sparse_csr_tensor(crow, x.col_indices().repeat(times), x.values().repeat(times), size=size)


def cell_totals(x: Tensor) -> Tensor:
    """Counts per cell, ``(n,)``."""
    if x.layout != torch.sparse_csr:
        return x.sum(-1)
    return torch.segment_reduce(x.values(), "sum", offsets=x.crow_indices())


def log_normalise(x: Tensor, target: float = 1e4) -> Tensor:
    """``log1p`` of counts scaled to ``target`` per cell, as scanpy's ``normalize_total`` and ``log1p``."""
    scale = target / cell_totals(x).clamp_min(1e-12)
    if x.layout != torch.sparse_csr:
        return torch.log1p(x * scale.unsqueeze(-1))
    per_entry = torch.repeat_interleave(scale, x.crow_indices().diff(), output_size=x.values().shape[0])
    return map_values(x, lambda v: torch.log1p(v * per_entry))


class SparseLinear(nn.Module):
    """Affine map of a dense or sparse CSR batch, ``x W + bias`` with ``W`` stored genes first."""

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
    """``x^T grad`` for a CSR matrix ``x``, in float32 on a CPU."""
    stop = torch.zeros(n_genes, dtype=torch.long)
    row, by_gene = torch.empty_like(col), torch.empty_like(value)
    team.run(_sort, len(crow) - 1, n_genes, len(col), crow, col, value, stop, row, by_gene)
    out = torch.empty(n_genes, grad.shape[1])
    team.run(_product, n_genes, *grad.shape, len(col), stop, row, by_gene, grad, out)
    return out


def _sort(args):
    """From cells to genes: fill in ``row`` and value of the entries of each gene, and where they stop."""
    n, n_genes, n_entries = args[1], args[2], args[3]
    crow, stop = team.integers(args[4], (n + 1,)), team.integers(args[7], (n_genes,))
    col, row = team.integers(args[5], (n_entries,)), team.integers(args[8], (n_entries,))
    value, by_gene = team.floats(args[6], (n_entries,)), team.floats(args[9], (n_entries,))
    if team.next_piece(args) > 0:
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
    """Row by row of the result, in pieces of some genes."""
    n_genes, n, width, n_entries = args[1], args[2], args[3], args[4]
    stop, row = team.integers(args[5], (n_genes,)), team.integers(args[6], (n_entries,))
    value = team.floats(args[7], (n_entries,))
    grad, out = team.floats(args[8], (n, width)), team.floats(args[9], (n_genes, width))
    first = GENES * team.next_piece(args)
    while first < n_genes:
        for g in range(first, min(first + GENES, n_genes)):
            out[g] = 0
            for e in range(stop[g - 1] if g else 0, stop[g]):
                _add(out[g], value[e], grad[row[e]])
        first = GENES * team.next_piece(args)
