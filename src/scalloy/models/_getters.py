"""What a trained model tells about cells: arrays and frames out, nothing written.

A mixin of :class:`scalloy.models._base.ScalloyModel`, which has the model's module and cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._constants import _MANAGER_UUID_KEY
from scvi.model.base import RNASeqMixin

from scalloy._keys import CONDITION_KEY
from scalloy._seeds import seeded
from scalloy.data import checks
from scalloy.data.loader import CellLoader, as_positions
from scalloy.data.pieces import in_memory
from scalloy.models import _options
from scalloy.vae.base import Batch, Sizes, VAEModule

DECODED_ENTRIES = 8_000_000  # cells x genes decoded at once
UNLABELLED = "_scalloy_unlabelled"  # mask of new cells, beside them while they are read
Tensors = dict[str, torch.Tensor]
PerCell = Callable[[Tensors], torch.Tensor]


class Getters:
    """Latent representation, expression, samples, differential expression."""

    module: VAEModule
    seed: int
    adata: AnnData
    registry: dict[str, Any]
    labels: list[str]
    get_var_names: Callable[[], Any]
    _adata: AnnData | None
    _adata_manager: AnnDataManager | None
    _sizes: Callable[[], Sizes]
    _check_if_trained: Callable[..., None]
    _fields: Callable[..., list]
    _known_otherwise: Callable[..., np.ndarray | None]
    _fitting: Callable[..., AnnData]
    _source: Any
    _max_missing: float
    _register_manager_for_instance: Callable[[AnnDataManager], None]
    _per_instance_manager_store: dict[str, dict[str, AnnDataManager]]
    id: str
    _obsm_keys: Callable[[dict], tuple[str, ...]]

    # reading cells ------------------------------------------------------------------------------

    def _manager_of(self, adata: AnnData | None) -> AnnDataManager:
        """Registration of the model's cells, or of new ones (which are left as they are)."""
        if adata is None or adata is self._adata:
            return self._own_manager()
        setup = self.registry["setup_args"]
        adata = self._fitting(adata, self.registry, self._max_missing if adata is self._source else 0.0)
        layer, allow = setup.get("layer"), setup.get("allow_non_counts", False)
        x = checks.check_layer(adata, layer)
        parts = {"obs": adata.obs.copy(), "var": pd.DataFrame(index=adata.var_names)}
        second = {k: adata.obsm[k] for k in self._obsm_keys(setup)}  # its names have been checked
        parts |= {"obsm": {k: v.to_numpy() if hasattr(v, "to_numpy") else v for k, v in second.items()}}
        cells = AnnData(layers={layer: x}, **parts) if layer else AnnData(x, **parts)
        known = self._known_otherwise(cells, setup)
        checks.check_counts(cells, layer, allow_non_counts=allow, genes=False, known=known)
        self._complete_labels(cells, setup)
        checks.check_keys(cells, setup)
        checks.check_categories(cells, categories := known_categories(self.registry))
        checks.as_known(cells.obs, categories)
        if self._adata_manager is not None:
            return self._adata_manager.transfer_fields(cells)
        args = {k: self.registry[k] for k in ("model_name", "setup_method_name", "setup_args")}
        manager = AnnDataManager(fields=self._fields(**setup), setup_method_args=args)
        manager.register_fields(cells, self.registry)
        return manager

    def _own_manager(self) -> AnnDataManager:
        """Registration of the model's own cells, which must be those that were registered."""
        manager = self._adata_manager
        if manager is None:
            msg = (
                "The model was loaded without its cells. Pass `adata=` to `load`, or to the method if "
                "it takes cells."
            )
            raise ValueError(msg)
        adata = manager.adata
        manager.seal.check(adata)  # type: ignore[attr-defined]
        if adata.uns.get(_MANAGER_UUID_KEY) != manager.id or not _codes_are_there(manager):
            manager.adata = None  # another set-up may have changed the codes since, or the user removed them
            manager.register_fields(adata, manager._source_registry, **manager._transfer_kwargs)
        return manager

    def _is_own(self, adata: Any) -> bool:
        """Whether these are the model's own cells, or what they were made from, with the same counts."""
        if adata is None or adata is self._adata:
            return True
        if adata is not self._source:
            return False
        seal = self._own_manager().seal  # type: ignore[attr-defined]
        return seal.holds_counts_of(self._fitting(adata, self.registry, self._max_missing))

    def _complete_labels(self, cells: AnnData, setup: dict[str, Any]) -> None:
        """New cells need no labels to be embedded: what is missing or new becomes a label that is known."""
        key = setup.get("labels_key")
        if key is None:
            return
        state = self.registry["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
        known = np.asarray(state["categorical_mapping"])
        given = cells.obs[key] if key in cells.obs else pd.Series("", index=range(cells.n_obs))
        position = pd.Index(known.astype(str)).get_indexer(given.astype(str))
        unknown = pd.Index(known.astype(str)).get_indexer([str(state.get("unlabeled_category"))])[0]
        cells.obs[key] = known[np.where(position < 0, max(unknown, 0), position)]
        if unknown < 0:  # no label says that a cell has none: their code does, in `_read`
            cells.uns[UNLABELLED] = position < 0

    def _read(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | None,
        batch_size: int | None,
        *,
        decodes: bool = False,
    ) -> Iterator[Tensors]:
        """Batches of the cells on the model's device; smaller ones where all genes are decoded."""
        self._check_if_trained(warn=True)
        if batch_size is None:
            batch_size = 4096
            if decodes:
                batch_size = int(np.clip(DECODED_ENTRIES / self._sizes().n_vars, 64, 4096))
        device = self.module.device
        self.module.eval()
        own = adata is self._adata
        for part, rows in in_memory(None if own else adata, indices):
            manager, n_read = self._manager_of(part), 0
            unlabelled = manager.adata.uns.get(UNLABELLED)
            unlabelled = None if unlabelled is None else torch.from_numpy(unlabelled[_order(rows, manager)])
            for tensors in CellLoader(manager, rows, batch_size=batch_size):
                if unlabelled is not None:
                    y = tensors[REGISTRY_KEYS.LABELS_KEY]
                    lacks = unlabelled[n_read : n_read + len(y)].unsqueeze(-1)
                    n_read += len(y)
                    tensors = {**tensors, REGISTRY_KEYS.LABELS_KEY: y.masked_fill(lacks, len(self.labels))}
                yield {k: v.to(device) for k, v in tensors.items()}

    def _names(self, adata: AnnData | None, indices: Sequence[int] | None) -> pd.Index:
        names = (self.adata if adata is None else adata).obs_names
        return names if indices is None else names[np.asarray(indices)]

    def _batch_codes(self, transform_batch: Any) -> list[int | None]:
        """Codes of the named batches; ``None`` stands for the observed one."""
        if transform_batch is None:
            return [None]
        wanted = [transform_batch] if np.ndim(transform_batch) == 0 else list(transform_batch)
        state = self.registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
        known = [str(k) for k in state["categorical_mapping"]]
        named = (
            name if name is None else _options.category("transform_batch", name, known) for name in wanted
        )
        return [None if name is None else known.index(name) for name in named]

    # getters ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
        which: str = "z",
        seed: int | None = None,
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
        which
            Letter of the latent: ``"z"``, and whatever else the model has, such as ``"w"``.
        seed
            Of a sample; ``None`` is that of the model.
        """
        out: list[tuple[torch.Tensor, ...]] = []
        with seeded(seed, self.seed):
            for tensors in self._read(adata, indices, batch_size):
                q = self.module.encode(Batch.of(tensors))
                q_z = q[_options.one_of("which", which, q)]
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
        seed: int | None = None,
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
            Samples of the latent per cell.
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
        seed
            Of what is drawn; ``None`` is that of the model.
        """
        if weights not in (None, "uniform"):
            msg = f"`weights={weights!r}` is not supported; pass `'uniform'`."
            raise NotImplementedError(msg)
        _options.whole(n_samples=n_samples)
        if n_samples_overall is not None:
            _options.whole(n_samples_overall=n_samples_overall)
        _options.totals("latent", library_size=library_size)
        genes, parts = self._genes(gene_list), []
        with seeded(seed, self.seed):
            if n_samples_overall is not None:
                n_obs = len(self._names(adata, None))
                rows = np.arange(n_obs) if indices is None else as_positions(indices, n_obs)
                indices = rows[torch.randint(len(rows), (n_samples_overall,)).numpy()]  # type: ignore[assignment]
            codes = self._batch_codes(transform_batch)
            for tensors in self._read(adata, indices, batch_size, decodes=True):
                batch = Batch.of(tensors)
                q = self.module.encode(batch)
                draws = []
                for _ in range(n_samples):
                    latents = self.module.draw(q)
                    ps = [self.module.generative(batch, latents, code)["p"]["x"] for code in codes]
                    each = (self._scaled(p_x, batch, library_size)[:, genes] for p_x in ps)
                    draws.append(sum(each) / len(ps))
                parts.append((sum(draws) / n_samples if return_mean else torch.stack(draws)).cpu())
        several = n_samples > 1 and not return_mean
        out = torch.cat(parts, dim=1 if several else 0).numpy()
        if return_numpy or several or n_samples_overall is not None:
            return out
        names = np.asarray(self.get_var_names())[genes]
        return pd.DataFrame(out, index=self._names(adata, indices), columns=names)

    def _scaled(self, p_x: Any, batch: Batch, library_size: float | str) -> torch.Tensor:
        if library_size == "latent":
            return self.module.likelihood.expected(p_x, batch.log_ell)
        return self.module.likelihood.fraction(p_x) * float(library_size)

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
    def _per_cell(
        self,
        adata: AnnData | None,
        indices: Any,
        batch_size: int | None,
        function: PerCell,
        seed: int | None = None,
    ) -> np.ndarray:
        with seeded(seed, self.seed):
            read = self._read(adata, indices, batch_size, decodes=True)
            return torch.cat([function(tensors).cpu() for tensors in read]).numpy()

    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        transform_batch: Any = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Counts that the model would have produced: ``(n, G)``, or ``(n, G, S)`` with several samples."""
        _options.whole(n_samples=n_samples)
        genes, (code, *_) = self._genes(gene_list), self._batch_codes(transform_batch)

        def draw(tensors: Tensors) -> torch.Tensor:
            return self.module.sample(tensors, n_samples, transform_batch=code)[:, genes]

        return self._per_cell(adata, indices, batch_size, draw, seed)

    def differential_expression(
        self, adata: AnnData | None = None, *args: Any, seed: int | None = None, **kwargs: Any
    ) -> pd.DataFrame:
        """Return genes that differ between groups of cells, with scvi-tools' call and test.

        Parameters
        ----------
        adata
            New cells, which are left as they are; ``None`` is the model's own.
        *args, **kwargs
            Arguments of :meth:`scvi.model.base.RNASeqMixin.differential_expression`.
        seed
            Random seed; ``None`` is that of the model.
        """
        compare: Any = RNASeqMixin.differential_expression
        with seeded(seed, self.seed):
            if adata is None or adata is self._adata:
                self._own_manager()
                return compare(self, self.adata, *args, **kwargs)
            cells = self._fitting(adata, self.registry)
            manager = self._manager_of(cells)
            if (key := self.registry["setup_args"].get("labels_key")) in cells.obs:
                manager.adata.obs[key] = cells.obs[key]  # by which they may be grouped, also if new
            self._register_manager_for_instance(manager)  # scvi-tools reads them itself
            try:
                return compare(self, manager.adata, *args, **kwargs)
            finally:
                del self._per_instance_manager_store[self.id][manager.adata_uuid]


def _codes_are_there(manager: AnnDataManager) -> bool:
    """Whether the columns and arrays that a registration has written are in the cells."""
    places = ((place["attr_name"], place["attr_key"]) for place in manager.data_registry.values())
    return all(key is None or key in getattr(manager.adata, name) for name, key in places)


def _order(rows: Any, manager: AnnDataManager) -> np.ndarray:
    """Return the positions of the cells in the order in which they are read."""
    n = manager.adata.n_obs
    return np.arange(n) if rows is None else as_positions(rows, n)


def known_categories(registry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Categories of each registered column, by the name of the column."""
    fields, known = registry["field_registries"], {}
    for field in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY, CONDITION_KEY):
        if field not in fields:
            continue
        state = fields[field]["state_registry"]
        known[state["original_key"]] = np.asarray(state["categorical_mapping"])
    joint = fields[REGISTRY_KEYS.CAT_COVS_KEY].get("state_registry", {}).get("mappings", {})
    known |= {k: np.asarray(v) for k, v in joint.items()}
    return {k: v for k, v in known.items() if not k.startswith("_scvi")}
