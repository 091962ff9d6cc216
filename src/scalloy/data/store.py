"""Stores of cells on the disk: made of objects or files that together need not fit into memory.

Cells are shuffled over all that is given, so that neighbours in the store are a random sample. This takes two
passes: each cell is appended to the part of the store to which a random permutation sends it, in files, then
each part is put in order in memory.
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

from scalloy.data import cells, reading
from scalloy.data.align import named_layers
from scalloy.data.checks import check_type, few, twice_in
from scalloy.data.disk import open_store
from scalloy.data.loader import as_rows
from scalloy.data.parts import part_of
from scalloy.data.pieces import joined, write_pieces

PART = 12_000_000  # entries of the matrix that are put in order in memory at once


@dataclass
class Source:
    """Some cells that go into a store: columns in memory, counts wherever they are."""

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
        """Take these genes in this order."""
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
        """First row and counts, in order, as many rows at once as :data:`PART` allows."""
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
    """A matrix whose rows can be read one after the other."""
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
    """Write cells into a store on the disk (sharded zarr) and open it: models train on it in bounded memory.

    Parameters
    ----------
    data
        Cells: an AnnData, the name of an ``.h5ad`` file, or several of these, which are read one after the
        other. Columns of ``.obs`` are kept, those of ``.var`` from the first; nothing else is.
    path
        Folder to write, with a name that ends in ``.zarr``.
    layer
        Layer with the counts; ``None`` is ``.X``. They become ``.X`` of the store.
    genes
        Names of the genes to keep, in this order; ``None`` are those of the first.
    shuffle
        Whether the cells get a random order over all that is given. Only then are mini-batches as good as
        drawn from all of them; ``False`` keeps the order.
    seed
        Of that order.
    overwrite
        Whether to replace a store of this name.

    Returns
    -------
    What :func:`open_store` returns.
    """
    path = Path(path)
    several = isinstance(data, Iterable) and not isinstance(data, str | Path | AnnData)
    sources = [Source.of(given, layer) for given in (data if several else [data])]
    if not sources:
        msg = "`data` is an empty list. Pass at least one AnnData, or the name of a file."
        raise ValueError(msg)
    if path.suffix != ".zarr":
        msg = f"`path={str(path)!r}` is no name of a store. Pass one that ends in `.zarr`."
        raise ValueError(msg)
    cells.check_place(path)
    cells.check_apart(path, *(data if several else [data]))
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
    """Place of each cell in a store.

    Not the permutation that a split of the same seed draws: its validation set would be the first cells.
    """
    return np.random.default_rng((seed, 1)).permutation(n)


def _folder(path: Path) -> Path:
    """Where the store will lie, made if it is not there."""
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
    """Counts of all cells, of which ``order`` says the place of each, in parts."""
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
    """Rows in files, appended in any order and read back in the order of their places."""

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
