"""Conditions that are asked for: by name, by the amounts of their parts, or by the values of columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

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
    for name, amount in {**parts, conditions.time or "time": time}.items():
        if isinstance(amount, bool | str) or not np.isscalar(amount) or not 0 <= float(amount) < np.inf:
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
    if (known := dict(zip(design.names, design.contents, strict=True)).get(to)) is not None:
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
    """Check that every part of a condition was seen or described."""
    for part, _ in content.parts:
        if part not in design.parts:
            near = difflib.get_close_matches(part, design.parts, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = (
                f"`to` has the part {part!r}, which was neither seen nor described. "
                f"Known: {few(design.parts)}.{hint}"
            )
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
    parts, joint = list(content.parts), conditions.separator or "+"
    for i, key in enumerate(conditions.factors):
        own = parts if len(conditions.factors) == 1 else parts[i : i + 1]
        out[key] = joint.join(part for part, _ in own) or conditions.control[0]
        if conditions.dose is not None and i < len(conditions.dose):
            doses = [amount for _, amount in own]
            out[conditions.dose[i]] = (
                joint.join(f"{v:.6g}" for v in doses) if len(set(doses)) > 1 else (doses or [0.0])[0]
            )
    if conditions.time is not None:
        out[conditions.time] = content.time
    return out
