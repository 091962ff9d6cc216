"""Prediction of labels from counts, and of whether a cell is of a known type at all.

Each public function is a method of :class:`scalloy.CGMDVAE`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions, HasLabels

N_SAMPLES = 25  # samples of the latents of a cell over which probabilities are averaged
FEW = 10  # if a label has fewer cells than this, none of them is left for validation


def predict_labels(
    model: ModelOf[HasLabels],
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    soft: bool = False,
    batch_size: int | None = None,
) -> pd.Series | pd.DataFrame:
    """Return the label of each cell from its counts alone, or the probability of each label.

    The probabilities of the known labels add up to one; they are averaged over samples of the posterior of
    ``z``. :meth:`get_unknown_score` says whether a cell is of a known type at all.

    Parameters
    ----------
    adata
        New cells with the genes of the model; ``None`` is the model's own.
    indices
        Row numbers or a mask; ``None`` is all cells.
    soft
        Whether to return probabilities, cells x labels.
    batch_size
        Number of cells that are encoded at a time.

    Examples
    --------
    >>> adata.obs["predicted"] = model.predict_labels(adata)
    """
    p, _ = _label_probabilities(model, adata, indices, batch_size)
    names, labels = model.reader.names(adata, indices), model.reader.labels
    if soft:
        return pd.DataFrame(p, index=names, columns=labels)
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
    _, score = _label_probabilities(model, adata, indices, batch_size)
    return pd.Series(score, index=model.reader.names(adata, indices), name="unknown")


@torch.no_grad()
def _label_probabilities(
    model: ModelOf[HasLabels], adata: Any, indices: Any, batch_size: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of the labels, which add up to one, and the score of being none of them."""
    if not model.reader.labels:
        msg = (
            f"The model was trained without labels. Call `{type(model).__name__}.setup_anndata(adata, "
            "labels_key=..., unlabeled_category=...)` and train again, or use `get_clusters()`."
        )
        raise ValueError(msg)
    found = [_look(model, batch) for batch in model.reader.batches(adata, indices, batch_size)]
    p, unknown = (torch.cat([part[name].cpu() for part in found]).numpy() for name in ("labels", "unknown"))
    return p, unknown


def _look(model: ModelOf[HasLabels], batch: Batch, q: Distributions | None = None) -> dict[str, torch.Tensor]:
    """Return probabilities of the labels, and the unknown score, of a batch of cells if there are labels."""
    if not model.reader.labels:
        return {}
    p, known = model.module.label_probabilities(batch, N_SAMPLES, q=q)
    return {"labels": p, "unknown": (1 - known).clamp(0, 1)}


def _write(model: ModelOf[HasLabels], key: str, found: Found, names: pd.Index) -> Written:
    """Return labels, their probabilities and the unknown score under their keys."""
    if "labels" not in found:
        return {}
    p = found["labels"]
    obs = {
        _keys.label(key): pd.Categorical.from_codes(p.argmax(1), categories=model.reader.labels),
        _keys.label_probability(key): p.max(1),
        _keys.unknown(key): found["unknown"],
    }
    return {"obs": obs}


LABELS = Annotator(_look, _write)


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
    return (y < len(model.reader.labels)) & (np.bincount(y)[y] < FEW)
