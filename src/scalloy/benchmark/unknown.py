"""Benchmark of unknown types: each type is left out of the labels in turn, and its cells are to be found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from scalloy._arguments import one_of
from scalloy.benchmark.clustering import centred
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.fit import QUIET, load, normed_copy
from scalloy.benchmark.held_out_cells import load as load_kang
from scalloy.benchmark.held_out_cells import variable_genes, with_counts
from scalloy.benchmark.labels import UNKNOWN, _mapped, _scanvi, _scvi, set_up, some_of_each
from scalloy.models import CGMDVAE

SETS = (
    "kang",
    "pbmc3k",
    "pbmc4k_dcc",
    "zeisel_cortex",
    "mouse_bladder_2746",
    "pbmc68k_reduced_counts",
    "pbmc68k_1500",
    "paul15",
)
SITUATIONS = ("mixed", "query")
OURS = "CGMDVAE"
LEAST = 20  # cells of a type that is left out
LABELLED = 0.5  # share of the cells of each type that are labelled
FALSE_ALARMS = 0.05
N_PCS, NEIGHBOURS = 30, 15


@dataclass(frozen=True)
class Task:
    """Cells of which some are labelled, and none of those has the type that is left out."""

    cells: AnnData
    known: np.ndarray
    truth: np.ndarray
    out: str
    batch_key: str | None

    @property
    def new(self) -> np.ndarray:
        """Mask of the cells of the type that is left out, among the unlabelled ones."""
        return (self.truth == self.out)[~self.known]

    @property
    def setup(self) -> dict[str, str]:
        """Column of the batch for ``setup_anndata``, if there is one."""
        return {} if self.batch_key is None else {"batch_key": self.batch_key}


@keeps_seed()
def unknown(
    data: Sequence[str] = SETS,
    *,
    seeds: Sequence[int] = (0,),
    situations: Sequence[Literal["mixed", "query"]] = ("mixed",),
    types: Sequence[str] | None = None,
    scanvi: bool = False,
    n_genes: int = 2000,
    max_epochs: int | None = 25,
    **model: Any,
) -> pd.DataFrame:
    """Score how well cells of a type without a label are found, with each type left out in turn.

    Half of the cells of each type are labelled, except those of the type that is left out; in ``"kang"``, the
    control cells are labelled and the stimulated ones are not. Scores are of the unlabelled cells. In the
    situation ``"mixed"`` the model is trained on all cells; in ``"query"`` it is trained on the labelled ones
    alone, and sees the others afterwards (those of ``"kang"`` are mapped, since their condition is new).

    Rivals read 30 principal components of the same cells, centred within each batch: entropy and one minus
    the largest probability of a logistic regression, mean distance to the 15 nearest labelled cells, an
    isolation forest of the labelled cells and, in the situation ``"mixed"``, a logistic regression that tells
    labelled from unlabelled cells.

    Parameters
    ----------
    data
        Names of data sets, see :func:`scalloy.benchmark.fit.load`.
    seeds
        Random seeds of the choice of labelled cells, the weights, the split and the training.
    situations
        ``"mixed"``, ``"query"`` or both.
    types
        Types to leave out; ``None`` is each one with at least 20 cells.
    scanvi
        Whether to run scANVI as a rival (SCVI's default epochs, then 20 of scANVI).
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs of our model; ``None`` uses the default.
    **model
        Arguments of CGMDVAE.

    Returns
    -------
    pd.DataFrame
        One row for each data set, situation, type, seed and method: AUROC, and precision and recall at the
        score that 5 % of the cells of known types exceed.

    Examples
    --------
    >>> table = sa.benchmark.unknown(["kang_subset"], types=["B cells"], max_epochs=1, n_genes=100)
    >>> set(table["method"]) >= {"CGMDVAE", "regression, entropy", "isolation forest"}
    True
    """
    for situation in situations:
        one_of("situations", situation, SITUATIONS)
    rows: list[dict[str, Any]] = []
    for name in data:
        cells = _cells(name, n_genes)
        for seed in seeds:
            for task in _tasks(cells, seed, types):
                for situation in situations:
                    about = {"data": name, "situation": situation, "type": task.out, "seed": seed}
                    found = _scores(task, situation, seed, scanvi=scanvi, max_epochs=max_epochs, model=model)
                    for method, seconds, score in found:
                        given = {**about, "cells": int(task.new.sum()), "method": method}
                        rows.append({**given, **detection(task.new, score), "seconds": seconds})
    return pd.DataFrame(rows)


def _cells(name: str, n_genes: int) -> AnnData:
    """Load a data set; cells of Kang et al. are those of the benchmark of labels."""
    if name not in {"kang", "kang_subset"}:
        return load(name, n_genes)
    adata = load_kang(name)
    return with_counts(adata[:, variable_genes(adata, n_genes)])


def _tasks(adata: AnnData, seed: int, asked: Sequence[str] | None) -> Iterator[Task]:
    """Yield the cells without the labels of each type in turn."""
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    batch = "condition" if "condition" in adata.obs else None
    known = (adata.obs["condition"] == "control").to_numpy() if batch else some_of_each(truth, LABELLED, seed)
    types, sizes = np.unique(truth, return_counts=True)
    for name in asked or ():
        one_of("types", name, list(types))
    for out in types[sizes >= LEAST] if asked is None else asked:
        keep = ~(known & (truth == out))
        cells = adata[keep].copy()
        cells.obs["given"] = np.where(known[keep], truth[keep], UNKNOWN)
        yield Task(cells, known[keep], truth[keep], out, batch)


def _scores(
    task: Task, situation: str, seed: int, *, scanvi: bool, max_epochs: int | None, model: dict[str, Any]
) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yield the name of each method, its seconds, and its score of each unlabelled cell."""
    yield from _rivals(task, situation, seed)
    scvi.settings.seed = seed
    begun = time.perf_counter()
    score = _ours(task, situation, max_epochs, model)
    yield OURS, time.perf_counter() - begun, score
    if scanvi:
        begun = time.perf_counter()
        p = _of_scanvi(task, situation, seed)
        yield "scANVI", time.perf_counter() - begun, 1 - p.to_numpy().max(1)


def _ours(task: Task, situation: str, max_epochs: int | None, model: dict[str, Any]) -> np.ndarray:
    """Train our model and return the unknown score of the unlabelled cells."""
    if situation == "query" and task.batch_key is not None:
        made = _mapped(task.cells, task.known, task.setup, max_epochs, model)
        return made.get_unknown_score().to_numpy()
    cells = task.cells[task.known].copy() if situation == "query" else task.cells
    set_up(cells, task.setup)
    made = CGMDVAE(cells, **model)
    made.train(max_epochs=max_epochs, **QUIET)
    return made.get_unknown_score(task.cells[~task.known].copy()).to_numpy()


def _of_scanvi(task: Task, situation: str, seed: int) -> pd.DataFrame:
    """Return scANVI's label probabilities of the unlabelled cells."""
    if situation == "mixed":
        made = _scanvi(*_scvi(task.cells, task.setup, seed))
        return made.predict(soft=True)[~task.known]
    made = _scanvi(*_scvi(task.cells[task.known].copy(), task.setup, seed))
    new = task.cells[~task.known].copy()
    if task.batch_key is not None:
        made = scvi.model.SCANVI.load_query_data(new, made)
        made.train(max_epochs=100, plan_kwargs={"weight_decay": 0.0}, **QUIET)
        return made.predict(soft=True)
    return made.predict(new, soft=True)


def _rivals(task: Task, situation: str, seed: int) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yield name, seconds and score of each rival on principal components."""
    begun = time.perf_counter()
    x, known = _components(task, situation), task.known
    old, new, y = x[known], x[~known], task.truth[known]
    shared = time.perf_counter() - begun

    begun = time.perf_counter()
    p = LogisticRegression(max_iter=3000).fit(old, y).predict_proba(new)
    seconds = shared + time.perf_counter() - begun
    yield "regression, max probability", seconds, 1 - p.max(1)
    yield "regression, entropy", seconds, -(p * np.log(p + 1e-12)).sum(1)

    begun = time.perf_counter()
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(old))).fit(old)
    distance = near.kneighbors(new)[0].mean(1)
    yield "distance to labelled cells", shared + time.perf_counter() - begun, distance

    begun = time.perf_counter()
    inside = IsolationForest(random_state=seed).fit(old).score_samples(new)
    yield "isolation forest", shared + time.perf_counter() - begun, -inside

    if situation == "mixed":
        begun = time.perf_counter()
        p = LogisticRegression(max_iter=3000).fit(x, known).predict_proba(new)
        yield "regression, labelled or not", shared + time.perf_counter() - begun, p[:, 0]


def _components(task: Task, situation: str) -> np.ndarray:
    """Return principal components, learned without the unlabelled cells in the situation ``"query"``."""
    values = np.asarray(normed_copy(task.cells).X.todense())
    seen = task.known if situation == "query" else np.ones_like(task.known)
    x = PCA(N_PCS, random_state=0).fit(values[seen]).transform(values)
    return centred(x, task.cells.obs[task.batch_key].astype(str) if task.batch_key else None)


def detection(new: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Return AUROC, and precision and recall at the score that 5 % of the other cells exceed.

    Parameters
    ----------
    new
        Mask of the cells to be found.
    score
        Score of each cell, high for those to be found.
    """
    limit = np.quantile(score[~new], 1 - FALSE_ALARMS, method="higher")
    called = score > limit
    hits = int((called & new).sum())
    return {
        "auroc": float(roc_auc_score(new, score)),
        "precision": hits / max(1, int(called.sum())),
        "recall": hits / int(new.sum()),
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each situation, data set and method the mean of the scores and the worst AUROC.

    The last rows, named ``"all"``, are over all types of all data sets.
    """
    every = pd.concat([frame, frame.assign(data="all")])
    by = every.groupby(["situation", "data", "method"], sort=False)
    columns = ["auroc", "precision", "recall"]
    out = by[columns].mean()
    out.insert(1, "worst", by["auroc"].min())
    return out.round(3)
