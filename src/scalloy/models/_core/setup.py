"""Registration of an AnnData: what its columns mean, and checks that they can be used and stay unchanged.

A :class:`Layout` says which arguments of ``setup_anndata`` a model takes and which fields of scvi-tools
they become. :func:`set_up` checks the user's object and registers it; :func:`fitting` gives other cells the
genes of a model.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LabelsWithUnlabeledObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from scalloy._keys import CONDITION_KEY
from scalloy.data import checks
from scalloy.data.fingerprint import Seal
from scalloy.data.genes import aligned, counted
from scalloy.data.roles import check_roles
from scalloy.models._core import label_tree
from scalloy.models._core.structure import with_column, with_names

_OWNERS: WeakValueDictionary[str, AnnData] = WeakValueDictionary()  # which AnnData has which identity
Given = dict[str, Any]  # arguments of `setup_anndata` by their names


class Layout(Protocol):
    """Protocol of what a model reads from the data that the user passes."""

    def lacks(self) -> frozenset[str]:
        """Return the arguments of ``setup_anndata`` that the model has no use for."""

    def fields(self, given: Given) -> list:
        """Return scvi-tools' fields for the arguments of ``setup_anndata``."""

    def obsm_keys(self, given: Given) -> tuple[str, ...]:
        """Return the keys of ``.obsm`` that are modelled."""

    def known_otherwise(self, adata: AnnData, given: Given) -> np.ndarray | None:
        """Return a mask of the cells that need no counts, since something else was measured of them."""

    def joined(self, data: Any, registry: dict[str, Any]) -> AnnData:
        """Return the cells as one AnnData with everything that is registered."""


@dataclass(frozen=True)
class OneModality:
    """Layout with counts in ``.X`` or a layer, and columns of ``.obs``.

    Attributes
    ----------
    condition
        Whether the model predicts cells under another condition.
    unlabeled
        Whether one of the labels may stand for "unknown".
    """

    condition: bool = False
    unlabeled: bool = False

    def lacks(self) -> frozenset[str]:
        takes = dict.fromkeys(("condition_key", "conditions", "donor_key"), self.condition)
        takes |= dict.fromkeys(("unlabeled_category", "label_parents"), self.unlabeled)
        return frozenset(name for name, taken in takes.items() if not taken)

    def fields(self, given: Given) -> list:
        labels, unknown = given["labels_key"], given.get("unlabeled_category")
        of_labels = (
            OccurringNames(REGISTRY_KEYS.LABELS_KEY, labels)
            if labels is None or unknown is None
            else OccurringLabels(REGISTRY_KEYS.LABELS_KEY, labels, unknown)
        )
        out = [
            LayerField(
                REGISTRY_KEYS.X_KEY, given.get("layer"), is_count_data=False, correct_data_format=False
            ),
            OccurringNames(REGISTRY_KEYS.BATCH_KEY, given["batch_key"]),
            label_tree.field(given, of_labels),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, given["size_factor_key"], required=False),
            OccurringCategories(REGISTRY_KEYS.CAT_COVS_KEY, removed_beside_batches(given)),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, given["continuous_covariate_keys"]),
        ]
        if self.condition:
            out.append(OccurringNames(CONDITION_KEY, given.get("condition_key")))
        return out

    def obsm_keys(self, given: Given) -> tuple[str, ...]:
        return ()

    def known_otherwise(self, adata: AnnData, given: Given) -> np.ndarray | None:
        return None

    def joined(self, data: Any, registry: dict[str, Any]) -> AnnData:
        return data


class OccurringCategories(CategoricalJointObsField):
    """Categorical columns of which only the categories of some cells count.

    A column may still have the category of a donor whose cells were left out. A model would take this donor
    for known, though it has learned nothing of him.
    """

    def _combine_fields(self, adata: AnnData) -> None:
        super()._combine_fields(adata)
        columns = adata.obsm[self.attr_key]
        for key in columns:  # as plain values, since pandas takes categories in another order for the same
            columns[key] = columns[key].astype(object)


class OccurringNames(CategoricalObsField):
    """A categorical column of which only the categories of some cells count, in their order."""

    def register_field(self, adata: AnnData) -> dict:
        state = super().register_field(adata)
        given = adata.obs[self.attr_key]
        occurring, codes = np.unique(given, return_inverse=True)
        adata.obs[self.attr_key] = codes.astype(given.dtype)
        names = state[self.CATEGORICAL_MAPPING_KEY]
        return {**state, self.CATEGORICAL_MAPPING_KEY: names[occurring]}


class OccurringLabels(LabelsWithUnlabeledObsField, OccurringNames):
    """Labels of some cells, and last the one that stands for "unknown"."""


