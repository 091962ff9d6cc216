"""Permutation test between groups of cells in a latent space, with p-values that respect donors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from scalloy._arguments import category, one_of, positive
from scalloy.compare import designs, statistics
from scalloy.compare.designs import Design
from scalloy.data.arrays import as_numbers, check_obsm
from scalloy.data.checks import check_kind, complete_column

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._core.base import ScalloyModel

TESTS = ("mmd", "energy", "classifier")
REFITS = 199  # maximum number of permutations for the classifier, which is fitted anew for each
CLOSE = 1e-9  # differences between statistics that are due to rounding, as a fraction of the mean kernel
RESERVED = ("group_a", "group_b", "n_a", "n_b", "statistic", "effect", "pvalue", "padj", "design", "note")


def groups(
    data: AnnData | ScalloyModel,
    use_rep: str | None = None,
    *,
    groupby: str,
    by: str | None = None,
    donor_key: str | None = None,
    reference: str | None = None,
    test: Literal["mmd", "energy", "classifier"] = "mmd",
    unit: Literal["auto", "donor", "cell"] = "auto",
    n_permutations: int = 1000,
    at_least: int = 10,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Test whether the cells of two groups come from the same distribution in a latent space.

    With ``donor_key``, the groups of whole donors are permuted (or those of the two samples of a donor that
    is in both groups), because cells of a donor are not independent observations. Treating them as
    independent makes nearly every comparison significant. If there are at most ``n_permutations`` other
    labelings, all of them are used and the p-value is exact. A difference that was removed from the latent
    space (``batch_key``) cannot be found in it.

    Parameters
    ----------
    data
        Cells, or a trained model, whose latent representation of its own cells is used.
    use_rep
        Key of ``.obsm`` with the latent space; required with cells.
    groupby
        Column of ``.obs`` with the groups. If there are more than two, all pairs are compared.
    by
        Column of ``.obs``, such as cell types, within each value of which the groups are compared.
    donor_key
        Column of ``.obs`` with donors, mice, or whatever else was assigned to a group.
    reference
        Group with which the others are compared; ``None`` compares all pairs.
    test
        ``"mmd"`` (maximum mean discrepancy, Gaussian kernels around the median distance), ``"energy"``
        (energy distance) or ``"classifier"`` (area under the ROC curve of a logistic regression on donors
        that it has not seen).
    unit
        Unit that is permuted. ``"auto"`` permutes donors if there are any. ``"cell"`` with ``donor_key``
        permutes cells within each donor, for samples of a donor that differ in nothing but the group.
    n_permutations
        Maximum number of permutations. The classifier, which is fitted anew for each, uses at most 199.
    at_least
        Minimum number of cells. Donors with fewer cells in a group are left out of it, and groups with fewer
        cells are not tested.
    rng
        Seed or generator of the permutations.

    Returns
    -------
    One row per comparison: the numbers of cells ``n_a`` and ``n_b`` and of donors ``donors_a`` and
    ``donors_b``; ``design`` (see :mod:`scalloy.compare.designs`); ``statistic``; ``effect`` (for MMD and
    energy distance, the distance over the spread within groups, like Cohen's d; for the classifier,
    2 AUROC - 1; 0 is no difference); ``pvalue``; ``padj`` (Benjamini-Hochberg over all rows); ``smallest``
    (the smallest p-value that so many donors or permutations allow); and ``n_permutations`` (without the real
    labeling). ``frame.attrs["null"]`` holds the statistics of the permutations for :func:`scalloy.pl.null`.
    Comparisons that are impossible have a ``note`` and no p-value.

    Examples
    --------
    >>> cells = sa.datasets.blobs(20, n_clusters=2)
    >>> cells.obsm["X_blobs"] = cells.X
    >>> found = sa.compare.groups(cells, "X_blobs", groupby="condition", by="cluster", n_permutations=99)
    >>> found["pvalue"].tolist()
    [0.01, 0.01]
    """
    one_of("test", test, TESTS)
    check(unit, donor_key, n_permutations=n_permutations, at_least=at_least)
    rng = np.random.default_rng(rng)
    x, obs = representation(data, use_rep)
    of, parts = column(obs, "groupby", groupby), [("", np.ones(len(x), bool))]
    if by is not None:
        within = column(obs, "by", by)
        parts = [(level, within == level) for level in sorted(set(within))]
        check_free(by, RESERVED)
    donors = None if donor_key is None else column(obs, "donor_key", donor_key)
    rows, nulls = [], {}
    for (level, inside), (a, b) in itertools.product(parts, pairs_of(of, reference)):
        row: dict[str, Any] = {by: level} if by is not None else {}
        cells = np.flatnonzero(inside & np.isin(of, (a, b)))
        group, own = (of[cells] == b).astype(int), None if donors is None else donors[cells]
        row |= {"group_a": a, "group_b": b, "n_a": int((group == 0).sum()), "n_b": int(group.sum())}
        try:
            design = design_of(group, own, unit, at_least)
            used = design.unit >= 0
            row |= {"n_a": int((used & (group == 0)).sum()), "n_b": int((used & (group == 1)).sum())}
            found, null = one(x[cells], design, test, n_permutations, rng)
        except ValueError as error:
            if by is None and len(pairs_of(of, reference)) == 1:
                raise
            found, null = {"pvalue": np.nan, "note": str(error).split(". ")[0]}, []
        rows.append(row | found)
        nulls[key_of(row, by)] = null
    frame = pd.DataFrame(rows)
    whole = ["donors_a", "donors_b", "n_permutations"]  # missing where a comparison is impossible
    frame = frame.astype({c: "Int64" for c in whole if c in frame})
    known = frame["pvalue"].notna()
    frame.insert(frame.columns.get_loc("pvalue") + 1, "padj", np.nan)
    if known.any():
        frame.loc[known, "padj"] = false_discovery_control(frame.loc[known, "pvalue"])
    frame.attrs["null"] = nulls
    return frame


