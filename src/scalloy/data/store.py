"""Writing of stores of cells on disk, from objects or files that together need not fit into memory.

Cells are shuffled across all inputs, so that neighbours in the store are a random sample. This takes two
passes: first each cell is appended to temporary files of that part of the store to which a random
permutation sends it, then each part is put in order in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSRDataset
from anndata.io import read_elem, sparse_dataset

from scalloy._arguments import few
from scalloy._by_name import twice_in
from scalloy.data.cell_table import as_rows
from scalloy.data.checks import check_type
from scalloy.data.chunks import joined, write_pieces
from scalloy.data.disk import open_store
from scalloy.data.genes import named_layers
from scalloy.files import anndata_files, reading
from scalloy.files.staging import part_of

PART = 12_000_000  # stored entries of the matrix put in order in memory at once


@dataclass
class Source:
    """Input of a store: ``.obs`` and ``.var`` in memory, counts in memory or on disk."""

    name: str
    obs: pd.DataFrame
    var: pd.DataFrame
    x: Any
    columns: np.ndarray | None = None

    @classmethod
    def of(cls, given: Any, layer: str | None) -> Source:
        if isinstance(given, str | Path):
            return cls._of_file(Path(given), layer)
        adata = check_type(given)
        x = adata.X if layer is None else named_layers(adata).get(layer)
        return cls("adata", adata.obs, adata.var, _readable(x, "`adata`", layer))

    @classmethod
    def _of_file(cls, path: Path, layer: str | None) -> Source:
        if not path.is_file():
            msg = f"There is no file `{path}`."
            raise FileNotFoundError(msg)
        with reading.refused(path, "h5ad file"):
            reading.check_structure(path)
            file = h5py.File(path, "r")
            obs, var = read_elem(file["obs"]), read_elem(file["var"])
        x: Any = file.get("X" if layer is None else f"layers/{layer}")
        x = sparse_dataset(x) if isinstance(x, h5py.Group) else x
        return cls(path.name, obs, var, _readable(x, f"`{path}`", layer))

    def choose(self, genes: pd.Index) -> None:
        """Select these genes in this order."""
        own = self.var.index.astype(str)
        if len(twice := twice_in(own)):
            msg = f"Names of genes occur more than once in {self.name}: {few(twice)}. Make them unique first."
            raise ValueError(msg)
        position = own.get_indexer(genes)
        if (position < 0).any():
            missing = genes[position < 0]
            msg = (
                f"{self.name} lacks {len(missing)} of {len(genes)} genes: {few(missing)}. Pass `genes=` with "
                "names that all have."
            )
            raise ValueError(msg)
        self.columns = None if np.array_equal(position, np.arange(len(own))) else position

    def pieces(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield the first row and the counts of successive pieces of about :data:`PART` stored entries."""
        n = len(self.obs)
        entries = self.x.group["data"].shape[0] if isinstance(self.x, CSRDataset) else _entries(self.x)
        size = max(1, int(PART * n / max(1, entries)))
        for first in range(0, n, size):
            rows = self.x[first : first + size]
            rows = sp.csr_matrix(rows, dtype=np.float32)
            yield first, as_rows(rows if self.columns is None else rows[:, self.columns])


def _entries(x: Any) -> int:
    return int(x.nnz if sp.issparse(x) else np.prod(x.shape))


def _readable(x: Any, where: str, layer: str | None) -> Any:
    """Return a matrix whose rows can be read one after the other."""
    kind = getattr(x, "format", "dense" if hasattr(x, "shape") else "nothing")
    if sp.issparse(x) and kind != "csr":
        return sp.csr_matrix(x)
    if kind not in {"csr", "dense"}:
        msg = (
            f"{where} holds {kind} as {'`.X`' if layer is None else f'`.layers[{layer!r}]`'}. Expected a "
            "matrix, on the disk dense or CSR, of which rows can be read one after the other: convert it "
            "first (`adata.X = adata.X.tocsr()`), or pass another `layer`."
        )
        raise ValueError(msg)
    return x


