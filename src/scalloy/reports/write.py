"""Assembly of the report page, and writing it to a file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from scalloy._arguments import positive
from scalloy.data.checks import check_type, find_column
from scalloy.files import atomic_write
from scalloy.reports import checks, donors, predictions, responses, sections
from scalloy.reports.page import SVG, Section, page
from scalloy.reports.subject import Subject

SUFFIXES = (".html", ".htm")
PACKAGES = ("scalloy", "scvi-tools", "torch", "anndata", "scanpy", "numpy")


def report(
    model: Any,
    path: str | Path,
    adata: Any = None,
    *,
    keys: str | Sequence[str] | None = None,
    groupby: str | None = None,
    donor_key: str | None = None,
    held_out: str | None = None,
    max_epochs: int | None = None,
    title: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> list[str]:
    """Write a report on the model and its cells as one self-contained HTML page.

    The page needs no other files and no network. It begins with what to look at, followed by training curves
    by term, the latent space by any keys, clusters against labels, usage of components, groups of donors,
    predictions under another condition beside simple baselines, dose curves and combinations, the fit of
    counts, settings and versions.

    Parameters
    ----------
    model
        Trained model.
    path
        File to write, ending in ``.html`` or ``.htm``.
    adata
        Cells with the genes of the model; ``None`` uses the model's own.
    keys
        Columns of ``.obs``, or genes, by which the latent space is coloured; ``None`` uses the registered
        columns. Clusters are drawn in any case.
    groupby
        Column of ``.obs`` with groups of donors to compare; ``None`` uses the registered conditions.
    donor_key
        Column of ``.obs`` with donors; ``None`` uses the registered donors or batches.
    held_out
        Label of a cell type; for each condition but the control, the model is trained again without this type
        under the condition, and predicts it, beside simple baselines.
    max_epochs
        Maximum number of epochs of these trainings; ``None`` uses the default.
    title
        Title of the page; ``None`` uses the name of the model.
    seed
        Random seed of the choice of cells and of samples; equal seeds give the same page to the last byte.
    overwrite
        Whether to overwrite an existing file.

    Returns
    -------
    Findings to look at, one text each.

    Examples
    --------
    >>> findings = sa.report(model, "report.html")  # doctest: +SKIP
    >>> findings = model.report("by_cluster.html", keys=["cluster", "batch"])  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        msg = f"`{path}` is to be a page. Let its name end in {' or '.join(SUFFIXES)}."
        raise ValueError(msg)
    if path.exists() and not overwrite:
        msg = f"`{path}` exists. Pass `overwrite=True`, or another path."
        raise FileExistsError(msg)
    if held_out is not None:
        predictions.check_held_out(model, held_out)
    if max_epochs is not None:
        positive(max_epochs=max_epochs)
    subject = _subject(model, adata, [keys] if isinstance(keys, str) else keys, seed)
    compared = donors.columns(subject, groupby, donor_key)
    with plt.ioff(), mpl.rc_context(SVG):
        done, made = _made(subject, compared, held_out, max_epochs)
        text = _page(subject, title, done, made)
    with atomic_write.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write.put(path, text.encode())
    return [c.finding for c in done if c.good is False]


def _subject(model: Any, adata: Any, keys: Sequence[str] | None, seed: int) -> Subject:
    """Check the cells and keys, and join them with the model."""
    if model.reader.is_own(adata):
        cells, given = model.reader.manager().adata, None
    else:
        cells = given = check_type(model.reader.fitting(adata))
    for key in keys or ():
        if key not in cells.var_names:
            find_column(cells.obs, "keys", key, nor=", nor a gene")
    return Subject(model, cells, given, seed, None if keys is None else list(dict.fromkeys(keys)))


def _made(
    subject: Subject, compared: donors.Columns | None, held_out: str | None, max_epochs: int | None
) -> tuple[list[checks.Check], list[Section]]:
    """Return the checks, and the sections that follow them."""
    model = subject.model
    told, genes = checks.neighbours(subject), _genes(subject)
    done = [
        checks.converged(model.history or {}),
        checks.latents_used(subject.z),
        checks.clusters_used(subject),
        checks.over_corrected(told, subject.key("batch_key") is not None),
        checks.mixed(told),
        checks.zeros(genes, len(subject.rows)),
        checks.variance(genes),
    ]
    latent = sections.latent(subject)
    latent.parts.extend(sections.neighbours(told))
    made = [sections.training(model), latent, sections.clusters(subject), sections.usage(subject)]
    if compared is not None:
        made.append(donors.groups_of_donors(subject, compared))
    if predictions.can_transfer(model):
        unseen = predictions.unseen_pairs(subject)
        done.append(checks.far(unseen))
        made.append(sections.transfer(model, predictions.seen_pairs(subject), unseen))
        if (section := responses.responses(model)) is not None:
            made.append(section)
    if held_out is not None:
        frame = predictions.held_out(subject, held_out, max_epochs)
        made.append(sections.held_out(frame, held_out))
    versions = {p: version(p) for p in PACKAGES}
    return done, [*made, sections.fit(genes), sections.about(subject, versions)]


def _genes(subject: Subject) -> pd.DataFrame | None:
    """Return observed and expected statistics of expressed genes, if the likelihood models counts."""
    if not subject.model.module.likelihood.draws_counts:
        return None
    model, rows = subject.model, subject.rows
    genes = model.get_gene_statistics(subject.given, indices=rows, seed=subject.seed)
    return genes[genes["mean_observed"] >= checks.EXPRESSED]


def _page(subject: Subject, title: str | None, done: list[checks.Check], made: list[Section]) -> str:
    """Return the HTML of the page with its heading and facts."""
    model, cells = subject.model, subject.adata
    name = type(model).__name__
    facts: list[tuple[str, Any]] = [("cells", cells.n_obs), ("genes", cells.n_vars)]
    history = model.history or {}
    if "elbo_train" in history:
        facts.append(("epochs", len(history["elbo_train"])))
    if "elbo_validation" in history:
        lowest = history["elbo_validation"].iloc[:, 0].astype(float).min()
        facts.append(("validation -ELBO, nats per cell", float(lowest)))
    facts.append(("clusters" if subject.has_mixture else "clusters (Leiden)", subject.clusters.nunique()))
    look = sum(c.good is False for c in done)
    facts.append(("to look at", f"{look} of {sum(c.good is not None for c in done)} checks"))
    whose = "cells that it was trained on" if subject.given is None else "new cells"
    about = f"{name} of scalloy and the {whose}. This page needs no network."
    foot = f"Made by scalloy {version('scalloy')}, seed {subject.seed}."
    return page(title or f"{name} report", about, facts, [sections.findings(done), *made], foot)
