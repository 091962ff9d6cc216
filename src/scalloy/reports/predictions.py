"""Predictions under another condition beside simple baselines: of seen groups, and of a type left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy import metrics
from scalloy._arguments import one_of
from scalloy.baselines import SHIFTS
from scalloy.data.asked_conditions import design_in
from scalloy.models._core.changes import shown
from scalloy.reports.subject import Subject

MOST = 12  # largest number of conditions that are shown
EACH = 500  # maximum number of cells per group that are decoded
TOTAL = 1e4  # scale of expression, if the data are not counts
SIMPLE = ("mean shift", "kernel ridge")  # beside those that users registered
SHOWN = ("skill", "pearson_delta", "r2_mean")


@dataclass(frozen=True)
class Seen:
    """Group of cells that was seen under two conditions: mean of its controls, true mean, and predictions."""

    group: str
    to: str
    control: np.ndarray
    truth: np.ndarray
    predicted: dict[str, np.ndarray]

    def row(self) -> dict[str, Any]:
        """Return the skill of each prediction as a row of a table."""
        skill = {k: metrics.skill(v, self.truth, self.control) for k, v in self.predicted.items()}
        return {"group": self.group, "to": self.to, **skill}


def can_transfer(model: Any) -> bool:
    """Tell whether the model knows several conditions and has the cells that it was trained on."""
    knows = hasattr(model, "transfer") and model.condition_key is not None and len(model.conditions) > 1
    return knows and model.adata is not None


def control_of(model: Any) -> str:
    """Return the condition from which predictions start: the control, or the most frequent one."""
    if (structure := model.reader.structure) is not None:
        design = design_in(structure)
        return design.name_of(design.reference)
    if "control" in model.conditions:
        return "control"
    return str(model.adata.obs[model.condition_key].astype(str).value_counts().index[0])


def seen_pairs(subject: Subject) -> list[Seen]:
    """Predict every group seen under both conditions; the baselines learn from the other groups only."""
    model, out = subject.model, []
    control, means = control_of(model), _means(model)
    for to, groups in _by_condition(model, control, means):
        both = [g for g in groups if (g, to) in means]
        if len(both) < 2:
            continue
        made = _predicted(subject, control, to, both, "decoder")
        c = np.stack([means[g, control] for g in both])
        d = np.stack([means[g, to] for g in both]) - c
        for i, group in enumerate(both):
            others = np.delete(c, i, 0), np.delete(d, i, 0), c[i]
            predicted = {type(model).__name__: made[group][0], "no change": c[i]}
            predicted |= {name: c[i] + SHIFTS[name][0](*others) for name in (*SIMPLE, *SHIFTS.added)}
            out.append(Seen(group, to, c[i], c[i] + d[i], predicted))
    return out


def unseen_pairs(subject: Subject) -> pd.DataFrame:
    """List the groups that were not seen under a condition, and whether they are far from those that were."""
    model, rows = subject.model, []
    control, means = control_of(model), _means(model)
    for to, groups in _by_condition(model, control, means):
        lacks = [g for g in groups if (g, to) not in means]
        for group, (_, is_far) in _predicted(subject, control, to, lacks, "auto").items():
            rows.append({"group": group, "to": to, "far": is_far})
    return pd.DataFrame(rows, columns=["group", "to", "far"])


def _means(model: Any) -> dict[tuple[str, str], np.ndarray]:
    """Return the mean log-normalised expression of each group under each condition."""
    return {pair: moments.mean for pair, moments in shown(model, TOTAL)[0].of_groups().items()}


def _by_condition(model: Any, control: str, means: dict) -> Iterator[tuple[str, list[str]]]:
    """Yield the most frequent conditions but the control, with the groups that have control cells."""
    groups = sorted(g for g, c in means if c == control)
    n = model.adata.obs[model.condition_key].astype(str).value_counts()
    most = set(n.drop(control, errors="ignore").sort_values(ascending=False, kind="stable").index[:MOST])
    for to in model.conditions:
        if to in most:
            yield to, groups


def _predicted(
    subject: Subject, control: str, to: str, groups: list[str], route: str
) -> dict[str, tuple[np.ndarray, bool]]:
    """Predict the mean of each group's control cells under ``to``, and tell whether the group is far."""
    model, rng, rows = subject.model, np.random.default_rng(subject.seed), []
    of, under = (
        model.get_transfer_groups().to_numpy(),
        model.adata.obs[model.condition_key].astype(str).to_numpy(),
    )
    for group in groups:
        found = np.flatnonzero((of == group) & (under == control))
        rows.append(rng.permutation(found)[:EACH])
    if not rows:
        return {}
    cells = model.adata[np.concatenate(rows)].copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Far from what was seen")
        scale = shown(model, TOTAL)[0].scale  # that of the means beside which these are put
        how = {"seed": subject.seed, "target_sum": scale}
        made = model.transfer(cells, to=to, route=route, **how)
    is_far = made.obs.get("transfer_far", pd.Series(False, index=made.obs_names)).to_numpy()
    ends = np.cumsum([0, *map(len, rows)])
    x = np.asarray(made.X)
    return {g: (x[a:b].mean(0), bool(is_far[a:b].any())) for g, a, b in zip(groups, ends, ends[1:])}


def held_out(subject: Subject, name: str, max_epochs: int | None) -> pd.DataFrame:
    """Train model and baselines without a type under each condition but the control in turn; score them."""
    from scalloy.benchmark.rivals import Rival, rivals
    from scalloy.benchmark.transfer import transfer
    from scalloy.data.checks import check_layer

    model, setup = subject.model, dict(subject.setup)
    layer, cls = setup.pop("layer", None), type(model)
    own = model.adata
    obs = own.obs[[c for c in own.obs if not str(c).startswith("_scvi")]].copy()
    cells = AnnData(check_layer(own, layer).copy(), obs=obs, var=pd.DataFrame(index=own.var_names))
    init = model.init_params_["non_kwargs"]

    def make(train: AnnData, *_: str) -> Any:
        cls.setup_anndata(train, **setup)
        return cls(train, **init)

    names = ("no change", *SIMPLE, "partial pooling", "learned pooling", *SHIFTS.added)
    simple = {k: rivals()[k] for k in names}
    again = {cls.__name__: {}, f"{cls.__name__}, decoder alone": {"route": "decoder"}}
    frame = transfer(
        cells,
        {**simple, cls.__name__: Rival(make, again)},
        condition_key=model.condition_key,
        labels_key=setup["labels_key"],
        control=control_of(model),
        hold_out=[name],
        seeds=[model.seed],
        n_genes=cells.n_vars,
        max_epochs=max_epochs,
    )
    if frame.empty:
        msg = (
            f"`held_out={name!r}` has fewer than 30 cells under every other condition, or none under "
            f"{control_of(model)!r}. Pass another label."
        )
        raise ValueError(msg)
    return frame


def check_held_out(model: Any, name: str) -> None:
    """Raise if a type cannot be held out, before any work is done."""
    labels = model.registry["setup_args"].get("labels_key")
    if not can_transfer(model) or labels is None:
        msg = (
            f"`held_out={name!r}` needs a model with conditions and labels, and the cells that it was "
            "trained on. Train with `condition_key` and `labels_key`, and pass the same cells."
        )
        raise ValueError(msg)
    one_of("held_out", name, model.labels)
