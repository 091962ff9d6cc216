"""Benchmark of structured conditions: doses, times, combinations and perturbations that were held out.

    column           meaning
    skill            1 - squared error / squared error of no change, both without the noise of the truth
    pearson_delta    correlation of predicted and true change over genes
    beyond_additive  correlation of what both add to the sum of the parts, for combinations
    coverage_90      share of genes within intervals of 90 %, where a method has them
    error, change    squared errors of the prediction and of no change, over genes, without that noise

In simulated screens the truth is the log fold change of rates, known without noise, of the genes with 0.5
counts per cell or more, and the parts of a combination are the true ones. Elsewhere it is the change of the
levels of summed counts (:mod:`scalloy.perturbation.pseudobulk`) from one half of the controls to the held-out
cells; methods are given the other half. Were it the same half, its noise would be in the change and in what
predictions are made from, and a method that hardly uses the controls would be credited for it. The noise of
the change is taken out of squared errors, so a prediction without error has a skill of 1. Where next to
nothing changes (a root mean square below 0.05 in simulations, and no more than noise may give elsewhere), the
skill of a single context is left out; ``error`` and ``change`` still count in the skill of all together.

The parts of a measured combination are measured with noise. So to shrink their sum correlates with what is
beyond it even if there is nothing: compare with "no change".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy import datasets
from scalloy._arguments import one_of
from scalloy.benchmark.evidence import keeps_seed
from scalloy.benchmark.held_out_cells import with_counts
from scalloy.benchmark.hold_outs import KINDS, Context, HoldOut
from scalloy.benchmark.judging import counts_after
from scalloy.benchmark.structured_rivals import Fold, Predicted, Predictor, predictors
from scalloy.benchmark.structured_task import CONDITION, Task, Truth, is_simulated
from scalloy.benchmark.transfer import JUDGES
from scalloy.data.conditions import Conditions

MIN_CELLS = 3  # fewest cells of a gene that is kept
Making = Callable[[int], AnnData]
_SCREEN = {
    "conditions": Conditions("drug", dose="dose", descriptors="descriptors"),
    "labels_key": "cell_type",
}
_TIMED = {
    "conditions": Conditions("drug", dose="dose", time="time", descriptors="descriptors"),
    "labels_key": "cell_type",
}
_DRUGS = {"n_obs": 12_000, "n_drugs": 16, "n_descriptors": 2}
_COURSE = {"n_drugs": 6, "n_pairs": 0, "doses": (1.0, 10.0), "times": (2.0, 6.0, 24.0, 72.0)}
#: Data sets by name: function of a seed if they are simulated, and their columns.
SETS: dict[str, tuple[Making | None, dict[str, Any]]] = {
    "screen": (lambda seed: datasets.screen(**_DRUGS, seed=seed), _SCREEN),
    "time course": (lambda seed: datasets.screen(**_COURSE, seed=seed), _TIMED),
    "norman_dev": (None, {"conditions": Conditions("condition"), "labels_key": "cell_type"}),
}


@keeps_seed()
def conditions(
    data: str | Path | AnnData = "screen",
    models: Sequence[str] | Mapping[str, Predictor] | None = None,
    *,
    conditions: Conditions | None = None,
    labels_key: str | None = None,
    kinds: Sequence[str] | None = None,
    most: int | None = None,
    seeds: Sequence[int] = (0,),
    min_cells: int = 30,
    max_epochs: int | None = None,
    judge: str | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Hold out combinations, doses, times, types and perturbations, and predict them with all models.

    Models and baselines are trained anew without each hold-out.

    Parameters
    ----------
    data
        A simulation, ``"screen"`` or ``"time course"`` (:func:`scalloy.datasets.screen`), another one for
        each seed; ``"norman_dev"``, combinations of perturbed genes (:func:`scalloy.datasets.fetch`); or raw
        counts, as AnnData or the path of an h5ad file.
    models
        Names of baselines (:data:`scalloy.baselines.STRUCTURED`) and ``"CGMDVAE"``; ``None`` is all of them;
        or a mapping from names to :class:`scalloy.benchmark.structured_rivals.Predictor`.
    conditions, labels_key
        Columns of ``.obs`` with the conditions and with cell types, for data of one's own.
    kinds
        Kinds of hold-outs, see :mod:`scalloy.benchmark.hold_outs`; ``None`` is all that the data allow.
    most
        Largest number of hold-outs of each kind; ``None`` is all.
    seeds
        Random seeds of the simulation, the weights, the split, the training and the sampling.
    min_cells
        Minimum number of cells of a context to be scored, if it was measured and not simulated.
    max_epochs
        Maximum number of epochs; ``None`` uses the default of each model.
    judge
        Name of another judge in :data:`scalloy.benchmark.transfer.JUDGES`, which scores the predicted counts
        of all contexts of a kind and a type together; ``None`` uses our scores.
    **model
        Arguments of CGMDVAE.

    Returns
    -------
    One row for each context, method and seed (-1 for methods without randomness on measured cells).

    Examples
    --------
    >>> asked = {"kinds": ["largest dose"], "most": 1}
    >>> table = sa.benchmark.conditions("screen", ["no change", "interpolation"], **asked)
    >>> table.groupby("method")["skill"].mean()["no change"].item()
    0.0
    """
    known = models if isinstance(models, Mapping) else predictors(models, max_epochs=max_epochs, **model)
    chosen = list(KINDS) if kinds is None else [one_of("kinds", kind, KINDS) for kind in kinds]
    scored = _scored if judge is None else partial(_judged, JUDGES[one_of("judge", judge, JUDGES)])
    make, told = _data(data, conditions, labels_key)
    rows: list[dict[str, Any]] = []
    for seed in seeds if is_simulated(cells := make(seeds[0])) else (None,):
        cells = cells if seed in (None, seeds[0]) else make(seed)
        task = Task(cells, **told, judged=judge is not None)
        for kind in chosen:
            some = task.hold_outs(kind, most, 1 if task.simulated and judge is None else min_cells)
            rows += scored(task, some, known, seeds if seed is None else (seed,))
    if not rows:
        msg = (
            f"There is nothing to hold out of these kinds: {', '.join(chosen)}. Pass other `kinds`, or fewer "
            f"`min_cells` than {min_cells}."
        )
        raise ValueError(msg)
    return pd.DataFrame(rows)


