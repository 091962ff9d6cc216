"""Networks by the names that models take as ``encoder`` and ``decoder``.

    name            encoder                             decoder
    ``"mlp"``       hidden layers                       hidden layers
    ``"residual"``  blocks that add to their input      blocks that add to their input
    ``"conv"``      convolutions, then hidden layers    hidden layers, then convolutions
    ``"linear"``                                        none: the code with covariates beside it

:func:`register` adds a network of your own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scalloy._arguments import one_of, shares
from scalloy._registry import Registry, check_function, taken_by
from scalloy.blocks.image_networks import ImageDecoder, ImageEncoder
from scalloy.blocks.layers import NORMS, Beside, Layer, Residual, Stack

Maker = Callable[..., nn.Module]
Network = str | type | Callable[..., nn.Module] | Mapping[str, Any]
KNOWN = ("n_cats", "n_cont", "n_vars", "norm", "dropout_rate")  # what networks get if they take it
ROLES = ("encoder", "decoder")


class Makers(NamedTuple):
    """Functions or classes that make an encoder and a decoder; ``None`` if there is none."""

    encoder: Maker | None = None
    decoder: Maker | None = None


def _beside(n_in: int, widths: Sequence[int], *, n_cats: Any = (), n_cont: int = 0) -> Beside:
    return Beside(n_in, n_cats=n_cats, n_cont=n_cont)


def _layers(
    kind: type[Stack | Residual],
    n_in: int,
    widths: Sequence[int],
    *,
    sparse: bool = False,
    n_cats: Any = (),
    n_cont: int = 0,
    norm: str = "layer",
    dropout_rate: float = 0.0,
) -> Stack | Residual:
    layer: dict[str, Any] = {"n_cats": n_cats, "n_cont": n_cont, "norm": norm, "dropout_rate": dropout_rate}
    return kind(n_in, widths, sparse=sparse, **layer)


#: Networks by name, as an encoder and as a decoder; :func:`register` adds one.
NETWORKS: Registry[Makers] = Registry(
    "scalloy.blocks.network_kinds.NETWORKS",
    {
        "mlp": Makers(partial(_layers, Stack, sparse=True), partial(_layers, Stack)),
        "residual": Makers(partial(_layers, Residual, sparse=True), partial(_layers, Residual)),
        "conv": Makers(ImageEncoder, ImageDecoder),
        "linear": Makers(decoder=_beside),
    },
)


def register(name: str, encoder: Maker | None = None, decoder: Maker | None = None) -> None:
    """Register a network, so that models take its name as ``encoder`` or ``decoder``.

    Parameters
    ----------
    name
        Name of the network; models are saved with it.
    encoder, decoder
        Class or function that returns a :class:`torch.nn.Module`, given the number of inputs and the width of
        each hidden layer; at least one of the two. The module maps ``(cells, n_in)`` to ``(cells, n)``, where
        ``n`` is the last width, or the attribute ``n_out`` of the module. If the class has arguments called
        ``n_cats`` and ``n_cont``, it gets the sizes of the covariates, and the module is called with the
        inputs, the codes and the continuous covariates (:class:`scalloy.blocks.layers.Layer` takes both).
        Otherwise a hidden layer that sees the covariates follows it. It is also given ``n_vars`` (number of
        genes), ``norm`` and ``dropout_rate`` as far as it has arguments of these names. Further arguments are
        settings that users pass: ``encoder={"kind": name, "setting": 3}``.
    """
    makers = Makers(encoder, decoder)
    if makers == (None, None):
        msg = f"There is neither an `encoder` nor a `decoder` for {name!r}. Pass one of them, or both."
        raise ValueError(msg)
    for role, maker in zip(ROLES, makers, strict=True):
        if maker is not None:
            check_function(role, maker, ("n_in", "widths"), by_name=_required(maker), may=KNOWN)
    NETWORKS.add(name, makers)


def _settings(maker: Maker) -> dict[str, inspect.Parameter]:
    """Return the arguments of a network that are neither inputs nor widths."""
    known = list(inspect.signature(maker).parameters.values())[2:]
    return {p.name: p for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _required(maker: Maker) -> list[str]:
    """Return the settings of a network without which it cannot be made."""
    if not callable(maker):
        return []
    return [k for k, p in _settings(maker).items() if p.default is p.empty and k not in KNOWN]


def check_widths(argument: str, given: Any, n_layers: int = 1) -> tuple[int, ...]:
    """Return the number of units of each layer, after checking it.

    Parameters
    ----------
    argument
        Argument that the widths were given for.
    given
        One number for all layers, or one for each of them.
    n_layers
        Number of layers, if there is one number.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    widths = tuple(given) if several else (given,) * n_layers
    good = [isinstance(w, Integral) and not isinstance(w, bool) and int(w) >= 1 for w in widths]
    if not good or not all(good):
        shown = list(widths) if several else given
        hint = "whole numbers from 1, one for each layer" if several else "a whole number from 1"
        msg = f"`{argument}={shown!r}` must be above zero: pass {hint}."
        raise ValueError(msg)
    return tuple(map(int, widths))


