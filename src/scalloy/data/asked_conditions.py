"""Conditions that are asked for: by name, by the amounts of their parts, or by the values of columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy._arguments import few
from scalloy.data.conditions import Conditions
from scalloy.perturbation.design import Content, Design


def content_of(conditions: Conditions, to: Any) -> Content:
    """Return the content of a condition that is asked for.

    Parameters
    ----------
    conditions
        Conditions of a model, with their design.
    to
        Name of a condition, as in ``"A+B"``; amounts of parts, as in ``{"A": 0.5}``; or values of the
        columns, as in ``{"drug": "A", "dose": 0.5}``.
    """
    design = design_in(conditions)
    if isinstance(to, str):
        return _by_name(conditions, design, to)
    if not isinstance(to, Mapping) or not all(isinstance(key, str) for key in to):
        msg = (
            f"`to={to!r}` is a {type(to).__name__}. Expected the name of a condition, or a dict such as "
            "`{'A': 0.5}`."
        )
        raise TypeError(msg)
    given, columns = dict(to), {*conditions.factors, *(conditions.dose or ())}
    time = 0.0 if conditions.time is None else given.pop(conditions.time, None)
    if time is None:
        msg = f"`to={to!r}` says no time. Pass one as well: `{conditions.time!r}: {design.clock[1]:.6g}`."
        raise ValueError(msg)
    if columns.isdisjoint(given):
        parts = {name: amount for name, amount in given.items() if name not in conditions.control}
    else:
        parts = _by_columns(conditions, given)
    for name, amount in [*parts.items(), (conditions.time or "time", time)]:
        if isinstance(amount, bool | np.bool_) or not isinstance(amount, Real) or not 0 <= amount < np.inf:
            msg = f"`to` has {amount!r} for {name!r}. Expected an amount: a finite number from 0."
            raise ValueError(msg)
    return _checked(design, Content.of(parts, float(time)))


def design_in(conditions: Conditions) -> Design:
    """Return the design that was found in the cells of a model."""
    assert conditions.design is not None
    return conditions.design


def _by_columns(conditions: Conditions, given: dict[str, Any]) -> dict[str, float]:
    """Return the amount of each part from values of columns; a column that is left out has the control."""
    columns = (*conditions.factors, *(conditions.dose or ()))
    if unknown := sorted(given.keys() - set(columns)):
        msg = f"`to` names columns, and besides {few(map(repr, unknown))}. Columns: {few(columns)}."
        raise ValueError(msg)
    names = [str(given.get(key, conditions.control[0])) for key in conditions.factors]
    parts, odd = conditions.parts(names, [given.get(key) for key in conditions.dose or ()])
    if odd:
        msg = f"`to={given!r}` lacks a dose, or has one that cannot be: {few(odd)}. Pass one from 0."
        raise ValueError(msg)
    return parts


def _by_name(conditions: Conditions, design: Design, to: str) -> Content:
    """Return the content of a condition by its name, or by the names of its parts in any order."""
    if (known := design.by_name.get(to)) is not None:
        return known
    split = [to] if conditions.separator is None else to.split(conditions.separator)
    names = [part.strip() for part in split if part.strip() not in conditions.control]
    if (design.dosed and names) or design.timed:
        lacks = " and ".join(["dose"] * bool(design.dosed and names) + ["time"] * design.timed)
        msg = (
            f"`to={to!r}` is not the name of a condition that was seen, and it says no {lacks}. Seen: "
            f"{few(design.names)}. Pass a dict, as in `to={{{(names or ['A'])[0]!r}: 1.0}}`."
        )
        raise ValueError(msg)
    return _checked(design, Content.of(dict.fromkeys(names, 1.0)))


def _checked(design: Design, content: Content) -> Content:
    """Check that every part of a condition was seen or described, and that its name is its own."""
    for part, amount in content.parts:
        if part not in design.parts:
            near = difflib.get_close_matches(part, design.parts, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = (
                f"`to` has the part {part!r}, which was neither seen nor described. "
                f"Known: {few(design.parts)}.{hint}"
            )
            raise ValueError(msg)
        if not design.dosed and amount != 1:
            msg = (
                f"`to` has the dose {amount:.6g} of {part!r}, and the model knows no doses. Pass 1, or train "
                "a model on cells with doses."
            )
            raise ValueError(msg)
    name = design.name_of(content)
    if design.by_name.get(name, content) != content:
        msg = f"`to` would have the name of another condition, {name!r}. Rename the parts, and train again."
        raise ValueError(msg)
    return content


def columns_of(conditions: Conditions, content: Content) -> dict[str, Any]:
    """Return the value of each column of ``.obs`` for cells under a condition.

    Parameters
    ----------
    conditions
        Conditions of a model.
    content
        Content of the condition.
    """
    out: dict[str, Any] = {}
    parts, last = list(content.parts), len(conditions.factors) - 1
    joint, doses = conditions.separator or "+", conditions.dose or ()
    if len(doses) == 1 and len({amount for _, amount in parts}) > 1:
        last = 0  # one column of doses cannot say which factor has which
    for i, key in enumerate(conditions.factors):
        own = parts[i : i + 1] if i < last else parts[i:] if i == last else []
        out[key] = joint.join(part for part, _ in own) or conditions.control[0]
        if i < len(doses) and (own or len(doses) > 1 or not parts):
            each = [amount for _, amount in own]
            text = joint.join(f"{v:.6g}" for v in each)
            out[doses[i]] = text if len(set(each)) > 1 else (each or [0.0])[0]
    if conditions.time is not None:
        out[conditions.time] = content.time
    return out


def write_content(conditions: Conditions, content: Content, made: AnnData, source: AnnData) -> None:
    """Write a condition into cells that are predicted under it, in the form in which the cells had theirs.

    Parameters
    ----------
    conditions
        Conditions of a model.
    content
        Content of the condition.
    made
        Predicted cells, to which columns are added.
    source
        The same cells before the change.
    """
    for key, value in columns_of(conditions, content).items():
        if key in source.obsm and key not in source.obs:
            made.obsm[key] = _amounts_like(source.obsm[key], content, made.obs_names)
            continue
        is_text = key in source.obs and not pd.api.types.is_numeric_dtype(source.obs[key])
        made.obs[key] = f"{value:.6g}" if is_text and not isinstance(value, str) else value


def _amounts_like(given: Any, content: Content, names: pd.Index) -> Any:
    """Return the amounts of parts as a table of the same kind as a given one."""
    parts, is_frame = dict(content.parts), isinstance(given, pd.DataFrame)
    columns = list(given.columns) if is_frame else list(range(given.shape[1]))
    if is_frame:
        columns += [part for part in parts if part not in map(str, columns)]
    values = np.tile([parts.get(str(name), 0.0) for name in columns], (len(names), 1))
    if is_frame:
        return pd.DataFrame(values, index=names, columns=columns)
    return sp.csr_matrix(values) if sp.issparse(given) else values
