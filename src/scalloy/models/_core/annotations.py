"""Annotation of cells: what a model writes into an AnnData or a file, for which each cell is encoded once.

Each thing that is written has an :class:`Annotator`. The keys are listed in :mod:`scalloy._keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scalloy import _keys
from scalloy._arguments import one_of
from scalloy._seeds import seeded
from scalloy.data.chunks import occurring, pieces_of, writable, write_pieces
from scalloy.models._core.protocols import ModelOf
from scalloy.vae.base import Batch, Distributions, VAEModule

OPTIONS = ("n_clusters", "level")  # arguments of `annotate` that only some models have a use for
Found = dict[str, np.ndarray]
Written = dict[str, dict[str, Any]]  # attribute of the AnnData, key, value


@dataclass(frozen=True)
class Annotator:
    """One thing that a model writes.

    Attributes
    ----------
    look
        Function of model, batch and posterior that returns tensors with one row for each cell, by name. Names
        are unique among the annotators of a model.
    write
        Function of model, key, the arrays of ``look`` for all cells, and the names of the cells, that returns
        what to write.
    decodes
        Whether ``look`` decodes all genes, which takes memory.
    option
        Argument of :func:`annotate` that changes what is written, ``"n_clusters"`` or ``"level"``; ``None``
        if there is none.
    asked
        Function of model and value of this argument that returns the annotator to use instead.

    Examples
    --------
    >>> far = sa.models.Annotator(
    ...     look=lambda model, batch, q: {"far": q["z"].mean.norm(dim=-1)},
    ...     write=lambda model, key, found, names: {"obs": {f"{key}_far": found["far"]}},
    ... )
    >>> class MyVAE(sa.VAE):
    ...     annotators = (sa.models.LATENT, far)  # `annotate` writes obs["myvae_far"] as well
    """

    look: Callable[[Any, Batch, Distributions], dict[str, torch.Tensor]]
    write: Callable[[Any, str, Found, pd.Index], Written]
    decodes: bool = False
    option: str | None = None
    asked: Callable[[Any, Any], Annotator] | None = None

    def __post_init__(self) -> None:
        if self.option is not None:
            one_of("option", self.option, OPTIONS)


def _mean_code(model: ModelOf[VAEModule], batch: Batch, q: Distributions) -> dict[str, torch.Tensor]:
    """Return the mean of ``q(z | x)``."""
    return {"z": q["z"].mean}


def _write_code(model: ModelOf[VAEModule], key: str, found: Found, names: pd.Index) -> Written:
    """Return the latent representation under its key."""
    return {"obsm": {_keys.latent(key): found["z"]}}


LATENT = Annotator(_mean_code, _write_code)


class Annotates(ModelOf[VAEModule], Protocol):
    """A model with annotators."""

    @property
    def annotators(self) -> tuple[Annotator, ...]: ...
    def _check_if_trained(self, warn: bool = True) -> None: ...


def options_without_use(annotators: Iterable[Annotator]) -> frozenset[str]:
    """Return the arguments of :func:`annotate` that none of these annotators has a use for.

    Parameters
    ----------
    annotators
        Annotators of a class of models.
    """
    return frozenset(OPTIONS) - {annotator.option for annotator in annotators}


def _chosen(model: Annotates, options: dict[str, Any]) -> tuple[Annotator, ...]:
    """Return the annotators of a model as the options ask for; ``None`` leaves one as it is."""
    out = []
    for annotator in model.annotators:
        value = options.get(annotator.option or "")
        out.append(annotator if value is None or annotator.asked is None else annotator.asked(model, value))
    return tuple(out)


def annotate(
    model: Annotates,
    adata: AnnData | None = None,
    *,
    key_added: str | None = None,
    copy: bool = False,
    n_clusters: int | Literal["coarse", "fine"] | None = None,
    level: float | None = None,
) -> AnnData | None:
    """Write what the model knows about cells into ``.obsm``, ``.obs`` and ``.uns``.

    The keys contain the name of the model in lower case and are listed in :mod:`scalloy._keys`.

    Parameters
    ----------
    adata
        Cells to annotate; ``None`` is the model's own.
    key_added
        Text to use in the keys instead of the name of the model.
    copy
        Whether to return an annotated copy and leave ``adata`` as it is.
    n_clusters
        Number of clusters, ``"coarse"`` or ``"fine"``, as ``n`` of :meth:`get_clusters`.
    level
        Smallest probability of the deepest label of a cell, as in :meth:`predict_labels`; ``None`` is 0.9.
        Only if labels are a tree.

    Examples
    --------
    >>> model.annotate(adata)
    >>> adata.obsm["X_cgmdvae"].shape
    (200, 10)
    """
    annotators = _chosen(model, {"n_clusters": n_clusters, "level": level})
    cells = model.reader.own if adata is None else adata
    key = _keys.check_key("key_added", key_added or model.name)
    target = writable(cells, copy=copy)
    for attribute, values in written(model, cells, key, annotators).items():
        for name, value in _keys.storable(values).items():
            getattr(target, attribute)[name] = occurring(value)
    return target if copy else None


def write_annotations(
    model: Annotates,
    path: str | Path,
    adata: AnnData | None = None,
    *,
    key_added: str | None = None,
    overwrite: bool = False,
    n_clusters: int | Literal["coarse", "fine"] | None = None,
    level: float | None = None,
) -> None:
    """Write the results of :meth:`annotate` into a file, piece by piece, for any number of cells.

    The file holds the columns of the cells, in their order, and no counts. Read it with
    ``anndata.read_h5ad`` or ``anndata.read_zarr``.

    Parameters
    ----------
    path
        Name of the file, which ends in ``.h5ad`` or ``.zarr``.
    adata
        Cells in memory, backed, or from :func:`scalloy.data.open_store`; ``None`` is the model's own.
    key_added
        Text to use in the keys instead of the name of the model.
    overwrite
        Whether to replace a file of this name.
    n_clusters
        Number of clusters, as in :meth:`annotate`.
    level
        Smallest probability of the deepest label, as in :meth:`annotate`.

    Examples
    --------
    >>> model.write_annotations(folder / "annotations.h5ad")
    """
    annotators = _chosen(model, {"n_clusters": n_clusters, "level": level})
    model._check_if_trained(warn=True)
    if adata is None or adata is model.adata:
        model.reader.manager()  # raises an error if they were changed; their pieces are read as new cells
    cells = model.adata if adata is None else adata
    key = _keys.check_key("key_added", key_added or model.name)
    made = (_without_counts(model, piece, key, annotators) for piece in pieces_of(cells))
    write_pieces(Path(path), made, overwrite=overwrite, source=cells)


def _without_counts(model: Annotates, piece: AnnData, key: str, annotators: tuple[Annotator, ...]) -> AnnData:
    """Return columns and annotations of cells, without their counts."""
    found = {of: _keys.storable(values) for of, values in written(model, piece, key, annotators).items()}
    obs = piece.obs[[c for c in piece.obs if not str(c).startswith("_scvi")]].copy()
    for name, values in found.pop("obs", {}).items():
        obs[name] = values
    return AnnData(obs=obs, **found)


@torch.no_grad()
def written(model: Annotates, adata: AnnData | None, key: str, annotators: tuple[Annotator, ...]) -> Written:
    """Return what :meth:`annotate` writes, by attribute of the AnnData and key.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells to annotate; ``None`` is the model's own.
    key
        Text to use in the keys, such as the name of the model.
    annotators
        Things to write.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    decodes = any(annotator.decodes for annotator in annotators)
    with seeded(0):
        for batch in model.reader.batches(adata, decodes=decodes):
            q = model.module.encode(batch)
            for annotator in annotators:
                for name, part in annotator.look(model, batch, q).items():
                    parts.setdefault(name, []).append(part.cpu())
    found = {name: torch.cat(each).numpy() for name, each in parts.items()}
    out: Written = {"uns": {_keys.settings(key): _about(model)}}
    for annotator in annotators:
        for attribute, values in annotator.write(model, key, found, model.reader.names(adata)).items():
            for name, value in values.items():
                place = out.setdefault(attribute, {})
                place[name] = {**place[name], **value} if attribute == "uns" else value
    return out


def _about(model: Annotates) -> dict[str, Any]:
    """Return the settings and versions of a model for ``.uns``."""
    return {
        "model": type(model).__name__,
        "settings": {k: _plain(v) for k, v in model.init_params_["non_kwargs"].items()},
        "versions": {p: version(p) for p in ("scalloy", "scvi-tools", "torch")},
        "seed": model.seed,
    }


def _plain(value: Any) -> Any:
    """Return a setting as files of AnnData can hold it."""
    return "none" if value is None else list(value) if isinstance(value, tuple) else value
