"""Layout of two modalities: a MuData, or an AnnData with the second modality in ``.obsm``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import ObsmField

from scalloy._keys import SECOND_KEY
from scalloy.data import checks
from scalloy.data.genes import shallow
from scalloy.data.modalities import check_second, joined, with_columns
from scalloy.files.anndata_files import is_mudata
from scalloy.models._core.setup import Given, OneModality

logger = logging.getLogger("scalloy")
FIRST = OneModality()


@dataclass(frozen=True)
class TwoModalities:
    """Layout with the first modality in ``.X`` or a layer, and the second in ``.obsm``."""

    def lacks(self) -> frozenset[str]:
        return FIRST.lacks()

    def fields(self, given: Given) -> list:
        (key,) = self.obsm_keys(given)
        return [*FIRST.fields(given), ObsmField(SECOND_KEY, key, correct_data_format=False)]

    def obsm_keys(self, given: Given) -> tuple[str, ...]:
        return (given.get("protein_obsm_key") or given["modalities"][1],)

    def known_otherwise(self, adata: AnnData, given: Given) -> np.ndarray:
        (key,) = self.obsm_keys(given)
        return check_second(adata, "protein_obsm_key", key, allow_non_counts=given["allow_non_counts"])

    def joined(self, data: Any, registry: dict[str, Any]) -> AnnData:
        given, fields = registry["setup_args"], registry["field_registries"]
        known = [fields[k]["state_registry"]["column_names"] for k in (REGISTRY_KEYS.X_KEY, SECOND_KEY)]
        names = (list(known[0]), list(known[1]))
        (key,), second = self.obsm_keys(given), given["modalities"][1]
        if is_mudata(data):
            layers = given.get("layers", (None, None))
            data = joined(data, given["modalities"], layers, keys=columns(given), names=names)
            data.obsm[key] = data.obsm.pop(second)  # the set-up may have used another key
        if key in checks.check_type(data).obsm:
            return with_columns(data, key, known[1])
        logger.info("`adata.obsm` has no %r: cells of which %r was not measured.", key, second)
        out = shallow(data)
        out.obsm[key] = pd.DataFrame(np.nan, index=data.obs_names, columns=names[1], dtype=np.float32)
        return with_columns(out, key, known[1])


def columns(given: Given) -> list[str]:
    """Return the columns of ``.obs`` that a set-up names."""
    return [key for _, key in checks.columns(given)]
