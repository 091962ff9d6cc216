"""Checks of the roles of columns and of the label that stands for unlabelled cells.

They run when data are set up, not when a saved model is loaded.
"""

from __future__ import annotations

import difflib
from typing import Any

import pandas as pd
from anndata import AnnData

from scalloy._arguments import few, warn
from scalloy.data.checks import CATEGORICAL, columns, kind_of

ROLES = (*CATEGORICAL, "continuous_covariate_keys")
ALIKE = 0.8  # similarity (at most 1) above which two spellings are taken for the same word


def check_roles(adata: AnnData, given: dict[str, Any]) -> None:
    """Check that every column has one role and that ``unlabeled_category`` is spelled as in its column."""
    _one_role_each(given)
    _warn_of_the_same(adata.obs, given)
    _warn_of_nested(adata.obs, given)
    if given.get("unlabeled_category") is not None:
        _check_unlabeled(adata.obs, given)


def _one_role_each(given: dict[str, Any]) -> None:
    taken: dict[str, str] = {}
    several = [("labels_key", key) for key in (given.get("label_parents") or {}).get("columns", ())]
    for argument, key in [*columns(given, ROLES), *several]:
        if key in taken:
            msg = (
                f"`{taken[key]}` and `{argument}` both name the column {key!r}. Each column has one role: "
                "what is removed, what predictions change, and what cells are called cannot be the same. "
                f"Pass another column, or leave `{argument}` out."
            )
            raise ValueError(msg)
        taken[key] = argument


def _warn_of_the_same(obs: pd.DataFrame, given: dict[str, Any]) -> None:
    """Warn if two columns that act on expression divide the cells into the same groups."""
    acting = [pair for pair in columns(given, CATEGORICAL) if pair[0] != "labels_key"]
    divided = [(argument, key, pd.factorize(obs[key])[0]) for argument, key in acting]
    for i, (argument, key, codes) in enumerate(divided):
        for other, other_key, other_codes in divided[:i]:
            if codes.max() > 0 and (codes == other_codes).all():
                warn(
                    f"`{other}={other_key!r}` and `{argument}={key!r}` divide the cells in the same way, so "
                    "that no model can tell their effects apart. Leave one of them out.",
                )


def _warn_of_nested(obs: pd.DataFrame, given: dict[str, Any]) -> None:
    """Warn if no donor (or batch) has cells under two conditions, so that nothing tells them apart."""
    condition = given.get("condition_key")
    if condition is None or obs[condition].nunique() < 2:
        return
    for argument in ("batch_key", "donor_key"):
        key = given.get(argument)
        if key is None or obs[key].nunique() <= obs[condition].nunique():
            continue  # as many: they are the same partition, of which there is a warning already, or cross
        if (obs.groupby(key, observed=True)[condition].nunique() == 1).all():
            warn(
                f"Each value of `{argument}={key!r}` is found under one value of `condition_key="
                f"{condition!r}` only. A model that removes the former may remove the effect of the latter, "
                "and predictions cannot tell them apart. If these are donors, leave them out, and compare "
                "groups of donors by `sa.compare`.",
            )


def _check_unlabeled(obs: pd.DataFrame, given: dict[str, Any]) -> None:
    """Check that ``unlabeled_category`` is one of the labels, or at least is not a misspelling of one."""
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
    kinds = kind_of(obs[key]), kind_of(pd.Series([unlabeled]))
    if kinds[0] != kinds[1]:
        msg = (
            f"`unlabeled_category={unlabeled!r}` is of kind {kinds[1]!r}, and the labels of {key!r} are of "
            f"kind {kinds[0]!r}: {few(map(repr, names))}. Pass a value of their kind, or leave it out if "
            "every cell has a label."
        )
        raise ValueError(msg)
    warn(
        f"No cell has the label `unlabeled_category={unlabeled!r}`: all {len(obs)} cells count as labelled. "
        f"`labels_key={key!r}` holds: {few(sorted(map(str, names)))}.",
    )


def _near(unlabeled: Any, names: list[Any]) -> list[Any]:
    """Return labels spelled like ``unlabeled``, closest first; numbers must be equal."""
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
