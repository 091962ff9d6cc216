"""Sections of the report page."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scalloy import metrics, pl
from scalloy._arguments import few
from scalloy.perturbation.donors import AT_LEAST
from scalloy.pl.history import term_names
from scalloy.reports import checks, predictions
from scalloy.reports.checks import Check
from scalloy.reports.page import Picture, Section, Table, Text, picture
from scalloy.reports.predictions import Seen
from scalloy.reports.subject import Subject

DRAWN = 6  # maximum number of scatter plots of transfers
NAMED = 5  # genes that are named in each
NAMES = {
    "umap": "UMAP of the latent space",
    "pca": "Principal components of the latent space",
    "latent": "The latent space",
}
TERMS = {"elbo": "-ELBO", "reconstruction_loss": "reconstruction"}


def findings(done: list[Check]) -> Section:
    """Make the section with what to look at, followed by all checks."""
    look = [Text(c.finding, note=True) for c in done if c.good is False]
    first = look or [Text("Every check that can be made of this model and these cells is good.")]
    return Section("What to look at", [*first, Table(checks.table(done), "All checks", folded=bool(look))])


def training(model: Any) -> Section:
    """Make the section on training: a curve of each term, and the values in the best epoch."""
    history = model.history or {}
    if "elbo_train" not in history:
        return Section("Training", [Text("The model has no training history.")])
    n, parts = len(history["elbo_train"]), list[Any]()
    best, said = n - 1, "there were no validation cells."
    if "validation_loss" in history:
        best = int(np.argmin(history["validation_loss"].iloc[:, 0].astype(float).to_numpy()))
        said = f"the loss of validation cells was lowest in epoch {best + 1}."
    unit = "Terms are in nats per cell (kl_global: of all cells together); lower is better."
    parts.append(Text(f"{n:,} epochs; {said} {unit}"))
    for term in term_names(history):
        ax = plt.subplots(figsize=(3.8, 2.5), layout="constrained")[1]
        pl.history(model, term, ax=ax)
        alt = f"Curves of {ax.get_ylabel()} over {n} epochs, of training and validation cells."
        parts.append(picture(ax.figure, alt, f"{TERMS.get(term, term)} by epoch."))
    rows: dict[str, dict[str, float]] = {}
    for name in history:
        term, _, part = name.rpartition("_")
        if part in {"train", "validation"} and len(history[name]) == n:
            rows.setdefault(term, {})[part] = float(history[name].iloc[best, 0])
    frame = pd.DataFrame.from_dict(rows, orient="index").rename(index=TERMS)
    frame = frame[[c for c in ("train", "validation") if c in frame]]
    parts.append(Table(frame.rename_axis("term"), f"Terms in epoch {best + 1}"))
    return Section("Training", parts)


def latent(subject: Subject) -> Section:
    """Make the section that draws the latent space, coloured by each key."""
    cells, parts = subject.drawn, list[Any]()
    name, n = NAMES[subject.method], f"{cells.n_obs:,} cells"
    if cells.n_obs < subject.adata.n_obs:
        n = f"{cells.n_obs:,} of {subject.adata.n_obs:,} cells"
    for key in dict.fromkeys([*subject.keys, subject.cluster_key]):
        figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
        pl.latent(cells, key, basis=subject.basis, ax=ax)
        kind = "a number"
        if key in cells.obs and not pd.api.types.is_numeric_dtype(cells.obs[key]):
            names = cells.obs[key].astype("category").cat.categories
            kind = f"{len(names)} categories: {few(names)}"
        alt = f"{name} of {n}, coloured by {key}, {kind}."
        parts.append(picture(figure, alt, f"{name}, {n}, by {key}."))
    return Section("Latent space", parts)


def neighbours(told: pd.DataFrame) -> list[Any]:
    """Make the table of how well neighbours tell each column."""
    if told.empty:
        return []
    text = (
        "Accuracy with which 15 neighbours tell what a cell is (five-fold), in the latent space and in "
        "principal components of uncorrected counts. Cell types should be told as well as in the components; "
        "what was removed should be told no better than by chance, if batches hold the same kinds of cells."
    )
    return [Text(text), Table(told, "What neighbours tell")]


def clusters(subject: Subject) -> Section:
    """Make the section that compares clusters with labels."""
    parts: list[Any] = []
    if not subject.has_mixture:
        parts.append(Text("The model has no mixture: the clusters are Leiden's in its latent space."))
    known = subject.known.notna().to_numpy()
    if not known.any():
        parts.append(Text("No labels were registered that could be compared with the clusters."))
        parts.append(Table(_sizes(subject), "Cells of each cluster"))
        return Section("Clusters and labels", parts)
    sets = {"all cells": known}
    if subject.held_out is not None and (known & subject.held_out).sum() > 1:
        sets["cells that training left out"] = known & subject.held_out
    found, truth = subject.clusters.astype(str).to_numpy(), subject.known.to_numpy()
    rows = {name: _agreement(truth[rows], found[rows]) for name, rows in sets.items()}
    if hasattr(subject.model, "predict_labels") and subject.model.labels:
        text = "The model was trained with labels, so agreement is no evidence that it would find them."
        parts.append(Text(text, note=True))
    parts.append(Table(pd.DataFrame.from_dict(rows, orient="index"), "Agreement of clusters and labels"))
    cells, key = subject.drawn[known].copy(), str(subject.key("labels_key"))
    figure = pl.clusters(cells, subject.cluster_key, key).figure
    alt = f"Heat map: share of the cells of each {key} in each cluster; the numbers are in the table."
    parts.append(picture(figure, alt, f"Where the cells of each {key} went, in percent.", wide=True))
    counts = pd.crosstab(subject.known[known], pd.Series(found, index=subject.known.index)[known])
    parts.append(Table(counts.rename_axis(key), f"Cells of each {key} in each cluster", folded=True))
    return Section("Clusters and labels", [*parts, *_told(subject, sets)])


def _agreement(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return scores of the agreement between labels and clusters."""
    return {
        "cells": len(truth),
        "ARI": float(adjusted_rand_score(truth, found)),
        "NMI": float(normalized_mutual_info_score(truth, found)),
        "accuracy, one cluster per label": metrics.hungarian_accuracy(truth, found),
        "purity": metrics.purity(truth, found),
    }


