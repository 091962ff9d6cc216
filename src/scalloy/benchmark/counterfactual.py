"""Benchmark of counterfactual predictions on simulated cells, whose truth is known under every condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from scalloy import datasets, metrics
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, log_normalised
from scalloy.benchmark.rivals import Rival, chosen

N_DRAWS = 100  # draws of each cell's counts that estimate the expectation of their logarithm


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
    """Score predictions of a cluster that is seen under control only, cell by cell and on average.

    Parameters
    ----------
    models
        Names of :func:`scalloy.benchmark.rivals.rivals` (``None`` runs all of them), or a mapping from
        names to :class:`scalloy.benchmark.rivals.Rival`.
    seeds
        Random seeds of the data, the weights, the split, the training and the sampling.
    n_obs, n_vars, n_clusters, n_conditions
        Sizes passed to :func:`scalloy.datasets.simulate`.
    max_epochs
        Maximum number of epochs; ``None`` uses the default of each model.
    **model
        Arguments of CGMDVAE.

    Returns
    -------
    One row for each condition, model and seed: ``skill`` and ``pearson_delta`` of the cluster's mean, and
    ``skill_of_each``, which is 1 - squared error over all cells / squared error of a predictor that knows the
    exact expectation of each cell under control and predicts no change. The truth of a cell is the
    expectation of its log-normalised counts, given its true mean under the condition.
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
    """Estimate the expected log-normalised counts of each cell under a condition, by drawing counts."""
    rng, mean, theta = np.random.default_rng(seed), cells.layers[f"mean_{condition}"], cells.uns["theta"]
    total = np.zeros(mean.shape)
    for _ in range(N_DRAWS):
        total += log_normalised(rng.poisson(rng.gamma(theta, mean / theta)))
    return total / N_DRAWS


def scores(
    predicted: np.ndarray, source: AnnData, control: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Return the scores of the mean over cells, and of the cells one by one."""
    observed = log_normalised(source.X).mean(0)
    means = (predicted.mean(0), truth.mean(0) - control.mean(0) + observed, observed)
    return {
        "skill": metrics.skill(*means),
        "pearson_delta": metrics.pearson_delta(*means),
        "skill_of_each": float(1 - np.square(predicted - truth).sum() / np.square(control - truth).sum()),
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Average over conditions, and return mean and standard deviation over seeds for each method."""
    columns = ["skill", "pearson_delta", "skill_of_each"]
    by_seed = frame.groupby(["method", "seed"], sort=False)[columns].mean().reset_index()
    return spread(by_seed, ["method"], columns, digits=3)
