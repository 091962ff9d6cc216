"""Mapping of a second study onto a trained model: genes, batches, conditions and labels are matched by name.

The weights are extended in :mod:`scalloy.vae.surgery`.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS

from scalloy.blocks.composed import n_rows
from scalloy.data import checks
from scalloy.data.genes import shallow
from scalloy.models._core.setup import Layout, fitting, method_args, set_up
from scalloy.vae.surgery import extend

logger = logging.getLogger("scalloy")
UNKNOWN = "unknown"


def load_query_data(cls: Any, adata: Any, reference_model: Any, max_missing: float = 0.2) -> Any:
    """Return a model for a second study on top of a trained one, whose own cells keep exactly the same codes.

    Genes, batches, conditions and labels are matched by name. :meth:`train` then trains only the weights of
    new batches, covariates and conditions; before training, these are the mean of the known ones.

    Parameters
    ----------
    adata
        Cells of the second study, with the columns that the model was set up with; they are not changed.
        Labels that are new or missing count as unknown.
    reference_model
        A trained model, or the folder in which it was saved.
    max_missing
        Largest share of the genes of the model that may be missing; their counts are taken as zero.

    Examples
    --------
    >>> query = sa.CGMDVAE.load_query_data(adata.copy(), model)
    >>> query.get_latent_representation().shape
    (200, 10)
    """
    reference = reference_model
    reference = cls.load(reference) if isinstance(reference, str | Path) else reference
    if type(reference) is not cls:
        name = type(reference).__name__
        msg = f"`reference_model` is a {name}. Call `{name}.load_query_data`."
        raise TypeError(msg)
    if not 0 <= max_missing < 1:
        msg = f"`max_missing={max_missing}` is a share of the genes: pass a number from 0 to below 1."
        raise ValueError(msg)
    reference._check_if_trained(warn=False, message="`reference_model` is not trained. Call `train()` first.")
    registry = with_names_as_text(reference.registry)
    cells = own_cells(cls.layout, adata, registry, max_missing)
    set_up(cls, cells, method_args(registry), source_registry=registry, extend_categories=True)
    init = dict(reference.init_params_["non_kwargs"])
    if "encode_covariates" in init:  # otherwise no weight could move the codes of the query
        init["encode_covariates"] = True
    query = cls(cells, **init)
    query.reader.given, query.reader.max_missing = adata, max_missing
    sizes = reference.sizes
    extend(query.module, reference.module, (*sizes.removed, max(1, n_rows(sizes.conditions))))
    query.is_trained_ = True
    return query


def own_cells(layout: Layout, data: Any, registry: dict[str, Any], max_missing: float) -> AnnData:
    """Return the query as a new object, with the genes of the model and categories named as in the registry.

    Parameters
    ----------
    layout
        Layout of the model.
    data
        Cells of the second study.
    registry
        Registry of the model; its labels are extended by an unknown one, if the model learns from labels.
    max_missing
        Largest share of the genes of the model that may be missing.
    """
    cells = shallow(fitting(layout, data, registry, max_missing))
    fields = registry["field_registries"]
    if (key := registry["setup_args"].get("labels_key")) is not None:
        _match_labels(cells, key, registry["setup_args"], fields[REGISTRY_KEYS.LABELS_KEY]["state_registry"])
    named = {field["state_registry"].get("original_key") for field in fields.values()}
    named |= set(fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"].get("mappings", {}))
    for key in named & set(cells.obs):
        cells.obs[key] = as_text(cells.obs[key])
    return cells


def as_text(column: pd.Series) -> pd.Series:
    """Return names as text, so that batch 1 of one study is batch "1" of another; missing values stay so."""
    return column.astype(object).where(column.isna(), column.astype(str).astype(object))


def with_names_as_text(registry: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the registry in which the names of all categories are text."""
    copied = deepcopy(registry)
    for field in copied["field_registries"].values():
        state = field["state_registry"]
        if not str(state.get("original_key", "_scvi")).startswith("_scvi"):  # a column of the user
            state["categorical_mapping"] = np.asarray(state["categorical_mapping"]).astype(str).astype(object)
        for key, names in state.get("mappings", {}).items():
            state["mappings"][key] = np.asarray(names).astype(str).astype(object)
    return copied


def _match_labels(cells: AnnData, key: str, given: dict[str, Any], state: dict[str, Any]) -> None:
    """Set missing labels to unknown, and new ones too if the model learns from labels."""
    unknown = str(given.get("unlabeled_category") or UNKNOWN)
    column = cells.obs[key] if key in cells.obs else pd.Series(unknown, index=cells.obs_names)
    column = column.astype(object).where(column.notna(), unknown)
    cells.obs[key] = column
    if "unlabeled_category" not in given:
        return
    given["unlabeled_category"] = unknown
    labels = [k for k in state["categorical_mapping"] if k != unknown]
    known = np.array([*labels, unknown], dtype=object)
    state["categorical_mapping"] = known
    column = as_text(column)
    if new := sorted(set(column) - set(known)):
        logger.info("Labels that the model does not know are taken as %r: %s.", unknown, checks.few(new))
    cells.obs[key] = column.where(column.isin(known), unknown)
