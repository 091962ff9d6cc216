"""Networks shared by the models. The first layer reads sparse counts, the others are plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from scalloy.blocks.distributions import Delta, bounded, gaussian

Norm = Literal["batch", "layer", "none"]


def dense(x: Tensor) -> Tensor:
    """The same values as a dense tensor."""
    return x.to_dense() if x.layout == torch.sparse_csr else x


def map_values(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function with ``f(0) = 0`` entry by entry, keeping a sparse tensor sparse."""
    if x.layout != torch.sparse_csr:
        return function(x)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), function(x.values()), size=x.shape)


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
        args = x.crow_indices(), x.col_indices(), x.values()
        return _SparseTimesDense.apply(*args, self.weight) + self.bias


class _SparseTimesDense(torch.autograd.Function):
    """CSR times dense on a CPU: torch's bag of embeddings forward, scipy's product backward."""

    @staticmethod
    def forward(ctx: Any, crow: Tensor, col: Tensor, value: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(crow, col, value)
        ctx.n_in = weight.shape[0]
        return F.embedding_bag(
            col, weight, crow, mode="sum", per_sample_weights=value, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        crow, col, value = (t.numpy() for t in ctx.saved_tensors)
        counts = sp.csr_matrix((value, col, crow), shape=(len(crow) - 1, ctx.n_in), copy=False)
        return None, None, None, torch.from_numpy(counts.T @ grad.contiguous().numpy())


class Covariates(nn.Module):
    """What is known about a cell, as a shift of a layer: the same as one-hot codes beside its input."""

    def __init__(self, n_cats: Sequence[int], n_cont: int, n_out: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, n_out) if k > 1 else None for k in n_cats)
        self.slopes = nn.Linear(n_cont, n_out, bias=False) if n_cont else None
        for table in self.tables:
            if table is not None:
                nn.init.normal_(table.weight, std=0.1)

    def forward(self, y: Tensor, cats: Sequence[Tensor], cont: Tensor | None) -> Tensor:
        for table, codes in zip(self.tables, cats, strict=bool(self.tables)):
            if table is not None:
                y = y + table(codes)
        return y if self.slopes is None else y + self.slopes(cont)


class Layer(nn.Module):
    """Linear map (with covariates), normalisation, ReLU, dropout."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_cats: Sequence[int] = (),
        n_cont: int = 0,
        norm: Norm = "layer",
        dropout_rate: float = 0.0,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.linear = SparseLinear(n_in, n_out) if sparse else nn.Linear(n_in, n_out)
        self.covariates = Covariates(n_cats, n_cont, n_out)
        norms = {
            "batch": lambda: nn.BatchNorm1d(n_out, momentum=0.01, eps=1e-3),
            "layer": lambda: nn.LayerNorm(n_out),
            "none": nn.Identity,
        }
        self.norm = norms[norm]()
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate else nn.Identity()

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        y = self.covariates(self.linear(x), cats, cont)
        if isinstance(self.norm, nn.BatchNorm1d) and y.dim() > 2:
            y = self.norm(y.flatten(0, -2)).view_as(y)
        else:
            y = self.norm(y)
        return self.dropout(torch.relu(y))


class Stack(nn.Module):
    """``n_layers`` layers of ``n_hidden`` units; every one of them sees the covariates."""

    def __init__(
        self, n_in: int, n_hidden: int, n_layers: int, *, sparse: bool = False, **layer: Any
    ) -> None:
        super().__init__()
        sizes = [n_in, *[n_hidden] * n_layers]
        self.layers = nn.ModuleList(
            Layer(a, b, sparse=sparse and i == 0, **layer) for i, (a, b) in enumerate(pairwise(sizes))
        )

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, cats, cont)
        return x


class GaussianHead(nn.Module):
    """Diagonal Gaussian from a hidden vector."""

    def __init__(self, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.loc = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent)

    def forward(self, h: Tensor) -> Independent:
        log_variance = bounded(self.log_variance(h), lower=-15.0, upper=8.0)
        return gaussian(self.loc(h), torch.exp(0.5 * log_variance))


class PointHead(nn.Module):
    """A code without uncertainty from a hidden vector."""

    def __init__(self, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.loc = nn.Linear(n_hidden, n_latent)

    def forward(self, h: Tensor) -> Delta:
        return Delta(self.loc(h))


class Encoder(nn.Module):
    """From counts (and covariates, if ``encode_covariates``) to the distribution of a latent."""

    def __init__(
        self,
        n_vars: int,
        head: GaussianHead | PointHead,
        *,
        n_hidden: int,
        n_layers: int,
        n_cats: Sequence[int] = (),
        n_cont: int = 0,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.stack = Stack(n_vars, n_hidden, n_layers, sparse=True, n_cats=n_cats, n_cont=n_cont, **layer)
        self.head = head

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Distribution:
        return self.head(self.stack(x, cats, cont))
