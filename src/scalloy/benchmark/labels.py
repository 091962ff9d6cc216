"""Labels carried to other cells: under a shift, from few labels, and with a type that no label names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from scalloy import metrics
from scalloy.benchmark.clustering import principal_components
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.transfer import load as load_kang
from scalloy.benchmark.transfer import variable_genes, with_counts
from scalloy.models import CGMDVAE

UNKNOWN = "Unknown"


@keeps_seed()
def shift(
    data: str = "kang",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    leave_out: bool = True,
    n_genes: int = 2000,
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Labels of control cells carried to stimulated ones; then without those of each type in turn.

    The rival is logistic regression on 30 principal components, centred within each condition; its unknown
    score is one minus the largest probability, or the distance to the 15 nearest labelled cells.

    Parameters
    ----------
    data
        ``"kang"`` or ``"kang_subset"``.
    seeds
        Of weights, split and training.
    leave_out
        Whether to take each type out of the reference in turn.
    n_genes
        Most variable genes that are kept.
    max_epochs
        Instead of the default.
    **model
        Arguments of the model.
    """
    adata = load_kang(data)
    adata = with_counts(adata[:, variable_genes(adata, n_genes)])
    labelled = (adata.obs["condition"] == "control").to_numpy()
    types = sorted(adata.obs["cell_type"].astype(str).unique())
    rows: list[dict[str, Any]] = []
    for out in [None, *(types if leave_out else [])]:
        keep = ~(labelled & (adata.obs["cell_type"] == out).to_numpy())
        cells, known = adata[keep].copy(), labelled[keep]
        rows += _rows(cells, known, out, seeds, {"batch_key": "condition"}, max_epochs, model)
    return pd.DataFrame(rows)


@keeps_seed()
def few(
    data: Sequence[str] = ("pbmc4k_dcc", "zeisel_cortex"),
    *,
    shares: Sequence[float] = (0.01, 0.05, 0.1),
    seeds: Sequence[int] = (0, 1, 2),
    scanvi: bool = False,
    n_genes: int = 2000,
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Labels of a share of the cells, at least two of each type, carried to the others.

    Parameters
    ----------
    data
        Names of data sets, see :func:`scalloy.benchmark.fit.load`.
    shares
        Of labelled cells.
    seeds
        Of the labelled cells, weights, split and training.
    scanvi
        Whether scANVI runs beside (SCVI's default epochs, then 20 of scANVI).
    n_genes
        Most variable genes that are kept.
    max_epochs
        Instead of the default.
    **model
        Arguments of the model.
    """
    rows: list[dict[str, Any]] = []
    for name in data:
        adata = load(name, n_genes)
        y = adata.obs["cell_type"].astype(str).to_numpy()
        for share in shares:
            for seed in seeds:
                known = some_of_each(y, share, seed)
                found = _rows(adata, known, None, [seed], {}, max_epochs, model, scanvi=scanvi)
                rows += [{"data": name, "share": share, **row} for row in found]
    return pd.DataFrame(rows)


def some_of_each(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask of a random share of the cells, at least two of each type."""
    rng, mask = np.random.default_rng(seed), np.zeros(len(y), dtype=bool)
    for name in np.unique(y):
        rows = np.flatnonzero(y == name)
        mask[rng.choice(rows, min(len(rows), max(2, round(share * len(rows)))), replace=False)] = True
    return mask


def _rows(
    cells: AnnData,
    known: np.ndarray,
    out: str | None,
    seeds: Sequence[int],
    setup: dict[str, str],
    max_epochs: int | None,
    model: dict[str, Any],
    *,
    scanvi: bool = False,
) -> list[dict[str, Any]]:
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    cells.obs["given"] = np.where(known, truth, UNKNOWN)
    about, rows = {"left out": out or "-"}, []
    for method, p, unknown in _regression(cells, known, truth, setup.get("batch_key")):
        scores = _scores(truth[~known], p[~known], out, {k: v[~known] for k, v in unknown.items()})
        rows.append({**about, "method": method, "seed": -1, **scores})
    for seed in seeds:
        scvi.settings.seed = seed
        begun = time.perf_counter()
        CGMDVAE.setup_anndata(cells, labels_key="given", unlabeled_category=UNKNOWN, **setup)
        made = CGMDVAE(cells, **model)
        made.train(max_epochs=max_epochs, **QUIET)
        seconds = time.perf_counter() - begun
        p, unknown = made.predict_labels(soft=True), {"unknown": made.get_unknown_score().to_numpy()[~known]}
        row = {**about, "method": "CGMDVAE", "seed": seed}
        rows.append({**row, **_scores(truth[~known], p[~known], out, unknown), "time": 1.0})
        if scanvi:
            begun = time.perf_counter()
            p = _scanvi(cells, setup)
            more = {"method": "scANVI", "time": (time.perf_counter() - begun) / seconds}
            rows.append({**row, **_scores(truth[~known], p[~known], out, {}), **more})
    return rows


def _regression(cells: AnnData, known: np.ndarray, truth: np.ndarray, batch: str | None) -> Any:
    x = principal_components(cells)
    for group in cells.obs[batch].unique() if batch else ():
        rows = (cells.obs[batch] == group).to_numpy()
        x[rows] -= x[rows].mean(0)
    fitted = LogisticRegression(max_iter=3000).fit(x[known], truth[known])
    p = pd.DataFrame(fitted.predict_proba(x), index=cells.obs_names, columns=fitted.classes_)
    n = min(15, int(known.sum()))
    distance = NearestNeighbors(n_neighbors=n).fit(x[known]).kneighbors(x)[0].mean(1)
    yield "logistic regression", p, {"unknown": 1 - p.max(axis=1).to_numpy(), "distance": distance}


def _scanvi(cells: AnnData, setup: dict[str, str]) -> pd.DataFrame:
    from scvi.model import SCANVI, SCVI

    SCVI.setup_anndata(cells, **setup)
    base = SCVI(cells)
    base.train(**QUIET)
    made = SCANVI.from_scvi_model(base, unlabeled_category=UNKNOWN, labels_key="given")
    made.train(max_epochs=20, **QUIET)
    return made.predict(soft=True)


def _scores(
    truth: np.ndarray, p: pd.DataFrame, out: str | None, unknown: dict[str, np.ndarray]
) -> dict[str, float]:
    """Of cells of known types; and of telling the type that was left out."""
    new, values = truth == out, p.to_numpy()
    predicted, sure = np.asarray(p.columns)[values.argmax(1)], values.max(1)
    of = ~new
    scores = {
        "accuracy": accuracy_score(truth[of], predicted[of]),
        "macro_f1": f1_score(truth[of], predicted[of], average="macro", labels=np.unique(truth[of])),
        "ece": metrics.expected_calibration_error((predicted == truth)[of], sure[of]),
    }
    if out is not None:
        scores |= {f"auroc_{name}": roc_auc_score(new, score) for name, score in unknown.items()}
    return {k: float(v) for k, v in scores.items()}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of each method, with everything known and with a type left out."""
    frame = frame.assign(reference=np.where(frame["left out"] == "-", "all types", "one left out"))
    by = [k for k in ("data", "share") if k in frame] + ["reference", "method"]
    named = ("accuracy", "macro_f1", "ece", "auroc_unknown", "auroc_distance", "time")
    columns = [c for c in named if c in frame]
    mean = spread(frame, by, columns, digits=3)
    if "auroc_unknown" in frame:
        mean[("auroc_unknown", "min")] = frame.groupby(by, sort=False)["auroc_unknown"].min().round(3)
    return mean
