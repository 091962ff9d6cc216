"""What all models share: AnnData in; arrays, frames and AnnData out.

A leaf in this folder names its module and its arguments; everything else is here. Getters return,
:meth:`ScalloyModel.annotate` writes, and nobody touches ``adata.X``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model.base import BaseModelClass, UnsupervisedTrainingMixin

from scalloy import _keys
from scalloy.blocks.likelihoods import Likelihood
from scalloy.data import checks
from scalloy.data.loader import CellLoader, Cells, CellSplitter
from scalloy.data.splits import split
from scalloy.models import _files, _options
from scalloy.models._evidence import Evidence
from scalloy.models._getters import Getters, known_categories
from scalloy.models._traverse import Traverse
from scalloy.train.memory import buffers_stay_mapped
from scalloy.train.plan import TermsPlan
from scalloy.vae.base import Sizes, VAEModule
from scalloy.vae.vae import LibraryPrior, library_prior

logger = logging.getLogger("scalloy")


class ScalloyModel(Getters, Evidence, Traverse, UnsupervisedTrainingMixin, BaseModelClass):
    """Base of the users' classes. A leaf builds ``self.module`` and says ``self.init_params_``."""

    _training_plan_cls = TermsPlan
    _data_splitter_cls = CellSplitter
    _data_loader_cls = CellLoader
    _default_steps = 2500
    _plan_defaults: dict[str, Any] = {}  # noqa: RUF012

    module: VAEModule

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None) -> None:
        if adata is not None and not self._is_set_up(adata):
            logger.warning(
                "%s(adata) without `setup_anndata`: modelling `adata.X`, without batches or covariates. "
                "Call %s.setup_anndata(adata, ...) first to name them.",
                *[type(self).__name__] * 2,
            )
            type(self).setup_anndata(adata)
        super().__init__(adata, registry)
        self._cells: Cells | None = None
        self._source: Any = None  # what the user gave, where `adata` was made from it

    # set-up -------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        allow_non_counts: bool = False,
        **kwargs: Any,
    ) -> None:
        """Say what is where in ``adata``; it is checked, and codes of the columns are stored in it.

        Parameters
        ----------
        adata
            Raw counts, cells x genes, in memory.
        layer
            Layer with the counts; ``None`` is ``.X``.
        batch_key
            Column of ``.obs`` whose effect is removed from the latent space.
        labels_key
            Column of ``.obs`` with cell types, kept for evaluation and plots.
        size_factor_key
            Column of ``.obs`` with the library size to use instead of the total count.
        categorical_covariate_keys, continuous_covariate_keys
            Further columns whose effects are removed.
        allow_non_counts
            Accept values that are negative or not whole (with a likelihood for such data).
        """
        cls._set_up(adata, cls._get_setup_method_args(**without(locals(), "__class__")), **kwargs)

    @classmethod
    def _set_up(cls, adata: AnnData, args: dict, **kwargs: Any) -> None:
        """Check what the arguments of :meth:`setup_anndata` name, and register it."""
        given = args["setup_args"]
        checks.check_object(adata)
        checks.check_keys(adata, given)
        allow = given["allow_non_counts"]
        known = cls._known_otherwise(adata, given)
        checks.check_counts(adata, given.get("layer"), allow_non_counts=allow, known=known)
        if source := kwargs.get("source_registry"):
            checks.check_same_kind(adata.obs, categories := known_categories(source))
            if not kwargs.get("extend_categories"):
                checks.check_categories(adata, categories)
        cls._register(adata, cls._fields(**given), args, **kwargs)

    @classmethod
    def _joined(cls, adata: Any, registry: dict) -> AnnData:
        """Cells as one AnnData, with what is registered; only models of two modalities make another one."""
        return adata

    @classmethod
    def _obsm_keys(cls, given: dict) -> tuple[str, ...]:
        """Keys of ``.obsm`` that are modelled."""
        return ()

    @classmethod
    def _known_otherwise(cls, adata: AnnData, given: dict) -> np.ndarray | None:
        """Cells that need no counts, since something else was measured of them."""
        return None

    @classmethod
    def _fields(
        cls,
        *,
        layer: str | None = None,
        batch_key: str | None,
        labels_key: str | None,
        size_factor_key: str | None,
        categorical_covariate_keys: Sequence[str] | None,
        continuous_covariate_keys: Sequence[str] | None,
        **_: Any,
    ) -> list:
        """scvi-tools' fields for the arguments of :meth:`setup_anndata`."""
        return [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]

    @classmethod
    def _register(cls, adata: AnnData, fields: list, args: dict, **kwargs: Any) -> None:
        known = cls._setup_adata_manager_store.get(adata.uns.get("_scvi_uuid"))
        if known is not None and known.adata is not adata:  # a copy: it gets an identity of its own
            del adata.uns["_scvi_uuid"]
        manager = AnnDataManager(fields=fields, setup_method_args=args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def _is_set_up(cls, adata: AnnData) -> bool:
        if not isinstance(adata, AnnData):
            return False
        manager = cls._setup_adata_manager_store.get(adata.uns.get("_scvi_uuid"))
        return manager is not None and manager.adata is adata

    @property
    def labels(self) -> list[str]:
        """The known labels, in the order of their codes."""
        if self.registry["setup_args"].get("labels_key") is None:
            return []
        state = self.registry["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
        names = [str(k) for k in state["categorical_mapping"]]
        return [k for k in names if k != str(state.get("unlabeled_category"))]

    def _sizes(self) -> Sizes:
        stats = self.summary_stats
        covariates = {}
        if stats.get("n_extra_categorical_covs", 0):
            state = self.registry["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
            covariates["n_cats"] = tuple(int(k) for k in state["n_cats_per_key"])
        return Sizes(
            n_vars=stats.n_vars,
            n_batch=stats.n_batch,
            n_labels=stats.get("n_labels", 1),
            n_conditions=stats.get("n_condition", 1),
            n_cont=stats.get("n_extra_continuous_covs", 0),
            **covariates,
        )

    def _likelihood(self, name: str, n_hidden: int, *, library: str = "observed", **given: Any) -> Likelihood:
        """Likelihood by name, beginning at the moments of the data."""
        made = _options.likelihood(name, self._sizes(), n_hidden, library=library, **given)
        state = self.registry["field_registries"].get(REGISTRY_KEYS.SIZE_FACTOR_KEY, {})
        if name == "constrained_poisson" and state.get("data_registry"):
            msg = (
                "`gene_likelihood='constrained_poisson'` ties the rates to the observed total of the "
                "cell, but `size_factor_key` was registered. Pass `gene_likelihood='poisson'`."
            )
            raise ValueError(msg)
        if self.adata is not None:
            whole = self._all_cells()
            _options.check_range(name, made, whole.x)
            made.start_at(*moments(whole.x), whole.log_ell)
        return made

    def _library_prior(self, library: str) -> LibraryPrior | None:
        if library != "learned":
            return None
        n_batch = self._sizes().n_batch
        if self.adata is None:  # values come with the weights
            return LibraryPrior(torch.zeros(n_batch), torch.ones(n_batch))
        cells = self._all_cells()
        b = cells.columns[REGISTRY_KEYS.BATCH_KEY][:, 0]
        return library_prior(cells.log_ell[:, 0], b, n_batch)

    def _all_cells(self) -> Cells:
        if self._cells is None:
            self._cells = Cells.of(self.adata_manager)
        return self._cells

    # training -----------------------------------------------------------------------------------

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = None,
        early_stopping: bool = True,
        plan_kwargs: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the model; scvi-tools' call, with defaults that suit the fast path.

        Parameters
        ----------
        max_epochs
            Most passes over the data; ``None`` chooses by the number of cells.
        accelerator, devices
            As in Lightning.
        train_size, validation_size
            Fractions of the cells; 0.9 and the rest unless given. What remains is a test set.
        shuffle_set_split
            Whether the split is random.
        load_sparse_tensor
            Without effect, batches are sparse in any case (kept for scvi-tools' call).
        batch_size
            Cells per step; ``None`` chooses by the number of cells.
        early_stopping
            Stop when ``validation_loss`` no longer falls. The best weights are restored either way.
        plan_kwargs
            For :class:`~scalloy.train.plan.TermsPlan`: ``lr``, ``kl_warmup``, ``weights``, ...
        **kwargs
            As in scvi-tools: ``datasplitter_kwargs``, ``datamodule``, and arguments of its ``Trainer``.
        """
        if not any(p.requires_grad for p in self.module.parameters()):
            logger.warning("Nothing to train: the query has no batch or covariate that the reference lacks.")
            return
        n = self._manager_of(None).adata.n_obs
        batch_size = default_batch_size(n) if batch_size is None else batch_size
        if max_epochs is None:
            max_epochs = default_epochs(n, batch_size, self._default_steps)
        _options.positive(batch_size=batch_size, max_epochs=max_epochs)
        chosen = (kwargs.get("datasplitter_kwargs") or {}).get("external_indexing")
        parts = chosen or split(n, train_size, validation_size)
        validates = len(parts[1]) > 0 and getattr(kwargs.get("datamodule"), "n_val", 1) > 0
        if validates:
            kwargs.setdefault("check_val_every_n_epoch", 1)
        kwargs.setdefault("early_stopping_monitor", "validation_loss")
        kwargs.setdefault("early_stopping_patience", max(10, max_epochs // 5))
        kwargs.setdefault("log_every_n_steps", 10**9)
        self._cells = None  # training has its own
        self.module.train()  # an earlier training has left it in the mode of evaluation
        with buffers_stay_mapped(), warnings.catch_warnings():
            for message in (".*smaller than the logging interval.*", ".*LeafSpec.*deprecated.*"):
                warnings.filterwarnings("ignore", message=message)
            super().train(
                max_epochs=max_epochs,
                accelerator=accelerator,
                devices=devices,
                train_size=train_size,
                validation_size=validation_size,
                shuffle_set_split=shuffle_set_split,
                batch_size=batch_size,
                early_stopping=early_stopping and validates,
                plan_kwargs=self._plan(plan_kwargs),
                **kwargs,
            )

    def _plan(self, given: dict | None) -> dict[str, Any]:
        """The model's own plan with what the user gives on top; weights are merged term by term."""
        merged = {**self._plan_defaults, **(given or {})}
        weights = {**self._plan_defaults.get("weights", {}), **(given or {}).get("weights", {})}
        return {**merged, "weights": weights}

    # writing ------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the model in the keys that it writes."""
        return type(self).__name__.lower()

    def annotate(
        self, adata: AnnData | None = None, *, key_added: str | None = None, copy: bool = False
    ) -> AnnData | None:
        """Write what the model knows about the cells: see :mod:`scalloy._keys` for the keys.

        Parameters
        ----------
        adata
            Cells to annotate; ``None`` is the model's own.
        key_added
            Used in the keys instead of the name of the model.
        copy
            Whether to return an annotated copy and leave ``adata`` as it is.
        """
        target = self._own() if adata is None else adata
        key = key_added or self.name
        written = self._annotations(adata, key)
        target = target.copy() if copy else target
        for attribute, values in written.items():
            for name, value in values.items():
                getattr(target, attribute)[name] = value
        return target if copy else None

    def _own(self) -> Any:
        """The object that the user gave."""
        return self.adata if self._source is None else self._source

    def _annotations(self, adata: AnnData | None, key: str) -> dict[str, dict[str, Any]]:
        """What :meth:`annotate` writes: attribute of the AnnData, key, value. Leaves add theirs."""
        settings = {k: _plain(v) for k, v in self.init_params_["non_kwargs"].items()}
        about = {
            "model": type(self).__name__,
            "settings": settings,
            "versions": {p: version(p) for p in ("scalloy", "scvi-tools", "torch")},
        }
        latent = self.get_latent_representation(adata)
        return {"obsm": {_keys.latent(key): latent}, "uns": {_keys.settings(key): about}}

    # files --------------------------------------------------------------------------------------

    def save(  # type: ignore[override]
        self, dir_path: str | Path, overwrite: bool = False, save_anndata: bool = False
    ) -> None:
        """Write the model as ``model.safetensors`` and ``model.json`` (and ``adata.h5ad``)."""
        _files.save(self, Path(dir_path), overwrite=overwrite, save_anndata=save_anndata)

    @classmethod
    def load(  # type: ignore[override]
        cls, dir_path: str | Path, adata: AnnData | None = None
    ) -> ScalloyModel:
        """Read what :meth:`save` wrote; ``adata`` may be left out to work on new cells only."""
        return _files.load(cls, Path(dir_path), adata)


def default_batch_size(n_obs: int) -> int:
    """Power of two with about 40 steps per epoch, from 64 to 512."""
    return int(2 ** np.clip(np.floor(np.log2(max(n_obs, 2) / 40)), 6, 9))


def default_epochs(n_obs: int, batch_size: int, steps: int = 2500) -> int:
    """Epochs that make about so many steps, from 20 to 200."""
    return int(np.clip(np.ceil(steps / max(1.0, 0.9 * n_obs / batch_size)), 20, 200))


def moments(x: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each variable, where it is not NaN."""
    if sp.issparse(x):
        mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
        square = np.bincount(x.indices, x.data.astype(np.float64) ** 2, x.shape[1]) / x.shape[0]
    else:
        there = ~np.isnan(x)
        n, known = np.maximum(there.sum(0), 1), np.where(there, x, 0.0)
        mean, square = known.sum(0, dtype=np.float64) / n, np.square(known, dtype=np.float64).sum(0) / n
    variance = np.maximum(square - mean**2, 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(variance).float()


def _plain(value: Any) -> Any:
    return "none" if value is None else value


def without(local: dict[str, Any], *names: str) -> dict[str, Any]:
    """The arguments of a function from its ``locals()``."""
    return {k: v for k, v in local.items() if k not in names}
