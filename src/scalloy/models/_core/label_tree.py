"""Labels with a hierarchy in the set-up of a model.

The labels are in one column, as those without a hierarchy: the one that is named or, if several columns go
from coarse to fine, one that is written at set-up, with the finest label of each cell. The tree is in the
arguments of the set-up, which are saved with the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField

from scalloy import _keys
from scalloy._arguments import few
from scalloy.data import checks, label_tree
from scalloy.data.genes import with_values
from scalloy.data.label_tree import LabelTree

UNLABELED = "unlabeled_category"


class LabelsOfTree(CategoricalObsField):
    """Labels of a tree in the order of its codes, and last the one that stands for "unknown", if any.

    Parameters
    ----------
    registry_key, key
        Name of the field, and column of ``.obs``.
    tree
        Tree of the labels.
    unlabeled
        Label that stands for "unknown".
    """

    def __init__(self, registry_key: str, key: str, tree: LabelTree, unlabeled: Any) -> None:
        super().__init__(registry_key, key)
        self.names = [*tree.nodes, *(() if unlabeled is None else (unlabeled,))]
        self.known = {} if unlabeled is None else {UNLABELED: unlabeled}

    def register_field(self, adata: AnnData) -> dict:
        return self.transfer_field({self.CATEGORICAL_MAPPING_KEY: np.array(self.names, dtype=object)}, adata)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **_: Any) -> dict:
        return {**super().transfer_field(state_registry, adata_target), **self.known}


def with_tree(adata: AnnData, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the set-up with the tree of labels; a column is written if several are given.

    Parameters
    ----------
    adata
        Cells, to which the column is added.
    given
        Arguments of the set-up; those of a trained model have the tree already.
    """
    key, asked = given.get("labels_key"), given.get("label_parents")
    several = "label_parents" in given and isinstance(key, list | tuple)
    if label_tree.is_plain(asked):
        tree = LabelTree.from_plain(asked)
        if tree.columns and set(tree.columns) <= set(adata.obs):
            adata.obs[key] = pd.Categorical(names_in(tree, adata, given))
        return given
    if asked is None and not several:
        return given
    if key is None:
        msg = "`label_parents` needs labels. Pass `labels_key=` as well: the column of `.obs` with them."
        raise ValueError(msg)
    if several:
        return _of_columns(adata, given)
    unlabeled = given.get(UNLABELED)
    checks.check_arguments(given)
    column = checks.complete_column(adata.obs, "labels_key", key)
    checks.check_kind(column, "labels_key", key)
    labels = _occurring(column, unlabeled)
    if not all(isinstance(name, str) for name in labels):
        msg = (
            f"`label_parents` needs labels that are text, and `labels_key={key!r}` holds {few(labels)}. Call "
            f"`adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)`."
        )
        raise TypeError(msg)
    if isinstance(asked, str):
        parents = label_tree.parents_of_paths(labels, asked)
    else:
        parents = label_tree.parents_in(asked)
    tree = LabelTree.of(labels, parents)
    _check_unlabeled(tree, unlabeled)
    return {**given, "label_parents": tree.plain()}


def _occurring(column: pd.Series, unlabeled: Any) -> list[Any]:
    """Return the labels of cells in the order in which scvi-tools has them without a tree."""
    categories = column.astype("category").cat.remove_unused_categories().cat.categories.tolist()
    if unlabeled in categories:  # it changes places with the last one
        i = categories.index(unlabeled)
        categories[i], categories[-1] = categories[-1], categories[i]
        categories.pop()
    return categories


def _of_columns(adata: AnnData, given: dict[str, Any]) -> dict[str, Any]:
    """Read a tree from columns from coarse to fine, and write the finest label of each cell."""
    columns, unlabeled = label_tree.check_columns(given["labels_key"]), given.get(UNLABELED)
    if given.get("label_parents") is not None:
        msg = (
            f"`labels_key={columns!r}` says what the parents are, and so does `label_parents`. Pass one "
            "column, or leave `label_parents` out."
        )
        raise ValueError(msg)
    if _keys.LABEL_TREE in columns:
        msg = (
            f"`labels_key` names {_keys.LABEL_TREE!r}, a column that the set-up writes and would overwrite. "
            "Rename it."
        )
        raise ValueError(msg)
    values = label_tree.values_of(adata.obs, columns, unlabeled)
    parents, names = label_tree.parents_in_columns(values, columns), label_tree.deepest_of(values)
    if unlabeled is None and (n := sum(name is None for name in names)):
        msg = (
            f"{n} cell(s) have no label in any of the columns {few(map(repr, columns))}. Pass "
            "`unlabeled_category='Unknown'`, say."
        )
        raise ValueError(msg)
    tree = LabelTree.of(sorted({name for name in names if name is not None}), parents, columns)
    _check_unlabeled(tree, unlabeled)
    adata.obs[_keys.LABEL_TREE] = pd.Categorical([unlabeled if name is None else name for name in names])
    return {**given, "labels_key": _keys.LABEL_TREE, "label_parents": tree.plain()}


def _check_unlabeled(tree: LabelTree, unlabeled: Any) -> None:
    """Check that the value which stands for "unknown" is no label of the tree."""
    if unlabeled in tree.nodes:
        msg = (
            f"`unlabeled_category={unlabeled!r}` stands for no label, and it is a label of the tree. Leave "
            "it out of `label_parents`."
        )
        raise ValueError(msg)


def tree_of(given: dict[str, Any]) -> LabelTree | None:
    """Return the tree in the arguments of a set-up; ``None`` if labels have no hierarchy."""
    plain = given.get("label_parents")
    return None if plain is None else LabelTree.from_plain(plain)


def names_by_code(reader: Any) -> list[str]:
    """Return the names of all labels in the order of their codes, of a tree those of inner nodes as well."""
    tree = reader.tree
    return reader.labels if tree is None else list(tree.nodes)


def names_in(tree: LabelTree, adata: AnnData, given: dict[str, Any]) -> np.ndarray:
    """Return the finest label that the model knows of each of some cells, or what stands for none."""
    values = label_tree.values_of(adata.obs, tree.columns, given.get(UNLABELED))
    names = label_tree.deepest_of(values.where(values.isin(tree.nodes)))
    nothing = "" if given.get(UNLABELED) is None else given[UNLABELED]
    return np.array([nothing if name is None else name for name in names], dtype=object)


def with_labels(adata: AnnData, given: dict[str, Any]) -> AnnData:
    """Return new cells with the column of labels if that was made of several; otherwise the same object.

    Parameters
    ----------
    adata
        New cells, which are not changed.
    given
        Arguments of the set-up of the model.
    """
    tree = tree_of(given)
    if tree is None or not tree.columns or not (there := [k for k in tree.columns if k in adata.obs]):
        return adata
    some = LabelTree(tree.leaves, tree.inner, tree.parents, tuple(there))
    return with_values(adata, given["labels_key"], names_in(some, adata, given))


def field(given: dict[str, Any], without: Any) -> Any:
    """Return the field of the labels if they have a tree, or else the one ``without``."""
    tree = tree_of(given)
    if tree is None:
        return without
    return LabelsOfTree(REGISTRY_KEYS.LABELS_KEY, given["labels_key"], tree, given.get(UNLABELED))
