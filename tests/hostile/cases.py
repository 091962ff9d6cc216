"""AnnData objects that are wrong, odd, or at the edge of what is right.

``HOSTILE`` has by its name what makes an object hostile: a function that changes a :class:`Case` in place.
Names begin with what they change (``"x:"`` values, ``"dtype:"``, ``"layout:"``, ``"names:"``, ``"obs:"`` a
column, ``"given:"`` arguments of the set-up, ``"obsm:"`` the second modality, ``"shape:"``), in the order in
which several of them are applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


@dataclass
class Case:
    """Values, what is known of cells and genes, and arguments of a set-up; in the end an AnnData."""

    x: Any
    obs: pd.DataFrame
    var: pd.DataFrame
    obsm: dict[str, Any]
    rng: np.random.Generator
    given: dict[str, Any] = field(default_factory=dict)
    last: list[Callable[[ad.AnnData], ad.AnnData]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Any of the columns with categories."""
        return str(self.rng.choice(["batch", "condition", "cluster", "lane"]))

    def adata(self) -> ad.AnnData:
        """The object; what anndata itself does not take is no case."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = ad.AnnData(self.x, obs=self.obs, var=self.var)
            for key, values in self.obsm.items():
                frame = isinstance(values, pd.DataFrame)
                out.obsm[key] = values.set_axis(out.obs_names) if frame else values
            for change in self.last:
                out = change(out)
            dict(out.obsm), dict(out.layers)  # a view of some of these cannot even be read
        return out


def plain(seed: int = 0, n: int = 40, n_genes: int = 12) -> Case:
    """Nothing wrong yet."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1.0, 3.0, n_genes), (n, n_genes)).astype(np.int64)
    x[:, 0] += 1
    names = [f"cell_{i}" for i in range(n)]
    obs = pd.DataFrame(
        {
            "batch": rng.permutation(np.resize(["b0", "b1"], n)),
            "condition": rng.permutation(np.resize(["ctrl", "stim"], n)),
            "cluster": rng.permutation(np.resize(["T", "B", "NK"], n)),
            "lane": rng.permutation(np.resize(["1", "2", "3", "4"], n)),
            "donor": rng.permutation(np.resize(["d0", "d1", "d2", "d3"], n)),
            "score": rng.normal(size=n),
            "size": rng.uniform(10, 50, n),
        },
        index=names,
    )
    var = pd.DataFrame({"kind": "gene"}, index=[f"gene_{i}" for i in range(n_genes)])
    proteins = pd.DataFrame(rng.poisson(5.0, (n, 3)).astype(float), index=names, columns=["p0", "p1", "p2"])
    return Case(x, obs, var, {"protein_counts": proteins, "X_z": rng.normal(size=(n, 4))}, rng)


HOSTILE: dict[str, Callable[[Case], None]] = {}
ORDER = ("x", "dtype", "layout", "obsm", "obs", "names", "given", "shape")


