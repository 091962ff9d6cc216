"""Layers of all networks: linear maps that see covariates, normalisation, ReLU and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scalloy.blocks.composed import Categories, Composed, Composition, Rows, n_rows
from scalloy.kernels.csr import SparseLinear

LOW = (torch.float16, torch.bfloat16)
NORMS = ("layer", "batch", "none")


class Covariates(nn.Module):
    """Covariates of a cell as a shift of a layer, which amounts to one-hot codes beside its input.

    After training, a negative code stands for the average category.
    """

    def __init__(self, n_cats: Sequence[Categories], n_cont: int, n_out: int) -> None:
        super().__init__()
        tables = [_table(k, n_out) for k in n_cats]
        self.tables = nn.ModuleList(tables)  # type: ignore[arg-type]  # torch's list takes `None` too
        self.slopes = nn.Linear(n_cont, n_out, bias=False) if n_cont else None
        for table in tables:
            if isinstance(table, nn.Embedding | Composed):
                nn.init.normal_(table.weight, std=0.1)

    def forward(self, y: Tensor, cats: Sequence[Tensor], cont: Tensor | None) -> Tensor:
        if not cats:  # no covariates were given
            return y
        for table, codes in zip(self.tables, cats, strict=bool(self.tables)):
            if isinstance(table, nn.Embedding):
                y = y + (table(codes) if self.training else looked_up(table.weight, codes))
            elif isinstance(table, Composed):
                y = y + table(codes)
        return y if self.slopes is None else y + self.slopes(cont)


def _table(categories: Categories, n_out: int) -> nn.Module | None:
    """Return a table with a row for each category; ``None`` if there is nothing to tell apart."""
    if isinstance(categories, Rows):
        return Composed(categories, n_out)
    return nn.Embedding(categories, n_out) if categories > 1 else None


def looked_up(table: Tensor, codes: Tensor) -> Tensor:
    """Return the rows of a table for these codes, and its mean row for codes that it does not have."""
    known = codes.clamp(0, len(table) - 1)
    return torch.where((known == codes).unsqueeze(-1), table[known], table.mean(0))


class Head(nn.Linear):
    """Linear map to the parameters of a distribution, which are float32 at least.

    Under ``precision="bf16-mixed"`` the product is computed in bfloat16. Its three digits are enough for the
    product, but not for a log-probability.
    """

    def forward(self, h: Tensor) -> Tensor:
        y = super().forward(h)
        return y.float() if y.dtype in LOW else y


def normalisation(norm: str, n_out: int) -> nn.Module:
    """Return the normalisation of this name for a layer of ``n_out`` units."""
    if norm == "batch":
        return nn.BatchNorm1d(n_out, momentum=0.01, eps=1e-3)
    return nn.LayerNorm(n_out) if norm == "layer" else nn.Identity()


def normalised(norm: nn.Module, y: Tensor) -> Tensor:
    """Return normalised values; samples in front count as further cells."""
    if isinstance(norm, nn.BatchNorm1d) and y.dim() > 2:
        return norm(y.flatten(0, -2)).view_as(y)
    return norm(y)


class Layer(nn.Module):
    """Linear map (with covariates), normalisation, ReLU and dropout."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_cats: Sequence[Categories] = (),
        n_cont: int = 0,
        norm: str = "layer",
        dropout_rate: float = 0.0,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.linear = SparseLinear(n_in, n_out) if sparse else nn.Linear(n_in, n_out)
        self.covariates = Covariates(n_cats, n_cont, n_out)
        self.norm = normalisation(norm, n_out)
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate else nn.Identity()

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        y = normalised(self.norm, self.covariates(self.linear(x), cats, cont))
        return self.dropout(torch.relu(y))


class Stack(nn.Module):
    """Stack of hidden layers, all of which see the covariates.

    Parameters
    ----------
    n_in
        Number of inputs.
    n_hidden
        Number of units of each layer: one number for all, or one for each layer.
    n_layers
        Number of layers, if ``n_hidden`` is one number.
    sparse
        Whether the first layer can read sparse counts.
    **layer
        Further arguments of :class:`Layer`.
    """

    takes_sparse = True

    def __init__(
        self,
        n_in: int,
        n_hidden: int | Sequence[int],
        n_layers: int = 1,
        *,
        sparse: bool = False,
        **layer: Any,
    ) -> None:
        super().__init__()
        sizes = [n_in, *([n_hidden] * n_layers if isinstance(n_hidden, int) else n_hidden)]
        self.n_out = sizes[-1]
        self.layers = nn.ModuleList(
            Layer(a, b, sparse=sparse and i == 0, **layer) for i, (a, b) in enumerate(pairwise(sizes))
        )

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, cats, cont)
        return x


class Residual(nn.Module):
    """Layer, and then blocks of two linear maps whose output is added to their input.

    He et al., "Deep residual learning for image recognition", CVPR 2016. The sum of many blocks is
    normalised once, at the end.

    Parameters
    ----------
    n_in
        Number of inputs.
    widths
        Number of units of each block.
    sparse
        Whether the first layer can read sparse counts.
    norm
        Normalisation, as in :class:`Layer`.
    **layer
        Further arguments of :class:`Layer`.
    """

    takes_sparse = True

    def __init__(
        self, n_in: int, widths: Sequence[int], *, sparse: bool = False, norm: str = "layer", **layer: Any
    ) -> None:
        super().__init__()
        layer = {**layer, "norm": norm}
        self.first, self.n_out = Layer(n_in, widths[0], sparse=sparse, **layer), widths[-1]
        sizes = list(pairwise([widths[0], *widths]))
        self.inner = nn.ModuleList(Layer(a, b, **layer) for a, b in sizes)
        self.outer = nn.ModuleList(nn.Linear(b, b) for _, b in sizes)
        self.skips = nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in sizes)
        self.norm = normalisation(norm, widths[-1])

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        h = self.first(x, cats, cont)
        for inner, outer, skip in zip(self.inner, self.outer, self.skips, strict=True):
            h = skip(h) + outer(inner(h, cats, cont))
        return normalised(self.norm, h)


class Beside(nn.Module):
    """Code of a cell with its covariates beside it: the whole decoder if there are no hidden layers.

    The weights of a likelihood's head are then the effects of each latent on each gene.
    """

    def __init__(self, n_in: int, *, n_cats: Sequence[Categories] = (), n_cont: int = 0) -> None:
        super().__init__()
        self.n_cats = tuple(n_cats)
        self.of_parts = nn.ModuleList(Composition(k) for k in n_cats if isinstance(k, Rows))
        self.widths = (n_in, *map(n_rows, n_cats), n_cont)
        self.n_out = sum(self.widths)

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        composed, parts = iter(self.of_parts), []
        for c, k in zip(cats, self.n_cats, strict=True):
            if n := n_rows(k):
                one_hot = torch.eye(n, dtype=x.dtype, device=x.device)
                parts.append(next(composed)(one_hot, c) if isinstance(k, Rows) else looked_up(one_hot, c))
        parts += [] if cont is None else [cont]
        return torch.cat([x, *(p.expand(*x.shape[:-1], -1) for p in parts)], -1)