def _data(
    data: str | Path | AnnData, conditions: Conditions | None, labels_key: str | None
) -> tuple[Making, dict[str, Any]]:
    """Return a function of a seed that gives the cells, and the columns of the cells."""
    if isinstance(data, str) and data in SETS:
        make, told = SETS[data]
        return make or (lambda seed: _with_counts(datasets.labelled(data))), told
    if conditions is None:
        msg = (
            f"`data` is none of {', '.join(SETS)}, so its columns are not known. Pass "
            "`conditions=Conditions(...)`, which names them, and `labels_key`."
        )
        raise ValueError(msg)
    cells = data if isinstance(data, AnnData) else ad.read_h5ad(data)
    cells = cells if is_simulated(cells) else _with_counts(cells)
    return lambda seed: cells, {"conditions": conditions, "labels_key": labels_key}


def _with_counts(cells: AnnData) -> AnnData:
    """Return the cells that have counts, without genes that hardly any cell has."""
    genes = np.asarray((cells.X > 0).sum(axis=0)).ravel() >= MIN_CELLS
    return with_counts(cells[:, genes])


def _predictions(
    task: Task, held: Sequence[HoldOut], known: Mapping[str, Predictor], seeds: Sequence[int]
) -> Iterator[tuple[HoldOut, Context, Fold, str, int, Predicted]]:
    """Train every method without each hold-out, and predict what is scored."""
    for hold_out in held:
        fold = task.fold(hold_out)
        for name, predictor in known.items():
            for seed in seeds if predictor.seeded or is_simulated(task.cells) else (-1,):
                predict = predictor.trained(fold, max(seed, 0))
                for group, content in hold_out.scored:
                    if (found := predict(group, content)) is not None:
                        yield hold_out, (group, content), fold, name, seed, found


def _scored(
    task: Task, held: Sequence[HoldOut], known: Mapping[str, Predictor], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the scores of all methods in each context."""
    rows, truths = [], dict[tuple[str, Context], Truth]()
    for hold_out, context, fold, name, seed, found in _predictions(task, held, known, seeds):
        key = hold_out.name, context
        if key not in truths:
            truths[key] = task.truth(context, fold)
        about = {
            "kind": hold_out.kind,
            "held_out": hold_out.name,
            "type": context[0],
            "condition": task.design.name_of(context[1]),
        }
        scores = truths[key].scores(found, combined=len(context[1].parts) > 1)
        rows.append({**about, "method": name, "seed": seed, **scores})
    return rows


def _judged(
    judge: Any, task: Task, held: Sequence[HoldOut], known: Mapping[str, Predictor], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Let a judge score the counts of all contexts of a kind together, in each type."""
    if not held:
        return []
    made: dict[tuple[str, str, int], list[AnnData]] = {}
    for _, (group, content), fold, name, seed, found in _predictions(task, held, known, seeds):
        source = fold.source[group]
        counts = (
            found.counts
            if found.counts is not None
            else counts_after(source, found.change, 1e4, max(seed, 0))
        )
        cells = AnnData(np.zeros(source.shape, dtype=np.float32), obs=source.obs[[]], var=source.var)
        cells.layers["counts"], cells.obs[CONDITION] = counts, task.design.name_of(content)
        made.setdefault((group, name, seed), []).append(cells)
    scored = {context for hold_out in held for context in hold_out.scored}
    control = task.design.name_of(task.design.reference)
    seen = task.plain(np.concatenate([rows for c, rows in task.rows.items() if c not in scored]))
    keys = {"condition_key": CONDITION, "control": control, "seen": seen}
    out = []
    for group in dict.fromkeys(group for group, _, _ in made):
        contexts = [(group, task.design.reference), *sorted(c for c in scored if c[0] == group)]
        real = task.plain(np.concatenate([task.rows[c] for c in contexts]))
        about = {"kind": held[0].kind, "type": group}
        found = judge.references(real, **keys)
        out += [{**about, "method": name, "seed": -1, **scores} for name, scores in found.items()]
        for (_, name, seed), cells in ((k, v) for k, v in made.items() if k[0] == group):
            predicted = ad.concat(cells, index_unique="-")
            mine = real[real.obs[CONDITION].isin([control, *predicted.obs[CONDITION]]).to_numpy()].copy()
            out.append({**about, "method": name, "seed": seed, **judge.judged(predicted, mine, **keys)})
    return out


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Average over contexts and seeds, for each kind of hold-out and each method.

    ``skill`` has the mean and the worst over contexts, and that of all contexts together, in which each
    counts as much as it changes.
    """
    by = frame.groupby(["kind", "method"], sort=False)
    if "skill" not in frame:
        scores = [c for c in frame if c not in {"kind", "type", "method", "seed"}]
        return by[scores].mean().round(3)
    out = pd.DataFrame(
        {
            ("skill", "mean"): by["skill"].mean(),
            ("skill", "worst"): by["skill"].min(),
            ("skill", "together"): 1 - by["error"].sum() / by["change"].sum(),
            **{(c, "mean"): by[c].mean() for c in ("pearson_delta", "beyond_additive", "coverage_90")},
            ("contexts", ""): by.size(),
        }
    )
    return out.round(3)
