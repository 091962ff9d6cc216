"""Fingerprints of the data that a model was trained on, and detection of later changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSRDataset
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager

from scalloy._arguments import few
from scalloy.data.cell_table import Cells
from scalloy.data.checks import CATEGORICAL, CONTINUOUS, columns

AT_ONCE = 4096  # cells digested at once
SAMPLED = 5_000_000  # entries, zeros included, that are digested at most; of larger matrices some rows are
ON_DISK = 8  # rows of an on-disk matrix that are compared


def of_names(names: Iterable[Any]) -> str:
    """Return a digest of names in their order."""
    found = blake2b(digest_size=8)
    for name in names:
        found.update(str(name).encode() + b"\0")
    return found.hexdigest()


def of_data(manager: AnnDataManager) -> dict[str, Any]:
    """Return sizes and digests of names and counts, which do not depend on how the counts are stored."""
    found, x, adata = blake2b(digest_size=8), Cells.of(manager).x, manager.adata
    for first in range(0, x.shape[0], AT_ONCE):
        _add_rows(found, sp.csr_matrix(x[first : first + AT_ONCE]))
    names = {"cells": of_names(adata.obs_names), "genes": of_names(adata.var_names)}
    return {"n_cells": adata.n_obs, "n_genes": adata.n_vars, **names, "counts": found.hexdigest()}


def of_set_up(manager: AnnDataManager) -> dict[str, Any]:
    """Return the fingerprint of :func:`of_data` together with a digest of each registered column."""
    columns = {}
    for field, about in manager.registry["field_registries"].items():
        if field == REGISTRY_KEYS.X_KEY or not about["data_registry"]:
            continue
        given = manager.get_from_registry(field)
        values = (
            str(_of_matrix(given)).encode() if sp.issparse(given) else np.ascontiguousarray(given).tobytes()
        )
        known = about["state_registry"]
        named = known.get("categorical_mapping", known.get("mappings", known.get("column_names", ())))
        names = named.items() if hasattr(named, "items") else enumerate(named)
        said = (f"{k}: {list(v) if np.ndim(v) else v}" for k, v in names)
        columns[field] = blake2b(of_names(said).encode() + values, digest_size=8).hexdigest()
    return {**of_data(manager), "columns": columns}


def _add_rows(found: Any, rows: sp.csr_matrix) -> None:
    """Add the rows of a canonical matrix to a digest."""
    for values, kind in ((np.diff(rows.indptr), "<i8"), (rows.indices, "<i4"), (rows.data, "<f4")):
        found.update(np.ascontiguousarray(values, dtype=kind).data)


# changes in place -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seal:
    """Record of the data that a model reads from its cells, which detects later changes in place.

    The digests do not depend on how a matrix or column is stored, and they are cheap: of a large matrix only
    some rows and the total are compared.
    """

    cells: pd.Index
    genes: pd.Index
    layer: str | None
    digests: dict[tuple[str, str | None], Any]  # by attribute and key

    @classmethod
    def of(cls, adata: AnnData, given: dict[str, Any], arrays: Iterable[str] = ()) -> Seal:
        """Record what a model reads: the matrix, the gene names, columns and arrays.

        Parameters
        ----------
        adata
            Cells that the model reads.
        given
            Arguments of the set-up. Labels are recorded only if predictions depend on them.
        arrays
            Keys of ``.obsm`` that the model reads.
        """
        categories, layer = columns(given, CATEGORICAL), given.get("layer")
        if not {"condition_key", "unlabeled_category"} & set(given):
            categories = [(argument, key) for argument, key in categories if argument != "labels_key"]
        places: list[tuple[str, str | None]] = [("matrix", layer)]
        places += [("categories", key) for _, key in categories]
        places += [("numbers", key) for _, key in columns(given, CONTINUOUS)]
        places += [("obsm", key) for key in arrays]
        digests = {place: _digest(adata, *place) for place in places}
        return cls(adata.obs_names, adata.var_names, layer, digests)

    def holds_counts_of(self, adata: AnnData) -> bool:
        """Return whether the cells have the same names and the same matrix as when they were recorded."""
        same = self.cells.equals(adata.obs_names)
        return same and _digest(adata, "matrix", self.layer) == self.digests["matrix", self.layer]

    def check(self, adata: AnnData) -> None:
        """Raise an error if the cells have been changed since they were recorded."""
        if (what := self.broken(adata)) is not None:
            msg = (
                f"The model's own cells were changed in place after they were set up: {what}. Undo that, or "
                "pass the cells as they were, `adata=...`. To normalise the same object, keep the counts in "
                'a layer before: `adata.layers["counts"] = adata.X.copy()` and `setup_anndata(adata, '
                'layer="counts")`. For a model of the changed cells set them up again, and train a new one.'
            )
            raise ValueError(msg)

    def broken(self, adata: AnnData) -> str | None:
        """Describe in a few words what has changed since; return ``None`` if nothing has."""
        if adata.n_obs != len(self.cells):
            return f"there were {len(self.cells)} cells, now there are {adata.n_obs}"
        genes = adata.var_names
        if genes is not self.genes and not genes.astype(str).equals(self.genes.astype(str)):
            return _change_of_names(self.genes, genes)
        for (kind, key), known in self.digests.items():
            name = {"matrix": "layers", "obsm": "obsm"}.get(kind, "obs")
            where = "adata.X" if kind == "matrix" and key is None else f"adata.{name}[{key!r}]"
            found = _digest(adata, kind, key)
            if found is None:
                return f"`{where}` is not there any more"
            if found != known:
                moved = kind == "matrix" and not self.cells.equals(adata.obs_names)
                if moved and set(self.cells) == set(adata.obs_names):
                    return "the cells are in another order"
                return f"`{where}` holds other values"
        return None


def _change_of_names(before: pd.Index, after: pd.Index) -> str:
    before, after = before.astype(str), after.astype(str)
    lacking, new = before.difference(after, sort=False), after.difference(before, sort=False)
    if len(lacking) == len(new) == 0 and len(before) == len(after):
        return "the genes are in another order"
    said = [f"{few(names, 3)} {what}" for what, names in (("missing", lacking), ("new", new)) if len(names)]
    return f"there were {len(before)} genes, now there are {len(after)} ({'; '.join(said)})"


def _digest(adata: AnnData, kind: str, key: Any) -> Any:
    """Return the digest of a matrix, array or column, or ``None`` if it is missing."""
    if kind == "matrix":
        x = adata.X if key is None else adata.layers.get(key)
        return None if x is None else _of_matrix(x)
    if kind == "obsm":
        return _of_array(adata.obsm[key]) if key in adata.obsm else None
    if key not in adata.obs:
        return None
    return _of_names_in(adata.obs[key]) if kind == "categories" else _of_numbers(adata.obs[key])


def _of_matrix(x: Any) -> tuple[Any, ...]:
    """Return shape, digest of some or all rows, and total.

    A total that is not whole is left out, since it depends on the order of summation.
    """
    found, total = blake2b(digest_size=8), None
    if isinstance(x, CSRDataset):
        rows = np.unique(np.linspace(0, x.shape[0] - 1, ON_DISK).astype(int))
        some = sp.vstack([sp.csr_matrix(x[int(row) : int(row) + 1]) for row in rows], format="csr")
    else:
        x = x.tocsr() if sp.issparse(x) else np.asarray(x)
        values = x.data if sp.issparse(x) else x
        total = float(values.sum(dtype=np.float64))
        some = x[_rows(*x.shape)] if np.prod(x.shape) > SAMPLED else x
    _add_rows(found, _canonical(some))
    return (*x.shape, found.hexdigest(), total if total is not None and total.is_integer() else None)


def _rows(n: int, n_columns: int) -> np.ndarray:
    """Choose evenly spaced rows with about :data:`SAMPLED` entries in all."""
    return np.unique(np.linspace(0, n - 1, max(2, SAMPLED // n_columns)).astype(int))


def _canonical(x: Any) -> sp.csr_matrix:
    """Return a canonical float32 CSR copy without explicit zeros."""
    x = sp.csr_matrix(x, dtype=np.float32, copy=True)
    x.sum_duplicates()
    x.eliminate_zeros()
    return x


def _of_array(given: Any) -> tuple[Any, ...]:
    """Return the digest of an array or DataFrame of ``.obsm``, in which values may be missing."""
    names = of_names(given.columns) if isinstance(given, pd.DataFrame) else None
    if not sp.issparse(given):
        given = np.nan_to_num(np.array(given, dtype=np.float64), copy=False, nan=-1.0)
    return names, *_of_matrix(given)


def _of_numbers(column: pd.Series) -> str:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()


def _of_names_in(column: pd.Series) -> str:
    """Return a digest of the values as text, whether or not they are stored as categories."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, names = column.cat.codes.to_numpy(), column.cat.categories
    else:
        codes, names = pd.factorize(column)
    known = pd.util.hash_array(np.array([str(name) for name in names], dtype=object))
    values = np.append(known, np.uint64(0))[codes]  # code -1, a missing value, takes the last
    return blake2b(values.data, digest_size=8).hexdigest()
