"""Is the test of groups right where nothing differs, and does it see what does? Beside the naive test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from scipy.stats import binomtest

from scalloy import compare
from scalloy.benchmark.clustering import principal_components
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load
from scalloy.models import VAE

LEVEL = 0.05
FITS = 10_000  # cells whose matrix of pairs pertpy can keep
TESTS: dict[str, dict[str, Any]] = {
    "MMD, donors": {"donor_key": "donor"},
    "energy, donors": {"donor_key": "donor", "test": "energy"},
    "MMD, cells (naive)": {},
}


def donors(
    n_donors: int = 12,
    n_cells: int = 100,
    *,
    n_dims: int = 10,
    donor_sd: float = 0.3,
    paired: bool = False,
    share: float = 0.0,
    shift: float = 0.0,
    rng: np.random.Generator,
) -> AnnData:
    """Cells in a latent space: each donor has a mean of its own, and 50 to 150 % of the cells.

    Parameters
    ----------
    n_donors, n_cells, n_dims
        Donors in all, cells of each on average, latents.
    donor_sd
        Of the donors' means, where that of cells is 1.
    paired
        Whether each donor has cells in both groups, or half of the donors are in each.
    share, shift
        Of the cells of the second group this share is moved so far along the first latent.
    rng
        Of everything.
    """
    sizes = rng.integers(n_cells // 2, n_cells + n_cells // 2 + 1, n_donors)
    donor = np.repeat(np.arange(n_donors), sizes)
    group = rng.integers(2, size=len(donor)) if paired else donor % 2
    z = rng.normal(0, donor_sd, (n_donors, n_dims))[donor] + rng.normal(size=(len(donor), n_dims))
    z[(group == 1) & (rng.random(len(z)) < share), 0] += shift
    obs = pd.DataFrame({"group": np.array(["a", "b"])[group], "donor": donor.astype(str)})
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    adata = AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)
    adata.obsm["X_z"] = z
    return adata


def _rejected(
    n: int, seed: int, tests: dict[str, dict[str, Any]], n_permutations: int, **settings: Any
) -> list[dict[str, Any]]:
    """Share of simulations in which each test rejects, with its 95 % interval."""
    hits = dict.fromkeys(tests, 0)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        adata = donors(rng=rng, **settings)
        for name, given in tests.items():
            most = {"n_permutations": n_permutations, "rng": rng}
            p = compare.groups(adata, "X_z", groupby="group", **given, **most)["pvalue"][0]
            hits[name] += p <= LEVEL
    out = []
    for name, k in hits.items():
        low, high = binomtest(int(k), n).proportion_ci()
        out.append({"test": name, "rejected": k / n, "low": low, "high": high, "simulations": n})
    return out


def size(*, n_simulations: int = 500, seed: int = 0, n_permutations: int = 1000) -> pd.DataFrame:
    """How often is a difference claimed where there is none? It should be in 5 % of the simulations.

    Six and six donors in different groups, and eight donors that are in both; with donors that differ.

    Parameters
    ----------
    n_simulations
        For each row.
    seed
        Of the simulations.
    n_permutations
        At most.
    """
    rows = []
    for design, settings in {"6 + 6 donors": {}, "8 donors in both": {"n_donors": 8, "paired": True}}.items():
        for row in _rejected(n_simulations, seed, TESTS, n_permutations, **settings):
            rows.append({"design": design, **row})
    return pd.DataFrame(rows)


def power(
    *,
    shift: Sequence[float] = (0.0, 2.0, 4.0, 6.0),
    share: float = 0.05,
    n_simulations: int = 100,
    seed: int = 0,
    n_permutations: int = 1000,
    classifier: bool = False,
) -> pd.DataFrame:
    """How often is a shift in a small part of the cells seen? Six and six donors, 400 cells each.

    Parameters
    ----------
    shift
        In standard deviations of a cell.
    share
        Of the cells that are shifted.
    n_simulations, seed, n_permutations
        As in :func:`size`.
    classifier
        Whether the classifier's test is measured as well (long).
    """
    tests = {k: v for k, v in TESTS.items() if v}
    if classifier:
        tests["classifier, donors"] = {"donor_key": "donor", "test": "classifier"}
    rows = []
    for by in shift:
        settings = {"share": share, "shift": by, "n_cells": 400, "donor_sd": 0.1}
        for row in _rejected(n_simulations, seed, tests, n_permutations, **settings):
            rows.append({"share": share, "shift": by, **row})
    return pd.DataFrame(rows)


def speed(
    *, n_cells: Sequence[int] = (1000, 3000, 10_000, 100_000), seed: int = 0, n_permutations: int = 1000
) -> pd.DataFrame:
    """Time of the test with so many permutations, as a ratio of pertpy's to ours in the same run.

    pertpy's permutation test permutes cells, so ours does too; ``donors`` is ours with twelve donors. Where
    pertpy keeps a matrix of all pairs that would not fit, it is left out.

    Parameters
    ----------
    n_cells
        Of both groups.
    seed
        Of the simulation.
    n_permutations
        Of each test.
    """
    few, rows = donors(rng=np.random.default_rng(seed)), []
    for test in ("mmd", "energy"):  # what is compiled or loaded at the first call
        compare.groups(few, "X_z", groupby="group", test=test, n_permutations=3)
        _pertpy(few, test, 3)
    for n in n_cells:
        adata = donors(12, n // 12, rng=np.random.default_rng(seed))
        for test in ("mmd", "energy"):
            given: dict[str, Any] = {"groupby": "group", "test": test, "n_permutations": n_permutations}
            ours = _seconds(compare.groups, adata, "X_z", **given)
            nested = _seconds(compare.groups, adata, "X_z", donor_key="donor", **given)
            theirs = _seconds(_pertpy, adata, test, n_permutations) if n <= FITS else np.nan
            row = {"cells": adata.n_obs, "test": test, "seconds": ours, "pertpy / ours": theirs / ours}
            rows.append(row | {"pertpy / ours, donors": theirs / nested})
    return pd.DataFrame(rows)


def _seconds(run: Callable[..., Any], *args: Any, **given: Any) -> float:
    begin = time.perf_counter()
    run(*args, **given)
    return time.perf_counter() - begin


def _pertpy(adata: AnnData, test: str, n_permutations: int) -> pd.DataFrame:
    try:
        import pertpy
    except ImportError as error:
        msg = "`compare --what speed` measures pertpy too: pip install pertpy."
        raise ImportError(msg) from error
    metric = {"mmd": "mmd", "energy": "edistance"}[test]
    made = pertpy.tl.DistanceTest(metric, n_perms=n_permutations, obsm_key="X_z")
    return made(adata, groupby="group", contrast="a", show_progressbar=False)


@keeps_seed()
def kang(*, seed: int = 0, n_genes: int = 2000, max_epochs: int | None = None) -> pd.DataFrame:
    """Real donors: control against stimulated cells of each type, and controls of donors split at random.

    In principal components, and in the latent space of a VAE that knows neither condition nor donor.

    Parameters
    ----------
    seed
        Of the VAE, the split and the permutations.
    n_genes
        Most variable genes that are kept.
    max_epochs
        Instead of the default.
    """
    adata = load("kang", n_genes)
    scvi.settings.seed = seed
    VAE.setup_anndata(adata)
    made = VAE(adata)
    made.train(max_epochs=max_epochs, **QUIET)
    adata.obsm["X_vae"], adata.obsm["X_pca"] = made.get_latent_representation(), principal_components(adata)
    names = np.random.default_rng(seed).permutation(sorted(adata.obs["batch"].astype(str).unique()))
    half = set(names[: len(names) // 2])
    adata.obs["half"] = ["first" if b in half else "second" for b in adata.obs["batch"].astype(str)]
    controls = adata[(adata.obs["condition"] == "control").to_numpy()]
    parts = []
    for rep in ("X_vae", "X_pca"):
        for what, cells, groupby in (
            ("condition", adata, "condition"),
            ("halves of controls", controls, "half"),
        ):
            for name, donor in (("donors", "batch"), ("cells (naive)", None)):
                frame = compare.groups(cells, rep, groupby=groupby, by="cell_type", donor_key=donor, rng=seed)
                frame.attrs = {}
                parts.append(frame.assign(latent=rep, question=what, permuted=name))
    out = pd.concat(parts, ignore_index=True)
    first = ["question", "latent", "permuted", "cell_type"]
    return out[[*first, *[c for c in out.columns if c not in first]]]