def removed_beside_batches(given: Given) -> list[str] | None:
    """Return the categorical columns, besides that of batches, whose effects are removed: donors first."""
    donors, others = given.get("donor_key"), given["categorical_covariate_keys"]
    return others if donors is None else [donors, *(others or ())]


# registering ------------------------------------------------------------------------------------


def set_up(cls: Any, adata: AnnData, args: dict[str, Any], **kwargs: Any) -> None:
    """Check the data that the arguments of ``setup_anndata`` name, and register them.

    Parameters
    ----------
    cls
        Class of the model.
    adata
        Cells, to which columns with codes are added.
    args
        Name of the model, name of the set-up method, and its arguments, in the format of scvi-tools.
    **kwargs
        ``source_registry`` (of a trained model, whose categories the cells must have) and
        ``extend_categories`` (whether they may have others too).
    """
    layout: Layout = cls.layout
    checks.check_object(adata)
    given = label_tree.with_tree(adata, args["setup_args"])
    given = with_column(adata, given, extend=kwargs.get("extend_categories", False))
    args = {**args, "setup_args": given}
    checks.check_keys(adata, given)
    if "source_registry" not in kwargs:
        check_roles(adata, given)
    known, allow = layout.known_otherwise(adata, given), given["allow_non_counts"]
    checks.check_counts(adata, given.get("layer"), allow_non_counts=allow, known=known)
    if source := kwargs.get("source_registry"):
        checks.check_same_kind(adata.obs, categories := known_categories(source))
        if not kwargs.get("extend_categories"):
            checks.check_categories(adata, categories)
    _register(cls, adata, args, **kwargs)


def _register(cls: Any, adata: AnnData, args: dict[str, Any], **kwargs: Any) -> None:
    """Register the cells with scvi-tools, and record the data to detect later changes in place."""
    given, layout = args["setup_args"], cls.layout
    owner = _OWNERS.get(str(adata.uns.get("_scvi_uuid")))
    if owner is not None and owner is not adata:  # a copy, which needs an identifier of its own
        del adata.uns["_scvi_uuid"]
    manager = AnnDataManager(fields=layout.fields(given), setup_method_args=args)
    manager.register_fields(adata, **kwargs)
    manager.seal = Seal.of(adata, given, layout.obsm_keys(given))
    cls.register_manager(manager)
    _OWNERS[str(adata.uns["_scvi_uuid"])] = adata


def is_set_up(cls: Any, adata: AnnData) -> bool:
    """Return whether this very object was registered for the class."""
    if not isinstance(adata, AnnData):
        return False
    manager = cls._setup_adata_manager_store.get(adata.uns.get("_scvi_uuid"))
    return manager is not None and manager.adata is adata


def fitting(layout: Layout, data: Any, registry: dict[str, Any], max_missing: float = 0.0) -> AnnData:
    """Return cells as one AnnData with the genes of a model in their order; the same object if it has these.

    Parameters
    ----------
    layout
        Layout of the model.
    data
        Cells of the user.
    registry
        Registry of the model.
    max_missing
        Largest share of the genes that the cells may lack; the counts of missing genes are zero.
    """
    adata = checks.check_type(layout.joined(data, registry))
    adata = counted(adata.to_memory() if adata.isbacked else adata, registry["setup_args"].get("layer"))
    names = registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]
    cells = with_names(aligned(adata, list(names), max_missing), registry["setup_args"])
    return label_tree.with_labels(cells, registry["setup_args"])


def method_args(registry: dict[str, Any]) -> dict[str, Any]:
    """Return the set-up method of a model and its arguments, in the format of scvi-tools."""
    return {k: registry[k] for k in ("model_name", "setup_method_name", "setup_args")}


def known_categories(registry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the categories of each registered column, by the name of the column."""
    fields, known = registry["field_registries"], {}
    for field in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY, CONDITION_KEY):
        if field not in fields:
            continue
        state = fields[field]["state_registry"]
        known[state["original_key"]] = np.asarray(state["categorical_mapping"])
    joint = fields[REGISTRY_KEYS.CAT_COVS_KEY].get("state_registry", {}).get("mappings", {})
    known |= {k: np.asarray(v) for k, v in joint.items()}
    return {k: v for k, v in known.items() if not k.startswith("_scvi")}


# the method of the user -------------------------------------------------------------------------


def set_up_defaults(cls: Any, method: str) -> dict[str, Any]:
    """Return the arguments of a set-up method and their defaults, without the data."""
    arguments = inspect.signature(getattr(cls, method)).parameters.values()
    return {p.name: p.default for p in arguments if p.default is not p.empty}
