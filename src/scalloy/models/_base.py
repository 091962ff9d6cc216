"""What all models share: AnnData in; arrays, frames and AnnData out.

A leaf in this folder names its module and its arguments; everything else is here. Getters return,
:meth:`ScalloyModel.annotate` writes, and nobody touches ``adata.X``.
"""

from __future__ import annotations

import logging
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
from scvi.model.base import BaseModelClass

from scalloy import _keys
from scalloy.blocks.likelihoods import Likelihood
from scalloy.data import checks
from scalloy.data.align import aligned, counted
from scalloy.data.disk import DiskRows
from scalloy.data.fingerprint import Seal
from scalloy.data.loader import CellLoader, Cells
from scalloy.data.pieces import occurring, pieces_of, writable, write_pieces
from scalloy.data.roles import check_roles
from scalloy.models import _files, _options
from scalloy.models._evidence import Evidence
from scalloy.models._getters import Getters, known_categories
from scalloy.models._inherited import Inherited
from scalloy.models._report import Report
from scalloy.models._training import Training
from scalloy.models._traverse import Traverse
from scalloy.vae.base import Sizes, VAEModule
from scalloy.vae.vae import LibraryPrior, library_prior

logger = logging.getLogger("scalloy")


class ScalloyModel(Getters, Evidence, Traverse, Report, Training, Inherited, BaseModelClass):
    """Base of the users' classes. A leaf builds ``self.module`` and says ``self.init_params_``."""

    _data_loader_cls = CellLoader

    module: VAEModule
    seed: int = 0

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
        self._data: dict[str, Any] = {}  # of which the weights are
        self._source: Any = None  # what the user gave, where `adata` was made from it
        self._max_missing = 0.0  # share of the model's genes that this may lack

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
            Raw counts, cells x genes, in memory or as :func:`scalloy.data.open_store` opens them.
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
        if "source_registry" not in kwargs:
            check_roles(adata, given)
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
    def _fitting(cls, data: Any, registry: dict, max_missing: float = 0.0) -> AnnData:
        """The user's object as one AnnData with the genes of the model; itself where it is that already."""
        adata = checks.check_type(cls._joined(data, registry))
        adata = counted(adata.to_memory() if adata.isbacked else adata, registry["setup_args"].get("layer"))
        names = registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]
        return aligned(adata, list(names), max_missing)

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
        given = args["setup_args"]
        manager.seal = Seal.of(adata, given, cls._obsm_keys(given))  # type: ignore[attr-defined]
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
            self._cells = Cells.of(self._manager_of(None))
        return self._cells

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
        cells = self._own() if adata is None else adata
        key = _keys.check_key("key_added", key_added or self.name)
        target = writable(cells, copy=copy)
        written = self._annotations(cells, key)
        for attribute, values in written.items():
            for name, value in _keys.storable(values).items():
                getattr(target, attribute)[name] = occurring(value)
        return target if copy else None

    def write_annotations(
        self,
        path: str | Path,
        adata: AnnData | None = None,
        *,
        key_added: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """What :meth:`annotate` writes, into a file, piece by piece: of as many cells as there are.

        The file holds the columns of the cells, in their order, and no counts: read it with
        ``anndata.read_h5ad`` or ``anndata.read_zarr``.

        Parameters
        ----------
        path
            A name that ends in ``.h5ad`` or ``.zarr``.
        adata
            Cells, in memory, backed, or of :func:`scalloy.data.open_store`; ``None`` is the model's own.
        key_added
            As in :meth:`annotate`.
        overwrite
            Whether to replace a file of this name.
        """
        self._check_if_trained(warn=True)
        if adata is None or adata is self._adata:
            self._own_manager()  # its pieces are read like any cells, so what was changed is noticed here
        cells = self.adata if adata is None else adata
        key = _keys.check_key("key_added", key_added or self.name)
        made = (self._annotated(piece, key) for piece in pieces_of(cells))
        write_pieces(Path(path), made, overwrite=overwrite, source=cells)

    def _annotated(self, piece: AnnData, key: str) -> AnnData:
        """Columns and annotations of cells, without their counts."""
        written = {of: _keys.storable(values) for of, values in self._annotations(piece, key).items()}
        obs = piece.obs[[c for c in piece.obs if not str(c).startswith("_scvi")]].copy()
        for name, values in written.pop("obs", {}).items():
            obs[name] = values
        return AnnData(obs=obs, **written)

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
            "seed": self.seed,
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
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> ScalloyModel:
        """Read what :meth:`save` wrote; ``adata`` may be left out to work on new cells only.

        The model is put where ``accelerator`` and ``device`` say, by itself on a GPU if there is one.
        """
        return _files.load(cls, Path(dir_path), adata, accelerator=accelerator, device=device)

    @classmethod
    def load_query_data(
        cls, adata: Any, reference_model: ScalloyModel | str | Path, max_missing: float = 0.2
    ) -> Any:
        """A model for a second study on top of a trained one, whose own cells stay exactly where they are.

        Only what new batches, covariates and conditions add is trained by :meth:`train`; without training
        they begin at the mean of the known ones. Everything is matched by name.

        Parameters
        ----------
        adata
            Cells of the second study, which are left as they are, with the columns that the model was set up
            with. Labels may be new or lack: they are unknown then.
        reference_model
            A trained model, or the folder in which it was saved.
        max_missing
            Share of the genes of the model that may lack; they are taken as zero.
        """
        from scalloy.models._query import load_query_data

        return load_query_data(cls, adata, reference_model, max_missing)


def moments(x: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each variable, where it is not NaN."""
    if isinstance(x, DiskRows):
        mean, square = x.summary["sums"] / x.shape[0]
    elif sp.issparse(x):
        mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
        square = np.bincount(x.indices, x.data.astype(np.float64) ** 2, x.shape[1]) / x.shape[0]
    else:
        there = ~np.isnan(x)
        n, known = np.maximum(there.sum(0), 1), np.where(there, x, 0.0)
        mean, square = known.sum(0, dtype=np.float64) / n, np.square(known, dtype=np.float64).sum(0) / n
    variance = np.maximum(square - mean**2, 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(variance).float()


def _plain(value: Any) -> Any:
    """As files of AnnData can hold it."""
    return "none" if value is None else list(value) if isinstance(value, tuple) else value


def without(local: dict[str, Any], *names: str) -> dict[str, Any]:
    """The arguments of a function from its ``locals()``."""
    return {k: v for k, v in local.items() if k not in names}
