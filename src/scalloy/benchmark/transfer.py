"""Held-out pairs: each cell type in turn is not seen under the condition, and predicted from its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData

from scalloy import datasets, metrics
from scalloy.baselines import kernel_ridge, mean_shift
from scalloy.baselines.shifts import missed_when_left_out
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET
from scalloy.models import CGMDVAE, _options

DONORS = ("donor_101", "donor_107", "donor_1015")
RARE = "Megakaryocytes"  # too few to be scored


@keeps_seed()
def transfer(
    data: str = "kang",
    *,
    routes: Sequence[str] = ("auto", "decoder"),
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 2000,
    types: Sequence[str] | None = None,
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Change correlation, skill and more of each route of CGMDVAE and of the baselines, type by type.

    The genes are the most variable ones of what is trained on and scored is on the mean of log-normalised
    expression. No hyper-parameter is chosen on the held-out type.

    Parameters
    ----------
    data
        ``"kang"``: authors' labels and the three donors present in both conditions; ``"kang_subset"``: the
        embedded cells.
    routes
        Of :meth:`scalloy.CGMDVAE.transfer`.
    seeds
        Of weights, split and training.
    n_genes
        That are kept.
    types
        To hold out; ``None`` is all of them.
    max_epochs
        Instead of the default.
    **model
        Arguments of the model.
    """
    adata = load(data)
    rows: list[dict[str, Any]] = []
    names = sorted(adata.obs["cell_type"].unique()) if types is None else list(types)
    for name in names:
        _options.one_of("types", name, list(adata.obs["cell_type"].unique()))
        held = ((adata.obs["cell_type"] == name) & (adata.obs["condition"] == "stimulated")).to_numpy()
        genes = variable_genes(adata[~held], n_genes)
        train, truth = with_counts(adata[~held, genes]), log_mean(adata[held, genes])
        control, others, shifts = _seen(train, name)
        score = {"truth": truth, "control": control, "shift": shifts.mean(0)}
        missed = missed_when_left_out(others, shifts)
        rows.append({"type": name, "method": "no change", "seed": -1, **_scores(control, **score)})
        for method, found in (("mean shift", mean_shift), ("kernel ridge", kernel_ridge)):
            predicted = control + found(others, shifts, control)
            rows.append({"type": name, "method": method, "seed": -1, **_scores(predicted, missed, **score)})
        for seed in seeds:
            scvi.settings.seed = seed
            CGMDVAE.setup_anndata(train, condition_key="condition", labels_key="cell_type")
            made = CGMDVAE(train, **model)
            made.train(max_epochs=max_epochs, **QUIET)
            is_control = (train.obs["cell_type"] == name) & (train.obs["condition"] == "control")
            cells = train[is_control.to_numpy()].copy()
            for route in routes:
                out = made.transfer(cells, to="stimulated", route=route)
                sd = out.uns["transfer"].get("sd")
                sd = None if sd is None else sd.iloc[:, 0].to_numpy()
                found = _scores(np.asarray(out.X).mean(0), sd, **score)
                found["counts_skill"] = metrics.skill(_log_mean_of(out.layers["counts"]), truth, control)
                rows.append({"type": name, "method": f"CGMDVAE {route}", "seed": seed, **found})
    return pd.DataFrame(rows)


def load(data: str) -> AnnData:
    """The cells to score on."""
    full = _options.one_of("data", data, ("kang", "kang_subset")) == "kang"
    adata = datasets.kang(full=full)
    keep = adata.obs["cell_type"] != RARE
    if full:
        keep &= (adata.obs["label_source"] == "author") & adata.obs["batch"].isin(DONORS)
    adata = adata[keep.to_numpy()].copy()
    sc.pp.filter_genes(adata, min_cells=3)
    return adata


def with_counts(adata: AnnData) -> AnnData:
    """The cells that have counts in the genes that were kept."""
    return adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()


def variable_genes(adata: AnnData, n_genes: int) -> np.ndarray:
    """Names of the most variable genes."""
    normed = adata.copy()
    sc.pp.normalize_total(normed, target_sum=1e4)
    sc.pp.log1p(normed)
    sc.pp.highly_variable_genes(normed, n_top_genes=min(n_genes, normed.n_vars))
    return np.asarray(normed.var_names[normed.var["highly_variable"]])


def log_mean(adata: AnnData) -> np.ndarray:
    """Mean of log-normalised expression by gene."""
    return _log_mean_of(adata.X)


def _log_mean_of(counts: Any) -> np.ndarray:
    x = np.asarray(counts.todense() if hasattr(counts, "todense") else counts, dtype=float)
    return np.log1p(1e4 * x / np.maximum(x.sum(1, keepdims=True), 1)).mean(0)


def _seen(train: AnnData, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Control of the held-out type; controls and shifts of the others."""

    def mean(of: str, condition: str) -> np.ndarray:
        rows = (train.obs["cell_type"] == of) & (train.obs["condition"] == condition)
        return log_mean(train[rows.to_numpy()])

    others = [t for t in sorted(train.obs["cell_type"].unique()) if t != name]
    controls = np.stack([mean(t, "control") for t in others])
    shifts = np.stack([mean(t, "stimulated") for t in others]) - controls
    return mean(name, "control"), controls, shifts


def _scores(
    predicted: np.ndarray,
    sd: np.ndarray | None = None,
    *,
    truth: np.ndarray,
    control: np.ndarray,
    shift: np.ndarray,
) -> dict[str, float]:
    out = {
        "skill": metrics.skill(predicted, truth, control),
        "pearson_delta": metrics.pearson_delta(predicted, truth, control),
        "resid_pearson_delta": metrics.resid_pearson_delta(predicted, truth, control, shift),
        "r2_mean": metrics.r2_mean(predicted, truth),
    }
    return out if sd is None else {**out, "coverage_90": metrics.coverage(predicted, truth, sd)}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over types of each method, with the spread over seeds."""
    columns = [c for c in frame if c not in {"type", "method", "seed"}]
    by_seed = frame.groupby(["method", "seed"])[columns].mean().reset_index()
    return spread(by_seed, ["method"], columns, digits=3)
