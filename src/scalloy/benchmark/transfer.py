"""Held-out pairs: each cell type in turn is not seen under the condition, and predicted from its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
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
from scalloy.baselines.predictors import log_scaled, normalised
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, normed_copy
from scalloy.models import CGMDVAE, TRVAE, _options

DONORS = ("donor_101", "donor_107", "donor_1015")
KANG = ("kang", "kang_all", "kang_subset")
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
    trained
        Arguments of ``train``.
    """

    make: Callable[[AnnData, str, str], Any]
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeded: bool = True
    trained: Mapping[str, Any] = field(default_factory=dict)


def rivals(**model: Any) -> dict[str, Rival]:
    """All models by name: the baselines, scGen, a conditional VAE, TRVAE, TRVAE as published, CGMDVAE.

    Parameters
    ----------
    **model
        Arguments of CGMDVAE.
    """

    def ours(cls: Any, made: Any = None, **settings: Any) -> Callable[[AnnData, str, str], Any]:
        def make(cells: AnnData, condition: str, labels: str) -> Any:
            cls.setup_anndata(cells, condition_key=condition, labels_key=labels)
            return (made or cls)(cells, **settings)

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
        "TRVAE, as published": Rival(
            ours(TRVAE, TRVAE.original), {"TRVAE, as published": decoded}, trained={"batch_size": 512}
        ),
        "CGMDVAE": Rival(ours(CGMDVAE, **model), {"CGMDVAE": {}, "CGMDVAE, decoder": decoded}),
    }


def chosen(models: Sequence[str] | Mapping[str, Rival] | None, **model: Any) -> Mapping[str, Rival]:
    """Those of these names (``None`` is all), or others by name; arguments are those of CGMDVAE."""
    if isinstance(models, Mapping):
        return models
    known = rivals(**model)
    return {_options.one_of("models", m, known): known[m] for m in (known if models is None else models)}


