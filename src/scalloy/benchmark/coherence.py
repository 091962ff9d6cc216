"""Benchmark of joint generation: do RNA and protein of a generated cell belong together?

The reference is other real cells. With the modalities of different cells put together at random, cells show
what remains without any coupling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from sklearn.model_selection import KFold

from scalloy import metrics
from scalloy._arguments import one_of
from scalloy.baselines.predictors import normalised
from scalloy.benchmark.evidence import keeps_seed, spread
from scalloy.benchmark.multimodal import JOINTS, KEY, load, ours

REAL = "real cells"
COLUMNS = ["made", "real", "ratio", "composition", "auc", "auc_rna", "auc_prot", "auc_torn"]
Values = dict[str, np.ndarray]


@keeps_seed()
def coherence(
    data: str = "citeseq",
    models: Sequence[str] = tuple(JOINTS),
    *,
    sources: Sequence[str] = ("mixture", "prior"),
    folds: int = 5,
    n_folds: int | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    n_trees: int = 100,
) -> pd.DataFrame:
    """Measure how well the modalities of generated cells agree, and whether they can be told from real ones.

    The models are trained on all folds but one. They generate as many cells as were held out, with which the
    generated ones are compared. The first row compares the cells that were held out with as many training
    cells.

    Parameters
    ----------
    data
        Name of the data set, as in :func:`scalloy.benchmark.multimodal.multimodal`.
    models
        Names of our models.
    sources
        Distributions of the codes, as in :meth:`scalloy.POISEVAE.generate`.
    folds, n_folds
        Number of parts into which the cells are divided, and how many of them are held out in turn (``None``
        holds out each).
    seed
        Random seed of the folds, the training and the generated cells.
    max_epochs
        Maximum number of epochs; ``None`` uses the default.
    n_trees
        Number of trees of the classifier two-sample tests.

    Returns
    -------
    One row for each fold and model. ``made``, ``real``, ``ratio`` and ``composition`` are those of
    :func:`scalloy.metrics.coherence`. ``auc`` is that of :func:`scalloy.metrics.two_sample` on both
    modalities side by side, ``auc_rna`` and ``auc_prot`` on one of them, and ``auc_torn`` on both after
    those of different cells were put together at random.

    Examples
    --------
    >>> table = sa.benchmark.coherence.coherence("citeseq_subset", [], n_folds=1, n_trees=10)
    >>> table["model"].tolist()
    ['real cells']
    """
    adata, rows = load(data), []
    for fold, (train, test) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(adata.X)):
        if fold == (n_folds or folds):
            break
        known, held_out = adata[train].copy(), values(adata[test])
        others = values(known[np.random.default_rng(seed).permutation(len(train))[: len(test)]])
        made: dict[tuple[str, str], Values] = {(REAL, ""): others}
        for name in models:
            scvi.settings.seed = seed
            model = ours(known.copy(), JOINTS[one_of("models", name, JOINTS)], max_epochs)
            for source in sources:
                made[name, source] = generated(model, len(test), seed, source)
        for (name, source), cells in made.items():
            found = scores(known, held_out, cells, n_trees, seed)
            rows.append({"data": data, "fold": fold, "model": name, "from": source, **found})
    return pd.DataFrame(rows)


def values(cells: AnnData) -> Values:
    """Return log-normalised counts of genes and ``log1p`` of counts of proteins."""
    x = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
    return {"rna": np.log1p(normalised(x)), "prot": np.log1p(np.asarray(cells.obsm[KEY], dtype=float))}


def generated(model: Any, n: int, seed: int, source: str) -> Values:
    """Generate cells as users do."""
    cells = model.generate(n, from_=source, seed=seed)
    cells.obsm[KEY] = cells.obsm["prot"]
    return values(cells)


def scores(known: AnnData, held_out: Values, made: Values, n_trees: int, seed: int) -> dict[str, float]:
    """Score generated cells beside those that were held out."""
    types = known.obs["cell_type"].astype(str).to_numpy()
    agree = metrics.coherence(values(known), types, made, held_out)
    rows = np.random.default_rng(seed).permutation(len(made["rna"]))
    torn = {"rna": made["rna"], "prot": made["prot"][rows]}

    def auc(cells: Values, *names: str) -> float:
        sides = (np.hstack([v[k] for k in names]) for v in (held_out, cells))
        return metrics.two_sample(*sides, n_trees=n_trees, seed=seed)["auc"]

    return {
        **agree,
        "auc": auc(made, "rna", "prot"),
        "auc_rna": auc(made, "rna"),
        "auc_prot": auc(made, "prot"),
        "auc_torn": auc(torn, "rna", "prot"),
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over folds of a table of :func:`coherence`."""
    return spread(frame, ["data", "model", "from"], COLUMNS, digits=3)
