"""Trees of labels, such as T > CD4 T > naive CD4 T: read from what the user passes, and checked.

A tree is given by the parent of each label, by the parts of labels that are paths, or by columns from coarse
to fine. What is found is stored with a model in a plain form.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalloy._arguments import few
from scalloy.blocks.hierarchy import ROOT, Hierarchy
from scalloy.data import checks

Parents = Mapping[str, str]


@dataclass(frozen=True)
class LabelTree:
    """Labels as a tree.

    Attributes
    ----------
    leaves
        Labels without children.
    inner
        Labels with children.
    parents
        Parent of each label that has one.
    columns
        Columns of ``.obs`` with the labels from coarse to fine, if there are several.
    """

    leaves: tuple[str, ...]
    inner: tuple[str, ...]
    parents: dict[str, str]
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: Iterable[str], parents: Parents, columns: Sequence[str] = ()) -> LabelTree:
        """Make a tree of the labels of some cells, in their order, and of the parent of each label.

        Parameters
        ----------
        labels
            Labels that cells have; one that is not in ``parents`` is a root.
        parents
            Parent of each label that has one.
        columns
            Columns of ``.obs`` from which this was read, if several.
        """
        labels, parents = list(labels), dict(parents)
        _check_circles(parents)
        above = set(parents.values())
        if lacking := sorted(set(parents) - above - set(labels)):
            near = [name for lack in lacking for name in difflib.get_close_matches(lack, labels, n=1)]
            meant = f" Did you mean {few(map(repr, dict.fromkeys(near)))}?" if near else ""
            msg = (
                f"`label_parents` names {few(map(repr, lacking))}, which no cell has and which have no "
                f"children. The cells have: {few(map(repr, labels))}. Leave out what is not there.{meant}"
            )
            raise ValueError(msg)
        nodes = list(dict.fromkeys([*labels, *parents, *parents.values()]))
        leaves = tuple(name for name in nodes if name not in above)
        return cls(leaves, tuple(sorted(above)), parents, tuple(columns))

    @property
    def nodes(self) -> tuple[str, ...]:
        """All labels in the order of their codes."""
        return (*self.leaves, *self.inner)

    @property
    def hierarchy(self) -> Hierarchy:
        """Return the tree of the codes."""
        code = {name: i for i, name in enumerate(self.nodes)}
        above = [code[self.parents[name]] if name in self.parents else ROOT for name in self.nodes]
        return Hierarchy(len(self.leaves), above)

    def plain(self) -> dict[str, Any]:
        """Return the tree as lists and text."""
        return {k: list(v) for k, v in vars(self).items() if k != "parents"} | {"parents": self.parents}

    @classmethod
    def from_plain(cls, given: Any) -> LabelTree:
        """Return the tree of which :meth:`plain` was stored, after a check that it is one."""
        names = {k: tuple(map(str, given[k])) for k in ("leaves", "inner", "columns")}
        found = cls(parents={str(k): str(v) for k, v in given["parents"].items()}, **names)
        again = cls.of(found.leaves, found.parents, found.columns)
        if found != again or len(set(found.nodes)) < len(found.nodes):
            msg = "the labels are no tree"
            raise ValueError(msg)
        return found


def is_plain(given: Any) -> bool:
    """Return whether this is what :meth:`LabelTree.plain` returns, and not what a user passes."""
    return isinstance(given, dict) and isinstance(given.get("leaves"), list)


def parents_in(given: Any) -> dict[str, str]:
    """Check what the user passes as the parent of each label, and return it."""
    if not isinstance(given, Mapping):
        msg = (
            f"`label_parents={given!r}` is a {type(given).__name__}. Expected the parent of each label, such "
            "as {'CD4 T': 'T', 'CD8 T': 'T'}, or text, such as '/' if labels are paths like 'T/CD4 T'."
        )
        raise TypeError(msg)
    several = {k: list(v) for k, v in given.items() if isinstance(v, list | tuple | set | frozenset)}
    if several:
        name, above = next(iter(several.items()))
        msg = (
            f"`label_parents` gives {name!r} {len(above)} parents: {few(map(repr, above))}. A label has one "
            "parent at most. If these are its children, turn it round: pass the parent of each label, such "
            "as {'CD4 T': 'T', 'CD8 T': 'T'}."
        )
        raise ValueError(msg)
    if odd := [name for pair in given.items() for name in pair if not isinstance(name, str) or not name]:
        msg = f"`label_parents` names {few(map(repr, odd))}. Expected names of labels, as text."
        raise TypeError(msg)
    return dict(given)


def parents_of_paths(labels: Iterable[str], separator: str) -> dict[str, str]:
    """Return the parent of each label that is a path, and of the nodes above it.

    Parameters
    ----------
    labels
        Labels such as ``"T/CD4/naive"``.
    separator
        Text between the parts.
    """
    labels = list(labels)
    if not separator or not any(separator in name for name in labels):
        msg = (
            f"`label_parents={separator!r}` is taken for the text between the parts of a path, and no label "
            f"contains it: {few(map(repr, labels))}. Pass the text that does, or a dict of parents."
        )
        raise ValueError(msg)
    parents: dict[str, str] = {}
    for name in labels:
        parts = name.split(separator)
        if not all(part.strip() for part in parts):
            msg = f"The label {name!r} is a path with an empty part. Rename it, or pass a dict of parents."
            raise ValueError(msg)
        steps = [separator.join(parts[: i + 1]) for i in range(len(parts))]
        parents.update(zip(steps[1:], steps, strict=False))
    return parents


def _check_circles(parents: Parents) -> None:
    """Check that no label is above itself."""
    for name in parents:
        path = [name]
        while (above := parents.get(path[-1])) is not None:
            path.append(above)
            if above in path[:-1]:
                round_ = path[path.index(above) :]
                msg = (
                    f"`label_parents` goes in a circle: {' in '.join(map(repr, round_))}. Leave out one of "
                    "these parents."
                )
                raise ValueError(msg)


# columns ----------------------------------------------------------------------------------------


def check_columns(given: Any) -> list[str]:
    """Return the names of columns from coarse to fine after a check."""
    columns = list(given)
    if not columns or not all(isinstance(key, str) for key in columns) or len(set(columns)) < len(columns):
        msg = f"`labels_key={given!r}` should name columns from coarse to fine, each once, as text."
        raise ValueError(msg)
    return columns


def values_of(obs: pd.DataFrame, columns: Sequence[str], unlabeled: Any) -> pd.DataFrame:
    """Return the labels in several columns as text, missing where there is none.

    Parameters
    ----------
    obs
        Columns of the cells.
    columns
        Names of the columns, from coarse to fine.
    unlabeled
        Value that stands for no label, as missing values do.
    """
    out = pd.DataFrame(index=range(len(obs)))
    for i, key in enumerate(columns):
        column = checks.find_column(obs, "labels_key", key).astype(object).reset_index(drop=True)
        text = column.where(column.isna(), column.astype(str))
        out[i] = text.mask(text == str(unlabeled)) if unlabeled is not None else text
    return out


def deepest_of(values: pd.DataFrame) -> np.ndarray:
    """Return the label of each cell in the finest column in which it has one, or ``None``."""
    out = np.full(len(values), None, dtype=object)
    for i in values:
        there = values[i].notna().to_numpy()
        out[there] = values[i].to_numpy()[there]
    return out


def parents_in_columns(values: pd.DataFrame, columns: Sequence[str]) -> dict[str, str]:
    """Return the parent of each label, read from columns from coarse to fine.

    Parameters
    ----------
    values
        Labels of the cells by the numbers of their columns, from :func:`values_of`.
    columns
        Names of these columns.
    """
    for i, key in enumerate(columns):
        if values[i].isna().all():
            msg = f"`labels_key` names {key!r}, in which no cell has a label. Leave it out."
            raise ValueError(msg)
    pairs = pd.concat([_pairs(values, i) for i in range(1, len(columns))] or [pd.DataFrame()])
    above: dict[str, dict[str, None]] = {}
    for name, parent in pairs.itertuples(index=False, name=None):
        above.setdefault(name, {})[parent] = None
    if several := {name: list(names) for name, names in above.items() if len(names) > 1}:
        said = "; ".join(f"{name!r} is in {' and '.join(map(repr, p))}" for name, p in several.items())
        msg = (
            f"In the columns {few(map(repr, columns))} a label has two parents: {said}. Make its names "
            "differ, such as by the parent's name before it, or correct these cells."
        )
        raise ValueError(msg)
    parents = {name: next(iter(names)) for name, names in above.items()}
    named = {name for i in values for name in values[i].dropna()}
    if alone := sorted(named - set(values[0].dropna()) - set(parents)):
        msg = (
            f"The labels {few(map(repr, alone))} have no label in a coarser column: "
            f"{few(map(repr, columns))}. Fill that column in these cells."
        )
        raise ValueError(msg)
    return parents


def _pairs(values: pd.DataFrame, i: int) -> pd.DataFrame:
    """Return the labels of column ``i`` and the next coarser label of the same cell, each pair once."""
    pairs = pd.DataFrame({"name": values[i], "parent": deepest_of(values.iloc[:, :i])})
    pairs = pairs.dropna().drop_duplicates()
    return pairs[pairs["name"] != pairs["parent"]]  # the same name says that it is divided no further
