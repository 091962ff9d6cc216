"""Methods whose predictions of structured conditions are compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import scvi
from anndata import AnnData

from scalloy._arguments import one_of
from scalloy.baselines.contexts import Contexts, contexts_of
from scalloy.baselines.structured import STRUCTURED, Structured
from scalloy.benchmark.fit import QUIET, log_normalised
from scalloy.data.conditions import Conditions
from scalloy.models import CGMDVAE
from scalloy.perturbation.design import Content
from scalloy.perturbation.pseudobulk import level, log_per_level


@dataclass(frozen=True)
class Fold:
    """Cells that methods are given, without those that are held out.

    Parameters
    ----------
    train
        Cells to train on.
    conditions, labels_key
        Columns of their ``.obs``.
    source
        Controls of each type, from which predictions start.
    scale
        Scale of changes, as in :func:`scalloy.baselines.contexts.contexts_of`.
    """

    train: AnnData
    conditions: Conditions
    labels_key: str | None
    source: Mapping[str, AnnData]
    scale: str = "mean logs"

    @cached_property
    def seen(self) -> Contexts:
        """Changes that were seen."""
        return contexts_of(self.train, self.conditions, self.labels_key, scale=self.scale)[0]


@dataclass(frozen=True)
class Predicted:
    """Predicted change of each gene.

    Parameters
    ----------
    change
        Change on the scale of the fold.
    sd
        Standard deviation of its error, if the method has one.
    counts
        Counts of the controls after the change, if the method has them.
    """

    change: np.ndarray
    sd: np.ndarray | None = None
    counts: sp.csr_matrix | None = None


Predict = Callable[[str, Content], Predicted | None]


@dataclass(frozen=True)
class Predictor:
    """Method in the comparison.

    Parameters
    ----------
    trained
        Function of a :class:`Fold` and a seed that returns a function of a type and a content, which returns
        the prediction, or ``None`` if the method cannot predict such a condition.
    seeded
        Whether the method depends on a random seed.
    """

    trained: Callable[[Fold, int], Predict]
    seeded: bool = field(default=True)


def predictors(
    names: Sequence[str] | None = None, *, max_epochs: int | None = None, **model: Any
) -> dict[str, Predictor]:
    """Return methods by name: the baselines, and CGMDVAE.

    Parameters
    ----------
    names
        Names of methods; ``None`` is all of them.
    max_epochs
        Maximum number of epochs of models; ``None`` uses the default.
    **model
        Arguments of CGMDVAE.
    """
    known = {name: Predictor(partial(_simple, how), seeded=False) for name, how in STRUCTURED.items()}
    if "conditions" in inspect.signature(CGMDVAE.setup_anndata).parameters:
        known["CGMDVAE"] = Predictor(partial(of_model, CGMDVAE, max_epochs=max_epochs, **model))
    return known if names is None else {one_of("models", name, known): known[name] for name in names}


def _simple(how: Structured, fold: Fold, seed: int) -> Predict:
    """Return the predictions of a baseline."""
    return lambda group, content: Predicted(how(fold.seen, group, content))


def of_model(cls: Any, fold: Fold, seed: int, *, max_epochs: int | None = None, **settings: Any) -> Predict:
    """Train a model, and return its predictions.

    Parameters
    ----------
    cls
        Class of the model.
    fold, seed
        Cells, and random seed.
    max_epochs
        Maximum number of epochs; ``None`` uses the default of the model.
    **settings
        Arguments of the model.
    """
    scvi.settings.seed = seed
    cells = fold.train.copy()
    cls.setup_anndata(cells, conditions=fold.conditions, labels_key=fold.labels_key)
    model = cls(cells, **settings)
    model.train(max_epochs=max_epochs, **QUIET)
    time, known = fold.conditions.time, set(fold.seen.design.parts)

    def predict(group: str, content: Content) -> Predicted | None:
        if not known.issuperset(part for part, _ in content.parts):
            return None
        to = dict(content.parts) | ({} if time is None else {time: content.time})
        out = model.transfer(fold.source[group].copy(), to=to, seed=seed)
        return as_predicted(out, fold.source[group], fold.scale)

    return predict


def as_predicted(out: AnnData, source: AnnData, scale: str) -> Predicted:
    """Read the prediction of a model: factors of rates, or the change of means of logarithms.

    Parameters
    ----------
    out
        Result of ``transfer``.
    source
        Cells that were predicted from.
    scale
        Scale of changes, as in :func:`scalloy.baselines.contexts.contexts_of`.
    """
    said, counts = out.uns["transfer"], sp.csr_matrix(out.layers["counts"])
    if scale == "mean logs":
        change = np.asarray(out.X, dtype=float).mean(0) - log_normalised(source.X).mean(0)
        return Predicted(change, _only(said.get("sd")), counts)
    factor, sd = _only(said["fold_change"]), _only(said.get("log_fold_change_sd"))
    if scale == "levels":
        x = np.asarray(source.X.sum(axis=0), dtype=float).ravel()
        rate = x / max(x.sum(), 1e-12)
        after = rate * np.where(np.isfinite(factor), factor, 1.0)
        sd = None if sd is None else sd / log_per_level(after)
        return Predicted(level(after) - level(rate), sd, counts)
    with np.errstate(divide="ignore"):
        change = np.log(factor)
    return Predicted(np.where(np.isfinite(change), change, 0.0), sd, counts)


def _only(table: Any) -> np.ndarray | None:
    """Return the only column of a table, that of the type that was predicted."""
    return None if table is None else table.iloc[:, 0].to_numpy(dtype=float)
