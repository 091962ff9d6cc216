"""Benchmark of transfer: cell types held out under a condition, and predicted from their control cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
from anndata import AnnData
from sklearn.metrics import roc_auc_score

from scalloy import metrics
from scalloy._arguments import one_of
from scalloy.baselines import Baseline
from scalloy.benchmark import scperturbench, systema, vcc2026
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, log_normalised
from scalloy.benchmark.held_out_cells import cells_of, variable_genes, with_counts
from scalloy.benchmark.judging import Judge, counts_after
from scalloy.benchmark.rivals import Rival, chosen
from scalloy.metrics.registered import scores

TRUTH = "counts_if_"  # layers of simulated cells: their counts under another condition
N_PCS, TOP = 50, 100
WORTH = 0.1  # skill above which a prediction is worth something
#: Other judges of predicted counts, by name.
JUDGES: dict[str, Judge] = {"vcc2026": vcc2026, "scperturbench": scperturbench, "systema": systema}


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
    judge: str | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Hold out each cell type under each condition in turn, and predict it with all models from its controls.

    No model is given a held-out cell, the most variable genes are chosen on the training cells, and no
    hyper-parameter is chosen on the held-out type. Scores of means use the expression that a model expects;
    scores of whole cells use its sampled counts, if it samples any.

    Parameters
    ----------
    data
        ``"kang"``: authors' labels and the three donors present in both conditions; ``"kang_all"``: all
        donors and labels; ``"kang_subset"``: the cells that ship with the package; the name of another data
        set (:func:`scalloy.datasets.fetch`); or raw counts, as AnnData or the path of an h5ad file.
    models
        Names of :func:`rivals` (``None`` runs all of them), or a mapping from names to :class:`Rival`.
    condition_key, labels_key
        Columns of ``.obs`` with conditions and cell types (or any other groups between which a change is
        transferred).
    control
        Condition from which predictions start; ``None`` uses ``"control"`` if there is one, otherwise the
        most frequent condition.
    hold_out
        Name or names of the types to hold out, or ``"each"``.
    at_once
        Whether to hold out a type under all conditions but the control together instead of one by one.
    unseen
        Columns and values, such as ``{"batch": "donor_1015"}``: cells with these values are predicted but
        never trained on.
    seeds
        Random seeds of the weights, the split, the training and the sampling.
    n_genes
        Number of most variable genes that are kept.
    target_sum
        Total count to which each cell is scaled before the logarithm; ``None`` uses the median total of the
        training cells.
    min_cells
        Minimum number of cells that a type needs under a condition to be held out.
    max_epochs
        Maximum number of epochs; ``None`` uses the default of each model.
    judge
        Name of another judge in :data:`JUDGES`, which scores the predicted counts of all conditions together,
        held out at once; ``None`` uses our scores.
    **model
        Arguments of CGMDVAE.

    Returns
    -------
    One row for each type, condition, model and seed (-1 for models without randomness), and rows
    ``"ceiling"``, see :func:`scalloy.metrics.ceilings`.

    Examples
    --------
    >>> held = {"labels_key": "cluster", "hold_out": "cluster_0", "min_cells": 5}
    >>> table = sa.benchmark.transfer(adata, ["no change", "mean shift"], **held)
    >>> table["method"].tolist()
    ['ceiling', 'no change', 'mean shift']
    """
    adata = cells_of(data, condition_key, labels_key)
    models = chosen(models, **model)
    for key, value in (unseen or {}).items():
        one_of("unseen", key, list(adata.obs))
        one_of("unseen", value, sorted(adata.obs[key].astype(str).unique()))
    conditions = adata.obs[condition_key].astype(str)
    if control is None:
        control = "control" if (conditions == "control").any() else conditions.value_counts().index[0]
    one_of("control", control, sorted(conditions.unique()))
    asked = Protocol(condition_key, labels_key, control, n_genes, target_sum, dict(unseen or {}))
    scored = _of_pairs if judge is None else _by_judge(JUDGES[one_of("judge", judge, JUDGES)])
    rows: list[dict[str, Any]] = []
    if not (every := _held_out(adata, asked, hold_out, min_cells)):
        msg = (
            f"No type has `min_cells={min_cells}` cells under a condition other than {control!r}, and cells "
            f"under {control!r}. Pass fewer `min_cells`, or other columns."
        )
        raise ValueError(msg)
    for name, held in every.items():
        for together in [held] if at_once or judge else [[c] for c in held]:
            pairs = [Pair(adata, asked, name, c, together) for c in together]
            rows += scored(pairs, models, seeds, max_epochs)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Protocol:
    """Settings of the benchmark; see :func:`transfer`."""

    condition_key: str
    labels_key: str
    control: str
    n_genes: int = 2000
    target_sum: float | None = 1e4
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, str]:
        """Columns of ``.obs`` with the condition and the type."""
        return self.condition_key, self.labels_key

    def unseen_cells(self, adata: AnnData) -> np.ndarray:
        """Return a mask of the cells with the unseen values; of all cells if only the type is unseen."""
        mask = np.ones(adata.n_obs, dtype=bool)
        for key, value in self.unseen.items():
            mask &= (adata.obs[key].astype(str) == value).to_numpy()
        return mask


