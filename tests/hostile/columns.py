"""What can be wrong with columns of ``.obs``, arguments that name them, and the second modality."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from hostile.cases import HOSTILE, Case, hostile

# columns of obs ---------------------------------------------------------------------------------


def column(name: str, make: Callable[[pd.Series], Any], *keys: str) -> None:
    """Another content of a column, by default of any of those with categories."""

    def change(case: Case) -> None:
        key = str(case.rng.choice(keys)) if keys else case.key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.obs[key] = make(case.obs[key])

    HOSTILE[f"obs:{name}"] = change


def _replaced(v: pd.Series, *values: Any) -> pd.Series:
    out = v.astype(object).copy()
    for i, value in enumerate(values):
        out.iat[i] = value
    return out


column("unused categories", lambda v: pd.Categorical(v, categories=["never", *sorted(set(v)), "too"]))
column("ordered categories", lambda v: pd.Categorical(v, categories=sorted(set(v))[::-1], ordered=True))
column("NaN", lambda v: _replaced(v, np.nan))
column("None", lambda v: _replaced(v, None))
column("NA", lambda v: _replaced(v, pd.NA))
column("categorical with NaN", lambda v: pd.Categorical(_replaced(v, np.nan)))
column("all NaN", lambda v: np.nan)
column("bool", lambda v: v == v.iloc[0])
column("int", lambda v: v.factorize()[0])
column("float", lambda v: v.factorize()[0] + 0.5)
column("infinite", lambda v: np.where(v == v.iloc[0], np.inf, 0.0))
column("mixed", lambda v: _replaced(v, 1, 2.5, True))
column("same as strings", lambda v: _replaced(v, 1, "1", 1.0, "1.0", True))
column("tuples", lambda v: [(k, 1) for k in v])
column("lists", lambda v: [[k] for k in v])
column("bytes", lambda v: [k.encode() for k in v])
column("pandas strings", lambda v: v.astype("string"))
column("pandas strings with NA", lambda v: _replaced(v, pd.NA).astype("string"))
column("nullable int", lambda v: pd.array(v.factorize()[0], dtype="Int64"))
column("nullable bool", lambda v: pd.array(v == v.iloc[0], dtype="boolean"))
column("one cell each", lambda v: np.arange(len(v)).astype(str))
column("a category of one cell", lambda v: _replaced(v, "alone"))
column("dates", lambda v: pd.to_datetime("2020") + pd.to_timedelta(v.factorize()[0], unit="D"))
column("durations", lambda v: pd.to_timedelta(v.factorize()[0], unit="D"))
column("constant", lambda v: "same")
column("empty strings", lambda v: _replaced(v, "", " "))
column("the word nan", lambda v: _replaced(v, "nan", "None"))
column("slashes", lambda v: [f"{k}/../\n" for k in v])
column("NUL", lambda v: [f"{k}\0" for k in v])
column("intervals", lambda v: pd.cut(v.factorize()[0], 2))
column("sparse", lambda v: pd.arrays.SparseArray(v.factorize()[0]))
column("complex", lambda v: v.factorize()[0] + 1j)

column("score NaN", lambda v: _replaced(v, np.nan).astype(float), "score", "size")
column("score infinite", lambda v: _replaced(v, np.inf).astype(float), "score", "size")
column("score text", lambda v: v.astype(str), "score", "size")
column("score object", lambda v: v.astype(object), "score", "size")
column("score object with text", lambda v: _replaced(v, "much"), "score", "size")
column("score categorical", lambda v: pd.Categorical(v), "score", "size")
column("score complex", lambda v: v + 1j, "score", "size")
column("score bool", lambda v: v > 0, "score", "size")
column("score nullable", lambda v: v.astype("Float64"), "score", "size")
column("score nullable with NA", lambda v: _replaced(v, pd.NA).astype("Float64"), "score", "size")
column("score constant", lambda v: 1, "score", "size")
column("score huge", lambda v: _replaced(v, 1e300).astype(float), "score", "size")
column("score large", lambda v: 1e20 * (1 + v.abs()), "score", "size")
column("score half", lambda v: v.astype(np.float16), "score", "size")
column("score dates", lambda v: pd.date_range("2020", periods=len(v)), "score", "size")
column("score sparse", lambda v: pd.arrays.SparseArray(v), "score", "size")
column("size zero", lambda v: _replaced(v, 0.0).astype(float), "size")
column("size negative", lambda v: _replaced(v, -1.0).astype(float), "size")
column("size tiny", lambda v: _replaced(v, 1e-300).astype(float), "size")


@hostile("obs:two columns of one name")
def _(case: Case) -> None:
    case.obs = pd.concat([case.obs, case.obs[[case.key]]], axis=1)


@hostile("obs:names that are not strings")
def _(case: Case) -> None:
    case.obs[7], case.obs[None] = 1, "x"


@hostile("obs:none at all")
def _(case: Case) -> None:
    case.obs = case.obs[[]]


@hostile("obs:scvi's own names")
def _(case: Case) -> None:
    case.obs["_scvi_batch"], case.obs["_scvi_labels"] = "mine", 3


# arguments of the set-up ------------------------------------------------------------------------

ODD_KEYS = {
    "int": 7,
    "float": 0.5,
    "list": ["batch"],
    "empty list": [],
    "tuple": ("donor", "lane"),
    "missing": "nope",
    "empty": "",
    "bytes": b"batch",
    "bool": True,
    "column": pd.Series(["a"]),
    "dict": {"batch": 1},
    "index": "index",
}
ARGUMENTS = (
    "layer",
    "batch_key",
    "labels_key",
    "condition_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
    "unlabeled_category",
    "label_parents",
    "protein_obsm_key",
    "conditions",
)
for _name, _value in ODD_KEYS.items():
    for _argument in ARGUMENTS:
        HOSTILE[f"given:{_argument} {_name}"] = lambda c, a=_argument, v=_value: c.given.update({a: v})
for _argument, _odd in {
    "categorical_covariate_keys": [["lane", "lane"], [7], [["lane"]], [None], ["score"]],
    "continuous_covariate_keys": [["score", "score"], [7], [["score"]], [None], ["lane"]],
    "unlabeled_category": [None, np.nan, 3, "T", "nobody"],
    "allow_non_counts": ["yes", None, 1],
}.items():
    for _value in _odd:
        HOSTILE[f"given:{_argument} {_value!r}"] = lambda c, a=_argument, v=_value: c.given.update({a: v})


@hostile("given:all cells unlabelled")
def _(case: Case) -> None:
    case.obs["cluster"], case.given["unlabeled_category"] = "Unknown", "Unknown"


@hostile("given:one label")
def _(case: Case) -> None:
    case.obs["cluster"] = "T"


# second modality --------------------------------------------------------------------------------


def second(name: str, make: Callable[[pd.DataFrame], Any]) -> None:
    """Other proteins."""

    def change(case: Case) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.obsm["protein_counts"] = make(case.obsm["protein_counts"])

    HOSTILE[f"obsm:{name}"] = change


second("array", lambda p: p.to_numpy())
second("Fortran", lambda p: np.asfortranarray(p.to_numpy()))
second("CSR", lambda p: sp.csr_matrix(p.to_numpy()))
second("half", lambda p: p.astype(np.float16))
second("int", lambda p: p.astype(int))
second("bool", lambda p: p > 4)
second("object", lambda p: p.astype(object))
second("text", lambda p: p.astype(str))
second("complex", lambda p: p + 1j)
second("nullable", lambda p: p.astype("Float64").mask(p > 8))
second("one column of text", lambda p: p.assign(p1="x"))
second("NaN throughout", lambda p: p * np.nan)
second("one column NaN", lambda p: p.assign(p1=np.nan))
second("one cell NaN", lambda p: p.where(np.arange(len(p))[:, None] * [1, 1, 1] > 0))
second("negative", lambda p: p - 3)
second("infinite", lambda p: p.where(p < 8, np.inf))
second("fractions", lambda p: p / 3)
second("huge", lambda p: p * 1e30)
second("no columns", lambda p: p[[]])
second("one column", lambda p: p[["p1"]])
second("two columns of one name", lambda p: p.set_axis(["a", "a", "b"], axis=1))
second("int names", lambda p: p.set_axis(range(3), axis=1))
second("masked array", lambda p: np.ma.masked_greater(p.to_numpy(), 6))
second("np.matrix", lambda p: np.asmatrix(p.to_numpy()))
second("three axes", lambda p: np.ones((len(p), 3, 2)))
second("all zero", lambda p: p * 0)


@hostile("obsm:missing")
def _(case: Case) -> None:
    case.obsm = {}
