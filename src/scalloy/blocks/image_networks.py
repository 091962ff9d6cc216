"""Networks of images: the genes of a cell are the pixels of an image, row by row.

Each convolution halves the height and the width of the image. The encoder ends, and the decoder begins, with
hidden layers that see the covariates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from scalloy.blocks.composed import Categories
from scalloy.blocks.layers import Stack

KERNEL = 3


def image(shape: Any, n_vars: int) -> tuple[int, int, int]:
    """Return the number of colours, the height and the width of an image, after checking them.

    Parameters
    ----------
    shape
        Height and width, or colours, height and width.
    n_vars
        Number of genes, of which each is a pixel (in one colour).
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    whole = [isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 1 for n in sizes]
    if len(sizes) not in (2, 3) or not all(whole):
        msg = f"`shape={shape!r}` is no shape of images. Pass height and width, such as `(28, 28)`."
        raise ValueError(msg)
    if math.prod(sizes) != n_vars:
        msg = (
            f"`shape={sizes}` are {math.prod(sizes)} pixels, and there are {n_vars} genes. Pass the shape of "
            "the images whose pixels the genes are, row by row."
        )
        raise ValueError(msg)
    return (1, *sizes) if len(sizes) == 2 else sizes


def _checked(channels: Sequence[int]) -> tuple[int, ...]:
    """Return the channels of the convolutions, after checking them."""
    good = isinstance(channels, Sequence) and len(channels) > 0 and not isinstance(channels, str)
    if not good or not all(isinstance(n, Integral) and n >= 1 for n in channels):
        msg = f"`channels={channels!r}` must be whole numbers from 1, one for each convolution."
        raise ValueError(msg)
    return tuple(map(int, channels))


def _sizes(height: int, width: int, n: int) -> list[tuple[int, int]]:
    """Return the height and width before and after each of ``n`` convolutions."""
    sizes = [(height, width)]
    for _ in range(n):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def _normalisation(norm: str, n: int) -> nn.Module:
    """Return the normalisation of this name for ``n`` channels."""
    if norm == "batch":
        return nn.BatchNorm2d(n, momentum=0.01, eps=1e-3)
    return nn.GroupNorm(1, n) if norm == "layer" else nn.Identity()


class ImageEncoder(nn.Module):
    """Convolutions that halve an image, then hidden layers.

    Parameters
    ----------
    n_in
        Number of pixels.
    widths
        Number of units of each hidden layer after the convolutions.
    shape
        Height and width of the image, or colours, height and width.
    channels
        Number of channels of each convolution.
    norm, dropout_rate, n_cats, n_cont
        As in :class:`~scalloy.blocks.layers.Layer`.
    """

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        *,
        shape: Sequence[int],
        channels: Sequence[int] = (16, 32),
        norm: str = "layer",
        dropout_rate: float = 0.0,
        n_cats: Sequence[Categories] = (),
        n_cont: int = 0,
    ) -> None:
        super().__init__()
        colours, height, width = self.shape = image(shape, n_in)
        channels = _checked(channels)
        last = _sizes(height, width, len(channels))[-1]
        self.convolutions = nn.Sequential()
        for a, b in pairwise((colours, *channels)):
            self.convolutions.append(nn.Conv2d(a, b, KERNEL, stride=2, padding=1))
            self.convolutions.append(_normalisation(norm, b))
            self.convolutions.append(nn.ReLU())
        layer: dict[str, Any] = {"norm": norm, "dropout_rate": dropout_rate}
        self.stack = Stack(channels[-1] * math.prod(last), widths, n_cats=n_cats, n_cont=n_cont, **layer)
        self.n_out = self.stack.n_out

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        h = self.convolutions(x.reshape(-1, *self.shape)).flatten(1)
        return self.stack(h.unflatten(0, x.shape[:-1]), cats, cont)


class ImageDecoder(nn.Module):
    """Hidden layers, then transposed convolutions that double an image up to its full size.

    It returns one value for each pixel.

    Parameters
    ----------
    n_in
        Number of inputs.
    widths
        Number of units of each hidden layer before the convolutions.
    n_vars
        Number of pixels.
    shape
        Height and width of the image, or colours, height and width.
    channels
        Number of channels of each convolution, in the order of the encoder; they are used in reverse.
    norm, dropout_rate, n_cats, n_cont
        As in :class:`~scalloy.blocks.layers.Layer`.
    """

    per_gene = True

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        *,
        n_vars: int,
        shape: Sequence[int],
        channels: Sequence[int] = (16, 32),
        norm: str = "layer",
        dropout_rate: float = 0.0,
        n_cats: Sequence[Categories] = (),
        n_cont: int = 0,
    ) -> None:
        super().__init__()
        colours, height, width = image(shape, n_vars)
        channels, self.n_out = _checked(channels), n_vars
        sizes = _sizes(height, width, len(channels))[::-1]
        self.first = (channels[-1], *sizes[0])
        layer: dict[str, Any] = {"norm": norm, "dropout_rate": dropout_rate}
        self.stack = Stack(n_in, widths, n_cats=n_cats, n_cont=n_cont, **layer)
        self.spread = nn.Linear(self.stack.n_out, math.prod(self.first))
        self.convolutions = nn.Sequential()
        steps = pairwise((*channels[::-1], channels[0]))
        for (a, b), (before, after) in zip(steps, pairwise(sizes), strict=True):
            beyond = (after[0] - (2 * before[0] - 1), after[1] - (2 * before[1] - 1))
            up = nn.ConvTranspose2d(a, b, KERNEL, stride=2, padding=1, output_padding=beyond)
            self.convolutions.append(up)
            self.convolutions.append(_normalisation(norm, b))
            self.convolutions.append(nn.ReLU())
        self.convolutions.append(nn.Conv2d(channels[0], colours, KERNEL, padding=1))

    def forward(self, x: Tensor, cats: Sequence[Tensor] = (), cont: Tensor | None = None) -> Tensor:
        h = torch.relu(self.spread(self.stack(x, cats, cont)))
        return self.convolutions(h.reshape(-1, *self.first)).reshape(*h.shape[:-1], self.n_out)
