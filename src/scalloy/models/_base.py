"""What all models share: AnnData in; arrays, frames and AnnData out.

A leaf in this folder names its module and its arguments; everything else is here. Getters return,
:meth:`ScalloyModel.annotate` writes, and nobody touches ``adata.X``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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
from scvi.model.base import BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin
from torch.distributions import Independent

from scalloy import _keys
from scalloy.blocks.likelihoods import Likelihood
from scalloy.data import checks
from scalloy.data.loader import Cells, CellLoader, CellSplitter
from scalloy.models import _files, _options
from scalloy.train.memory import buffers_stay_mapped
from scalloy.train.plan import TermsPlan
from scalloy.vae.base import Batch, Sizes, VAEModule
from scalloy.vae.vae import LibraryPrior, library_prior

logger = logging.getLogger("scalloy")

DECODED_ENTRIES = 8_000_000  # cells x genes decoded at once


class ScalloyModel(UnsupervisedTrainingMixin, BaseModelClass):
    """Base of the users' classes. A leaf builds ``self.module`` and says ``self.init_params_``."""

    _training_plan_cls = TermsPlan
    _data_splitter_cls = CellSplitter
    _data_loader_cls = CellLoader
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
        args = cls._get_setup_method_args(**_without(locals(), "__class__"))
        categorical = {
            "batch_key": batch_key,
            "labels_key": labels_key,
            "categorical_covariate_keys": categorical_covariate_keys,
        }
        continuous = {
            "size_factor_key": size_factor_key,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        checks.check_object(adata)
        checks.check_keys(adata, categorical, continuous)
        checks.check_counts(adata, layer, allow_non_counts=allow_non_counts)
        fields = [
            LayerField(
                REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False
            ),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        cls._register(adata, fields, args, **kwargs)

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

    def _likelihood(
        self, name: str, n_hidden: int, *, dispersion: str = "gene", library: str = "observed"
    ) -> Likelihood:
        """Likelihood by name, beginning at the moments of the data."""
        made = _options.likelihood(
            name, self._sizes(), n_hidden, dispersion=dispersion, library=library
        )
        state = self.registry["field_registries"].get(REGISTRY_KEYS.SIZE_FACTOR_KEY, {})
        if name == "constrained_poisson" and state.get("data_registry"):
            msg = (
                "`gene_likelihood='constrained_poisson'` ties the rates to the observed total of the "
                "cell, but `size_factor_key` was registered. Pass `gene_likelihood='poisson'`."
            )
            raise ValueError(msg)
        if self.adata is not None:
            whole = self._all_cells()
            made.start_at(*_moments(whole.x), Batch.of(next(iter(_whole(whole)))).log_ell)
        return made

    def _library_prior(self, library: str) -> LibraryPrior | None:
        if library != "learned":
            return None
        n_batch = self._sizes().n_batch
        if self.adata is None:  # values come with the weights
            return LibraryPrior(torch.zeros(n_batch), torch.ones(n_batch))
        batch = Batch.of(next(iter(_whole(self._all_cells()))))
        return library_prior(batch.log_ell[:, 0], batch.b, n_batch)

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
        n = self.adata.n_obs if self.adata is not None else 10_000
        batch_size = default_batch_size(n) if batch_size is None else batch_size
        max_epochs = default_epochs(n, batch_size) if max_epochs is None else max_epochs
        _options.positive(batch_size=batch_size, max_epochs=max_epochs)
        validates = (train_size or 0.9) < 1 and validation_size != 0
        if validates:
            kwargs.setdefault("check_val_every_n_epoch", 1)
        kwargs.setdefault("early_stopping_monitor", "validation_loss")
        kwargs.setdefault("early_stopping_patience", max(10, max_epochs // 5))
        kwargs.setdefault("log_every_n_steps", 10**9)
        self._cells = None  # training has its own
        with buffers_stay_mapped():
            super().train(
                max_epochs=max_epochs,
                accelerator=accelerator,
                devices=devices,
                train_size=train_size,
                validation_size=validation_size,
                shuffle_set_split=shuffle_set_split,
                batch_size=batch_size,
                early_stopping=early_stopping and validates,
                plan_kwargs={**self._plan_defaults, **(plan_kwargs or {})},
                **kwargs,
            )

    # reading cells ------------------------------------------------------------------------------

    def _manager_of(self, adata: AnnData | None) -> AnnDataManager:
        """Registration of the model's cells, or of new ones (which are left as they are)."""
        if adata is None or adata is self._adata:
            if self._adata_manager is None:
                msg = "The model was loaded without its cells. Pass `adata=`."
                raise ValueError(msg)
            return self._adata_manager
        checks.check_same_genes(self.get_var_names(), adata)
        setup = self.registry["setup_args"]
        layer, allow = setup.get("layer"), setup.get("allow_non_counts", False)
        x = checks.check_layer(adata, layer)
        cells = AnnData(
            obs=adata.obs.copy(), var=pd.DataFrame(index=adata.var_names), layers={layer: x}
        ) if layer else AnnData(x, obs=adata.obs.copy(), var=pd.DataFrame(index=adata.var_names))
        checks.check_counts(cells, layer, allow_non_counts=allow)
        named = {k: v for k, v in setup.items() if k.endswith(("_key", "_keys"))}
        continuous = {k: named.pop(k, None) for k in ("size_factor_key", "continuous_covariate_keys")}
        checks.check_keys(cells, named, continuous)
        if self._adata_manager is not None:
            return self._adata_manager.transfer_fields(cells)
        type(self).setup_anndata(cells, source_registry=self.registry, **setup)
        return self._get_most_recent_anndata_manager(cells, required=True)

    def _read(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | None,
        batch_size: int | None,
        *,
        decodes: bool = False,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the cells on the model's device; smaller ones where all genes are decoded."""
        self._check_if_trained(warn=True)
        if batch_size is None:
            batch_size = 4096
            if decodes:
                batch_size = int(np.clip(DECODED_ENTRIES / self._sizes().n_vars, 64, 4096))
        device = self.module.device
        self.module.eval()
        for tensors in CellLoader(self._manager_of(adata), indices, batch_size=batch_size):
            yield {k: v.to(device) for k, v in tensors.items()}

    def _names(self, adata: AnnData | None, indices: Sequence[int] | None) -> pd.Index:
        names = (self.adata if adata is None else adata).obs_names
        return names if indices is None else names[np.asarray(indices)]

    def _batch_codes(self, transform_batch: Any) -> list[int | None]:
        """Codes of the named batches; ``None`` stands for the observed one."""
        wanted = [transform_batch] if np.isscalar(transform_batch) else transform_batch
        if wanted is None:
            return [None]
        state = self.registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
        known = [str(k) for k in state["categorical_mapping"]]
        for name in wanted:
            if name is not None:
                _options.one_of("transform_batch", str(name), known)
        return [None if name is None else known.index(str(name)) for name in wanted]

    # getters ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
    ) -> Any:
        """Latent code of each cell: posterior mean, or a sample, or ``(mean, variance)``.

        Parameters
        ----------
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        indices
            Rows, or a mask.
        give_mean
            Whether to return the mean of ``q(z | x)`` and not a sample of it.
        batch_size
            Cells at once.
        return_dist
            Whether to return mean and variance.
        """
        out: list[tuple[torch.Tensor, ...]] = []
        for tensors in self._read(adata, indices, batch_size):
            q_z = self.module.encode(Batch.of(tensors))["z"]
            if return_dist:
                out.append((q_z.mean.cpu(), q_z.variance.cpu()))
            else:
                out.append(((q_z.mean if give_mean else q_z.sample()).cpu(),))
        arrays = tuple(torch.cat(part).numpy() for part in zip(*out, strict=True))
        return arrays if return_dist else arrays[0]

    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        transform_batch: Any = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | str = 1,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        weights: str | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = True,
    ) -> np.ndarray | pd.DataFrame:
        """Expression without noise: what the decoder expects of each gene.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        transform_batch
            Decode as if the cells came from this batch; of several the mean is taken.
        gene_list
            Return these genes only.
        library_size
            What each cell adds up to; ``"latent"`` is its own library size.
        n_samples
            Samples of the latent per cell; one is the posterior mean's neighbourhood.
        n_samples_overall
            Draw this many cells with replacement, and one sample each.
        weights
            ``"uniform"`` or ``None``.
        return_mean
            Whether to average over samples.
        return_numpy
            Array instead of a frame with the names of cells and genes.
        silent
            Without effect (kept for scvi-tools' call).
        """
        if weights not in (None, "uniform"):
            msg = f"`weights={weights!r}` is not supported; pass `'uniform'`."
            raise NotImplementedError(msg)
        genes = self._genes(gene_list)
        if n_samples_overall is not None:
            rows = np.arange(len(self._names(adata, indices))) if indices is None else indices
            rows = np.asarray(rows)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
            indices = np.random.choice(rows, n_samples_overall)  # noqa: NPY002 (scvi's seed)
        codes, parts = self._batch_codes(transform_batch), []
        for tensors in self._read(adata, indices, batch_size, decodes=True):
            batch = Batch.of(tensors)
            q = self.module.encode(batch)
            draws = []
            for _ in range(n_samples):
                latents = self.module.draw(q)
                ps = [self.module.generative(batch, latents, code)["p"]["x"] for code in codes]
                draws.append(sum(self._scaled(p_x, library_size)[:, genes] for p_x in ps) / len(ps))
            parts.append((sum(draws) / n_samples if return_mean else torch.stack(draws)).cpu())
        several = n_samples > 1 and not return_mean
        out = torch.cat(parts, dim=1 if several else 0).numpy()
        if return_numpy or several or n_samples_overall is not None:
            return out
        names = np.asarray(self.get_var_names())[genes]
        return pd.DataFrame(out, index=self._names(adata, indices), columns=names)

    def _scaled(self, p_x: Any, library_size: float | str) -> torch.Tensor:
        if library_size == "latent":
            return p_x.mean
        return self.module.likelihood.fraction(p_x) * library_size

    def _genes(self, gene_list: Sequence[str] | None) -> Any:
        if gene_list is None:
            return slice(None)
        position = pd.Index(self.get_var_names()).get_indexer(list(gene_list))
        if (position < 0).any():
            unknown = np.asarray(gene_list)[position < 0]
            msg = f"`gene_list` names genes which the model does not know: {checks.few(unknown)}."
            raise KeyError(msg)
        return position

    @torch.inference_mode()
    def _per_cell(self, adata: Any, indices: Any, batch_size: Any, function: Any) -> np.ndarray:
        read = self._read(adata, indices, batch_size, decodes=True)
        return torch.cat([function(tensors).cpu() for tensors in read]).numpy()

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
    ) -> float | np.ndarray:
        """Evidence lower bound in nats, one sample of the latents; higher is better."""

        def elbo(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            t = self.module.objective(Batch.of(tensors))
            return -(t.recon + sum(t.kl.values()))

        values = self._per_cell(adata, indices, batch_size, elbo)
        return float(values.mean(dtype=np.float64)) if return_mean else values

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
    ) -> dict[str, float | np.ndarray]:
        """``-log p(x | latents)`` in nats, one sample of the latents; lower is better."""

        def recon(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.module.objective(Batch.of(tensors)).recon

        values = self._per_cell(adata, indices, batch_size, recon)
        return {
            "reconstruction_loss": float(values.mean(dtype=np.float64)) if return_mean else values
        }

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
    ) -> float | np.ndarray:
        """Importance-weighted estimate of ``log p(x)`` in nats; with more samples it rises to it.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        n_mc_samples
            Samples of the latents per cell; the cost grows in proportion.
        return_mean
            Whether to average over cells.
        """
        _options.positive(n_mc_samples=n_mc_samples)

        def marginal(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.module.marginal_ll(tensors, n_mc_samples=n_mc_samples)

        values = self._per_cell(adata, indices, batch_size, marginal)
        return float(values.mean(dtype=np.float64)) if return_mean else values

    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        transform_batch: Any = None,
    ) -> np.ndarray:
        """Counts that the model would have produced: ``(n, G)``, or ``(n, G, S)`` with several samples."""
        genes, (code, *_) = self._genes(gene_list), self._batch_codes(transform_batch)

        def draw(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.module.sample(tensors, n_samples, transform_batch=code)[:, genes]

        return self._per_cell(adata, indices, batch_size, draw)

    differential_expression = RNASeqMixin.differential_expression

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
        target = self.adata if adata is None else adata
        key = key_added or self.name
        written = self._annotations(adata, key)
        target = target.copy() if copy else target
        for attribute, values in written.items():
            for name, value in values.items():
                getattr(target, attribute)[name] = value
        return target if copy else None

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


def default_epochs(n_obs: int, batch_size: int) -> int:
    """Epochs that make about 2,500 steps, from 20 to 200."""
    steps = max(1.0, 0.9 * n_obs / batch_size)
    return int(np.clip(np.ceil(2500 / steps), 20, 200))


def _whole(cells: Cells) -> CellLoader:
    return CellLoader(cells, batch_size=cells.x.shape[0])


def _moments(x: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each gene."""
    mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
    squares = x.multiply(x) if hasattr(x, "multiply") else x * x
    square = np.asarray(squares.mean(axis=0), dtype=np.float64).ravel()
    return tuple(torch.from_numpy(v).float() for v in (mean, np.maximum(square - mean**2, 0)))


def _plain(value: Any) -> Any:
    return "none" if value is None else value


def _without(local: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in local.items() if k not in names}
