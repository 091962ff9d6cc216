"""Time of comparisons of donors, beside pertpy's Milo and PyDESeq2 in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy import compare
from scalloy.benchmark.donors import ASK, EXPRESSION
from scalloy.benchmark.neighbourhoods import milo
from scalloy.datasets import cohort


def speed(*, n_cells: int = 100_000, n_donors: int = 40, n_genes: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Compare the time of our comparisons with pertpy's Milo and with PyDESeq2, in the same run.

    All find the neighbours, or sum the counts, by themselves.

    Parameters
    ----------
    n_cells, n_donors, n_genes
        Size of the study.
    seed
        Random seed of the simulation.
    """
    adata = cohort(n_donors // 2, n_cells // n_donors, n_genes, size=0.0, seed=seed)
    z = np.random.default_rng(seed).normal(size=(adata.n_obs, 10))
    adata.obsm["X_z"] = (z + 3 * np.eye(10)[adata.obs["cell_type"].cat.codes]).astype(np.float32)
    by_type, hoods = {"by": "cell_type"}, {"by": "neighbourhoods", "use_rep": "X_z"}
    for small in (cohort(3, 60, 30), adata[::50].copy()):  # imports and compilation are not timed
        compare.expression(small, **ASK, **by_type)
        EXPRESSION["PyDESeq2"](small)
    tasks: dict[str, tuple[Callable[[], Any], str, Callable[[], Any] | None]] = {
        "abundance of types": (lambda: compare.abundance(adata, **ASK, **by_type), "", None),
        "abundance of neighbourhoods": (
            lambda: compare.abundance(adata, **ASK, **hoods),
            "Milo",
            lambda: milo(adata),
        ),
        "expression by type": (
            lambda: compare.expression(adata, **ASK, **by_type),
            "PyDESeq2",
            lambda: _each(adata),
        ),
    }
    rows = []
    for name, (run, rival, other) in tasks.items():
        own = _seconds(run)
        theirs = np.nan if other is None else _seconds(other)
        rows.append({"task": name, "seconds": own, "rival": rival, "rival / ours": theirs / own})
    return pd.DataFrame(rows).assign(cells=adata.n_obs, donors=n_donors, genes=n_genes)


def _each(adata: AnnData) -> None:
    """Run PyDESeq2 on each type."""
    for name in adata.obs["cell_type"].cat.categories:
        EXPRESSION["PyDESeq2"](adata[adata.obs["cell_type"] == name])


def _seconds(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