def check(unit: str, donor_key: str | None, **numbers: int) -> None:
    """Check the arguments that all comparisons share."""
    one_of("unit", unit, designs.UNITS)
    positive(**numbers)
    if donor_key is None and unit == "donor":
        msg = "`unit='donor'` needs `donor_key`."
        raise ValueError(msg)


def check_free(by: str | None, reserved: Sequence[str]) -> None:
    """Check that a column of ``.obs`` is not called like one of the table that is returned."""
    if by in reserved:
        msg = f"`by={by!r}` is a column of the table that is returned. Rename it in `adata.obs`."
        raise ValueError(msg)


def key_of(row: Any, by: str | None) -> str:
    """Return the key of a comparison in ``frame.attrs["null"]``."""
    return " | ".join([*([str(row[by])] if by is not None else []), row["group_a"], row["group_b"]])


def representation(data: Any, use_rep: str | None) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the latent space and the ``.obs`` of cells or of a model."""
    if hasattr(data, "get_latent_representation"):
        if use_rep is not None:
            msg = f"`use_rep={use_rep!r}` is for cells; for a model its own latent representation is used."
            raise ValueError(msg)
        z = as_numbers(data.get_latent_representation(), "the latent representation", 2)
        return z.astype(float), data.adata.obs
    return check_obsm(data, "use_rep", use_rep).astype(float), data.obs


def column(obs: pd.DataFrame, argument: str, key: str) -> np.ndarray:
    """Return a column as strings; no value may be missing."""
    found = complete_column(obs, argument, key)
    check_kind(found, argument, key)
    return found.astype(str).to_numpy()


def pairs_of(of: np.ndarray, reference: str | None) -> list[tuple[str, str]]:
    """List the pairs of groups to compare."""
    names = sorted(set(of))
    if len(names) < 2:
        msg = f"`groupby` needs two groups or more, but the column has only {names}."
        raise ValueError(msg)
    if reference is None:
        return list(itertools.combinations(names, 2))
    reference = category("reference", reference, names)
    return [(reference, name) for name in names if name != reference]


def design_of(group: np.ndarray, donor: np.ndarray | None, unit: str, at_least: int) -> Design:
    """Check the sizes of the groups, and choose the design by :func:`scalloy.compare.designs.design`."""
    sizes = np.bincount(group, minlength=2)
    if sizes.min() < max(2, at_least):
        msg = f"a group has {sizes.min()} cells, fewer than `at_least={at_least}`"
        raise ValueError(msg)
    return designs.design(group, donor, unit, at_least=at_least)


def one(
    x: np.ndarray, design: Design, test: str, n_permutations: int, rng: np.random.Generator
) -> tuple[dict[str, Any], list[float]]:
    """Compare two groups; return a row of the table and the statistics of the permutations."""
    if test != "mmd":
        design = design.thinned(statistics.EXACT, rng)
    labels, every = design.labelings(
        n_permutations if test != "classifier" else min(n_permutations, REFITS), rng
    )
    if test == "classifier":
        values, scale = statistics.aurocs(x, design, labels, rng), 0.0
        effect, smallest = 2 * values[0] - 1, 1 / labels.shape[1]  # random folds leave no ties
    else:
        values, within, itself = statistics.differences(x, design, labels, test, rng)
        expected = values[1:].mean() if design.kind == "cells within donors" else 0.0  # donors' shares differ
        effect = np.sqrt(max(values[0] - expected, 0.0) / max(itself - within[0], 1e-12))
        scale, smallest = abs(within[0]), design.smallest
    observed, null = values[0], values[1:]
    if not np.isfinite(observed):
        msg = "The statistic is not finite: too few cells are left in a group."
        raise ValueError(msg)
    higher = int((null >= observed - CLOSE * scale).sum())
    donors = [len(np.unique(design.apart[design.group == k])) for k in (0, 1)]
    cells = "cells" in design.kind
    row = {
        "donors_a": 0 if cells else donors[0],
        "donors_b": 0 if cells else donors[1],
        "design": design.kind,
        "statistic": float(observed),
        "effect": float(effect),
        "pvalue": (1 + higher) / (1 + len(null)),
        "smallest": smallest if every else max(smallest, 1 / (1 + len(null))),
        "n_permutations": len(null),
    }
    return row, null.tolist()
