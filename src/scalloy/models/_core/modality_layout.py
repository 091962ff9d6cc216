"""Layout of several modalities: a MuData, or an AnnData with all but the first in ``.obsm``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import ObsmField

from scalloy._keys import OTHER_KEYS
from scalloy.data import checks
from scalloy.data.modalities import check_modality, columns_of, joined, names_key, with_columns
from scalloy.files.anndata_files import is_mudata
from scalloy.models._core.setup import Given, OneModality

FIRST = OneModality()
SPARSE = "sparse"  # entry of the registry


class ModalityField(ObsmField):
    """An array of ``.obsm``, dense or sparse, whose columns may have names."""

    def _setup_column_names(self, adata: AnnData) -> Any:
        return columns_of(adata, self.attr_key)

    def register_field(self, adata: AnnData) -> dict:
        sparse = sp.issparse(adata.obsm[self.attr_key])
        return super().register_field(adata) | ({SPARSE: True} if sparse else {})

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        found = super().transfer_field(state_registry, adata_target, **kwargs)
        return found | ({SPARSE: True} if state_registry.get(SPARSE) else {})


@dataclass(frozen=True)
class SeveralModalities:
    """Layout with the first modality in ``.X`` or a layer, and the others in ``.obsm``."""

    def lacks(self) -> frozenset[str]:
        return FIRST.lacks()

    def fields(self, given: Given) -> list:
        arrays = zip(OTHER_KEYS, self.obsm_keys(given), strict=False)
        return [
            *FIRST.fields(given),
            *(ModalityField(name, key, correct_data_format=False) for name, key in arrays),
        ]

    def obsm_keys(self, given: Given) -> tuple[str, ...]:
        keys: Mapping[str, str] = given.get("obsm_keys") or {}
        second, *others = given["modalities"][1:]
        named = keys.get(second) or given.get("protein_obsm_key") or second
        return (named, *(keys.get(name, name) for name in others))

    def known_otherwise(self, adata: AnnData, given: Given) -> np.ndarray:
        argument = "protein_obsm_key" if not given.get("obsm_keys") else "obsm_keys"
        allow = given["allow_non_counts"]
        each = [
            check_modality(adata, argument if i == 0 else "obsm_keys", key, allow_non_counts=allow)
            for i, key in enumerate(self.obsm_keys(given))
        ]
        return np.any(each, axis=0)

    def joined(self, data: Any, registry: dict[str, Any]) -> AnnData:
        given, fields = registry["setup_args"], registry["field_registries"]
        keys = self.obsm_keys(given)
        states = [fields[k]["state_registry"] for k in (REGISTRY_KEYS.X_KEY, *OTHER_KEYS[: len(keys)])]
        if is_mudata(data):
            names = [list(state["column_names"]) for state in states]
            data = joined(data, given["modalities"], given.get("layers"), keys=columns(given), names=names)
            for key, name in zip(keys, given["modalities"][1:], strict=True):
                data.obsm[key] = data.obsm.pop(name)  # the set-up may have used another key
                if (known := data.uns.pop(names_key(name), None)) is not None:
                    data.uns[names_key(key)] = known
        out = checks.check_type(data)
        for key, state in zip(keys, states[1:], strict=True):
            out = with_columns(out, key, state["column_names"], sparse=state.get(SPARSE, False))
        return out


def columns(given: Given) -> list[str]:
    """Return the columns of ``.obs`` that a set-up names."""
    return [key for _, key in checks.columns(given)]
