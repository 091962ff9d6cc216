"""Reading of cells: the only way by which a model gets batches from an AnnData.

:class:`CellReader` matches cells to the model by the names of genes and categories, checks them, and yields
batches on the model's device. It also gives the names of the cells for the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._constants import _MANAGER_UUID_KEY

from scalloy._arguments import category, few
from scalloy._keys import CONDITION_KEY, OTHER_KEYS
from scalloy._seeds import seeded
from scalloy._threads import keep_to_cores
from scalloy.blocks.composed import Rows
from scalloy.data import checks
from scalloy.data.asked_conditions import design_in
from scalloy.data.batches import CellLoader
from scalloy.data.cell_table import Cells, as_positions
from scalloy.data.chunks import in_memory
from scalloy.data.conditions import Conditions
from scalloy.models._core import label_tree, unknowns
from scalloy.models._core.setup import Layout, fitting, known_categories, method_args
from scalloy.models._core.structure import rows_of
from scalloy.vae.base import Batch, Sizes, VAEModule

DECODED_ENTRIES = 8_000_000  # largest number of cells x genes that are decoded at once
NO_CELLS = (
    "The model was loaded without its cells. Pass `adata=` to `load`, or to the method if it takes cells."
)
Tensors = dict[str, torch.Tensor]
PerCell = Callable[[Batch], torch.Tensor]


class Registered(Protocol):
    """Attributes of a model of scvi-tools that describe it and its cells."""

    registry: dict[str, Any]
    summary_stats: Any
    module: VAEModule
    seed: int
    _adata: AnnData | None
    _adata_manager: AnnDataManager | None

    def _check_if_trained(self, warn: bool = True, message: str = ...) -> None: ...


class CellReader:
    """Reads cells for a model.

    Parameters
    ----------
    model
        Model with a registry; it may have been loaded without its cells.
    layout
        Layout of the data that the user passes.

    Attributes
    ----------
    given
        Object of the user from which the model's AnnData was made; ``None`` if it is that AnnData itself.
    max_missing
        Largest share of the model's genes that this object may lack.
    """

    def __init__(self, model: Registered, layout: Layout) -> None:
        self._model, self.layout = model, layout
        self.given: Any = None
        self.max_missing = 0.0
        self._table: Cells | None = None
        self._structure: tuple[Any, Conditions | None] | None = None
        self._told: set[str] = set()  # new donors of whom the user was warned

    # what the model knows -----------------------------------------------------------------------

    @property
    def registry(self) -> dict[str, Any]:
        """Registry that ``setup_anndata`` made."""
        return self._model.registry

    @property
    def set_up_with(self) -> dict[str, Any]:
        """Arguments of ``setup_anndata``."""
        return self.registry["setup_args"]

    @property
    def var_names(self) -> pd.Index:
        """Names of the genes."""
        return pd.Index(self._state(REGISTRY_KEYS.X_KEY)["column_names"])

    @property
    def labels(self) -> list[str]:
        """Known labels in the order of their codes, of a tree the leaves; none without ``labels_key``."""
        if self.set_up_with.get("labels_key") is None:
            return []
        state = self._state(REGISTRY_KEYS.LABELS_KEY)
        names, unlabeled = map(str, state["categorical_mapping"]), str(state.get("unlabeled_category"))
        return [k for k in names if k != unlabeled][: None if self.tree is None else len(self.tree.leaves)]

    @property
    def tree(self) -> label_tree.LabelTree | None:
        """Tree of the labels; ``None`` if they have no hierarchy."""
        return label_tree.tree_of(self.set_up_with)

    @property
    def conditions(self) -> list[str]:
        """Conditions in the order of their codes."""
        return [str(k) for k in self._state(CONDITION_KEY)["categorical_mapping"]]

    @property
    def sizes(self) -> Sizes:
        """Numbers of genes, batches, labels and so on, as networks need them."""
        stats, fields = self._model.summary_stats, self.registry["field_registries"]
        covariates = {}
        if stats.get("n_extra_categorical_covs", 0):
            covariates["n_cats"] = tuple(
                int(k) for k in self._state(REGISTRY_KEYS.CAT_COVS_KEY)["n_cats_per_key"]
            )
        return Sizes(
            n_vars=stats.n_vars,
            n_batch=stats.n_batch,
            n_labels=stats.get("n_labels", 1),
            n_conditions=len(self.conditions) if CONDITION_KEY in fields else 1,
            n_cont=stats.get("n_extra_continuous_covs", 0),
            n_others=tuple(stats[f"n_{k}"] for k in OTHER_KEYS if k in fields),
            rows=self._rows(),
            **covariates,
        )

    @property
    def structure(self) -> Conditions | None:
        """Meaning of the conditions; ``None`` if they are mere names."""
        given = self.set_up_with.get("conditions")
        if self._structure is None or self._structure[0] is not given:
            self._structure = given, None if given is None else Conditions.from_plain(given)
        return self._structure[1]

    def _rows(self) -> Rows | None:
        """Return the parts of each condition, if conditions are made of parts."""
        if (structure := self.structure) is None:
            return None
        known = design_in(structure).by_name
        return rows_of(design_in(structure), [known[name] for name in self.conditions])

    def _state(self, field: str) -> dict[str, Any]:
        """Return what is known of a registered field, such as its categories."""
        return self.registry["field_registries"][field]["state_registry"]

    # cells --------------------------------------------------------------------------------------

    @property
    def adata(self) -> AnnData | None:
        """The model's own cells."""
        return self._model._adata

    @property
    def own(self) -> Any:
        """The object that the user gave to the model."""
        return self.adata if self.given is None else self.given

    def cells(self, adata: AnnData | None = None) -> AnnData:
        """Return the cells that are given, or else the model's own.

        Parameters
        ----------
        adata
            New cells; ``None`` is the model's own.
        """
        cells = self.adata if adata is None else adata
        if cells is None:
            raise ValueError(NO_CELLS)
        return cells

    def fitting(self, data: Any) -> AnnData:
        """Return cells as one AnnData with the genes of the model.

        Parameters
        ----------
        data
            Cells of the user.
        """
        missing = self.max_missing if data is self.given else 0.0
        return fitting(self.layout, data, self.registry, missing)

    def manager(self, adata: Any = None, *, composes: bool = False) -> AnnDataManager:
        """Return scvi-tools' registration of the model's cells, or of new ones, which are left as they are.

        Parameters
        ----------
        adata
            New cells; ``None`` is the model's own.
        composes
            Whether the cells may be under new conditions that are made of known parts; they have another one
            in the registration, and masks say where (:mod:`scalloy.models._core.unknowns`).
        """
        if adata is None or adata is self.adata:
            return self._own_manager()
        setup, adata = self.set_up_with, self.fitting(adata)
        layer, allow = setup.get("layer"), setup.get("allow_non_counts", False)
        x = checks.check_layer(adata, layer)
        parts = {"obs": adata.obs.copy(), "var": pd.DataFrame(index=adata.var_names)}
        second = {k: adata.obsm[k] for k in self.layout.obsm_keys(setup)}  # in the order of the model
        parts |= {"obsm": {k: v.to_numpy() if hasattr(v, "to_numpy") else v for k, v in second.items()}}
        cells = AnnData(layers={layer: x}, **parts) if layer else AnnData(x, **parts)
        known = self.layout.known_otherwise(cells, setup)
        checks.check_counts(cells, layer, allow_non_counts=allow, genes=False, known=known)
        categories = known_categories(self.registry)
        if (labels := setup.get("labels_key")) is not None:
            unknowns.complete_labels(cells, labels, self._state(REGISTRY_KEYS.LABELS_KEY))
        checks.check_keys(cells, setup)
        if (donors := setup.get("donor_key")) is not None:
            unknowns.complete_donors(cells, donors, categories[donors], self._told)
        if (structure := self.structure) is not None:
            unknowns.complete_conditions(cells, adata, structure, self._told, composes=composes)
        checks.check_categories(cells, categories)
        checks.as_known(cells.obs, categories)
        if (own := self._model._adata_manager) is not None:
            return own.transfer_fields(cells)
        fields = self.layout.fields(setup)
        manager = AnnDataManager(fields=fields, setup_method_args=method_args(self.registry))
        manager.register_fields(cells, self.registry)
        return manager

    def _own_manager(self) -> AnnDataManager:
        """Return the registration of the model's own cells, which must be as they were registered."""
        manager = self._model._adata_manager
        if manager is None:
            raise ValueError(NO_CELLS)
        adata = manager.adata
        manager.seal.check(adata)
        if adata.uns.get(_MANAGER_UUID_KEY) != manager.id or not _codes_are_there(manager):
            manager.adata = None  # another set-up has changed the codes, or the user has removed them
            manager.register_fields(adata, manager._source_registry, **manager._transfer_kwargs)
        return manager

    def is_own(self, adata: Any) -> bool:
        """Return whether these are the model's own cells, or their source with the same counts."""
        if adata is None or adata is self.adata:
            return True
        if adata is not self.given:
            return False
        seal = self._own_manager().seal
        return seal.holds_counts_of(self.fitting(adata))

    def table(self) -> Cells:
        """Return counts and columns of all cells of the model, which are kept until :meth:`forget_table`."""
        if self._table is None:
            self._table = Cells.of(self.manager())
        return self._table

    def forget_table(self) -> None:
        """Free the memory of what :meth:`table` keeps."""
        self._table = None

    # batches ------------------------------------------------------------------------------------

    def tensors(
        self, adata: Any = None, indices: Any = None, batch_size: int | None = None, *, decodes: bool = False
    ) -> Iterator[Tensors]:
        """Yield tensors of the cells in their order, some at a time, on the model's device.

        The keys are those of scvi-tools.

        Parameters
        ----------
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        indices
            Row numbers or a mask; ``None`` is all cells.
        batch_size
            Number of cells at a time; ``None`` chooses one that fits into memory.
        decodes
            Whether all genes of each cell will be decoded, which takes memory.
        """
        self._model._check_if_trained(warn=True)
        if batch_size is None:
            most = DECODED_ENTRIES / self.sizes.n_all_vars if decodes else 4096
            batch_size = int(np.clip(most, 64, 4096))
        keep_to_cores()
        module = self._model.module.eval()
        own, n_labels = adata is self.adata, len(label_tree.names_by_code(self))
        for part, rows in in_memory(None if own else adata, indices):
            manager, n_read = self.manager(part, composes=True), 0
            masks = unknowns.masks_of(manager.adata, rows)
            with unknowns.with_conditions(module, manager.adata) as first:
                for tensors in CellLoader(manager, rows, batch_size=batch_size):
                    n = len(tensors[REGISTRY_KEYS.X_KEY])
                    some = {k: mask[n_read : n_read + n] for k, mask in masks.items()}
                    n_read += n
                    read = unknowns.masked(tensors, some, n_labels, first)
                    yield {k: v.to(module.device) for k, v in read.items()}

    def batches(
        self, adata: Any = None, indices: Any = None, batch_size: int | None = None, *, decodes: bool = False
    ) -> Iterator[Batch]:
        """Yield the cells in their order, some at a time, on the model's device.

        Parameters
        ----------
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        indices
            Row numbers or a mask; ``None`` is all cells.
        batch_size
            Number of cells at a time; ``None`` chooses one that fits into memory.
        decodes
            Whether all genes of each cell will be decoded, which takes memory.
        """
        return map(Batch.of, self.tensors(adata, indices, batch_size, decodes=decodes))

    @torch.inference_mode()
    def per_cell(
        self,
        function: PerCell,
        adata: Any = None,
        indices: Any = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Return the values of a function of batches, one row for each cell.

        Parameters
        ----------
        function
            Takes a batch and returns a tensor with one row for each cell.
        adata
            New cells with the genes of the model; ``None`` is the model's own.
        indices
            Row numbers or a mask; ``None`` is all cells.
        batch_size
            Number of cells at a time; ``None`` chooses one that fits into memory.
        seed
            Random seed; ``None`` is that of the model.
        """
        with seeded(seed, self._model.seed):
            batches = self.batches(adata, indices, batch_size, decodes=True)
            return torch.cat([function(batch).cpu() for batch in batches]).numpy()

    # names --------------------------------------------------------------------------------------

    def names(self, adata: Any = None, indices: Any = None) -> pd.Index:
        """Return the names of cells.

        Parameters
        ----------
        adata
            New cells; ``None`` is the model's own.
        indices
            Row numbers or a mask; ``None`` is all cells.
        """
        names = self.cells(adata).obs_names
        return names if indices is None else names[np.asarray(indices)]

    def rows(self, adata: Any, indices: Any) -> np.ndarray:
        """Return row numbers of cells from row numbers or a mask."""
        n = (self.manager().adata if adata is None else adata).n_obs
        return np.arange(n) if indices is None else as_positions(indices, n)

    def genes(self, gene_list: Sequence[str] | None) -> Any:
        """Return the positions of genes by their names; ``None`` is all of them."""
        if gene_list is None:
            return slice(None)
        position = self.var_names.get_indexer(list(gene_list))
        if (position < 0).any():
            unknown = np.asarray(gene_list)[position < 0]
            msg = f"`gene_list` names genes which the model does not know: {few(unknown)}."
            raise KeyError(msg)
        return position

    def batch_codes(self, transform_batch: Any) -> list[int | None]:
        """Return the codes of named batches; ``None`` stands for the one that was observed."""
        if transform_batch is None:
            return [None]
        wanted = [transform_batch] if np.ndim(transform_batch) == 0 else list(transform_batch)
        known = [str(k) for k in self._state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]]
        named = (name if name is None else category("transform_batch", name, known) for name in wanted)
        return [None if name is None else known.index(name) for name in named]

    def batch_code(self, transform_batch: Any) -> int | None:
        """Return the code of one named batch; ``None`` stands for the one that was observed."""
        codes = self.batch_codes(transform_batch)
        if len(codes) != 1:
            msg = f"`transform_batch={transform_batch!r}` names {len(codes)} batches. Pass one."
            raise ValueError(msg)
        return codes[0]


def _codes_are_there(manager: AnnDataManager) -> bool:
    """Return whether the columns and arrays that a registration has written are in the cells."""
    places = ((place["attr_name"], place["attr_key"]) for place in manager.data_registry.values())
    return all(key is None or key in getattr(manager.adata, name) for name, key in places)
