"""Held-out pairs: each cell type in turn is not seen under the condition, and predicted from its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import scvi
from anndata import AnnData

from scalloy import datasets, metrics
from scalloy.baselines import METHODS, Baseline, LatentShift
from scalloy.baselines.predictors import normalised
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, normed_copy
from scalloy.models import CGMDVAE, TRVAE, _options

DONORS = ("donor_101", "donor_107", "donor_1015")
RARE = "Megakaryocytes"  # too few to be scored
N_PCS, TOP = 50, 100


@dataclass(frozen=True)
class Rival:
    """A model of the table: how it is made of the cells to train on, and the ways in which it is asked.

    Parameters
    ----------
    make
        From cells and the columns with conditions and labels, an object with ``train`` and ``transfer``.
    asked
        Name of the row, and arguments of ``transfer``.
    seeded
        Whether it depends on a seed.
    """

    make: Callable[[AnnData, str, str], Any]
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeded: bool = True


def rivals(**model: Any) -> dict[str, Rival]:
    """All models by name: the baselines, scGen, a conditional VAE, TRVAE, CGMDVAE.

    Parameters
    ----------
    **model
        Arguments of CGMDVAE.
    """

    def ours(cls: Any, **settings: Any) -> Callable[[AnnData, str, str], Any]:
        def make(cells: AnnData, condition: str, labels: str) -> Any:
            cls.setup_anndata(cells, condition_key=condition, labels_key=labels)
            return cls(cells, **settings)

        return make

    def simple(cls: Any, *args: Any, **settings: Any) -> Callable[[AnnData, str, str], Any]:
        return lambda cells, c, y: cls(cells, *args, condition_key=c, labels_key=y, **settings)

    decoded = {"route": "decoder"}
    return {
        **{name: Rival(simple(Baseline, name), seeded=name == "add and thin") for name in METHODS},
        "scGen, types matched": Rival(simple(LatentShift)),
        "scGen, as shipped": Rival(simple(LatentShift, matched=False)),
        "CVAE": Rival(ours(TRVAE, mmd_weight=0.0), {"CVAE": decoded}),
        "TRVAE": Rival(ours(TRVAE), {"TRVAE": decoded, "TRVAE, pooled": {}}),
        "TRVAE, first layer only": Rival(ours(TRVAE, inject="first"), {"TRVAE, first layer only": decoded}),
        "CGMDVAE": Rival(ours(CGMDVAE, **model), {"CGMDVAE": {}, "CGMDVAE, decoder": decoded}),
    }


@keeps_seed()
def transfer(
    data: str | Path | AnnData = "kang",
    models: Sequence[str] | Mapping[str, Rival] | None = None,
    *,
    condition_key: str = "condition",
    labels_key: str = "cell_type",
    control: str | None = None,
    hold_out: str | Sequence[str] = "each",
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 2000,
    min_cells: int = 30,
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Each type under each condition held out in turn, and predicted by all models from its controls.

    No model is given a held-out cell, the most variable genes are those of the cells to train on, and no
    hyper-parameter is chosen on the held-out type. Means are scored on what a model expects, distributions of
    cells on the counts that it samples, if it does.

    Parameters
    ----------
    data
        ``"kang"``: authors' labels and the three donors present in both conditions; ``"kang_subset"``: the
        embedded cells; or raw counts, as AnnData or the path of an h5ad file.
    models
        Names of :func:`rivals` (``None`` is all of them), or others by name.
    condition_key, labels_key
        Columns of ``.obs`` with conditions and cell types.
    control
        The condition from which is predicted; ``None`` is ``"control"`` or the most frequent one.
    hold_out
        Types, or ``"each"``.
    seeds
        Of weights, split, training and sampling.
    n_genes
        That are kept.
    min_cells
        Of a type under a condition, to be held out.
    max_epochs
        Instead of the default.
    **model
        Arguments of CGMDVAE.

    Returns
    -------
    One row for each type, condition, model and seed (-1 where there is nothing random), and rows
    ``"ceiling"``: see :func:`scalloy.metrics.ceilings`.
    """
    adata = _cells(data, condition_key, labels_key)
    known = rivals(**model)
    if models is None or not isinstance(models, Mapping):
        models = {
            _options.one_of("models", m, known): known[m] for m in (known if models is None else models)
        }
    groups = adata.obs[[labels_key, condition_key]].astype(str)
    if control is None:
        names = groups[condition_key]
        control = "control" if (names == "control").any() else names.value_counts().index[0]
    sizes = groups.groupby([labels_key, condition_key]).size()
    types = (
        sorted(groups[labels_key].unique())
        if hold_out == "each"
        else [hold_out]
        if isinstance(hold_out, str)
        else hold_out
    )
    for name in types:
        _options.one_of("hold_out", name, list(groups[labels_key].unique()))
    rows: list[dict[str, Any]] = []
    for (name, condition), n in sizes.items():
        if name in types and condition != control and n >= min_cells and sizes.get((name, control), 0):
            pair = Pair(adata, condition_key, labels_key, name, condition, control, n_genes)
            rows += _of_pair(pair, models, seeds, max_epochs)
    return pd.DataFrame(rows)


