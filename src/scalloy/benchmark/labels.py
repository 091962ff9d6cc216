"""Benchmarks of label transfer: under a shift, from few labels, between studies, and with unknown types."""

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
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from scalloy import metrics
from scalloy.benchmark.clustering import centred, principal_components
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.held_out_cells import load as load_kang
from scalloy.benchmark.held_out_cells import variable_genes, with_counts
from scalloy.models import CGMDVAE

UNKNOWN = "Unknown"
STUDIES = {"Zheng": ("Zheng68k", "ZhengFACS"), "Kang": ("Kang_ctrl",), "pbmc3k": ("pbmc3k",)}


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
    """Transfer labels from control to stimulated cells, with all types known and with each left out in turn.

    The rivals are logistic regression and 15 nearest neighbours on 30 principal components, centred within
    each condition. Their unknown score is one minus the largest probability, or the mean distance to the 15
    nearest labelled cells. The row ``"their own labels"`` is the same regression on the stimulated cells
    alone, cross-validated with their own labels: about the best that can be reached, since labels contain
    errors.

    Parameters
    ----------
    data
        ``"kang"`` or ``"kang_subset"``.
    seeds
        Random seeds of the weights, the split and the training.
    leave_out
        Whether to also remove each type from the labelled cells in turn.
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    **model
        Arguments of CGMDVAE.
    """
    adata = load_kang(data)
    adata = with_counts(adata[:, variable_genes(adata, n_genes)])
    labelled = (adata.obs["condition"] == "control").to_numpy()
    types = sorted(adata.obs["cell_type"].astype(str).unique())
    rows = [_own_labels(adata[~labelled])]
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
    """Transfer the labels of a small share of the cells, at least two of each type, to the others.

    Parameters
    ----------
    data
        Names of data sets, see :func:`scalloy.benchmark.fit.load`.
    shares
        Shares of the cells that are labelled.
    seeds
        Random seeds of the choice of labelled cells, the weights, the split and the training.
    scanvi
        Whether to run scANVI as a rival (SCVI's default epochs, then 20 of scANVI).
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs of our model; ``None`` uses the default.
    **model
        Arguments of CGMDVAE.
    """
    rows: list[dict[str, Any]] = []
    for name in data:
        adata = load(name, n_genes)
        y = adata.obs["cell_type"].astype(str).to_numpy()
        for seed in seeds:
            base = _scvi(adata, {}, seed) if scanvi else None
            for share in shares:
                known = some_of_each(y, share, seed)
                found = _rows(adata, known, None, [seed], {}, max_epochs, model, base)
                rows += [{"data": name, "share": share, **row} for row in found]
    return pd.DataFrame(rows)


