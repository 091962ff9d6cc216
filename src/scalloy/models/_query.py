"""A second study for a trained model: its genes, batches, conditions and labels matched by name.

What becomes of the weights is in :mod:`scalloy.vae.query`.
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

from scalloy.data import checks
from scalloy.data.align import shallow
from scalloy.vae.query import extend

logger = logging.getLogger("scalloy")
UNKNOWN = "unknown"


def load_query_data(cls: Any, data: Any, reference: Any, max_missing: float) -> Any:
    """The body of :meth:`scalloy.models._base.ScalloyModel.load_query_data`."""
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
    cells = own_cells(cls, data, registry, max_missing)
    args = {k: registry[k] for k in ("model_name", "setup_method_name", "setup_args")}
    cls._set_up(cells, args, source_registry=registry, extend_categories=True)
    init = dict(reference.init_params_["non_kwargs"])
    if "encode_covariates" in init:  # or else nothing could move the query
        init["encode_covariates"] = True
    query = cls(cells, **init)
    query._source, query._max_missing = data, max_missing
    sizes = reference._sizes()
    extend(query.module, reference.module, (*sizes.removed, sizes.n_conditions))
    query.is_trained_ = True
    return query


def own_cells(cls: Any, data: Any, registry: dict[str, Any], max_missing: float) -> AnnData:
    """The query with the genes of the model and names as the registry has them, in an object of its own."""
    cells = shallow(cls._fitting(data, registry, max_missing))
    fields = registry["field_registries"]
    if (key := registry["setup_args"].get("labels_key")) is not None:
        _match_labels(cells, key, registry["setup_args"], fields[REGISTRY_KEYS.LABELS_KEY]["state_registry"])
    named = {field["state_registry"].get("original_key") for field in fields.values()}
    named |= set(fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"].get("mappings", {}))
    for key in named & set(cells.obs):
        cells.obs[key] = as_text(cells.obs[key])
    return cells


def as_text(column: pd.Series) -> pd.Series:
    """Names as text, so that batch 1 of one study is batch "1" of another; what lacks still lacks."""
    return column.astype(object).where(column.isna(), column.astype(str).astype(object))


def with_names_as_text(registry: dict[str, Any]) -> dict[str, Any]:
    """A copy of the registry in which each category is known by its name as text."""
    copied = deepcopy(registry)
    for field in copied["field_registries"].values():
        state = field["state_registry"]
        if not str(state.get("original_key", "_scvi")).startswith("_scvi"):  # or there is no such column
            state["categorical_mapping"] = np.asarray(state["categorical_mapping"]).astype(str).astype(object)
        for key, names in state.get("mappings", {}).items():
            state["mappings"][key] = np.asarray(names).astype(str).astype(object)
    return copied


def _match_labels(cells: AnnData, key: str, given: dict[str, Any], state: dict[str, Any]) -> None:
    """Labels that lack are unknown; and those that are new, where the model learns from labels."""
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