def write_store(
    data: AnnData | str | Path | Sequence[AnnData | str | Path],
    path: str | Path,
    *,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    overwrite: bool = False,
) -> AnnData:
    """Write cells into a store on disk (sharded zarr) and open it; models train on it in bounded memory.

    Parameters
    ----------
    data
        Cells: an AnnData, the name of an ``.h5ad`` file, or several of these, which are read one after the
        other. Counts, ``.obs`` and the ``.var`` of the first are kept, nothing else.
    path
        Folder to write, with a name that ends in ``.zarr``.
    layer
        Layer with the counts; ``None`` is ``.X``. The counts become ``.X`` of the store.
    genes
        Names of the genes to keep, in this order; ``None`` keeps those of the first input.
    shuffle
        Whether to put the cells of all inputs in random order. Only then are mini-batches practically random
        samples of all cells; ``False`` keeps the order.
    seed
        Random seed of the order.
    overwrite
        Whether to replace a store of this name.

    Returns
    -------
    AnnData whose counts stay on disk, as returned by :func:`open_store`.

    Examples
    --------
    >>> store = sa.data.write_store(adata, folder / "cells.zarr")
    >>> store[:5].to_memory().shape
    (5, 40)
    """
    path = Path(path)
    several = isinstance(data, Iterable) and not isinstance(data, str | Path | AnnData)
    sources = [Source.of(given, layer) for given in (data if several else [data])]
    if not sources:
        msg = "`data` is an empty list. Pass at least one AnnData, or the name of a file."
        raise ValueError(msg)
    if path.suffix != ".zarr":
        msg = f"`path={str(path)!r}` is not the name of a store. Pass one that ends in `.zarr`."
        raise ValueError(msg)
    anndata_files.check_place(path)
    anndata_files.check_apart(path, *(data if several else [data]))
    wanted = pd.Index(sources[0].var.index if genes is None else genes).astype(str)
    for source in sources:
        source.choose(wanted)
    obs = joined([s.obs for s in sources])
    obs = obs[[c for c in obs if not str(c).startswith("_scvi")]]
    var = sources[0].var.set_axis(sources[0].var.index.astype(str)).loc[wanted]
    with part_of(_folder(path)) as folder:
        if shuffle:
            order = places(len(obs), seed)
            rows = _shuffled(sources, order, len(wanted), folder)
            obs = obs.iloc[np.argsort(order)]
        else:
            rows = (x for source in sources for _, x in source.pieces())
        write_pieces(path, _with_columns(rows, obs, var), overwrite=overwrite)
    return open_store(path)


def places(n: int, seed: int) -> np.ndarray:
    """Return the place of each cell in a shuffled store.

    The permutation differs from the one that a split with the same seed draws; otherwise the validation set
    of that split would be the first cells of the input.
    """
    return np.random.default_rng((seed, 1)).permutation(n)


def _folder(path: Path) -> Path:
    """Return the folder that will contain the store, creating it if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent


def _with_columns(parts: Iterable[sp.csr_matrix], obs: pd.DataFrame, var: pd.DataFrame) -> Iterator[AnnData]:
    first = 0
    for x in parts:
        yield AnnData(x, obs=obs.iloc[first : first + x.shape[0]], var=var)
        first += x.shape[0]


def _shuffled(
    sources: Sequence[Source], order: np.ndarray, n_genes: int, folder: Path
) -> Iterator[sp.csr_matrix]:
    """Yield the counts of all cells in parts, with each cell at the place that ``order`` gives."""
    parts: list[Part] = []
    begin, size = 0, 0
    for source in sources:
        for first, x in source.pieces():
            size = size or max(1, x.shape[0])
            places = order[begin + first : begin + first + x.shape[0]]
            of = places // size
            while len(parts) <= of.max():
                parts.append(Part(folder / str(len(parts))))
            for k in np.unique(of):
                parts[k].append(places[of == k], x[of == k])
        begin += len(source.obs)
    for part in parts:
        yield part.in_order(n_genes)


class Part:
    """Rows in temporary files, appended in any order and read back in the order of their places."""

    KINDS = (("places", np.int64), ("lengths", np.int64), ("indices", np.int32), ("data", np.float32))

    def __init__(self, stem: Path) -> None:
        self.files = {kind: (stem.with_suffix(f".{kind}"), dtype) for kind, dtype in self.KINDS}

    def append(self, places: np.ndarray, x: sp.csr_matrix) -> None:
        held = {"places": places, "lengths": np.diff(x.indptr), "indices": x.indices, "data": x.data}
        for kind, (file, dtype) in self.files.items():
            with file.open("ab") as out:
                np.ascontiguousarray(held[kind], dtype=dtype).tofile(out)

    def in_order(self, n_genes: int) -> sp.csr_matrix:
        held = {kind: np.fromfile(file, dtype) for kind, (file, dtype) in self.files.items()}
        for file, _ in self.files.values():
            file.unlink()
        indptr = np.concatenate([[0], np.cumsum(held["lengths"])])
        x = sp.csr_matrix((held["data"], held["indices"], indptr), shape=(len(indptr) - 1, n_genes))
        return x[np.argsort(held["places"])]