@keeps_seed()
def studies(
    pairs: Sequence[tuple[str, str]] = (("Zheng", "Kang"), ("Kang", "Zheng")),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    scanvi: bool = False,
    n_genes: int = 2000,
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Transfer labels from one study of ``pbmc_4study`` to another.

    Scores cover the query cells whose type the reference has. CGMDVAE is trained on both studies together,
    and on the reference alone with the query mapped onto it. The rivals are logistic regression and 15
    nearest neighbours on principal components that are centred within each study, and scANVI on the reference
    with the query mapped by its surgery.

    Parameters
    ----------
    pairs
        Pairs of reference and query study, each one of ``"Zheng"``, ``"Kang"`` and ``"pbmc3k"``.
    seeds
        Random seeds of the weights, the split and the training.
    scanvi
        Whether to run scANVI as a rival (SCVI's default epochs, 20 of scANVI, 100 on the query).
    n_genes
        Number of most variable genes of the reference that are kept.
    max_epochs
        Maximum number of epochs of our model; ``None`` uses the default.
    **model
        Arguments of CGMDVAE.
    """
    everything = load("pbmc_4study", None)
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        reference, query = (everything.obs["batch"].isin(STUDIES[one]).to_numpy() for one in pair)
        genes = variable_genes(everything[reference], n_genes)
        cells = with_counts(everything[reference | query][:, genes])
        truth = cells.obs["cell_type"].astype(str).to_numpy()
        known = cells.obs["batch"].isin(STUDIES[pair[0]]).to_numpy()
        cells.obs["study"] = np.where(known, *pair)
        new = ~np.isin(truth, truth[known])
        cells.obs["given"] = np.where(known, truth, UNKNOWN)
        about = {"pair": " to ".join(pair), "left out": "-"}
        for method, p, unknown in _regression(cells, known, truth, "study"):
            found = {k: v[~known] for k, v in unknown.items()}
            rows.append({**about, "method": method, "seed": -1, **_scores(truth, p, new, found, ~known)})
        for seed in seeds:
            for method, make in {"joint": _joint, "mapped": _mapped}.items():
                scvi.settings.seed = seed
                begun = time.perf_counter()
                made = make(cells, known, {"batch_key": "batch"}, max_epochs, model)
                seconds = time.perf_counter() - begun
                p, unknown = _told(made, cells, known)
                row = {**about, "method": f"CGMDVAE, {method}", "seed": seed, "time": 1.0}
                rows.append({**row, **_scores(truth, p, new, unknown, ~known)})
            if scanvi:
                begun = time.perf_counter()
                p = _surgery(cells, known, seed)
                more = {"method": "scANVI, mapped", "time": (time.perf_counter() - begun) / seconds}
                rows.append({**row, **_scores(truth, p, new, {}, ~known), **more})
    return pd.DataFrame(rows)


def _joint(
    cells: AnnData, known: np.ndarray, setup: dict[str, str], max_epochs: int | None, model: dict[str, Any]
) -> CGMDVAE:
    """Train CGMDVAE on all cells together, with the labels of the reference only."""
    set_up(cells, setup)
    made = CGMDVAE(cells, **model)
    made.train(max_epochs=max_epochs, **QUIET)
    return made


def set_up(cells: AnnData, setup: dict[str, str]) -> None:
    """Register cells for CGMDVAE, of which all may be labelled.

    Parameters
    ----------
    cells
        Cells with the known labels in ``.obs["given"]``.
    setup
        Further arguments of ``setup_anndata``.
    """
    lack = bool((cells.obs["given"] == UNKNOWN).any())
    CGMDVAE.setup_anndata(cells, labels_key="given", unlabeled_category=UNKNOWN if lack else None, **setup)


def _mapped(
    cells: AnnData, known: np.ndarray, setup: dict[str, str], max_epochs: int | None, model: dict[str, Any]
) -> CGMDVAE:
    """Train CGMDVAE on the reference and map the query onto it."""
    made = CGMDVAE.load_query_data(
        cells[~known].copy(), _joint(cells[known].copy(), known, setup, max_epochs, model)
    )
    made.train(max_epochs=max_epochs, **QUIET)
    return made


def _told(made: CGMDVAE, cells: AnnData, known: np.ndarray) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return the predicted label probabilities, and the unknown scores of the unlabelled cells."""
    unknown = made.get_unknown_score()
    return made.predict_labels(soft=True), {"unknown": unknown[cells.obs_names[~known]].to_numpy()}


def some_of_each(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a mask of a random share of the cells of each type, at least two of each."""
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
    base: tuple[Any, float] | None = None,
) -> list[dict[str, Any]]:
    """Score our model and its rivals on one choice of labelled cells (``known``) and left-out type."""
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    cells.obs["given"] = np.where(known, truth, UNKNOWN)
    new, about, rows = truth == out, {"left out": out or "-"}, []
    for method, p, unknown in _regression(cells, known, truth, setup.get("batch_key")):
        found = {k: v[~known] for k, v in unknown.items()}
        rows.append({**about, "method": method, "seed": -1, **_scores(truth, p, new, found, ~known)})
    for seed in seeds:
        scvi.settings.seed = seed
        begun = time.perf_counter()
        made = _joint(cells, known, setup, max_epochs, model)
        seconds = time.perf_counter() - begun
        p, unknown = _told(made, cells, known)
        row = {**about, "method": "CGMDVAE", "seed": seed}
        rows.append({**row, **_scores(truth, p, new, unknown, ~known), "time": 1.0})
        if base is not None:
            begun = time.perf_counter()
            p = _scanvi(*base).predict(soft=True)
            more = {"method": "scANVI", "time": (base[1] + time.perf_counter() - begun) / seconds}
            rows.append({**row, **_scores(truth, p, new, {}, ~known), **more})
    return rows


def _regression(cells: AnnData, known: np.ndarray, truth: np.ndarray, batch: str | None) -> Any:
    """Yield name, label probabilities and unknown scores of each rival on principal components."""
    x = centred(principal_components(cells), cells.obs[batch].astype(str) if batch else None)
    n = min(15, int(known.sum()))
    distance = NearestNeighbors(n_neighbors=n).fit(x[known]).kneighbors(x)[0].mean(1)
    rivals = {"logistic regression": LogisticRegression(max_iter=3000), "kNN": KNeighborsClassifier(n)}
    for name, rival in rivals.items():
        p = rival.fit(x[known], truth[known]).predict_proba(x)
        frame = pd.DataFrame(p, index=cells.obs_names, columns=rival.classes_)
        yield name, frame, {"unknown": 1 - p.max(1), "distance": distance}


def _own_labels(cells: AnnData) -> dict[str, Any]:
    """Score five-fold cross-validated logistic regression of the cells' own labels."""
    truth, x = cells.obs["cell_type"].astype(str).to_numpy(), principal_components(cells)
    model, folds = LogisticRegression(max_iter=3000), StratifiedKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(model, x, truth, cv=folds, method="predict_proba")
    every = np.ones(len(truth), dtype=bool)
    scores = _scores(truth, pd.DataFrame(p, columns=np.unique(truth)), ~every, {}, every)
    return {"left out": "-", "method": "their own labels", "seed": -1, **scores}


def _scvi(cells: AnnData, setup: dict[str, str], seed: int, **settings: Any) -> tuple[Any, float]:
    """Train SCVI with its default or other settings; return it with the seconds that it took."""
    scvi.settings.seed = seed
    begun = time.perf_counter()
    scvi.model.SCVI.setup_anndata(cells, **setup)
    base = scvi.model.SCVI(cells, **settings)
    base.train(**QUIET)
    return base, time.perf_counter() - begun


def _scanvi(base: Any, _: float = 0.0) -> Any:
    """Train scANVI for 20 epochs from an SCVI model."""
    made = scvi.model.SCANVI.from_scvi_model(
        base, unlabeled_category=UNKNOWN, labels_key="given", adata=base.adata
    )
    made.train(max_epochs=20, **QUIET)
    return made


def _surgery(cells: AnnData, known: np.ndarray, seed: int) -> pd.DataFrame:
    """Train scANVI on the labelled cells and map the others onto it, with its authors' advised settings."""
    advised = {
        "use_layer_norm": "both",
        "use_batch_norm": "none",
        "encode_covariates": True,
        "dropout_rate": 0.2,
        "n_layers": 2,
    }
    reference = _scanvi(*_scvi(cells[known].copy(), {"batch_key": "batch"}, seed, **advised))
    mapped = scvi.model.SCANVI.load_query_data(cells[~known].copy(), reference)
    mapped.train(max_epochs=100, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    return mapped.predict(soft=True)


def _scores(
    truth: np.ndarray, p: pd.DataFrame, new: np.ndarray, unknown: dict[str, np.ndarray], asked: np.ndarray
) -> dict[str, float]:
    """Score predictions on the cells ``asked``: labels of known types, and detection of new types.

    ``p`` has rows for all cells or only for those in ``asked``.
    """
    truth, new = truth[asked], new[asked]
    values = p.to_numpy()[asked] if len(p) == len(asked) else p.to_numpy()
    predicted, sure, of = np.asarray(p.columns)[values.argmax(1)], values.max(1), ~new
    scores = {
        "accuracy": accuracy_score(truth[of], predicted[of]),
        "macro_f1": f1_score(truth[of], predicted[of], average="macro", labels=np.unique(truth[of])),
        "ece": metrics.expected_calibration_error((predicted == truth)[of], sure[of]),
    }
    if new.any():
        scores |= {f"auroc_{name}": roc_auc_score(new, score) for name, score in unknown.items()}
    return {k: float(v) for k, v in scores.items()}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation of each method, with all types known and with one left out."""
    frame = frame.assign(reference=np.where(frame["left out"] == "-", "all types", "one left out"))
    by = [k for k in ("data", "share", "pair") if k in frame] + ["reference", "method"]
    named = ("accuracy", "macro_f1", "ece", "auroc_unknown", "auroc_distance", "time")
    columns = [c for c in named if c in frame]
    mean = spread(frame, by, columns, digits=3)
    if "auroc_unknown" in frame:
        mean[("auroc_unknown", "min")] = frame.groupby(by, sort=False)["auroc_unknown"].min().round(3)
    return mean