class Pair:
    """A type that is held out under a condition: what may be trained on, and what is true.

    Parameters
    ----------
    adata
        All cells, of which the held-out ones are taken away.
    condition_key, labels_key
        Columns of ``.obs``.
    name, condition, control
        The type, the condition to predict, and the one from which.
    n_genes
        Most variable genes of the cells to train on.
    """

    def __init__(
        self,
        adata: AnnData,
        condition_key: str,
        labels_key: str,
        name: str,
        condition: str,
        control: str,
        n_genes: int,
    ) -> None:
        obs = adata.obs[[labels_key, condition_key]].astype(str)
        of, under = (obs[labels_key] == name).to_numpy(), obs[condition_key].to_numpy()
        held = of & (under == condition)
        genes = variable_genes(adata[~held], n_genes)
        self.train = with_counts(adata[~held, genes])
        self.keys, self.name, self.condition = (condition_key, labels_key), name, condition
        kept = self.train.obs[[labels_key, condition_key]].astype(str)
        self.source = self.train[((kept[labels_key] == name) & (kept[condition_key] == control)).to_numpy()]
        self.source = self.source.copy()
        self.truth, self.control = log_normalised(adata[held, genes].X), log_normalised(self.source.X)
        seen = Baseline(self.train, "mean shift", condition_key=condition_key, labels_key=labels_key)
        self.shift = np.asarray(seen.transfer(self.source, condition).X).mean(0) - self.control.mean(0)
        some = np.concatenate([self.truth, log_normalised(self.train.X)])
        self.middle = some.mean(0)
        self.axes = np.linalg.eigh(np.cov(some.T))[1][:, -N_PCS:]
        up = metrics.wilcoxon(self.truth, self.control)
        self.top = np.argsort(-up)[:TOP]

    def scores(self, out: AnnData) -> dict[str, float]:
        """Of a prediction of the source cells."""
        x = np.asarray(out.X, dtype=float)
        cells = log_normalised(out.layers["counts"]) if "counts" in out.layers else x
        means = (x.mean(0), self.truth.mean(0), self.control.mean(0))
        pcs = [(v - self.middle) @ self.axes for v in (cells, self.truth)]
        found = {
            "skill": metrics.skill(*means),
            "pearson_delta": metrics.pearson_delta(*means),
            "resid_pearson_delta": metrics.resid_pearson_delta(*means, self.shift),
            "r2_mean": metrics.r2_mean(*means[:2]),
            "r2_determination": metrics.r2_determination(*means[:2]),
            "r2_top100": metrics.r2_mean(means[0][self.top], means[1][self.top]),
            "r2_variance": metrics.r2_variance(cells, self.truth),
            "energy_distance": metrics.energy_distance(*pcs),
            "mmd": metrics.mmd(*pcs),
            "de_overlap": metrics.de_overlap(cells, self.truth, self.control),
            "de_auprc": metrics.de_auprc(cells, self.truth, self.control),
            "skill_of_cells": metrics.skill(cells.mean(0), *means[1:]),
        }
        sd = out.uns.get("transfer", {}).get("sd")
        if sd is not None:
            found["coverage_90"] = metrics.coverage(*means[:2], sd.iloc[:, 0].to_numpy())
        return found


def _of_pair(
    pair: Pair, models: Mapping[str, Rival], seeds: Sequence[int], max_epochs: int | None
) -> list[dict[str, Any]]:
    about = {"type": pair.name, "condition": pair.condition}
    rows: list[dict[str, Any]] = [
        {**about, "method": "ceiling", "seed": -1, **metrics.ceilings(pair.truth, pair.control)}
    ]
    for name, rival in models.items():
        for seed in seeds if rival.seeded else (-1,):
            scvi.settings.seed = max(seed, 0)
            made = rival.make(pair.train.copy(), *pair.keys)
            made.train(max_epochs=max_epochs, **QUIET)
            for row, asked in (rival.asked or {name: {}}).items():
                out = made.transfer(pair.source.copy(), to=pair.condition, seed=max(seed, 0), **asked)
                rows.append({**about, "method": row, "seed": seed, **pair.scores(out)})
    return rows


def _cells(data: str | Path | AnnData, condition_key: str, labels_key: str) -> AnnData:
    if isinstance(data, str) and data in {"kang", "kang_subset"}:
        return load(data)
    adata = data.copy() if isinstance(data, AnnData) else ad.read_h5ad(data)
    for name, key in {"condition_key": condition_key, "labels_key": labels_key}.items():
        _options.one_of(name, key, list(adata.obs))
    adata.obs_names_make_unique()
    sc.pp.filter_genes(adata, min_cells=3)
    return with_counts(adata)


def load(data: str) -> AnnData:
    """The cells of Kang et al. to score on."""
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
    normed = normed_copy(adata)
    sc.pp.highly_variable_genes(normed, n_top_genes=min(n_genes, normed.n_vars))
    return np.asarray(normed.var_names[normed.var["highly_variable"]])


def log_normalised(counts: Any) -> np.ndarray:
    """``log1p`` of counts scaled to 10,000 per cell, dense."""
    x = np.asarray(counts.todense() if sp.issparse(counts) else counts, dtype=float)
    return np.log1p(normalised(x))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over types of each method, with the spread over seeds; and the worst type's skill."""
    columns = [c for c in frame if c not in {"type", "condition", "method", "seed"}]
    by_seed = frame.groupby(["method", "seed"], sort=False)
    out = spread(by_seed[columns].mean().reset_index(), ["method"], columns, digits=3)
    out[("worst_skill", "mean")] = by_seed["skill"].min().groupby("method").mean().round(3)
    return out
