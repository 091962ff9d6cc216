"""Tables of categories that are made of parts: the row of a category is a weighted sum of rows of parts.

    row of category c   =   sum_j value[c, j] * weight[index[c, j]]

With one part each, of value 1, this is an ordinary table. Categories that were never seen can be added as
long as their parts are known (:func:`with_categories`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class Rows:
    """Parts of each category: ``index`` and ``value``, both categories x largest number of parts."""

    index: np.ndarray
    value: np.ndarray
    n_columns: int

    def __len__(self) -> int:
        return len(self.index)


Categories: TypeAlias = "int | Rows"  # a number of categories, or what each is made of


def n_rows(categories: Categories) -> int:
    """Return the number of rows of a table for these categories; none if there is nothing to tell apart."""
    if isinstance(categories, Rows):
        return categories.n_columns
    return categories if categories > 1 else 0


class Composition(nn.Module):
    """Sums of rows of parts, for tables of any shape."""

    index: Tensor
    value: Tensor

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.n_columns = rows.n_columns
        self.register_buffer("index", torch.as_tensor(rows.index), persistent=False)
        self.register_buffer("value", torch.as_tensor(rows.value), persistent=False)

    def forward(self, table: Tensor, codes: Tensor) -> Tensor:
        """Return the row of each category, ``(n, ...)``, from a table ``(columns, ...)``."""
        flat, shape = codes.reshape(-1), (*codes.shape, *table.shape[1:])
        sums = embedding_bag(
            self.index[flat],
            table.reshape(len(table), -1),
            per_sample_weights=self.value[flat].to(table),
            mode="sum",
        )
        return sums.view(shape)


class Composed(nn.Module):
    """Table of categories that are made of parts."""

    def __init__(self, rows: Rows, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows.n_columns, n_out))
        self.of_parts = Composition(rows)

    def forward(self, codes: Tensor) -> Tensor:
        return self.of_parts(self.weight, codes)


@contextmanager
def with_categories(module: nn.Module, rows: Rows) -> Iterator[int]:
    """Let a module know more categories for a while, and yield the code of the first of them.

    Codes of categories that it knows already stay as they are, to the last bit of what they give. It may be
    used within itself. If the inner one ends last, the rows of the outer one stay, and no code leads there.

    Parameters
    ----------
    module
        Module whose tables are made of parts.
    rows
        Parts of the new categories.
    """
    parts = [m for m in module.modules() if isinstance(m, Composition)]
    before = [(m.index, m.value) for m in parts]
    grown = [tuple(map(_stacked, old, (rows.index, rows.value))) for old in before]
    try:
        for m, (index, value) in zip(parts, grown, strict=True):
            m.index, m.value = index, value
        yield len(before[0][0])
    finally:
        for m, old, new in zip(parts, before, grown, strict=True):
            if m.index is new[0]:
                m.index, m.value = old


def _stacked(known: Tensor, more: np.ndarray) -> Tensor:
    """Return rows below others, padded with zeros to the same width."""
    both = [known, torch.as_tensor(more).to(known)]
    width = max(rows.shape[1] for rows in both)
    return torch.cat([nn.functional.pad(rows, (0, width - rows.shape[1])) for rows in both])
