"""Neighbourhoods that change between groups of donors, ours beside Milo, where the truth is known."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from scalloy import compare
from scalloy.benchmark.donors import ASK, DISCOVERY
from scalloy.datasets import cohort

N_DIMS, N_TYPES = 10, 6
APART, NEAR = 5.0, 2.5  # distance of cell types from the centre, and of the changing one from the first
MOST, FEW = 0.5, 0.1  # share of changing cells at which a neighbourhood changes, or does not
SIZE = 60  # cells of a neighbourhood


def study(fold: float, seed: int, n_donors: int = 6, n_cells: int = 300) -> AnnData:
    """Simulate cells of donors in a latent space, where the last type lies close to the first and grows.

    Parameters
    ----------
    fold
        Factor by which the last type grows.
    seed
        Random seed.
    n_donors, n_cells
        Number of donors in each group, and median number of cells of a donor.
    """
    adata = cohort(n_donors, n_cells, 1, n_types=N_TYPES, folds=[*[1] * (N_TYPES - 1), fold], seed=seed)
    rng = np.random.default_rng([seed, 1])
    centres = APART * np.eye(N_TYPES, N_DIMS)
    centres[-1] = centres[0] + NEAR * np.eye(N_TYPES, N_DIMS)[-1]
    kind, donor = (adata.obs[key].cat.codes.to_numpy() for key in ("cell_type", "donor"))
    own = rng.normal(0, 0.1, (donor.max() + 1, N_DIMS))
    adata.obsm["X_z"] = (centres[kind] + own[donor] + rng.normal(size=(len(kind), N_DIMS))).astype(np.float32)
    return adata


def _ours(adata: AnnData) -> tuple[pd.DataFrame, np.ndarray]:
    """Return p-values of our neighbourhoods, and which cells belong to them."""
    found = compare.abundance(adata, **ASK, by="neighbourhoods", use_rep="X_z", n_neighbors=SIZE)
    z, centre = adata.obsm["X_z"], adata.obsm["X_z"][adata.obs_names.get_indexer(found["cell"])]
    distance = np.linalg.norm(z[:, None] - centre[None], axis=2)
    return found[["pvalue", "padj"]], distance <= found["radius"].to_numpy() * (1 + 1e-6)


def milo(adata: AnnData) -> tuple[pd.DataFrame, np.ndarray]:
    """Return p-values of Milo's neighbourhoods, and which cells belong to them; by pertpy and PyDESeq2.

    Parameters
    ----------
    adata
        Cells with ``obsm["X_z"]``, and the columns ``donor`` and ``group`` in ``obs``.
    """
    try:
        import pertpy
    except ImportError as error:
        msg = "This also measures pertpy's Milo, which is not installed: pip install pertpy."
        raise ImportError(msg) from error
    cells = AnnData(adata.X, obs=adata.obs.copy(), obsm={"X_z": adata.obsm["X_z"]})
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its tables
        warnings.simplefilter("ignore")
        sc.pp.neighbors(cells, use_rep="X_z", n_neighbors=SIZE // 2)
        cells.obs["sample"] = cells.obs["donor"].astype(str)
        made = pertpy.tl.Milo()
        both = made.load(cells)
        made.make_nhoods(both["rna"], prop=min(0.1, 2000 / cells.n_obs), seed=0)
        both = made.count_nhoods(both, sample_col="sample")
        made.da_nhoods(both, design="~group", solver="pydeseq2")
    table = both["milo"].var[["PValue", "SpatialFDR"]].set_axis(["pvalue", "padj"], axis=1)
    return table.astype(float), both["rna"].obsm["nhoods"].toarray() > 0


TESTS = {"ours": _ours, "Milo": milo}


def neighbourhoods(
    *, n_simulations: int = 20, seed: int = 0, tests: Sequence[str] = ("ours", "Milo")
) -> pd.DataFrame:
    """Measure how well neighbourhoods that change are found, and that others are not.

    A neighbourhood changes if half of its cells are of the type that grows, and does not if at most a tenth
    are.

    Parameters
    ----------
    n_simulations
        Number of studies per row.
    seed
        Random seed of the first study.
    tests
        ``"ours"`` and ``"Milo"``.

    Examples
    --------
    >>> found = sa.benchmark.neighbourhoods.neighbourhoods(n_simulations=1, tests=["ours"])
    >>> found["fold"].tolist()
    [1.0, 2.0, 4.0]
    """
    rows = []
    for fold in (1.0, 2.0, 4.0):
        for i in range(n_simulations):
            adata = study(fold, seed * n_simulations + i)
            grows = (adata.obs["cell_type"] == f"type_{N_TYPES - 1}").to_numpy()
            for name in tests:
                begin = time.perf_counter()
                table, members = TESTS[name](adata)
                seconds = time.perf_counter() - begin
                share = grows.astype(float) @ members / members.sum(0)
                found = (table["padj"] <= DISCOVERY).to_numpy()
                real, none = (share >= MOST) & (fold > 1), (share <= FEW) | (fold == 1)
                rows.append(
                    {
                        "fold": fold,
                        "test": name,
                        "rejected at 5 %": (table["pvalue"] <= 0.05)[none].mean(),
                        "any found": found.any(),
                        "found at 10 %": found[real].mean() if real.any() else np.nan,
                        "false discoveries": (found & none).sum() / max(found.sum(), 1),
                        "neighbourhoods": len(table),
                        "seconds": seconds,
                    }
                )
    frame = pd.DataFrame(rows).groupby(["fold", "test"], sort=False).mean().reset_index()
    ours = frame["test"].eq("ours")
    first = frame[ours].set_index("fold")["seconds"]
    frame["time / ours"] = frame["seconds"] / frame["fold"].map(first) if ours.any() else np.nan
    return frame.drop(columns="seconds").assign(simulations=n_simulations)