def _sizes(subject: Subject) -> pd.DataFrame:
    """Return the number and share of cells in each cluster."""
    sizes = subject.clusters.value_counts(sort=False)
    return pd.DataFrame({"cells": sizes, "share": sizes / sizes.sum()}).rename_axis("cluster")


def _told(subject: Subject, sets: dict[str, np.ndarray]) -> list[Any]:
    """Make the table that scores the labels which the model predicts from counts alone."""
    model = subject.model
    if not hasattr(model, "predict_labels") or not model.labels:
        return []
    p = model.predict_labels(subject.given, indices=subject.rows, soft=True)
    unknown = model.get_unknown_score(subject.given, indices=subject.rows).to_numpy()
    told, sure = np.asarray(p.columns)[p.to_numpy().argmax(1)], p.to_numpy().max(1)
    right, rows = told == subject.known.to_numpy(), {}
    for name, part in {**sets, "cells of unknown type": subject.known.isna().to_numpy()}.items():
        if not part.any():
            continue
        is_known = name in sets
        ece = metrics.expected_calibration_error(right[part], sure[part]) if is_known else np.nan
        rows[name] = {
            "cells": int(part.sum()),
            "right": float(right[part].mean()) if is_known else np.nan,
            "calibration error": ece,
            "flagged as of no known type": float((unknown[part] > 0.5).mean()),
        }
    return [Table(pd.DataFrame.from_dict(rows, orient="index"), "Labels told from counts alone")]


def usage(subject: Subject) -> Section:
    """Make the section on the clusters used by each condition and batch, and on latents in use."""
    parts: list[Any] = []
    cells, tables = subject.drawn, []
    for role in ("condition_key", "batch_key"):
        if (key := subject.key(role)) is None:
            continue
        figure = pl.clusters(cells, subject.cluster_key, key, kind="composition").figure
        alt = f"Bars: of which {key} the cells of each cluster are; the numbers are in the table."
        parts.append(picture(figure, alt, f"Of which {key} the cells of each cluster are."))
        share = pd.crosstab(cells.obs[key].astype(str), cells.obs[subject.cluster_key], normalize="index")
        tables.append(Table(share.rename_axis(key), f"Share of each {key} in each cluster", folded=True))
    parts += tables
    frame = pd.DataFrame({"mean": subject.z.mean(0), "variance": subject.z.var(0)}).rename_axis("latent")
    active = getattr(subject.model, "get_active", None)
    if active is not None:
        on = np.asarray(active(subject.given, indices=subject.rows))
        frame["share of cells in which it is on"] = on.mean(0)
    text = f"A latent is in use if the variance of its mean over cells is more than {checks.UNUSED}."
    parts += [Text(text), Table(frame, "Latents", folded=active is None)]
    return Section("Usage of components", parts)