def _held_out(
    adata: AnnData, asked: Protocol, hold_out: str | Sequence[str], min_cells: int
) -> dict[str, list[str]]:
    """Return the types to hold out, each with the conditions under which it has enough cells."""
    obs = adata.obs.loc[asked.unseen_cells(adata), [asked.labels_key, asked.condition_key]].astype(str)
    sizes = obs.value_counts()
    every = sorted(obs[asked.labels_key].unique())
    types = every if hold_out == "each" else [hold_out] if isinstance(hold_out, str) else hold_out
    for name in types:
        one_of("hold_out", name, every)
    treated = sorted(set(obs[asked.condition_key]) - {asked.control})
    found = {t: [c for c in treated if sizes.get((t, c), 0) >= min_cells] for t in types}
    return {t: held for t, held in found.items() if held and sizes.get((t, asked.control), 0)}


class Pair:
    """Cell type held out under a condition: the cells to train on, those to predict from, and the truth.

    Parameters
    ----------
    adata
        All cells, including the held-out ones.
    asked
        Settings of the benchmark.
    name, condition
        Type that is held out, and condition to predict.
    together
        All conditions under which the type is held out; if empty, only ``condition``.
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
        self.train = _without_truth(with_counts(adata[trained, genes]))
        self.asked, self.name, self.condition = asked, name, condition
        total = np.asarray(self.train.X.sum(axis=1)).ravel()
        self.target_sum = float(np.median(total)) if asked.target_sum is None else asked.target_sum
        self.source = with_counts(adata[of & unseen & (under == asked.control), genes])
        self.held = self._twins() or adata[of & unseen & (under == condition), genes]
        self.truth, self.control = self.expression(self.held.X), self.expression(self.source.X)
        condition_key, labels_key = asked.keys
        seen = Baseline(self.train, "mean shift", condition_key=condition_key, labels_key=labels_key)
        out = seen.transfer(self.source, condition, target_sum=self.target_sum)
        self.shift = np.asarray(out.X).mean(0) - self.control.mean(0)
        some = np.concatenate([self.truth, self.expression(self.train.X)])
        self.middle = some.mean(0)
        self.axes = np.linalg.eigh(np.cov(some.T))[1][:, -N_PCS:]
        changed = metrics.wilcoxon(self.truth, self.control)
        self.top, self.top_1000 = np.argsort(-changed)[:TOP], np.argsort(-np.abs(changed))[:1000]

    def _twins(self) -> AnnData | None:
        """Return the cells to predict from as they would be under the condition, if they were simulated."""
        name = f"{TRUTH}{self.condition}"
        if name not in self.source.layers:
            return None
        obs = self.source.obs.assign(**{self.asked.condition_key: self.condition})
        twins = AnnData(sp.csr_matrix(self.source.layers[name]), obs=obs, var=self.source.var)
        self.source = _without_truth(self.source)
        return twins

    def expression(self, counts: Any) -> np.ndarray:
        """Return the log-normalised expression on which cells are compared."""
        return log_normalised(counts, self.target_sum)

    def scores(self, out: AnnData) -> dict[str, float]:
        """Return all scores of a prediction of the source cells, and the skill that it promised, if any."""
        promised = out.obs.get("transfer_skill", pd.Series(dtype=float))
        expected = {"expected_skill": float(promised.mean())} if promised.notna().any() else {}
        return {**scores(self.views(out)), **expected}

    def counted(self, out: AnnData, seed: int = 0) -> AnnData:
        """Return a prediction with counts.

        A prediction of expression alone has none. It gets those of the source cells, changed by the factors
        that correspond to its shift of the mean.
        """
        if "counts" not in out.layers:
            change = np.asarray(out.X, dtype=float).mean(0) - self.control.mean(0)
            out.layers["counts"] = counts_after(self.source, change, self.target_sum, seed)
        return out

    def for_as_many(self, sd: np.ndarray) -> np.ndarray:
        """Return standard deviations for the mean of the held-out cells, not of as many as controls."""
        apart = 1 / len(self.truth) - 1 / len(self.control)
        return np.sqrt(np.maximum(np.square(sd) + self.truth.var(0) * apart, 0.0))

    def views(self, out: AnnData) -> dict[str, dict[str, np.ndarray]]:
        """Return what metrics take of a prediction of the source cells."""
        x = np.asarray(out.X, dtype=float)
        predicted = self.expression(out.layers["counts"]) if "counts" in out.layers else x
        cells = {"predicted": predicted, "truth": self.truth, "control": self.control}
        means = {k: v.mean(0) for k, v in (cells | {"predicted": x}).items()}
        sd = out.uns.get("transfer", {}).get("sd")
        also = {} if sd is None else {"sd": self.for_as_many(_over_pairs(out, sd))}
        return {
            "means": {**means, "mean_shift": self.shift, **also},
            "cells": cells,
            "pcs": {k: (cells[k] - self.middle) @ self.axes for k in ("predicted", "truth")},
            "means of cells": means | {"predicted": predicted.mean(0)},
            "top 100 means": {k: v[self.top] for k, v in means.items()},
            "top 1000 means": {k: v[self.top_1000] for k, v in means.items()},
            "top 1000 cells": {k: v[:, self.top_1000] for k, v in cells.items()},
        }


def _without_truth(adata: AnnData) -> AnnData:
    """Remove counts under other conditions, which no model may see."""
    for name in [k for k in adata.layers if k is not None and k.startswith(TRUTH)]:
        del adata.layers[name]
    return adata


def _over_pairs(out: AnnData, sd: pd.DataFrame) -> np.ndarray:
    """Return the standard deviation of the mean of all cells, as if the errors of groups were the same."""
    if "transfer_pair" not in out.obs:
        return sd.iloc[:, 0].to_numpy()
    share = out.obs["transfer_pair"].value_counts(normalize=True)
    known = [k for k in share.index if k in sd and share[k] > 0]  # cells without a group have none
    return sd[known].to_numpy() @ share[known].to_numpy()


Scored = Callable[[Sequence[Pair], Mapping[str, Rival], Sequence[int], int | None], list[dict[str, Any]]]


def _of_pairs(
    pairs: Sequence[Pair], models: Mapping[str, Rival], seeds: Sequence[int], max_epochs: int | None
) -> list[dict[str, Any]]:
    """Train each model once for pairs that are held out together, and return the scores of all pairs."""
    rows: list[dict[str, Any]] = [
        {**_about(p), "method": "ceiling", "seed": -1, **metrics.ceilings(p.truth, p.control)} for p in pairs
    ]
    for row, seed, made in _predictions(pairs, models, seeds, max_epochs):
        rows += [
            {**_about(p), "method": row, "seed": seed, **p.scores(out)}
            for p, out in zip(pairs, made, strict=True)
        ]
    return rows


def _by_judge(judge: Judge) -> Scored:
    """Return a function like :func:`_of_pairs` that lets a judge score all pairs together."""

    def scored(
        pairs: Sequence[Pair], models: Mapping[str, Rival], seeds: Sequence[int], max_epochs: int | None
    ) -> list[dict[str, Any]]:
        first = pairs[0]
        asked = first.asked
        keys = {"condition_key": asked.condition_key, "control": asked.control, "seen": first.train}
        real = ad.concat([first.source, *(p.held for p in pairs)])
        real.obs_names_make_unique()
        known = judge.references(real, **keys)
        rows = [{"type": first.name, "method": k, "seed": -1, **v} for k, v in known.items()]
        for row, seed, made in _predictions(pairs, models, seeds, max_epochs):
            counted = [p.counted(out, max(seed, 0)) for p, out in zip(pairs, made, strict=True)]
            found = judge.judged(ad.concat(counted, index_unique="-"), real, **keys)
            rows.append({"type": first.name, "method": row, "seed": seed, **found})
        return rows

    return scored


def _predictions(
    pairs: Sequence[Pair], models: Mapping[str, Rival], seeds: Sequence[int], max_epochs: int | None
) -> Iterator[tuple[str, int, list[AnnData]]]:
    """Train each model once for pairs that are held out together; yield row, seed and predictions."""
    first = pairs[0]
    for name, rival in models.items():
        for seed in seeds if rival.seeded else (-1,):
            scvi.settings.seed = max(seed, 0)
            made = rival.make(first.train.copy(), *first.asked.keys)
            made.train(max_epochs=max_epochs, **rival.trained, **QUIET)
            for row, how in (rival.asked or {name: {}}).items():
                outs = []
                for pair in pairs:
                    given = {"seed": max(seed, 0), "target_sum": pair.target_sum, **how}
                    if first.asked.unseen and given.get("route", "auto") == "auto":
                        given.setdefault("context", pair.source)  # groups start at their means in the donor
                    outs.append(made.transfer(pair.source.copy(), to=pair.condition, **given))
                yield row, seed, outs


def _about(pair: Pair) -> dict[str, str]:
    """Return the columns that identify a pair in the table."""
    return {"type": pair.name, "condition": pair.condition}


def promise_auroc(frame: pd.DataFrame) -> pd.Series:
    """Return how well the promised skill of each method tells good predictions (skill above 0.1) from others.

    Where a method promised nothing, this counts as 0; methods that never promise anything are left out.
    """
    promising = frame.loc[frame["expected_skill"].notna(), "method"].unique()
    known = frame.fillna({"expected_skill": 0.0}).groupby("method")
    return pd.Series({name: _auroc(known.get_group(name)) for name in promising}, dtype=float)


def _auroc(rows: pd.DataFrame) -> float:
    """Return how well the promised skill tells predictions that are worth something from the others."""
    good = (rows["skill"] > WORTH).to_numpy()
    if good.all() or not good.any():
        return float("nan")
    return float(roc_auc_score(good, rows["expected_skill"]))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Average each method over types, with the standard deviation over seeds and the worst type's skill.

    If predictions promised a skill, ``promise_auroc`` says how well this tells those with a skill above 0.1
    from the others (1 perfectly, 0.5 not at all). Where such a method promised nothing, this counts as 0.
    """
    columns = [c for c in frame if c not in {"type", "condition", "method", "seed"}]
    by_seed = frame.groupby(["method", "seed"], sort=False)
    out = spread(by_seed[columns].mean().reset_index(), ["method"], columns, digits=3)
    if "skill" not in frame:
        return out
    out[("worst_skill", "mean")] = by_seed["skill"].min().groupby("method").mean().round(3) + 0.0
    if "expected_skill" in frame:
        out[("promise_auroc", "mean")] = promise_auroc(frame).round(3)
    return out
