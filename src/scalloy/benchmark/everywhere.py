"""Benchmark of transfer on many data sets at once: one table, mean and worst over all of them.

    set                     cells                                      held out
    Kang                    three donors, seven types                  each type
    Kang, new donor         the same                                   each type of a donor never trained on
    Kang, all donors        eight donors                               each type
    Papalexi                CRISPR of 24 genes in a cell line          each replicate, under all targets
    embryo                  three types, two samples per genotype      each type
    Norman, halves          33 perturbations of a cell line            each random half, under all of them
    deep                    a simulated trial, 5,000 counts per cell   each type
    shallow                 150 counts per cell                        each type
    many types              twelve types, own responses count half     each type
    own                     each type has a response of its own        each type
    two silent              two of six types do not respond            each type
    nothing                 no type responds                           each type
    patients                eight donors, types in other shares        each donor
    few patients            three donors                               each donor

The truth of a simulated cell is the same cell under treatment, so a change in the shares of types is no part
of it. Where whole donors are held out, nobody names the types: the rows of models that know groups take
donors for types, "CGMDVAE, types as donors" knows that they are donors, and "CGMDVAE, without types" neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy import datasets
from scalloy._arguments import one_of
from scalloy.baselines import METHODS
from scalloy.benchmark.rivals import Rival
from scalloy.benchmark.transfer import TRUTH, promise_auroc, transfer

WORSE = -0.02  # skill below which a prediction is worse than no change by more than noise
OF_DONORS = ("CGMDVAE, types as donors", "CGMDVAE, without types")  # only where donors are held out


@dataclass(frozen=True)
class Held:
    """Data set with its arguments of :func:`scalloy.benchmark.transfer`.

    Parameters
    ----------
    data
        Name of the data set, or function of a seed that simulates it.
    asked
        Arguments of :func:`scalloy.benchmark.transfer`.
    """

    data: str | Callable[[int], AnnData]
    asked: Mapping[str, Any] = field(default_factory=dict)

    def cells(self, seed: int) -> str | AnnData:
        """Return the name of the data set, or its cells."""
        return self.data if isinstance(self.data, str) else self.data(seed)


def _trial(labels_key: str = "cell_type", **settings: Any) -> Held:
    """Return a simulated trial of which each type, or each donor, is held out."""

    def made(seed: int) -> AnnData:
        cells = datasets.trial(seed=seed, **settings)
        rng, theta, mean = np.random.default_rng(seed), cells.uns["theta"], cells.layers["mean_treated"]
        cells.layers[f"{TRUTH}treated"] = sp.csr_matrix(rng.poisson(rng.gamma(theta, mean / theta)))
        del cells.layers["mean_control"], cells.layers["mean_treated"]
        return cells

    return Held(made, {"n_genes": 300, "labels_key": labels_key})


def _halves(seed: int) -> AnnData:
    """Return the cells of Norman et al., of which each belongs to one of two random halves."""
    cells = datasets.labelled("norman_dev")
    half = np.random.default_rng(seed).permutation(cells.n_obs) % 2
    cells.obs["half"] = pd.Categorical(np.array(["one", "other"])[half])
    return cells


KANG = {"n_genes": 5000, "target_sum": None}
#: Data sets by name.
SETS: dict[str, Held] = {
    "Kang": Held("kang", KANG),
    "Kang, new donor": Held("kang", {**KANG, "unseen": {"batch": "donor_1015"}}),
    "Kang, all donors": Held("kang_all", KANG),
    "Papalexi": Held("papalexi_299genes", {"labels_key": "batch", "n_genes": 299, "at_once": True}),
    "embryo": Held("mouse_embryo_tal1", {"n_genes": 300}),
    "Norman, halves": Held(_halves, {"labels_key": "half", "n_genes": 500, "at_once": True}),
    "deep": _trial(library=5000.0),
    "shallow": _trial(library=150.0),
    "many types": _trial(n_obs=5000, n_types=12, shared=0.5),
    "own": _trial(shared=0.0),
    "two silent": _trial(silent=2),
    "nothing": _trial(effect=0.0),
    "patients": _trial("donor", n_donors=8, composition=0.7, donor_effect=0.4),
    "few patients": _trial("donor", n_donors=3, composition=0.7, donor_effect=0.4),
}


def everywhere(
    models: Sequence[str] | Mapping[str, Rival] | None = None,
    *,
    sets: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    max_epochs: int | None = None,
) -> pd.DataFrame:
    """Hold out each context of each data set in turn, and predict it with all models.

    Parameters
    ----------
    models
        Names of models, as in :func:`transfer`; ``None`` is all baselines, CGMDVAE, and the two of CGMDVAE
        that take no types, which are used only where donors are held out.
    sets
        Names of data sets, see :mod:`scalloy.benchmark.everywhere`; ``None`` is all of them.
    seeds
        Random seeds of the simulations, the weights, the split, the training and the sampling.
    max_epochs
        Maximum number of epochs; ``None`` uses the default of each model.

    Returns
    -------
    The table of :func:`transfer` for each data set, with its name in the column ``set``.

    Examples
    --------
    >>> table = sa.benchmark.everywhere(["no change", "mean shift"], sets=["nothing"], seeds=[0])
    >>> sorted(table["method"].unique())
    ['ceiling', 'mean shift', 'no change']
    """
    tables = []
    for name in SETS if sets is None else [one_of("sets", s, SETS) for s in sets]:
        held = SETS[name]
        chosen: Any = models if models is not None else [*METHODS, "CGMDVAE", *OF_DONORS]
        if held.asked.get("labels_key") != "donor" and not isinstance(chosen, Mapping):
            chosen = [m for m in chosen if m not in OF_DONORS]
        given = {"max_epochs": max_epochs, **held.asked}
        for asked in [[seed] for seed in seeds] if callable(held.data) else [list(seeds)]:
            table = transfer(held.cells(asked[0]), chosen, seeds=asked, **given)
            tables.append(table.assign(set=name, simulated=asked[0] if callable(held.data) else -1))
    frame = pd.concat(tables, ignore_index=True)
    return frame[["set", *frame.columns.drop("set")]]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and worst skill of each method in each data set, and what holds over all of them.

    ``worse`` counts the contexts and seeds that are below no change by more than 0.02, in means or in cells,
    ``coverage`` is the share of genes within intervals of 90 %, and ``auroc`` says how well the promised
    skill tells predictions with a skill above 0.1 from the others.
    """
    rows = frame[frame["method"] != "ceiling"]
    each = rows.groupby(["method", "set"], sort=False)["skill"].agg(["mean", "min"])
    out = each.rename(columns={"min": "worst"}).unstack("set").swaplevel(axis=1)
    out = out.reindex(columns=pd.MultiIndex.from_product([frame["set"].unique(), ["mean", "worst"]]))
    for column, of in {"means": "skill", "cells": "skill_of_cells"}.items():
        by_method = rows[of].lt(WORSE).groupby(rows["method"])
        out[("worse", column)] = by_method.sum()
    out[("all", "contexts")] = rows.groupby("method").size()
    for column in ("coverage_90", "expected_skill"):
        if column not in rows:
            rows = rows.assign(**{column: np.nan})
    out[("all", "coverage")] = rows.groupby("method")["coverage_90"].mean()
    out[("all", "auroc")] = promise_auroc(rows)
    return out.loc[rows["method"].unique()].round(3)
