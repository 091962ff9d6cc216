"""Which data a model was trained on, in a few digits; and whether they have been changed since."""

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

from scalloy.data.checks import CATEGORICAL, CONTINUOUS, columns, few
from scalloy.data.loader import Cells

AT_ONCE = 4096  # cells
SAMPLED = 5_000_000  # entries, zeros with them, that are compared one by one; of more those of some rows
ON_DISK = 8  # rows that are read of a matrix on the disk


def of_names(names: Iterable[Any]) -> str:
    """Digest of names in their order."""
    found = blake2b(digest_size=8)
    for name in names:
        found.update(str(name).encode() + b"\0")
    return found.hexdigest()


def of_data(manager: AnnDataManager) -> dict[str, Any]:
    """Sizes and digests of the names and the counts, the same for each way of storing them."""
    found, x, adata = blake2b(digest_size=8), Cells.of(manager).x, manager.adata
    for first in range(0, x.shape[0], AT_ONCE):
        _add_rows(found, sp.csr_matrix(x[first : first + AT_ONCE]))
    names = {"cells": of_names(adata.obs_names), "genes": of_names(adata.var_names)}
    return {"n_cells": adata.n_obs, "n_genes": adata.n_vars, **names, "counts": found.hexdigest()}


def of_set_up(manager: AnnDataManager) -> dict[str, Any]:
    """The fingerprint of :func:`of_data`, and a digest of what each registered column says of the cells."""
    columns = {}
    for field, about in manager.registry["field_registries"].items():
        if field == REGISTRY_KEYS.X_KEY or not about["data_registry"]:
            continue
        values = np.ascontiguousarray(manager.get_from_registry(field))
        known = about["state_registry"]
        named = known.get("categorical_mapping", known.get("mappings", known.get("column_names", ())))
        names = named.items() if hasattr(named, "items") else enumerate(named)
        said = (f"{k}: {list(v) if np.ndim(v) else v}" for k, v in names)
        columns[field] = blake2b(of_names(said).encode() + values.tobytes(), digest_size=8).hexdigest()
    return {**of_data(manager), "columns": columns}


def _add_rows(found: Any, rows: sp.csr_matrix) -> None:
    """Add the rows of a canonical matrix to a digest."""
    for values, kind in ((np.diff(rows.indptr), "<i8"), (rows.indices, "<i4"), (rows.data, "<f4")):
        found.update(np.ascontiguousarray(values, dtype=kind).data)


# changes in place -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seal:
    """What a model reads of its cells, so that a later change is noticed before it is read.

    The digests do not depend on how a matrix or a column is stored, and are cheap: of a large matrix some
    rows are compared one by one, and the total of all.
    """

    cells: pd.Index
    genes: pd.Index
    layer: str | None
    digests: dict[tuple[str, str | None], Any]  # by attribute and key

    @classmethod
    def of(cls, adata: AnnData, given: dict[str, Any], arrays: Iterable[str] = ()) -> Seal:
        """Seal what a model reads: the matrix, the names of the genes, columns and arrays.

        Parameters
        ----------
        adata
            The cells.
        given
            Arguments of the set-up. Labels are sealed if predictions depend on them.
        arrays
            Keys of ``.obsm``.
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
        """Whether the matrix is the same, for the same cells by name."""
        same = self.cells.equals(adata.obs_names)
        return same and _digest(adata, "matrix", self.layer) == self.digests["matrix", self.layer]

    def check(self, adata: AnnData) -> None:
        """Refuse cells that have been changed since."""
        if (what := self.broken(adata)) is not None:
            msg = (
                f"The model's own cells were changed in place after they were set up: {what}. Undo that, or "
                "pass the cells as they were, `adata=...`. To normalise the same object, keep the counts in "
                'a layer before: `adata.layers["counts"] = adata.X.copy()` and `setup_anndata(adata, '
                'layer="counts")`. For a model of the changed cells set them up again, and train a new one.'
            )
            raise ValueError(msg)

    def broken(self, adata: AnnData) -> str | None:
        """What has changed in the cells since, in a few words; ``None`` if nothing has."""
        if adata.n_obs != len(self.cells):
            return f"there were {len(self.cells)} cells, and there are {adata.n_obs}"
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
    said = [f"{few(names, 3)} {what}" for what, names in (("lacks", lacking), ("is new", new)) if len(names)]
    return f"there were {len(before)} genes, and there are {len(after)} ({'; '.join(said)})"


def _digest(adata: AnnData, kind: str, key: Any) -> Any:
    """Of one thing in the cells; ``None`` where it is not there."""
    if kind == "matrix":
        x = adata.X if key is None else adata.layers.get(key)
        return None if x is None else _of_matrix(x)
    if kind == "obsm":
        return _of_array(adata.obsm[key]) if key in adata.obsm else None
    if key not in adata.obs:
        return None
    return _of_names_in(adata.obs[key]) if kind == "categories" else _of_numbers(adata.obs[key])


def _of_matrix(x: Any) -> tuple[Any, ...]:
    """Shape, digest of some rows, and the total if it is one of whole numbers, which adds up in any order."""
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
    """Rows evenly over the matrix with as many entries as are compared one by one."""
    return np.unique(np.linspace(0, n - 1, max(2, SAMPLED // n_columns)).astype(int))


def _canonical(x: Any) -> sp.csr_matrix:
    """The same entries as single precision in order, without zeros."""
    x = sp.csr_matrix(x, dtype=np.float32, copy=True)
    x.sum_duplicates()
    x.eliminate_zeros()
    return x


def _of_array(given: Any) -> tuple[Any, ...]:
    """Of an array or a frame of ``.obsm``, in which values may be missing."""
    names = of_names(given.columns) if isinstance(given, pd.DataFrame) else None
    if not sp.issparse(given):
        given = np.nan_to_num(np.array(given, dtype=np.float64), copy=False, nan=-1.0)
    return names, *_of_matrix(given)


def _of_numbers(column: pd.Series) -> str:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()


def _of_names_in(column: pd.Series) -> str:
    """Of the values as text, whether or not they are held as categories."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, names = column.cat.codes.to_numpy(), column.cat.categories
    else:
        codes, names = pd.factorize(column)
    known = pd.util.hash_array(np.array([str(name) for name in names], dtype=object))
    values = np.append(known, np.uint64(0))[codes]  # the last is that of a missing value
    return blake2b(values.data, digest_size=8).hexdigest()
