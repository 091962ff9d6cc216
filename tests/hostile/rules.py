"""What must hold whatever is given: an error is ours, and the object of the user is as it was."""

from __future__ import annotations

import hashlib
import linecache
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scalloy as sa
from scalloy import _keys

PACKAGE = str(Path(sa.__file__).parent)
REFUSALS = (ValueError, TypeError, KeyError, IndexError, FileNotFoundError, NotImplementedError)


@dataclass
class Refused:
    """An error of ours."""

    error: BaseException

    @property
    def message(self) -> str:
        return str(self.error.args[0]) if self.error.args else ""


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns, or a :class:`Refused`; any error that is not ours goes on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args, **kwargs)
        except REFUSALS as error:
            if not raised_by_us(error):
                raise
            return Refused(error)


def raised_by_us(error: BaseException) -> bool:
    """Whether a ``raise`` of this package is where the error comes from, with a message of some length."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno).strip()
    said = str(error.args[0]) if error.args else ""
    return frame.filename.startswith(PACKAGE) and line.startswith("raise ") and len(said) > 20


def fingerprint(adata: ad.AnnData) -> dict[str, Any]:
    """All of an object, apart from what a set-up writes."""
    out: dict[str, Any] = {"view": adata.is_view, "X": _print(adata.X), "shape": adata.shape}
    for attribute, own in {
        "obs": _keys.SETUP_OBS,
        "var": (),
        "obsm": _keys.SETUP_OBSM,
        "varm": (),
        "layers": (),
        "uns": _keys.SETUP_UNS,
    }.items():
        values = getattr(adata, attribute)
        if isinstance(values, pd.DataFrame):
            values = values[[c for c in values.columns if c not in own]]
            out[attribute] = _print(values)
        else:
            out[attribute] = {k: _print(v) for k, v in values.items() if k not in own}
    return out


def _print(value: Any) -> Any:
    if sp.issparse(value):
        parts = [getattr(value, k, None) for k in ("data", "indices", "indptr", "row", "col")]
        return type(value).__name__, value.shape, [_print(p) for p in parts if isinstance(p, np.ndarray)]
    if isinstance(value, pd.DataFrame):
        columns = [(repr(k), str(d)) for k, d in zip(value.columns, value.dtypes)]
        cells = [repr(value.iloc[:, j].tolist()) for j in range(value.shape[1])]
        return columns, str(value.index.dtype), repr(value.index.tolist()), cells
    if isinstance(value, np.ndarray):
        raw = repr(value.tolist()).encode() if value.dtype == object else np.asarray(value).tobytes()
        order = value.flags.c_contiguous, value.flags.f_contiguous
        return type(value).__name__, str(value.dtype), value.shape, order, hashlib.md5(raw).hexdigest()
    return repr(value)
