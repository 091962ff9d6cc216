"""Protocols of models: what a method needs of the model that it is given.

A method is a function whose first argument is a model: ``def get_clusters(model: ModelOf[HasClusters])``. A
model class lists it: ``get_clusters = clusters.get_clusters``. What the function needs of the module is in
:mod:`scalloy.vae.base`: ``HasClusters``, ``HasLabels``, ``HasConditions``.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
from anndata import AnnData

from scalloy.models._core.reader import CellReader

M = TypeVar("M", covariant=True)


class ModelOf(Protocol[M]):
    """A model whose module is an ``M``."""

    seed: int
    _kept: dict[Any, Any]

    @property
    def module(self) -> M: ...
    @property
    def reader(self) -> CellReader: ...
    @property
    def name(self) -> str: ...
    @property
    def adata(self) -> AnnData | None: ...
    @property
    def registry(self) -> dict[str, Any]: ...
    @property
    def init_params_(self) -> dict[str, Any]: ...


def weights_now(model: ModelOf[Any]) -> tuple[int, ...]:
    """Return a stamp of the weights of a model, which is another one after each change of them."""
    return tuple(p._version for p in model.module.parameters())


class Conditioned(ModelOf[M], Protocol[M]):
    """A model that predicts cells under another condition."""

    @property
    def ROUTES(self) -> tuple[str, ...]: ...
    @property
    def condition_key(self) -> str | None: ...
    def transfer(self, cells: AnnData | None = None, to: str | None = None, **settings: Any) -> AnnData: ...
    def _group_unlabelled(self, adata: AnnData | None) -> np.ndarray: ...
