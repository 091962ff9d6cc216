"""Plain JSON for all but tensors, with tags for arrays, DataFrames, NaN and infinity; executes nothing."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd

MOST = 64 << 20  # maximum bytes of a file
NUMBERS = re.compile(r"[<>|=]?[biuf][1248]")


def dumps(value: Any) -> bytes:
    """Serialise a value as JSON that :func:`loads` reads."""
    return json.dumps(to_json(value), allow_nan=False, indent=1).encode()


def loads(text: bytes) -> Any:
    """Restore what :func:`dumps` wrote; refuse repeated names and excessive size or nesting."""
    if len(text) > MOST:
        msg = f"{len(text):,} bytes of JSON are more than any model needs"
        raise ValueError(msg)
    try:
        return from_json(json.loads(text, object_pairs_hook=_no_name_twice))
    except RecursionError:
        msg = "the JSON is nested deeper than that of any model"
        raise ValueError(msg) from None


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        msg = "a name occurs twice in the JSON"
        raise ValueError(msg)
    return out


def to_json(value: Any) -> Any:
    """Convert a value to plain JSON types, with tags from which :func:`from_json` restores the rest."""
    if isinstance(value, pd.DataFrame):
        columns = {str(k): to_json(value[k].tolist()) for k in value}
        return {"__frame__": columns, "index": to_json(value.index.tolist())}
    if isinstance(value, np.ndarray) or (hasattr(value, "__array__") and not np.isscalar(value)):
        array = np.asarray(value)
        kind = "str" if array.dtype.kind in "OUT" else array.dtype.str
        items = [str(v) for v in array.ravel()] if kind == "str" else to_json(array.ravel().tolist())
        return {"__array__": items, "shape": list(array.shape), "dtype": kind}
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": str(value)}
    if hasattr(value, "items"):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    msg = f"A {type(value).__name__} cannot be written into a model file."
    raise TypeError(msg)


def from_json(value: Any) -> Any:
    """Restore a value that :func:`to_json` converted."""
    if isinstance(value, list):
        return [from_json(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        return _array(from_json(value["__array__"]), value["shape"], value["dtype"])
    if "__float__" in value:
        return float({"nan": "nan", "inf": "inf", "-inf": "-inf"}[value["__float__"]])
    if "__frame__" in value:
        index = pd.Index(from_json(value["index"]), name="epoch")
        return pd.DataFrame(from_json(value["__frame__"]), index=index)
    return {k: from_json(v) for k, v in value.items()}


def _array(items: list[Any], shape: list[int], kind: str) -> np.ndarray:
    if kind != "str" and not NUMBERS.fullmatch(kind):
        msg = f"an array has the type {kind!r}, which model files never have"
        raise ValueError(msg)
    if not isinstance(items, list) or math.prod(shape) != len(items):
        msg = f"an array of shape {shape} has another number of values"
        raise ValueError(msg)
    if kind == "str" and not all(isinstance(v, str) for v in items):
        msg = "an array of names holds something else"
        raise ValueError(msg)
    return np.array(items, dtype=object if kind == "str" else np.dtype(kind)).reshape(shape)
