"""Simulated studies with donors: numbers of cells by population, and their counts, with a known truth."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd


def numbers(
    n_a=6, n_b=6, *, folds=None, n_types=6, cells=300, sd=0.3, paired=False, seed=0, names=("a", "b")
):
    """Cells of donors whose shares of types differ, with planted folds in group b; no counts of genes."""
    rng = np.random.default_rng(seed)
    base, rows = rng.dirichlet(np.full(n_types, 3.0)), []
    for d in range(n_a if paired else n_a + n_b):
        own = np.log(base) + rng.normal(0, sd, n_types)
        for g in (0, 1) if paired else (int(d >= n_a),):
            level = own + (rng.normal(0, sd / 2, n_types) if paired else 0)
            if g and folds is not None:
                level = level + np.log(folds)
            share = np.exp(level) / np.exp(level).sum()
            n = rng.integers(cells // 2, cells + cells // 2)
            kind = rng.choice(n_types, n, p=share)
            rows.append(
                pd.DataFrame({"donor": f"d{d:02}", "group": names[g], "type": [f"t{k}" for k in kind]})
            )
    obs = pd.concat(rows, ignore_index=True)
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    return ad.AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)


def counts(n_a=5, n_b=5, *, genes=300, changed=30, fold=3.0, cells=30, paired=False, sd=0.3, seed=0):
    """Counts of cells of donors; the first genes are higher in group b. Donors differ in every gene."""
    rng = np.random.default_rng(seed)
    level = rng.normal(-1, 1, genes)
    effect = np.zeros(genes)
    effect[:changed] = np.log(fold)
    xs, rows = [], []
    for d in range(n_a if paired else n_a + n_b):
        own = rng.normal(0, sd, genes)
        for g in (0, 1) if paired else (int(d >= n_a),):
            n = rng.integers(cells // 2, cells + cells // 2)
            drawn = rng.normal(0, sd / 2, genes) if paired else 0
            mean = np.exp(level + own + drawn + g * effect) * np.exp(rng.normal(0, 0.3, (n, 1)))
            xs.append(rng.poisson(mean))
            rows.append(pd.DataFrame({"donor": f"d{d:02}", "group": "ab"[g]}, index=range(n)))
    obs = pd.concat(rows, ignore_index=True)
    obs.index = [f"cell_{i}" for i in range(len(obs))]
    x = np.concatenate(xs).astype(np.float32)
    x[x.sum(1) == 0, 0] = 1
    var = pd.DataFrame(index=[f"g{i}" for i in range(genes)])
    return ad.AnnData(x, obs=obs, var=var)