def plain(role: str, given: Any) -> Any:
    """Return a network as it is saved with a model: a registered class by its name, the rest as it is.

    Parameters
    ----------
    role
        Argument that it was given for: ``"encoder"`` or ``"decoder"``.
    given
        Name, registered class or function, or a dictionary.
    """
    if isinstance(given, Mapping):
        return {**given, "kind": plain(role, given.get("kind", "mlp"))}
    if isinstance(given, str) or not callable(given):
        return given
    names = [name for name, makers in NETWORKS.items() if getattr(makers, role) is given]
    if not names:
        of = getattr(given, "__name__", type(given).__name__)
        a_module = isinstance(given, nn.Module)
        what = (
            "a module that is made already; models are saved and make theirs anew"
            if a_module
            else "not registered"
        )
        msg = (
            f"`{role}` is {of}, which is {what}. Call `scalloy.blocks.network_kinds.register('my_own', "
            f"{role}=...)` with its class, and pass `{role}='my_own'`."
        )
        raise ValueError(msg)
    return names[0]


@dataclass(frozen=True)
class Kind:
    """Network with its widths and settings, from which it is made for any sizes.

    Attributes
    ----------
    role
        ``"encoder"`` or ``"decoder"``.
    name
        Name among :data:`NETWORKS`.
    widths
        Number of units of each hidden layer.
    options
        Settings of its own.
    """

    role: str
    name: str
    widths: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name if self.name == "linear" else f"{self.name} {'-'.join(map(str, self.widths))}"

    @classmethod
    def of(cls, role: str, given: Network, widths: tuple[int, ...]) -> Kind:
        """Read and check what a user passed.

        Parameters
        ----------
        role
            ``"encoder"`` or ``"decoder"``.
        given
            Name, registered class or function, or a dictionary with the name (``"kind"``), layers of its own
            (``"n_hidden"``) and further settings.
        widths
            Number of units of each layer, unless the dictionary says otherwise.
        """
        given = plain(role, given)
        options: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"kind": given}
        there = [name for name, makers in NETWORKS.items() if getattr(makers, role) is not None]
        name = NETWORKS.one_of(role, options.pop("kind", "mlp"), there)
        one_of(role, name, there)  # it may be registered for the other role only
        if name == "linear" and "n_hidden" in options:
            msg = f"`{role}={given!r}`: a linear decoder has no hidden layers. Leave 'n_hidden' out."
            raise ValueError(msg)
        if "n_hidden" in options:
            widths = check_widths(f"{role}['n_hidden']", options.pop("n_hidden"), len(widths))
        maker = getattr(NETWORKS[name], role)
        own = _settings(maker)
        takes = [k for k in own if k not in KNOWN[:3] and k != "sparse"]
        for key in options:
            one_of(f"{role} setting", key, ["kind", "n_hidden", *takes])
        if lacking := [k for k in _required(maker) if k not in options]:
            msg = (
                f"`{role}={given!r}` lacks {', '.join(map(repr, lacking))}. Pass a dictionary: "
                f"`{role}={{'kind': {name!r}, {lacking[0]!r}: ...}}`."
            )
            raise ValueError(msg)
        if "norm" in options:
            one_of("norm", options["norm"], NORMS)
        if "dropout_rate" in options:
            shares(dropout_rate=options["dropout_rate"])
        return cls(role, name, widths, options)

    @property
    def per_gene(self) -> bool:
        """Whether the network returns one value for each gene."""
        return bool(getattr(getattr(NETWORKS[self.name], self.role), "per_gene", False))

    def make(self, n_in: int, *, skip: int = 0, **known: Any) -> nn.Module:
        """Make the network.

        Parameters
        ----------
        n_in
            Number of inputs.
        skip
            Number of first layers that are made elsewhere.
        **known
            Sizes of covariates, number of genes, normalisation and dropout rate.
        """
        widths, maker = self.widths[skip:], getattr(NETWORKS[self.name], self.role)
        if not widths and self.name not in ("mlp", "linear"):
            msg = (
                f"`{self.role}={self.name!r}` has no layers left: the first one is made apart. Pass "
                f"`n_layers={skip + 1}` or more."
            )
            raise ValueError(msg)
        known = {k: v for k, v in known.items() if k != "n_vars" or self.role == "decoder"}
        made = maker(n_in, widths, **taken_by(maker, {**known, **self.options}))
        sees = "n_cats" in _settings(maker)
        n_out = getattr(made, "n_out", widths[-1] if widths else n_in)
        if self.name not in NETWORKS.built_in:
            self._check(made, n_in, n_out, known if sees else None)
        if not sees:
            return Seeing(made, n_out, **{k: v for k, v in known.items() if k != "n_vars"})
        made.n_out = n_out
        return made

    def _check(self, made: nn.Module, n_in: int, n_out: int, sees: Mapping[str, Any] | None) -> None:
        """Check the shape of what a network of a user returns, on cells that are all zeros."""
        training, where = made.training, next((p.device for p in made.parameters()), None)
        given: list[Any] = [torch.zeros(2, n_in, device=where)]
        if sees is not None:
            code = torch.zeros(2, dtype=torch.long, device=where)
            given.append([code] * len(sees.get("n_cats", ())))
            given.append(torch.zeros(2, n, device=where) if (n := sees.get("n_cont", 0)) else None)
        with torch.no_grad():
            found = made.eval()(*given)
        made.train(training)
        if tuple(found.shape) != (2, n_out):
            msg = (
                f"`{self.role}={self.name!r}` returned values of shape {tuple(found.shape)} for 2 cells. "
                f"Expected (2, {n_out}): the last of its widths, or the attribute `n_out`."
            )
            raise ValueError(msg)


class Seeing(nn.Module):
    """Network that knows no covariates, and a hidden layer after it that sees them.

    Samples in front are further cells for the network.
    """

    def __init__(self, network: nn.Module, n_out: int, **layer: Any) -> None:
        super().__init__()
        self.network, self.n_out = network, n_out
        self.layer = Layer(n_out, n_out, **layer)

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        h = self.network(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return self.layer(h, cats, cont)
