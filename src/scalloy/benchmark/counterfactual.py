"""Prediction under several conditions where the truth of each cell is known: simulated counterfactuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from scalloy import datasets, metrics
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET
from scalloy.benchmark.transfer import Rival, chosen, log_normalised

N_DRAWS = 100  # of the counts of a cell, for what is expected of their logarithm


@keeps_seed()
def counterfactual(
    models: Sequence[str] | Mapping[str, Rival] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    n_obs: int = 6000,
    n_vars: int = 500,
    n_clusters: int = 7,
    n_conditions: int = 4,
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """One cluster is seen under the first condition only; what would each of its cells be under the others?

    Parameters
    ----------
    models
        As in :func:`scalloy.benchmark.transfer`.
    seeds
        Of the data, of weights, split, training and sampling.
    n_obs, n_vars, n_clusters, n_conditions
        Of :func:`scalloy.datasets.simulate`.
    max_epochs
        Instead of the default.
    **model
        Arguments of CGMDVAE.

    Returns
    -------
    One row for each condition, model and seed: ``skill`` and ``pearson_delta`` of the cluster's mean, and
    ``skill_of_each``: 1 - squared error over all cells / that of one who knows exactly what is expected of
    each cell under control, and nothing of the condition. The truth is what is expected of the log-normalised
    counts of the cell with the mean that it has under the condition.
    """
    known, rows = chosen(models, **model), []
    for seed in seeds:
        adata = datasets.simulate(
            n_obs, n_vars, n_clusters=n_clusters, n_conditions=n_conditions, n_batches=1, seed=seed
        )
        conditions = list(adata.obs["condition"].cat.categories)
        of = (adata.obs["cluster"] == "cluster_0").to_numpy()
        untreated = (adata.obs["condition"] == conditions[0]).to_numpy()
        source = adata[of & untreated].copy()
        truth = {c: expected(source, c, seed) for c in conditions}
        cells = AnnData(adata.X, obs=adata.obs[["condition", "cluster"]], var=adata.var)[~of | untreated]
        for name, rival in known.items():
            scvi.settings.seed = seed
            made = rival.make(cells.copy(), "condition", "cluster")
            made.train(max_epochs=max_epochs, **QUIET)
            for row, how in (rival.asked or {name: {}}).items():
                for to in conditions[1:]:
                    out = made.transfer(source.copy(), to=to, **{"seed": seed, **how})
                    about = {"method": row, "condition": to, "seed": seed}
                    rows.append(about | scores(np.asarray(out.X), source, truth[conditions[0]], truth[to]))
    return pd.DataFrame(rows)


def expected(cells: AnnData, condition: str, seed: int) -> np.ndarray:
    """Of log-normalised counts of each cell under a condition, by draws from the distribution they have."""
    rng, mean, theta = np.random.default_rng(seed), cells.layers[f"mean_{condition}"], cells.uns["theta"]
    total = np.zeros(mean.shape)
    for _ in range(N_DRAWS):
        total += log_normalised(rng.poisson(rng.gamma(theta, mean / theta)))
    return total / N_DRAWS


def scores(
    predicted: np.ndarray, source: AnnData, control: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Of the mean over cells, and of each cell."""
    observed = log_normalised(source.X).mean(0)
    means = (predicted.mean(0), truth.mean(0) - control.mean(0) + observed, observed)
    return {
        "skill": metrics.skill(*means),
        "pearson_delta": metrics.pearson_delta(*means),
        "skill_of_each": float(1 - np.square(predicted - truth).sum() / np.square(control - truth).sum()),
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over conditions, and spread over seeds."""
    columns = ["skill", "pearson_delta", "skill_of_each"]
    by_seed = frame.groupby(["method", "seed"], sort=False)[columns].mean().reset_index()
    return spread(by_seed, ["method"], columns, digits=3)
