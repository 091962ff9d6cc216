"""Encoders and settings of the networks that the models share; the first layer reads sparse counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.functional import dropout

from scalloy._arguments import one_of, shares, whole
from scalloy.blocks.distributions import Delta, bounded, gaussian
from scalloy.blocks.layers import NORMS, Beside, Covariates, Head, Layer, Stack, looked_up
from scalloy.blocks.network_kinds import Kind, Network, check_widths
from scalloy.kernels.csr import dense, map_values

__all__ = [
    "UNBOUNDED",
    "Beside",
    "Covariates",
    "Domain",
    "Encoder",
    "GaussianHead",
    "Head",
    "Layer",
    "NetworkSettings",
    "PointHead",
    "Stack",
    "looked_up",
]


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

    Parameters
    ----------
    n_vars
        Number of inputs.
    head
        Map from the last hidden layer to a distribution.
    n_hidden, n_layers
        Hidden layers, as in :class:`~scalloy.blocks.layers.Stack`.
    network
        Network in their place, whose output the head takes.
    hidden_rate
        Share of the values of ``x`` that are hidden in training.
    **layer
        Further arguments of :class:`~scalloy.blocks.layers.Layer`.
    """

    def __init__(
        self,
        n_vars: int,
        head: nn.Module,
        *,
        n_hidden: int | Sequence[int] = 128,
        n_layers: int = 1,
        network: nn.Module | None = None,
        hidden_rate: float = 0.0,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.hidden_rate = hidden_rate
        self.stack = Stack(n_vars, n_hidden, n_layers, sparse=True, **layer) if network is None else network
        self.takes_sparse = getattr(self.stack, "takes_sparse", False)
        self.head = head

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Any:
        if self.training and self.hidden_rate:
            x = map_values(x, lambda v: dropout(v, self.hidden_rate))
        return self.head(self.stack(x if self.takes_sparse else dense(x), cats, cont))


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of a model's encoders and decoders, checked once and passed on as one.

    Parameters
    ----------
    n_hidden
        Number of units of each hidden layer: one number for all layers, or one for each layer of the encoder;
        the decoder then has them in reverse.
    n_latent
        Number of dimensions of the code.
    n_layers
        Number of hidden layers of an encoder, and of a decoder, if ``n_hidden`` is one number.
    dropout_rate
        Dropout rate of the encoders.
    norm
        Normalisation of the hidden layers: ``"layer"``, ``"batch"`` or ``"none"``.
    encode_covariates
        Whether the encoders see the batch and the covariates too; the decoders always do.
    encoder_kind, decoder_kind
        Networks, each by its name (:mod:`scalloy.blocks.network_kinds`), or a dictionary with its name
        (``"kind"``), layers of its own (``"n_hidden"``) and further settings of it.
    usual_layers
        Default of ``n_layers`` in the model, which may stand beside a list of widths.
    """

    n_hidden: Any = 128  # a whole number, or a sequence of them
    n_latent: int = 10
    n_layers: int = 1
    dropout_rate: float = 0.1
    norm: str = "layer"
    encode_covariates: bool = False
    encoder_kind: Network = "mlp"
    decoder_kind: Network = "mlp"
    usual_layers: int = 1

    def __post_init__(self) -> None:
        whole(n_latent=self.n_latent, n_layers=self.n_layers)
        shares(dropout_rate=self.dropout_rate)
        one_of("norm", self.norm, NORMS)
        n = len(self.widths)
        if not isinstance(self.n_hidden, Integral) and self.n_layers not in (n, self.usual_layers):
            msg = (
                f"`n_hidden={list(self.n_hidden)}` has {n} layers, and `n_layers={self.n_layers}` says "
                "something else. Leave `n_layers` out."
            )
            raise ValueError(msg)
        assert self.encodes.widths  # both are checked here
        assert self.decodes.widths

    def __str__(self) -> str:
        if isinstance(self.n_hidden, Integral) and self.encodes.name == self.decodes.name == "mlp":
            return f"n_hidden {self.n_hidden} x {self.n_layers}"
        return f"encoder {self.encodes}, decoder {self.decodes}"

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of units of each hidden layer, in the order of the encoder."""
        return check_widths("n_hidden", self.n_hidden, self.n_layers)

    @cached_property
    def encodes(self) -> Kind:
        """Network of the encoders."""
        return Kind.of("encoder", self.encoder_kind, self.widths)

    @cached_property
    def decodes(self) -> Kind:
        """Network of the decoder."""
        return Kind.of("decoder", self.decoder_kind, self.widths[::-1])

    @property
    def n_encoded(self) -> int:
        """Number of units at the end of an encoder, which its head takes."""
        return self.encodes.widths[-1]

    @property
    def per_gene(self) -> bool:
        """Whether the decoder returns one value for each gene."""
        return self.decodes.per_gene

    def n_decoded(self, n_vars: int, *, skip: int = 0, **covariates: Any) -> int:
        """Return the number of values at the end of a decoder, which a likelihood takes.

        Parameters
        ----------
        n_vars
            Number of genes.
        skip
            Number of the first layers of the decoder that are made elsewhere.
        **covariates
            Sizes of the covariates that it sees.
        """
        widths = (self.n_latent, *self.decodes.widths)
        if self.decodes.name == "mlp":
            return widths[-1]
        with torch.device("meta"):  # needs no memory and draws nothing at random
            return self.decoder(widths[skip], n_vars=n_vars, skip=skip, **covariates).n_out

    def encoder(
        self, n_vars: int, head: nn.Module, *, n_layers: int | None = None, **options: Any
    ) -> Encoder:
        """Make an encoder of ``n_vars`` values.

        Parameters
        ----------
        n_vars
            Number of inputs.
        head
            Map from the ``n_encoded`` units at its end to a distribution.
        n_layers
            Number of layers of a smaller encoder, all as wide as the first one; ``None`` is that of the
            settings.
        **options
            Sizes of covariates, and options of :class:`Encoder`.
        """
        hidden_rate = options.pop("hidden_rate", 0.0)
        layer = {"norm": self.norm, "dropout_rate": self.dropout_rate, **options}
        kind = self.encodes if n_layers is None else self._small(n_layers)
        return Encoder(n_vars, head, network=kind.make(n_vars, **layer), hidden_rate=hidden_rate)

    def decoder(
        self, n_in: int, *, n_layers: int | None = None, n_vars: int = 0, skip: int = 0, **options: Any
    ) -> Any:
        """Make the hidden layers of a decoder.

        Parameters
        ----------
        n_in
            Number of inputs.
        n_layers
            Number of layers of a smaller one, all as wide as the first of the encoder; ``None`` is that of
            the settings.
        n_vars
            Number of genes, which networks of images need.
        skip
            Number of the first layers that are made elsewhere.
        **options
            Sizes of covariates, and options of :class:`~scalloy.blocks.layers.Layer`.
        """
        kind = self.decodes if n_layers is None else self._small(n_layers, "decoder")
        return kind.make(n_in, skip=skip, n_vars=n_vars, **{"norm": self.norm, **options})

    def _small(self, n_layers: int, role: str = "encoder") -> Kind:
        """Return a network of plain layers, all as wide as the first one of the encoder."""
        return Kind.of(role, "mlp", self.widths[:1] * n_layers)

    def sizes_encoded(self, covariates: dict[str, Any]) -> dict[str, Any]:
        """Return the sizes of the covariates that the encoders see: all that are given, or none."""
        return covariates if self.encode_covariates else {}

    def encoded(self, cats: Sequence[Tensor], cont: Tensor | None) -> tuple[Any, ...]:
        """Return the batch and covariates of cells as the encoders take them; nothing if they see none."""
        return (cats, cont) if self.encode_covariates else ()
