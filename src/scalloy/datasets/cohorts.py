"""Simulated studies of two groups of donors, with known changes of numbers and of expression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy.datasets import draws


def cohort(
    n_donors: int | tuple[int, int] = 6,
    n_cells: int = 200,
    n_vars: int = 50,
    *,
    n_types: int = 5,
    folds: Sequence[float] | None = None,
    changed: int = 0,
    fold: float = 2.0,
    paired: bool = False,
    composition: float = 0.3,
    donor_effect: float = 0.3,
    depth: float = 0.3,
    size: float = 0.3,
    largest: float = 1.0,
    theta: float = 4.0,
    library: float = 1000.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts of cells of healthy and sick donors, who differ among themselves as well.

    Shares of cell types and levels of genes vary from donor to donor on the log scale. With ``paired``, each
    donor is seen before and after, and varies between the two by half as much as donors do.

    Parameters
    ----------
    n_donors
        Number of donors in each group, or in each of the two.
    n_cells
        Median number of cells of a sample.
    n_vars
        Number of genes.
    n_types
        Number of cell types.
    folds
        Factor by which the number of each type changes in the second group; ``None`` changes none.
    changed, fold
        Number of genes that change in the second group, in all types, and by which factor (up in the even
        ones, down in the odd ones).
    paired
        Whether each donor is in both groups.
    composition, donor_effect
        Standard deviation between donors of the logarithm of a type's share, and of a gene's level.
    depth, size
        Standard deviation between samples of the logarithm of the depth, and of the number of cells.
    largest
        Factor by which the first donor has more cells.
    theta, library
        Inverse dispersion of the counts of cells, and median library size.
    seed
        Random seed.

    Returns
    -------
    AnnData with the columns ``cell_type``, ``donor``, ``group`` and ``sex`` in ``obs``, ``log2_fold`` of each
    gene in ``var``, and ``uns["folds"]`` of the types.

    Examples
    --------
    >>> cells = sa.datasets.cohort(3, folds=[1, 1, 1, 1, 4])
    >>> sorted(cells.obs["group"].unique())
    ['healthy', 'sick']
    """
    rng = np.random.default_rng(seed)
    n_a, n_b = (n_donors, n_donors) if isinstance(n_donors, int) else n_donors
    factors = np.ones(n_types) if folds is None else np.asarray(folds, dtype=float)
    if len(factors) != n_types:
        msg = f"`folds` has {len(factors)} values, but there are `n_types={n_types}`. Pass one for each type."
        raise ValueError(msg)
    change = np.zeros(n_vars)
    change[:changed] = np.log(fold) * np.where(np.arange(changed) % 2 == 0, 1, -1)
    base = rng.dirichlet(np.full(n_types, 4.0))
    gene = rng.normal(0, 1.2, n_vars) + draws.sparse_effects(rng, n_vars, n_types, 0.3, 1.2)
    xs, tables = [], []
    for d in range(n_a if paired else n_a + n_b):
        share, level = rng.normal(0, composition, n_types), rng.normal(0, donor_effect, n_vars)
        for g in (0, 1) if paired else (int(d >= n_a),):
            own = share + (rng.normal(0, composition / 2, n_types) if paired else 0)
            p = base * np.exp(own) * factors**g
            n = int(n_cells * np.exp(rng.normal(0, size)) * (largest if d == 0 else 1)) + 1
            k = rng.choice(n_types, n, p=p / p.sum())
            moved = level + (rng.normal(0, donor_effect / 2, n_vars) if paired else 0) + g * change
            ell = library * np.exp(rng.normal(0, depth)) * rng.lognormal(0, 0.3, (n, 1))
            xs.append(draws.counts(rng, draws.means((gene + moved)[k], ell), theta).astype(np.float32))
            names = {"cell_type": [f"type_{i}" for i in k], "donor": f"donor_{d}"}
            tables.append(pd.DataFrame(names | {"group": ("healthy", "sick")[g], "sex": "fm"[d % 2]}))
    obs = pd.concat(tables, ignore_index=True)
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    obs = obs.astype(dict.fromkeys(obs, "category"))
    var = pd.DataFrame({"log2_fold": change / np.log(2)}, index=[f"gene_{i}" for i in range(n_vars)])
    adata = AnnData(sp.csr_matrix(np.concatenate(xs)), obs=obs, var=var)
    adata.uns["folds"] = factors
    return adata