def fit(genes: pd.DataFrame | None) -> Section:
    """Make the section that compares zeros and variances of genes with what the model expects."""
    title = "Fit of counts"
    if genes is None:
        return Section(title, [Text("The likelihood does not model counts, so there are no expected zeros.")])
    text = (
        "Posterior predictive check: each cell is encoded, a latent is drawn, and the mean, the variance and "
        "the share of zeros that the likelihood then expects are set beside what was counted."
    )
    parts: list[Any] = [Text(text)]
    for of, what in (("zeros", "Share of cells without a count"), ("variance", "Variance of counts")):
        ax = pl.counts(genes, of)
        for axis in (ax.xaxis, ax.yaxis):
            if axis.get_scale() == "log":  # formulas are not parsed in these pages
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        seen, expected = genes[f"{of}_observed"].mean(), genes[f"{of}_expected"].mean()
        means = f"on average {expected:.3g} are expected, {seen:.3g} were observed"
        alt = f"{what} of {len(genes):,} genes, expected against observed; {means}."
        parts.append(picture(ax.figure, alt, f"{what}, one point per gene; the line is a perfect fit."))
    off = (genes["zeros_expected"] - genes["zeros_observed"]).abs().nlargest(10).index
    frame = genes.loc[off, [f"{of}_{by}" for of in ("zeros", "variance") for by in ("observed", "expected")]]
    parts.append(Table(frame.rename_axis("gene"), "Genes whose zeros fit worst", folded=True))
    return Section(title, parts)


def transfer(model: Any, seen: list[Seen], unseen: pd.DataFrame) -> Section:
    """Make the section on predictions of groups seen in training, beside simple baselines."""
    name, control = type(model).__name__, predictions.control_of(model)
    text = (
        f"Control cells ({control}) of each group, predicted under another condition. {name} was trained on "
        "these very groups and decodes what it has seen; the simple predictions know the other groups only. "
        "So this shows whether the model can express the change at all, and what there is to beat. It is no "
        "test: for that a type must be held out."
    )
    parts: list[Any] = [Text(text, note=True)]
    if seen:
        frame = pd.DataFrame([s.row() for s in seen]).set_index("group")
        parts.append(Table(frame, "Skill of the predicted change: 0 is no change, 1 is perfect"))
        for pair in sorted(seen, key=lambda s: -np.square(s.truth - s.control).sum())[:DRAWN]:
            parts.append(_scatter(pair, name, list(model.get_var_names())))
    else:
        parts.append(Text("Fewer than two groups were seen under both conditions."))
    if len(unseen):
        caption = f"Groups that were not seen under a condition (fewer than {AT_LEAST} cells)"
        parts.append(Table(unseen.set_index("group"), caption))
    return Section("Transfer, pairs seen in training", parts)


def _scatter(pair: Seen, name: str, genes: list[str]) -> Picture:
    """Draw the predicted against the true change of each gene."""
    ax = plt.subplots(figsize=(3.8, 3.8), layout="constrained")[1]
    pl.transfer(pair.predicted[name], pair.truth, pair.control, genes=genes, n_named=NAMED, ax=ax)
    ax.set_title(f"{pair.group} to {pair.to}\n{ax.get_title()}", fontsize="medium")
    alt = f"Predicted against true change of {len(genes):,} genes of {pair.group} under {pair.to}."
    return picture(ax.figure, alt, f"{pair.group} under {pair.to}: change of each gene, predicted and true.")


def held_out(frame: pd.DataFrame, name: str) -> Section:
    """Make the section on a type that was held out."""
    text = (
        f"Cells of type {name} were removed under each condition but the control in turn. The model was "
        "trained again on the other cells with the same settings, and predicted them; so did the simple "
        "predictions. The ceiling is what a prediction without noise would score."
    )
    columns = [c for c in predictions.SHOWN if c in frame]
    parts: list[Any] = [Text(text)]
    for condition, rows in frame.groupby("condition", sort=False):
        table = rows.set_index("method")[columns].sort_values("skill", ascending=False).round(4) + 0.0
        parts.append(Table(table, f"{name} under {condition}, never seen"))
    figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    pl.held_out(frame, ax=ax)
    alt = f"Bars of the skill of each prediction of {name}; the numbers are in the table."
    return Section("Transfer, held out", [*parts, picture(figure, alt, "Skill of each prediction.")])


def about(subject: Subject, versions: dict[str, str]) -> Section:
    """Make the section on settings, seed, registered columns, fingerprint of the data, and versions."""
    model = subject.model
    settings = {k: v for k, v in model.init_params_["non_kwargs"].items() if k != "seed"}
    setup = {k: v for k, v in subject.setup.items() if not (v is None or v is False)}
    if (structure := model.reader.structure) is not None:
        setup["conditions"] = structure
    data = model._data or {"": "not known"}
    parts = [
        Table(_column({"seed": model.seed, **settings}), "Settings of the model"),
        Table(_column(setup or {"": "none"}), "What was registered"),
        Table(_column(data), "Fingerprint of the data that it was trained on"),
        Table(_column(versions), "Versions with which this page was made"),
    ]
    return Section("Settings and versions", list(parts))


def _column(values: dict[str, Any]) -> pd.DataFrame:
    """Return names and values as a table of one column."""
    return pd.DataFrame({"value": {k: str(v) for k, v in values.items()}}, dtype=object)
