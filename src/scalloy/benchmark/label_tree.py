"""Benchmark of labels with a hierarchy: some cells are known as a class only, and a type may be left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from sklearn.linear_model import LogisticRegression

from scalloy import metrics
from scalloy._arguments import one_of
from scalloy.benchmark.clustering import centred, principal_components
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.fit import QUIET, load
from scalloy.benchmark.labels import UNKNOWN, _scanvi, some_of_each
from scalloy.blocks.hierarchy import ROOT
from scalloy.data.label_tree import LabelTree
from scalloy.metrics.hierarchy import with_those_above
from scalloy.models import CGMDVAE

LEVEL, COVERAGE = 0.9, 0.9
CLASSES = {
    "pbmc_4study": {"CD4 T": "T", "CD8 T": "T", "CD14+ Mono": "Monocytes", "CD16+ Mono": "Monocytes"},
    "kang": {
        "CD4 T cells": "T cells",
        "CD8 T cells": "T cells",
        "CD14+ Monocytes": "Monocytes",
        "FCGR3A+ Monocytes": "Monocytes",
    },
}
BATCHES = {"pbmc_4study": "batch", "kang": "condition", "kang_subset": "condition"}
PARTS = {"pbmc3k": "pbmc_4study", "kang_subset": "kang"}  # sets with the classes of another one
DATA = ("zeisel_cortex", "pbmc_4study", "pbmc3k", "kang", "kang_subset")
SCORES = ("hierarchical_f1", "deepest_at_90", "ece", "given", "right", "leaves", "kept", "time")


class Task(NamedTuple):
    """Cells with the labels that are known of them, their tree, and the truth."""

    cells: AnnData  # with the columns "coarse" and "fine"
    tree: LabelTree
    truth: np.ndarray
    asked: np.ndarray  # mask of the unlabelled cells whose leaf is known
    new: np.ndarray  # mask of the cells of the type that is left out
    batch: str | None  # column whose effect is removed


class Told(NamedTuple):
    """Probabilities of the leaves of all cells, and the deepest label of each that reaches the level."""

    p: pd.DataFrame
    deepest: np.ndarray


@keeps_seed()
def label_tree(
    data: Sequence[str] = ("zeisel_cortex",),
    *,
    share: float = 0.1,
    coarse: float = 0.5,
    leave_out: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    scanvi: bool = False,
    scanvi_epochs: int | None = None,
    n_genes: int = 2000,
    max_epochs: int | None = None,
    **model: Any,
) -> pd.DataFrame:
    """Predict labels in a tree from a share of the cells, of which many are known as an inner node only.

    The columns are: ``hierarchical_f1`` of the most probable leaves; ``deepest_at_90``, the share of right
    leaves among the 90 % surest cells; ``ece`` of the leaves; and for the deepest labels with a probability
    of 0.9, the share of cells that get a label (``given``), how many of these labels are right (``right``),
    and the share of cells that get a leaf (``leaves``). For a type that is left out, ``kept`` is the share of
    its cells that get a label above it or none.

    Rivals are logistic regressions on 30 principal components, flat and with one at each split of the tree;
    our model without the tree; and scANVI. Those without the tree learn from cells with a leaf only.

    Parameters
    ----------
    data
        ``"zeisel_cortex"`` (7 classes, 48 sub-classes), ``"pbmc_4study"`` (T > CD4 and CD8 T, monocytes >
        CD14+ and CD16+; studies are removed as batches), ``"pbmc3k"``, which is one of its studies,
        ``"kang"`` or ``"kang_subset"`` (ships with the package; the same classes, the condition is removed).
    share
        Share of the cells of each label that are labelled, at least two.
    coarse
        Share of the labelled cells that are known as a class only; two cells of each leaf are kept.
    leave_out
        Leaves to leave out of the labels, one at a time, besides none.
    seeds
        Random seeds of the choice of labelled cells, the weights and the training.
    scanvi
        Whether to run scANVI as a rival (SCVI's epochs, then 20 of scANVI).
    scanvi_epochs
        Maximum number of epochs of SCVI; ``None`` uses its default.
    n_genes
        Number of most variable genes that are kept.
    max_epochs
        Maximum number of epochs of our models; ``None`` uses the default.
    **model
        Arguments of CGMDVAE.

    Examples
    --------
    >>> table = sa.benchmark.label_tree(["kang_subset"], seeds=[0], n_genes=50, max_epochs=1)
    >>> table["method"].tolist()
    ['CGMDVAE, tree', 'CGMDVAE, flat', 'regression, tree', 'regression, flat']
    """
    rows: list[dict[str, Any]] = []
    for name in data:
        adata, batch = _cells(one_of("data", name, DATA), n_genes)
        for out in leave_out:
            one_of("leave_out", out, sorted(adata.obs["leaf"].dropna().unique()))
        for seed in seeds:
            for out in (None, *leave_out):
                task = _task(adata, batch, share, coarse, out, seed)
                about = {"data": name, "left out": out or "-", "seed": seed}
                methods = _methods(task, max_epochs, model, scanvi=scanvi, scanvi_epochs=scanvi_epochs)
                rows += [{**about, **row} for row in _scored(task, methods, seed)]
    return pd.DataFrame(rows)


def _methods(
    task: Task, max_epochs: int | None, model: dict[str, Any], *, scanvi: bool, scanvi_epochs: int | None
) -> dict[str, Callable[[], Told]]:
    """Return the methods that are compared, by their names."""
    out: dict[str, Callable[[], Told]] = {
        "CGMDVAE, tree": lambda: _ours(task, max_epochs, model, tree=True),
        "CGMDVAE, flat": lambda: _ours(task, max_epochs, model, tree=False),
        "regression, tree": lambda: _regressions(task, tree=True),
        "regression, flat": lambda: _regressions(task, tree=False),
    }
    if scanvi:
        out["scANVI"] = lambda: _of_scanvi(task, scanvi_epochs)
    return out


def _scored(task: Task, methods: dict[str, Callable[[], Told]], seed: int) -> list[dict[str, Any]]:
    """Run the methods and score them; their times are in units of the first one's."""
    rows, unit = list[dict[str, Any]](), 0.0
    for method, run in methods.items():
        scvi.settings.seed = seed
        begun = time.perf_counter()
        told = run()
        seconds = time.perf_counter() - begun
        unit = unit or seconds
        rows.append({"method": method, **_scores(task, told), "time": seconds / unit})
    return rows


def _cells(name: str, n_genes: int | None) -> tuple[AnnData, str | None]:
    """Load cells with the columns of true labels, ``class`` and ``leaf``, and the name of their batches."""
    adata = load("pbmc_4study" if name == "pbmc3k" else name, n_genes)
    if name == "pbmc3k":
        adata = adata[adata.obs["batch"] == name].copy()
    given = adata.obs["cell_type"].astype(str)
    if name == "zeisel_cortex":
        fine = adata.obs["cell_type_fine"].astype(str)
        adata.obs["class"], adata.obs["leaf"] = given, fine.mask(fine == "(none)", None)
        return adata, None
    adata.obs["class"], adata.obs["leaf"] = given.replace(CLASSES[PARTS.get(name, name)]), given
    return adata, BATCHES.get(name)


def _task(adata: AnnData, batch: str | None, share: float, coarse: float, out: str | None, seed: int) -> Task:
    """Choose which cells are labelled, and how deep."""
    cells = adata.copy()
    above, leaf = (cells.obs[k].astype(object) for k in ("class", "leaf"))
    truth = leaf.where(leaf.notna(), above).to_numpy()
    rng, new = np.random.default_rng(seed), truth == out
    known = some_of_each(truth, share, seed) & ~new
    only_class = known & (rng.random(len(known)) < coarse)
    for name in leaf[known].dropna().unique():
        only_class[np.flatnonzero(known & (leaf == name).to_numpy())[:2]] = False
    cells.obs["coarse"] = above.where(known, None)
    cells.obs["fine"] = leaf.where(known & ~only_class, None)
    parents = {a: b for a, b in zip(leaf, above, strict=True) if isinstance(a, str) and a not in (b, out)}
    tree = LabelTree.of(sorted(set(truth) - {out}), parents)
    return Task(cells, tree, truth, ~known & leaf.notna().to_numpy() & ~new, new, batch)


def _ours(task: Task, max_epochs: int | None, model: dict[str, Any], *, tree: bool) -> Told:
    """Train CGMDVAE with all labels and their tree, or with the leaves only."""
    cells = task.cells.copy()
    given: dict[str, Any] = {"labels_key": ["coarse", "fine"]}
    if not tree:
        cells.obs["given"] = _leaves(task)
        given = {"labels_key": "given", "label_parents": {}}  # a tree of roots, for calibrated probabilities
    CGMDVAE.setup_anndata(cells, batch_key=task.batch, unlabeled_category=UNKNOWN, **given)
    made = CGMDVAE(cells, **model)
    made.train(max_epochs=max_epochs, **QUIET)
    p = made.predict_labels(soft=True, level=LEVEL)[made.labels]
    return Told(p, made.predict_labels(level=LEVEL).astype(str).to_numpy())


def _leaves(task: Task) -> np.ndarray:
    """Return the known leaf of each cell, or what stands for none."""
    leaf = task.cells.obs["fine"].astype(object)
    one = task.cells.obs["coarse"].where(task.cells.obs["coarse"].isin(task.tree.leaves))
    return leaf.where(leaf.notna(), one).fillna(UNKNOWN).astype(str).to_numpy()


def _regressions(task: Task, *, tree: bool) -> Told:
    """Fit logistic regressions of all leaves, or of the children at each split, on principal components."""
    leaf, of = _leaves(task), task.tree
    batch = task.cells.obs[task.batch].astype(str) if task.batch else None
    x = centred(principal_components(task.cells), batch)
    if not tree:
        known = leaf != UNKNOWN
        model = LogisticRegression(max_iter=3000).fit(x[known], leaf[known])
        p = pd.DataFrame(model.predict_proba(x), columns=model.classes_, index=task.cells.obs_names)
        return _deepest(task, p.reindex(columns=list(of.leaves), fill_value=0.0))
    hierarchy, code = of.hierarchy, {name: i for i, name in enumerate(of.nodes)}
    label = task.cells.obs["coarse"].astype(object).where(leaf == UNKNOWN, leaf)
    y = np.array([code.get(name, len(code)) for name in label])
    p_of = {ROOT: np.ones(len(x))}
    for node in (ROOT, *sorted(range(len(code)), key=lambda node: hierarchy.depth[node])):
        children = hierarchy.children(node)
        child = np.full(len(code) + 1, ROOT)
        for one in children:
            child[hierarchy.at_or_below(one)] = one
        known = child[y] != ROOT
        names = np.unique(child[y][known])
        if len(names) < 2:
            p_of |= {one: p_of[node] * (one in names or len(children) == 1) for one in children}
            continue
        model = LogisticRegression(max_iter=3000).fit(x[known], child[y][known])
        said = dict(zip(model.classes_, model.predict_proba(x).T, strict=True))
        p_of |= {one: p_of[node] * said.get(one, 0.0) for one in children}
    values = np.stack([p_of[i] for i in range(len(of.leaves))], 1)
    return _deepest(task, pd.DataFrame(values, columns=list(of.leaves), index=task.cells.obs_names))


def _of_scanvi(task: Task, epochs: int | None) -> Told:
    """Train SCVI, then scANVI for 20 epochs, with the leaves only."""
    cells = task.cells.copy()
    cells.obs["given"] = _leaves(task)
    scvi.model.SCVI.setup_anndata(cells, batch_key=task.batch)
    base = scvi.model.SCVI(cells)
    base.train(max_epochs=epochs, **QUIET)
    p = _scanvi(base).predict(soft=True)
    return _deepest(task, p.reindex(columns=list(task.tree.leaves), fill_value=0.0))


def _deepest(task: Task, p: pd.DataFrame) -> Told:
    """Return the deepest label of each cell whose probability reaches the level, for a rival."""
    hierarchy = task.tree.hierarchy
    nodes = hierarchy.of_nodes(torch.from_numpy(p.to_numpy(dtype=np.float64)))
    at = hierarchy.deepest(nodes, torch.ones_like(nodes, dtype=torch.bool), LEVEL).numpy()
    return Told(p, np.array([*task.tree.nodes, UNKNOWN], dtype=object)[at])


def _scores(task: Task, told: Told) -> dict[str, float]:
    """Score the leaves, and the deepest labels, on the cells that were not labelled."""
    asked, parents = task.asked, task.tree.parents
    p = told.p.to_numpy()
    leaf, sure = np.asarray(told.p.columns)[p.argmax(1)], p.max(1).clip(0, 1)
    right = leaf == task.truth
    above = {name: with_those_above(name, parents) for name in set(task.truth)}
    fits = np.array([said in above[true] for said, true in zip(told.deepest, task.truth, strict=True)])
    given = told.deepest != UNKNOWN
    scores = {
        "hierarchical_f1": metrics.hierarchical_f1(task.truth[asked], leaf[asked], parents),
        "deepest_at_90": metrics.accuracy_at_coverage(right[asked], sure[asked], COVERAGE),
        "ece": metrics.expected_calibration_error(right[asked], sure[asked]),
        "given": given[asked].mean(),
        "right": fits[asked & given].mean() if (asked & given).any() else np.nan,
        "leaves": np.isin(told.deepest, task.tree.leaves)[asked].mean(),
    }
    if task.new.any():
        parents_of = list(set(task.cells.obs["class"][task.new]))  # they are in the tree
        scores["kept"] = (~given | np.isin(told.deepest, parents_of))[task.new].mean()
    return {k: float(v) for k, v in scores.items()}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation of each method over seeds."""
    columns = [name for name in SCORES if name in frame]
    return spread(frame, ["data", "left out", "method"], columns, digits=3)
