"""Prediction of labels from counts, and of whether a cell is of a known type at all.

Each public function is a method of :class:`scalloy.CGMDVAE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS

from scalloy import _keys
from scalloy._arguments import positive
from scalloy.models._core import training
from scalloy.models._core.annotations import Annotator, Found, Written
from scalloy.models._core.label_tree import names_by_code
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions, HasLabels
from scalloy.vae.label_tree import of_nodes

LEVEL = 0.9  # probability that the deepest label reaches in `annotate`, unless another is asked for
UNKNOWN = "unknown"  # label of cells that have none, if the user has no word for it
N_SAMPLES = 25  # samples of the latents of a cell over which probabilities are averaged
FEW = 10  # if a label has fewer cells than this, none of them is left for validation


def predict_labels(
    model: ModelOf[HasLabels],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    soft: bool = False,
    batch_size: int | None = None,
    level: float | None = None,
) -> pd.Series | pd.DataFrame:
    """Return the label of each cell from its counts alone, or the probability of each label.

    The probabilities of the known labels add up to one; they are averaged over samples of the posterior of
    ``z``. :meth:`get_unknown_score` says whether a cell is of a known type at all. If labels are a tree, each
    cell gets a leaf, unless ``level`` is given.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    soft
        Whether to return probabilities, cells x labels; of a tree, that of an inner node is the sum over the
        leaves below it.
    batch_size
        Number of cells that are encoded at a time.
    level
        Smallest calibrated probability: each cell gets the deepest label of the tree that reaches it. A cell
        that is like none of the known types stays at the parent that it is close to. A cell without any such
        label gets the ``unlabeled_category``, or ``"unknown"``. With ``soft``, the probabilities are those
        that are compared with the level, which has no effect on them.

    Examples
    --------
    >>> adata.obs["predicted"] = model.predict_labels(adata)
    """
    tree = model.reader.tree
    _check_labels(model)
    if level is not None:
        _check_level(model, level)
    found = told_of_labels(model, adata, indices, batch_size)
    labels, p, names = model.reader.labels, found["labels"], model.reader.names(adata, indices)
    if soft:
        if tree is not None:
            nodes = tree.hierarchy.of_nodes(torch.from_numpy(p)).numpy() if level is None else found["nodes"]
            p, labels = nodes, list(tree.nodes)
        return pd.DataFrame(p, index=names, columns=labels)
    if level is not None:
        deepest = _deepest(model, found, level)[0]
        return pd.Series(deepest, index=names, name="label")
    return pd.Series(pd.Categorical.from_codes(p.argmax(1), categories=labels), index=names, name="label")


def get_unknown_score(
    model: ModelOf[HasLabels],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> pd.Series:
    """Return a score from 0 to 1 for each cell to be of none of the known types; above 0.5 it is unknown.

    It is the probability of the free components, raised if the cell lies farther out than the labelled cells
    of its type, or where few of the surrounding cells have labels. Free components find types without a label
    if such cells are among those that the model is trained on; for new cells only the distance can tell.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    batch_size
        Number of cells that are encoded at a time.

    Examples
    --------
    >>> bool(model.get_unknown_score().between(0, 1).all())
    True
    """
    score = told_of_labels(model, adata, indices, batch_size)["unknown"]
    return pd.Series(score, index=model.reader.names(adata, indices), name="unknown")


@torch.no_grad()
def told_of_labels(model: ModelOf[HasLabels], adata: Any, indices: Any, batch_size: Any) -> Found:
    """Return what the model says of the labels of cells, under the names of what `annotate` looks at.

    ``labels`` holds probabilities that add up to one and ``unknown`` the score; with a tree, ``nodes`` and
    ``possible`` are those of :func:`scalloy.vae.label_tree.of_nodes`.

    Parameters
    ----------
    model
        Model with labels.
    adata, indices, batch_size
        As in :func:`predict_labels`.
    """
    _check_labels(model)
    found = [_look(model, batch) for batch in model.reader.batches(adata, indices, batch_size)]
    return {name: torch.cat([part[name].cpu() for part in found]).numpy() for name in found[0]}


def _look(model: ModelOf[HasLabels], batch: Batch, q: Distributions | None = None) -> dict[str, torch.Tensor]:
    """Return probabilities of the labels, and the unknown score, of a batch of cells if there are labels."""
    if not model.reader.labels:
        return {}
    q = q or model.module.encode(batch)
    p, known = model.module.label_probabilities(batch, N_SAMPLES, q=q)
    found = {"labels": p, "unknown": (1 - known).clamp(0, 1)}
    if model.reader.tree is not None:
        nodes, possible = of_nodes(model.module, batch, p, known, q)
        found |= {"nodes": nodes, "possible": possible}
    return found


def _check_labels(model: ModelOf[HasLabels]) -> None:
    """Check that the model was trained with labels."""
    if not model.reader.labels:
        msg = (
            f"The model was trained without labels. Call `{type(model).__name__}.setup_anndata(adata, "
            "labels_key=..., unlabeled_category=...)` and train again, or use `get_clusters()`."
        )
        raise ValueError(msg)


def _check_level(model: ModelOf[HasLabels], level: float) -> None:
    """Check that a level is a probability, and that there is a tree with calibrated probabilities."""
    if not isinstance(level, Real) or isinstance(level, bool) or not 0 < level <= 1:
        msg = f"`level={level!r}` is a probability: pass a number above 0 and up to 1."
        raise ValueError(msg)
    if model.reader.tree is None:
        msg = (
            f"`level={level}` needs a tree of labels, and these have none. Call `setup_anndata(..., "
            "label_parents=...)` and train again; `label_parents={}` is a tree without inner nodes."
        )
        raise ValueError(msg)


def _deepest(model: ModelOf[HasLabels], found: Found, level: float) -> tuple[pd.Categorical, ...]:
    """Return the deepest label of each cell that reaches the level, its probability, and its depth."""
    tree = model.reader.tree
    assert tree is not None
    hierarchy = tree.hierarchy
    p, possible = (torch.from_numpy(found[name]) for name in ("nodes", "possible"))
    node = hierarchy.deepest(p, possible, level).numpy()
    nothing = str(model.reader.set_up_with.get("unlabeled_category") or UNKNOWN)
    names = [*tree.nodes, *_keys.unique([nothing], tree.nodes, prefix="really ")]
    at = np.where(node < 0, len(tree.nodes), node)
    some = found["nodes"].max(1)
    sure = np.where(node < 0, some, np.take_along_axis(found["nodes"], np.maximum(node, 0)[:, None], 1)[:, 0])
    return pd.Categorical.from_codes(at, categories=names), sure, np.array([*hierarchy.depth, 0])[at]


def _write(
    model: ModelOf[HasLabels], key: str, found: Found, names: pd.Index, *, level: float = LEVEL
) -> Written:
    """Return labels, their probabilities, the unknown score and the deepest labels under their keys."""
    if "labels" not in found:
        return {}
    p = found["labels"]
    obs = {
        _keys.label(key): pd.Categorical.from_codes(p.argmax(1), categories=model.reader.labels),
        _keys.label_probability(key): p.max(1),
        _keys.unknown(key): found["unknown"],
    }
    if "nodes" in found:
        made = _deepest(model, found, level)
        made_of = (_keys.deepest_label, _keys.deepest_probability, _keys.depth)
        obs |= {key_of(key): values for key_of, values in zip(made_of, made, strict=True)}
        return {"obs": obs, "uns": {_keys.settings(key): {"level": float(level)}}}
    return {"obs": obs}


def _at_level(model: ModelOf[HasLabels], level: float) -> Annotator:
    """Return the annotator of labels for a level of the deepest ones."""
    _check_labels(model)
    _check_level(model, level)
    return Annotator(_look, partial(_write, level=level))


LABELS = Annotator(_look, _write, option="level", asked=_at_level)


def train(model: Any, *args: Any, n_samples_per_label: int | None = None, **kwargs: Any) -> None:
    """Train the model, with the call of :meth:`scalloy.VAE.train`.

    If a label has fewer than ten cells, all of them are trained on and none is left for validation.

    Parameters
    ----------
    *args, **kwargs
        Arguments of :meth:`scalloy.VAE.train`.
    n_samples_per_label
        Smallest number of cells of each label in an epoch: cells of a rarer label are repeated.

    Examples
    --------
    >>> model.train(max_epochs=2, n_samples_per_label=100, enable_progress_bar=False)
    """
    more: dict[str, Any] = {}
    labels = model.reader.labels
    if n_samples_per_label is not None:
        positive(n_samples_per_label=n_samples_per_label)
        if not labels:
            msg = f"`n_samples_per_label={n_samples_per_label}` needs labels, and none are registered."
            raise ValueError(msg)
        more = {"n_samples_per_label": n_samples_per_label, "n_labels": len(labels)}
    if labels:
        given = {"kept": _rarely_labelled(model), **(kwargs.get("datasplitter_kwargs") or {})}
        kwargs["datasplitter_kwargs"] = {**given, **more}
    training.train(model, *args, **kwargs)


def _rarely_labelled(model: ModelOf[HasLabels]) -> np.ndarray:
    """Return a mask of the cells with a label that fewer than ``FEW`` cells have."""
    y = np.asarray(model.reader.manager().get_from_registry(REGISTRY_KEYS.LABELS_KEY)).ravel()
    return (y < len(names_by_code(model.reader))) & (np.bincount(y)[y] < FEW)
