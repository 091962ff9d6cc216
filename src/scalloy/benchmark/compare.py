"""Size, power and speed of the permutation tests between groups of cells, beside the naive test."""

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
FITS = 10_000  # number of cells up to which pertpy's matrix of all pairs fits into memory
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
    """Simulate cells in a latent space, where each donor has its own mean and its own number of cells.

    Parameters
    ----------
    n_donors, n_cells, n_dims
        Number of donors, average number of cells per donor (each has 50 to 150 % of it), and number of latent
        dimensions.
    donor_sd
        Standard deviation of the donors' means; cells have standard deviation 1 around the mean of their
        donor.
    paired
        Whether each donor has cells in both groups; otherwise half of the donors are in each group.
    share, shift
        Fraction of the second group's cells that are moved along the first latent dimension, and by how much.
    rng
        Random number generator.
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
    """Return the share of simulations in which each test rejects, with its 95 % confidence interval."""
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
    """Measure how often each test claims a difference where there is none; it should be 5 %.

    Two designs: six donors in each group, and eight donors with cells in both groups. Donors differ in both.

    Parameters
    ----------
    n_simulations
        Number of simulations per row.
    seed
        Random seed of the simulations.
    n_permutations
        Maximum number of permutations per test.
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
    """Measure how often each test detects a shift in a small fraction of the cells.

    There are six donors in each group, with 400 cells each on average.

    Parameters
    ----------
    shift
        Distances by which cells are moved, in standard deviations of the cells of a donor.
    share
        Fraction of the second group's cells that are moved.
    n_simulations, seed, n_permutations
        Simulations per row, random seed, and maximum number of permutations, as in :func:`size`.
    classifier
        Whether to measure the test by a classifier as well (takes long).
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
    """Compare the time of our permutation test with pertpy's, as a ratio within the same run.

    pertpy permutes cells, so ours does too in ``pertpy / ours``; ``pertpy / ours, donors`` has ours permute
    twelve donors. pertpy keeps a matrix of all pairs of cells, so above 10,000 cells it is left out (NaN).

    Parameters
    ----------
    n_cells
        Numbers of cells, in both groups together.
    seed
        Random seed of the simulation.
    n_permutations
        Maximum number of permutations of each test.
    """
    few, rows = donors(rng=np.random.default_rng(seed)), []
    for test in ("mmd", "energy"):  # warm up: compilation and imports are not timed
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
    """Return the seconds that one call takes."""
    begin = time.perf_counter()
    run(*args, **given)
    return time.perf_counter() - begin


def _pertpy(adata: AnnData, test: str, n_permutations: int) -> pd.DataFrame:
    """Run pertpy's permutation test of group b against group a."""
    try:
        import pertpy
    except ImportError as error:
        msg = "`compare --what speed` also measures pertpy, which is not installed: pip install pertpy."
        raise ImportError(msg) from error
    metric = {"mmd": "mmd", "energy": "edistance"}[test]
    made = pertpy.tl.DistanceTest(metric, n_perms=n_permutations, obsm_key="X_z")
    return made(adata, groupby="group", contrast="a", show_progressbar=False)


@keeps_seed()
def kang(*, seed: int = 0, n_genes: int = 2000, max_epochs: int | None = None) -> pd.DataFrame:
    """Test real donors: control against stimulated cells per type, and controls of two random halves.

    Both tests run on principal components and on the latent space of a VAE that is told neither condition nor
    donor, with donors or (naively) cells permuted.

    Parameters
    ----------
    seed
        Random seed of the VAE, the split of donors and the permutations.
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs of the VAE; ``None`` uses the default.
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
