"""Numbers that describe perturbations, such as fingerprints of drugs or embeddings of genes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy._arguments import few
from scalloy.perturbation.design import Content, Design

MOST_DESCRIPTORS = 50  # largest number of principal components of what describes perturbations
LEAST = 1e-9  # smallest standard deviation of a column that counts, relative to its largest number


def described_parts(
    table: Any, adata: AnnData, seen: set[str], control: Collection[str]
) -> dict[str, np.ndarray] | None:
    """Return principal components of what describes each perturbation, seen or not.

    Parameters
    ----------
    table
        Rows of numbers, or their key in ``.uns``; ``None`` if perturbations are not described.
    adata
        Cells.
    seen
        Perturbations of which there must be a row.
    control
        Values that stand for no perturbation, whose rows are left out.
    """
    if isinstance(table, str):
        if table not in adata.uns:
            msg = f"`descriptors={table!r}` is not in `adata.uns`. It has: {few(adata.uns) or 'nothing'}."
            raise KeyError(msg)
        table = adata.uns[table]
    if table is None:
        return None
    if not isinstance(table, pd.DataFrame):
        msg = (
            f"`descriptors` is a {type(table).__name__}. Expected a DataFrame whose index has the names "
            "of the perturbations, or its key in `adata.uns`."
        )
        raise TypeError(msg)
    table = table[[str(name) not in control for name in table.index]]
    names = [str(name) for name in table.index]
    if lacks := sorted(seen.difference(names)):
        msg = f"`descriptors` has no row for {few(map(repr, lacks))}. Add one for each perturbation."
        raise ValueError(msg)
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = f"`descriptors` has several rows for {few(map(repr, twice))}. Keep one of each."
        raise ValueError(msg)
    try:
        values = table.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if not np.isfinite(values).all() or not values.size:
        msg = "`descriptors` holds something that is no finite number. Fill or remove these columns."
        raise ValueError(msg)
    return dict(zip(names, components(values), strict=True))


def check_described(described: Mapping[str, Any] | None, contents: Iterable[Content]) -> None:
    """Check that new parts are among those that a model knows descriptors of.

    Parameters
    ----------
    described
        Descriptors of parts; ``None`` if they are not described.
    contents
        Contents of conditions.
    """
    new = sorted({p for c in contents for p, _ in c.parts}.difference(described or ()))
    if described is not None and new:
        msg = f"The model has no descriptors of {few(map(repr, new))}. Train with a row for each."
        raise ValueError(msg)


def components(values: np.ndarray) -> np.ndarray:
    """Return principal components of descriptors, scaled so that squares of a row add up to about 1.

    Columns that hardly vary are left out, others are standardised first.

    Parameters
    ----------
    values
        Descriptors, perturbations x numbers.
    """
    sd = values.std(0)
    varies = sd > LEAST * np.abs(values).max(0)  # and by more than rounding
    scaled = (values - values.mean(0))[:, varies] / sd[varies]
    if not scaled.size:
        return np.zeros((len(values), 1))
    left, size, _ = np.linalg.svd(scaled, full_matrices=False)
    found = (left * size)[:, :MOST_DESCRIPTORS]
    return np.round(found / max(np.sqrt(np.square(found).sum(1).mean()), 1e-12), 6)


def as_described(design: Design) -> dict[str, np.ndarray] | None:
    """Return the descriptors of a design by the names of its parts."""
    if design.descriptors is None:
        return None
    return dict(zip(design.parts, design.descriptors, strict=True))