def hostile(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function under this name."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        HOSTILE[name] = function
        return function

    return register


def of(kind: str) -> list[str]:
    """Names that change this."""
    return [name for name in HOSTILE if name.startswith(f"{kind}:")]


def made(names: Iterable[str], seed: int = 0, **size: int) -> tuple[Case, ad.AnnData | None]:
    """A case of which these are wrong, in the order of their kinds; ``None`` where anndata refuses it."""
    case = plain(seed, **size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in sorted(names, key=lambda k: ORDER.index(k.split(":")[0])):
                HOSTILE[name](case)
            return case, case.adata()
        except Exception:  # noqa: BLE001 (whatever anndata, pandas or scipy say to what they cannot hold)
            return case, None


# values -----------------------------------------------------------------------------------------


def entry(value: float) -> Callable[[Case], None]:
    """One entry is so."""

    def change(case: Case) -> None:
        case.x = case.x.astype(np.float64 if isinstance(value, float) else np.int64)
        case.x[case.rng.integers(len(case.x)), case.rng.integers(case.x.shape[1])] = value

    return change


for _name, _value in {
    "inf": np.inf,
    "minus infinity": -np.inf,
    "NaN": np.nan,
    "negative": -3,
    "fraction": 0.25,
    "count of 1e9": 10**9,
    "count of 2**31": 2**31,
    "count of 2**53 + 1": 2**53 + 1,
    "count of 1e30": 1e30,
    "more than single precision holds": 1e300,
    "denormal": 1e-310,
}.items():
    HOSTILE[f"x:{_name}"] = entry(_value)


@hostile("x:empty cells")
def _(case: Case) -> None:
    case.x[case.rng.choice(len(case.x), 3)] = 0


@hostile("x:empty genes")
def _(case: Case) -> None:
    case.x[:, 1:4] = 0


@hostile("x:all zero")
def _(case: Case) -> None:
    case.x[:] = 0


@hostile("x:all one")
def _(case: Case) -> None:
    case.x[:] = 1


@hostile("x:a single gene is on in each cell")
def _(case: Case) -> None:
    case.x[:] = 0
    case.x[np.arange(len(case.x)), case.rng.integers(case.x.shape[1], size=len(case.x))] = 7


@hostile("x:huge everywhere")
def _(case: Case) -> None:
    case.x = case.x * 10**8


@hostile("x:log-normalised")
def _(case: Case) -> None:
    case.x = np.log1p(1e4 * case.x / case.x.sum(1, keepdims=True))


# dtypes -----------------------------------------------------------------------------------------

for _dtype in ("bool", "u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i4"):
    HOSTILE[f"dtype:{_dtype}"] = lambda case, d=_dtype: setattr(case, "x", _cast(case.x, d))
for _dtype in ("longdouble", "object", "complex64", "str", "S4"):
    HOSTILE[f"dtype:{_dtype}"] = lambda case, d=_dtype: setattr(case, "x", _cast(case.x, d))


def _cast(x: np.ndarray, dtype: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflow
        return x.astype(dtype)


# layouts ----------------------------------------------------------------------------------------


def layout(name: str, make: Callable[[np.ndarray], Any]) -> None:
    """Another container of the same values."""
    HOSTILE[f"layout:{name}"] = lambda case: setattr(case, "x", make(case.x))


def _int64(x: np.ndarray) -> sp.csr_matrix:
    out = sp.csr_matrix(x)
    out.indices, out.indptr = out.indices.astype(np.int64), out.indptr.astype(np.int64)
    return out


def _unsorted(x: np.ndarray) -> sp.csr_matrix:
    out = sp.csr_matrix(x)
    for i in range(out.shape[0]):
        part = slice(out.indptr[i], out.indptr[i + 1])
        out.indices[part], out.data[part] = out.indices[part][::-1].copy(), out.data[part][::-1].copy()
    out.has_sorted_indices = False
    return out


def _duplicates(x: np.ndarray) -> sp.csr_matrix:
    """Each entry is there twice, and the two add up to it."""
    once = sp.csr_matrix(x)
    half = once.data // 2 if once.data.dtype.kind in "iu" else once.data * 0
    data = np.stack([half, once.data - half], 1).ravel()
    return sp.csr_matrix((data, np.repeat(once.indices, 2), 2 * once.indptr), shape=x.shape)


def _explicit_zeros(x: np.ndarray) -> sp.csr_matrix:
    n, g = x.shape
    return sp.csr_matrix((x.ravel(), np.tile(np.arange(g), n), np.arange(n + 1) * g), shape=x.shape)


def _locked(x: Any) -> Any:
    for part in (x.data, x.indices, x.indptr) if sp.issparse(x) else (x,):
        part.flags.writeable = False
    return x


layout("Fortran", np.asfortranarray)
layout("strided", lambda x: np.repeat(x, 2, axis=1)[:, ::2])
layout("reversed", lambda x: x[::-1].copy()[::-1])
layout("read-only", lambda x: _locked(x.copy()))
layout("CSR", sp.csr_matrix)
layout("CSC", sp.csc_matrix)
layout("COO", sp.coo_matrix)
layout("csr_array", sp.csr_array)
layout("csc_array", sp.csc_array)
layout("coo_array", sp.coo_array)
layout("LIL", sp.lil_matrix)
layout("int64 indices", _int64)
layout("unsorted indices", _unsorted)
layout("duplicate entries", _duplicates)
layout("explicit zeros", _explicit_zeros)
layout("read-only CSR", lambda x: _locked(sp.csr_matrix(x)))
layout("np.matrix", np.asmatrix)
layout("masked array", lambda x: np.ma.masked_array(x, mask=np.asarray(x) == np.asarray(x).flat[1]))
layout("DataFrame", lambda x: pd.DataFrame(x))


@hostile("layout:no X")
def _(case: Case) -> None:
    case.x = None


@hostile("layout:only in a layer")
def _(case: Case) -> None:
    x, case.x, case.given["layer"] = case.x, None, "counts"
    case.last.append(lambda adata: (adata.layers.__setitem__("counts", x), adata)[1])


# names ------------------------------------------------------------------------------------------


def named(axis: str, name: str, make: Callable[[int], Any]) -> None:
    """Other names of the cells, or of the genes."""

    def change(case: Case) -> None:
        frame = getattr(case, axis)
        frame.index = pd.Index(make(len(frame)))

    HOSTILE[f"names:{axis} {name}"] = change


def _first(*names: Any) -> Callable[[int], list]:
    return lambda n: [*names[:n], *(f"n{i}" for i in range(n - len(names)))]


for _axis in ("obs", "var"):
    named(_axis, "int", range)
    named(_axis, "float", lambda n: np.arange(n) + 0.5)
    named(_axis, "twice", _first("a", "a"))
    named(_axis, "empty", _first(""))
    named(_axis, "all empty", lambda n: [""] * n)
    named(_axis, "unicode", lambda n: [f"細胞 {i} \U0001f9ec\u202e" for i in range(n)])
    named(_axis, "slashes and NUL", lambda n: [f"a/{i}\0b\\..\n\0" for i in range(n)])
    named(_axis, "categorical", lambda n: pd.CategoricalIndex([f"n{i}" for i in range(n)]))
    named(_axis, "mixed", _first(3, "three", 3.5))
    named(_axis, "same as strings", _first(3, "3"))
    named(_axis, "missing", _first(None, np.nan))
    named(_axis, "bytes", _first(b"a", "b"))
    named(_axis, "dates", lambda n: pd.date_range("2020", periods=n))


# shapes -----------------------------------------------------------------------------------------


def shape(name: str, change: Callable[[ad.AnnData], ad.AnnData]) -> None:
    """The finished object, cut or wrapped."""
    HOSTILE[f"shape:{name}"] = lambda case: case.last.append(change)


shape("one cell", lambda a: a[:1].copy())
shape("two cells", lambda a: a[:2].copy())
shape("three cells", lambda a: a[:3].copy())
shape("one gene", lambda a: a[:, :1].copy())
shape("two genes", lambda a: a[:, :2].copy())
shape("no cells", lambda a: a[:0].copy())
shape("no genes", lambda a: a[:, :0].copy())
shape("a view", lambda a: a[::-1])
shape("a view of genes", lambda a: a[:, 1:])
shape("a view of a mask", lambda a: a[np.arange(a.n_obs) % 2 == 0])
shape("some genes", lambda a: a[:, 2:].copy())