@keeps_seed()
def transfer(
    data: str | Path | AnnData = "kang",
    models: Sequence[str] | Mapping[str, Rival] | None = None,
    *,
    condition_key: str = "condition",
    labels_key: str = "cell_type",
    control: str | None = None,
    hold_out: str | Sequence[str] = "each",
    at_once: bool = False,
    unseen: Mapping[str, str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 2000,
    target_sum: float | None = 1e4,
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
        ``"kang"``: authors' labels and the three donors present in both conditions; ``"kang_all"``: all
        donors and labels; ``"kang_subset"``: the embedded cells; or raw counts, as AnnData or the path of an
        h5ad file.
    models
        Names of :func:`rivals` (``None`` is all of them), or others by name.
    condition_key, labels_key
        Columns of ``.obs`` with conditions and cell types (or whatever a change is to be carried between).
    control
        The condition from which is predicted; ``None`` is ``"control"`` or the most frequent one.
    hold_out
        Types, or ``"each"``.
    at_once
        Whether a type is held out under all conditions but the control together, and not one by one.
    unseen
        Column and value, such as ``{"batch": "donor_1015"}``: cells that are trained on have other values,
        and predicted are those which have it.
    seeds
        Of weights, split, training and sampling.
    n_genes
        That are kept.
    target_sum
        To which counts in these genes are scaled before their logarithm; ``None`` is the median of the cells
        to train on.
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
    models = chosen(models, **model)
    for key, value in (unseen or {}).items():
        _options.one_of("unseen", key, list(adata.obs))
        _options.one_of("unseen", value, sorted(adata.obs[key].astype(str).unique()))
    conditions = adata.obs[condition_key].astype(str)
    if control is None:
        control = "control" if (conditions == "control").any() else conditions.value_counts().index[0]
    _options.one_of("control", control, sorted(conditions.unique()))
    asked = Protocol(condition_key, labels_key, control, n_genes, target_sum, dict(unseen or {}))
    rows: list[dict[str, Any]] = []
    for name, held in _held_out(adata, asked, hold_out, min_cells).items():
        for together in [held] if at_once else [[c] for c in held]:
            pairs = [Pair(adata, asked, name, c, together) for c in together]
            rows += _of_pairs(pairs, models, seeds, max_epochs)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Protocol:
    """What is predicted from what; see :func:`transfer`."""

    condition_key: str
    labels_key: str
    control: str
    n_genes: int = 2000
    target_sum: float | None = 1e4
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, str]:
        """Columns with the condition and the type."""
        return self.condition_key, self.labels_key

    def unseen_cells(self, adata: AnnData) -> np.ndarray:
        """Those which are predicted, and not trained on; all, where nothing but the type is unseen."""
        mask = np.ones(adata.n_obs, dtype=bool)
        for key, value in self.unseen.items():
            mask &= (adata.obs[key].astype(str) == value).to_numpy()
        return mask


def _held_out(
    adata: AnnData, asked: Protocol, hold_out: str | Sequence[str], min_cells: int
) -> dict[str, list[str]]:
    """Types that are held out, and under which conditions each of them."""
    obs = adata.obs.loc[asked.unseen_cells(adata), [asked.labels_key, asked.condition_key]].astype(str)
    sizes = obs.value_counts()
    every = sorted(obs[asked.labels_key].unique())
    types = every if hold_out == "each" else [hold_out] if isinstance(hold_out, str) else hold_out
    for name in types:
        _options.one_of("hold_out", name, every)
    treated = sorted(set(obs[asked.condition_key]) - {asked.control})
    found = {t: [c for c in treated if sizes.get((t, c), 0) >= min_cells] for t in types}
    return {t: held for t, held in found.items() if held and sizes.get((t, asked.control), 0)}


class Pair:
    """A type that is held out under a condition: what may be trained on, and what is true.

    Parameters
    ----------
    adata
        All cells, of which the held-out ones are taken away.
    asked
        What is predicted from what.
    name, condition
        The type, and the condition to predict.
    together
        The conditions under which the type is held out.
    """

    def __init__(
        self, adata: AnnData, asked: Protocol, name: str, condition: str, together: Sequence[str] = ()
    ) -> None:
        under, of = (adata.obs[k].astype(str).to_numpy() for k in asked.keys)
        of, unseen = of == name, asked.unseen_cells(adata)
        trained = ~(of & np.isin(under, together or [condition]))
        if asked.unseen:
            trained &= ~unseen
        genes = variable_genes(adata[trained], asked.n_genes)
        self.train = with_counts(adata[trained, genes])
        self.asked, self.name, self.condition = asked, name, condition
        total = np.asarray(self.train.X.sum(axis=1)).ravel()
        self.target_sum = float(np.median(total)) if asked.target_sum is None else asked.target_sum
        self.source = with_counts(adata[of & unseen & (under == asked.control), genes])
        held = adata[of & unseen & (under == condition), genes]
        self.truth, self.control = self.expression(held.X), self.expression(self.source.X)
        condition_key, labels_key = asked.keys
        seen = Baseline(self.train, "mean shift", condition_key=condition_key, labels_key=labels_key)
        out = seen.transfer(self.source, condition, target_sum=self.target_sum)
        self.shift = np.asarray(out.X).mean(0) - self.control.mean(0)
        some = np.concatenate([self.truth, self.expression(self.train.X)])
        self.middle = some.mean(0)
        self.axes = np.linalg.eigh(np.cov(some.T))[1][:, -N_PCS:]
        changed = metrics.wilcoxon(self.truth, self.control)
        self.top, self.top_1000 = np.argsort(-changed)[:TOP], np.argsort(-np.abs(changed))[:1000]

    def expression(self, counts: Any) -> np.ndarray:
        """Of cells, on the scale on which they are compared."""
        return log_normalised(counts, self.target_sum)

    def scores(self, out: AnnData) -> dict[str, float]:
        """Of a prediction of the source cells."""
        x = np.asarray(out.X, dtype=float)
        cells = self.expression(out.layers["counts"]) if "counts" in out.layers else x
        means = (x.mean(0), self.truth.mean(0), self.control.mean(0))
        pcs = [(v - self.middle) @ self.axes for v in (cells, self.truth)]
        found = {
            "skill": metrics.skill(*means),
            "pearson_delta": metrics.pearson_delta(*means),
            "resid_pearson_delta": metrics.resid_pearson_delta(*means, self.shift),
            "r2_mean": metrics.r2_mean(*means[:2]),
            "r2_determination": metrics.r2_determination(*means[:2]),
            "r2_top100": metrics.r2_mean(means[0][self.top], means[1][self.top]),
            "r2_top1000": metrics.r2_mean(means[0][self.top_1000], means[1][self.top_1000]),
            "r2_variance": metrics.r2_variance(cells, self.truth),
            "r2_variance_top1000": metrics.r2_variance(cells[:, self.top_1000], self.truth[:, self.top_1000]),
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


def _of_pairs(
    pairs: Sequence[Pair], models: Mapping[str, Rival], seeds: Sequence[int], max_epochs: int | None
) -> list[dict[str, Any]]:
    """Scores of pairs that are held out together, so that each model is trained once."""
    first = pairs[0]
    rows: list[dict[str, Any]] = [
        {**_about(p), "method": "ceiling", "seed": -1, **metrics.ceilings(p.truth, p.control)} for p in pairs
    ]
    for name, rival in models.items():
        for seed in seeds if rival.seeded else (-1,):
            scvi.settings.seed = max(seed, 0)
            made = rival.make(first.train.copy(), *first.asked.keys)
            made.train(max_epochs=max_epochs, **rival.trained, **QUIET)
            for pair, (row, how) in product(pairs, (rival.asked or {name: {}}).items()):
                given = {"seed": max(seed, 0), "target_sum": pair.target_sum, **how}
                if first.asked.unseen:  # where the groups of these donors, say, begin
                    given.setdefault("context", pair.source)
                out = made.transfer(pair.source.copy(), to=pair.condition, **given)
                rows.append({**_about(pair), "method": row, "seed": seed, **pair.scores(out)})
    return rows


def _about(pair: Pair) -> dict[str, str]:
    return {"type": pair.name, "condition": pair.condition}


def _cells(data: str | Path | AnnData, condition_key: str, labels_key: str) -> AnnData:
    if isinstance(data, str) and data in KANG:
        return load(data)
    adata = data.copy() if isinstance(data, AnnData) else ad.read_h5ad(data)
    for name, key in {"condition_key": condition_key, "labels_key": labels_key}.items():
        _options.one_of(name, key, list(adata.obs))
    adata.obs_names_make_unique()
    sc.pp.filter_genes(adata, min_cells=3)
    return with_counts(adata)


def load(data: str) -> AnnData:
    """The cells of Kang et al. to score on."""
    adata = datasets.kang(full=_options.one_of("data", data, KANG) != "kang_subset")
    keep = adata.obs["cell_type"] != RARE
    if data == "kang":
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


def log_normalised(counts: Any, target_sum: float = 1e4) -> np.ndarray:
    """``log1p`` of counts scaled to the same total in each cell, dense."""
    x = np.asarray(counts.todense() if sp.issparse(counts) else counts, dtype=float)
    return log_scaled(normalised(x), target_sum)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over types of each method, with the spread over seeds; and the worst type's skill."""
    columns = [c for c in frame if c not in {"type", "condition", "method", "seed"}]
    by_seed = frame.groupby(["method", "seed"], sort=False)
    out = spread(by_seed[columns].mean().reset_index(), ["method"], columns, digits=3)
    out[("worst_skill", "mean")] = by_seed["skill"].min().groupby("method").mean().round(3)
    return out
