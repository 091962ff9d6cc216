"""Networks shared by the models; the first layer of an encoder reads sparse counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.functional import dropout

from scalloy._arguments import one_of, shares, whole
from scalloy.blocks.composed import Categories, Composed, Composition, Rows, n_rows
from scalloy.blocks.distributions import Delta, bounded, gaussian
from scalloy.kernels.csr import SparseLinear, map_values

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
    """Stack of ``n_layers`` layers of ``n_hidden`` units, all of which see the covariates."""

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


class Domain(NamedTuple):
    """Bounds of a latent's mean (soft, by a hyperbolic tangent; ``None``: none) and of its log-variance."""

    mean: float | None
    log_variance: tuple[float, float]


UNBOUNDED = Domain(None, (-15.0, 8.0))


class GaussianHead(nn.Module):
    """Map a hidden vector to a diagonal Gaussian."""

    def __init__(self, n_hidden: int, n_latent: int, domain: Domain = UNBOUNDED) -> None:
        super().__init__()
        self.loc = Head(n_hidden, n_latent)
        self.log_variance = Head(n_hidden, n_latent)
        self.domain = domain

    def forward(self, h: Tensor) -> Independent:
        limit, (lower, upper) = self.domain
        loc = self.loc(h)
        loc = loc if limit is None else limit * torch.tanh(loc / limit)
        log_variance = bounded(self.log_variance(h), lower=lower, upper=upper)
        return gaussian(loc, torch.exp(0.5 * log_variance))


class PointHead(nn.Module):
    """Map a hidden vector to a code without uncertainty."""

    def __init__(self, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.loc = Head(n_hidden, n_latent)

    def forward(self, h: Tensor) -> Delta:
        return Delta(self.loc(h))


class Encoder(nn.Module):
    """Map the input ``x`` (and covariates, if given) to the distribution of a latent.

    In training, a share ``hidden_rate`` of the values of ``x`` is set to zero, and the others are scaled up.
    """

    def __init__(
        self,
        n_vars: int,
        head: nn.Module,
        *,
        n_hidden: int,
        n_layers: int,
        n_cats: Sequence[int] = (),
        n_cont: int = 0,
        hidden_rate: float = 0.0,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.hidden_rate = hidden_rate
        self.stack = Stack(n_vars, n_hidden, n_layers, sparse=True, n_cats=n_cats, n_cont=n_cont, **layer)
        self.head = head

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Any:
        if self.training and self.hidden_rate:
            x = map_values(x, lambda v: dropout(v, self.hidden_rate))
        return self.head(self.stack(x, cats, cont))


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of a model's encoders and decoders, checked once and passed on as one.

    Parameters
    ----------
    n_hidden
        Number of units of each hidden layer.
    n_latent
        Number of dimensions of the code.
    n_layers
        Number of hidden layers of an encoder, and of a decoder.
    dropout_rate
        Dropout rate of the encoders.
    norm
        Normalisation of the hidden layers: ``"layer"``, ``"batch"`` or ``"none"``.
    encode_covariates
        Whether the encoders see the batch and the covariates too; the decoders always do.
    """

    n_hidden: int = 128
    n_latent: int = 10
    n_layers: int = 1
    dropout_rate: float = 0.1
    norm: str = "layer"
    encode_covariates: bool = False

    def __post_init__(self) -> None:
        whole(n_hidden=self.n_hidden, n_latent=self.n_latent, n_layers=self.n_layers)
        shares(dropout_rate=self.dropout_rate)
        one_of("norm", self.norm, NORMS)

    def encoder(self, n_vars: int, head: nn.Module, **options: Any) -> Encoder:
        """Make an encoder of ``n_vars`` values; ``options`` are those of :class:`Encoder`."""
        return Encoder(n_vars, head, **{**self._layers, "dropout_rate": self.dropout_rate, **options})

    def decoder(self, n_in: int, **options: Any) -> Stack:
        """Make the hidden layers of a decoder; ``options`` are those of :class:`Stack`."""
        return Stack(n_in, **{**self._layers, **options})

    def sizes_encoded(self, covariates: dict[str, Any]) -> dict[str, Any]:
        """Return the sizes of the covariates that the encoders see: all that are given, or none."""
        return covariates if self.encode_covariates else {}

    def encoded(self, cats: Sequence[Tensor], cont: Tensor | None) -> tuple[Any, ...]:
        """Return the batch and covariates of cells as the encoders take them; nothing if they see none."""
        return (cats, cont) if self.encode_covariates else ()

    @property
    def _layers(self) -> dict[str, Any]:
        return {"n_hidden": self.n_hidden, "n_layers": self.n_layers, "norm": self.norm}
