"""Checks of what columns stand for: each has one role, and the name of cells without a label occurs.

These are looked at when data are set up anew, and not when a model that was saved is read.
"""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import pandas as pd
from anndata import AnnData

from scalloy.data.checks import CATEGORICAL, columns, few

ROLES = (*CATEGORICAL, "continuous_covariate_keys")
ALIKE = 0.8  # similarity of two spellings from which on one is taken for the other, of at most 1


def check_roles(adata: AnnData, given: dict[str, Any]) -> None:
    """Every column has one role, and cells without a label are named as the column names them."""
    _one_role_each(given)
    _warn_of_the_same(adata.obs, given)
    if given.get("unlabeled_category") is not None:
        _check_unlabeled(adata.obs, given)


def _one_role_each(given: dict[str, Any]) -> None:
    taken: dict[str, str] = {}
    for argument, key in columns(given, ROLES):
        if key in taken:
            msg = (
                f"`{taken[key]}` and `{argument}` both name the column {key!r}. Each column has one role: "
                "what is removed, what predictions change, and what cells are called cannot be the same. "
                f"Pass another column, or leave `{argument}` out."
            )
            raise ValueError(msg)
        taken[key] = argument


def _warn_of_the_same(obs: pd.DataFrame, given: dict[str, Any]) -> None:
    """Warn where two columns that act on expression divide the cells alike."""
    acting = [pair for pair in columns(given, CATEGORICAL) if pair[0] != "labels_key"]
    divided = [(argument, key, pd.factorize(obs[key])[0]) for argument, key in acting]
    for i, (argument, key, codes) in enumerate(divided):
        for other, other_key, other_codes in divided[:i]:
            if codes.max() > 0 and (codes == other_codes).all():
                warnings.warn(
                    f"`{other}={other_key!r}` and `{argument}={key!r}` divide the cells in the same way, so "
                    "that no model can tell their effects apart. Leave one of them out.",
                    stacklevel=5,
                )


def _check_unlabeled(obs: pd.DataFrame, given: dict[str, Any]) -> None:
    """The name of unlabelled cells occurs among the labels, or nothing that is spelled like it does."""
    unlabeled, key = given["unlabeled_category"], given.get("labels_key")
    if key is None:
        msg = (
            f"`unlabeled_category={unlabeled!r}` is a value of the column with labels, and none is named. "
            "Pass `labels_key=` as well, or leave `unlabeled_category` out."
        )
        raise ValueError(msg)
    names = obs[key].unique().tolist()
    if unlabeled in names:
        return
    if near := _near(unlabeled, names):
        msg = (
            f"`unlabeled_category={unlabeled!r}` is the label of no cell, and {few(map(repr, near))} would "
            f"be a cell type like the others. Did you mean {near[0]!r}? If every cell has a label, leave "
            "`unlabeled_category` out."
        )
        raise ValueError(msg)
    warnings.warn(
        f"No cell has the label `unlabeled_category={unlabeled!r}`: all {len(obs)} cells count as labelled. "
        f"`labels_key={key!r}` holds: {few(sorted(map(str, names)))}.",
        stacklevel=5,
    )


def _near(unlabeled: Any, names: list[Any]) -> list[Any]:
    """Return labels that are spelled like ``unlabeled``, the nearest first; of numbers only an equal one."""
    by_text: dict[str, Any] = {}
    for name in names:
        by_text.setdefault(_plain(name), name)
    text = _plain(unlabeled)
    if text in by_text:
        return [by_text[text]]
    words = [name for name in by_text if any(map(str.isalpha, name))]
    return [by_text[name] for name in difflib.get_close_matches(text, words, n=3, cutoff=ALIKE)]


def _plain(name: Any) -> str:
    return str(name).strip().casefold()
