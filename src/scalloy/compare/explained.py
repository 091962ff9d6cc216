r"""Variance between donors that covariates explain: permutational analysis of variance of distances.

    G     = -J D^2 J / 2                 D^2 squared distances, J = 1 - 1/n
    SS(c) = tr((H_all - H_others) G)     H projects onto the covariates; others: all but c
    R^2   = SS(c) / tr(G)

McArdle & Anderson, "Fitting multivariate models to community data", Ecology 2001. What is permuted:

===========================  =======================================================================
without other covariates     the donors
others are categories        the donors within their levels, if this leaves 100 different orders
others are numbers, or       residuals: the others are regressed out of ``G`` first (Freedman & Lane,
there are fewer orders       Journal of Business & Economic Statistics 1983)
both                         residuals within levels of the categories
===========================  =======================================================================

The statistic of the test is the share of what the others leave; it orders permutations as pseudo-F does.
"""

from __future__ import annotations

import itertools
from math import comb, nan
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from scalloy.compare.donor_distances import Squared

COLUMNS = {
    "covariate": object,
    "donors": "Int64",
    "df": "Int64",
    "r2": float,
    "r2_alone": float,
    "r2_adjusted": float,
    "f": float,
    "permuted": object,
    "pvalue": float,
    "padj": float,
    "smallest": float,
    "n_permutations": "Int64",
    "note": object,
}
ENOUGH = 100  # orders from which on donors are exchanged only within the levels of other covariates
CLOSE = 1e-9  # differences between statistics that are due to rounding
SMALL = 1e-12  # distances that are due to rounding
RANK = 1e-8  # smallest singular value of independent covariates
REAL = 0.25  # least share of the distances that is not due to the sampling of cells
AT_ONCE = 2**23  # entries of permuted matrices that are held at a time


def explained(
    squared: Squared, covariates: pd.DataFrame, n_permutations: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return a row of the table for each covariate, given the others.

    Parameters
    ----------
    squared
        Distances between donors, none of them missing.
    covariates
        Numbers or names, donors x covariates.
    n_permutations
        Maximum number of permutations.
    rng
        Generator of the permutations.
    """
    n, rows = len(covariates), []
    designs = {key: _columns(values) for key, values in covariates.items()}
    notes = {key: _impossible(values) for key, values in covariates.items()}
    usable = [key for key in covariates if not notes[key]]
    for key in covariates:
        rows.append({"covariate": key, "donors": n, "note": notes[key]})
        if notes[key]:
            continue
        others = [k for k in usable if k != key]
        whole, rest = (_basis([designs[k] for k in keys], n) for keys in ([*others, key], others))
        rows[-1] |= _shares(squared, whole, rest, _basis([designs[key]], n), others)
        if "f" in rows[-1]:
            orders, permuted = _orders(covariates[[*others, key]], n_permutations, rng)
            rows[-1] |= {"permuted": permuted} | _test(squared, whole, rest, orders)
    return rows


def table(rows: list[dict[str, Any]], *first: str) -> pd.DataFrame:
    """Make a table of rows, with adjusted p-values over all of them.

    Parameters
    ----------
    rows
        Rows that :func:`explained` returned.
    first
        Names of further columns, which come first.
    """
    frame = pd.DataFrame(rows, columns=[*first, *COLUMNS]).astype(COLUMNS)
    frame[["permuted", "note"]] = frame[["permuted", "note"]].fillna("")
    known = frame["pvalue"].notna()
    if known.any():
        frame.loc[known, "padj"] = false_discovery_control(frame.loc[known, "pvalue"])
    return frame


def gower(squared: np.ndarray) -> np.ndarray:
    """Return scalar products of centred points with these squared distances."""
    rows = squared - squared.mean(0)
    return -(rows - rows.mean(1, keepdims=True)) / 2


def _columns(values: pd.Series) -> np.ndarray:
    """Return a covariate as columns of numbers: itself, or an indicator of each level."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(dtype=float)[:, None]
    return pd.get_dummies(values).to_numpy(dtype=float)


def _impossible(values: pd.Series) -> str:
    """Return why a covariate cannot explain anything, or an empty text."""
    if values.nunique() < 2:
        return "the same for all donors"
    if not pd.api.types.is_numeric_dtype(values) and values.nunique() == len(values):
        return "each donor has a level of its own, so there are no replicates"
    return ""


def _basis(designs: list[np.ndarray], n: int) -> np.ndarray:
    """Return an orthonormal basis of a constant and the columns of designs."""
    constant = np.full((n, 1), n**-0.5)
    if not designs:
        return constant
    x = np.hstack(designs)
    x = x - x.mean(0)
    size = np.linalg.norm(x, axis=0)
    u, s, _ = np.linalg.svd(x[:, size > 0] / size[size > 0], full_matrices=False)
    return np.hstack([constant, u[:, s > RANK]])


def _shares(
    squared: Squared, whole: np.ndarray, rest: np.ndarray, alone: np.ndarray, others: list[str]
) -> dict[str, Any]:
    """Return what a covariate explains; pseudo-F is among it, missing or not, if it can be tested.

    Parameters
    ----------
    squared
        Distances between donors.
    whole, rest, alone
        Bases of all covariates, of all others, and of the covariate alone.
    others
        Names of the other covariates.
    """
    n, df, df_left = len(whole), whole.shape[1] - rest.shape[1], len(whole) - whole.shape[1]
    g, raw = gower(squared.between), np.trace(gower(squared.raw()))
    total = np.trace(g)
    if raw <= SMALL:
        return {"note": "donors do not differ at all"}
    known = total > REAL * raw
    out: dict[str, Any] = {"df": df, "r2_alone": _trace(alone, g) / total if known else nan}
    if df == 0:
        return out | {"note": f"cannot be told from {', '.join(others)}"}
    if df_left == 0:
        return out | {"note": f"{n} donors are too few for {whole.shape[1] - 1} parameters of all covariates"}
    if not known:
        return out | {"f": nan, "note": "sampling of cells makes up most of the distances"}
    ss, left = _trace(whole, g) - _trace(rest, g), total - _trace(whole, g)
    out |= {"r2": ss / total, "r2_adjusted": (ss - df * left / df_left) / total}
    return out | {"f": ss / df / (left / df_left) if left > 0 else nan}


def _trace(basis: np.ndarray, g: np.ndarray) -> float:
    """Return the trace of ``g`` projected onto a basis."""
    return float(np.einsum("ij,ik,kj->", basis, g, basis))


def _orders(
    covariates: pd.DataFrame, n_permutations: int, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Return orders of the donors in which the last covariate is tested given the others, and their name.

    Donors are exchanged with those of the same categories of other covariates, if this leaves enough orders.
    """
    kinds, others = _codes(covariates), covariates.iloc[:, :-1]
    names = others.select_dtypes(exclude="number")
    within, plain = _codes(names), np.zeros(len(kinds), dtype=int)
    restricted = names.shape[1] > 0 and _number(kinds, within) >= ENOUGH
    orders = arrangements(kinds, n_permutations, rng, within if restricted else plain)
    what = "donors" if others.shape[1] == (names.shape[1] if restricted else 0) else "residuals"
    return orders, f"{what} within {', '.join(names)}" if restricted else what


def _codes(frame: pd.DataFrame) -> np.ndarray:
    """Return a code of each row; the same for rows that are the same."""
    return (
        frame.groupby(list(frame), sort=False).ngroup().to_numpy() if frame.shape[1] else np.zeros(len(frame))
    )


def _test(squared: Squared, whole: np.ndarray, rest: np.ndarray, orders: np.ndarray) -> dict[str, Any]:
    """Permute what the other covariates leave.

    The share is relative to distances that include the sampling of cells, because these are never negative.
    """
    residual = np.eye(len(whole)) - rest @ rest.T
    g, raw = (residual @ gower(d2) @ residual for d2 in (squared.between, squared.raw()))
    own = whole @ whole.T - rest @ rest.T
    shares, same = [], []
    for some in np.array_split(orders, -(-orders.shape[0] * g.size // AT_ONCE)):
        at = some[:, :, None], some[:, None, :]
        o, r = own[at], residual[at]
        shares.append(np.einsum("bij,ij->b", o, g) / np.einsum("bij,ij->b", r, raw))
        same.append((np.abs(o - own).max((1, 2)) < CLOSE) & (np.abs(r - residual).max((1, 2)) < CLOSE))
    share = np.concatenate(shares)
    return {
        "pvalue": float((share >= share[0] - CLOSE).mean()),
        "smallest": float(np.concatenate(same).mean()),
        "n_permutations": len(orders) - 1,
    }


def arrangements(kinds: np.ndarray, n: int, rng: np.random.Generator, within: np.ndarray) -> np.ndarray:
    """Return orders of the donors, the real one first: all that differ if there are few, or random ones.

    Parameters
    ----------
    kinds
        Code of each donor; exchanging donors of the same code makes no difference.
    n
        Maximum number of orders besides the real one.
    rng
        Generator of the random orders.
    within
        Code of each donor; only donors of the same code are exchanged.
    """
    real = np.arange(len(kinds))
    if _number(kinds, within) > n + 1:
        orders = np.tile(real, (n + 1, 1))
        for b in np.unique(within):
            some = np.flatnonzero(within == b)
            orders[1:, some] = rng.permuted(orders[1:, some], axis=1)
        return orders
    ways = [np.full(len(kinds), -1)]
    for b, k in np.unique(np.column_stack([within, kinds]), axis=0):
        donors = np.flatnonzero((within == b) & (kinds == k))
        ways = [
            _put(way, list(chosen), donors)
            for way in ways
            for chosen in itertools.combinations(np.flatnonzero((way < 0) & (within == b)), len(donors))
        ]
    orders = np.array(ways)
    return orders[np.argsort((orders != real).any(1), kind="stable")]


def _number(kinds: np.ndarray, within: np.ndarray) -> int:
    """Return the number of orders that differ."""
    total = 1
    for b in np.unique(within):
        left = int((within == b).sum())
        for size in np.unique(kinds[within == b], return_counts=True)[1].tolist():
            total, left = total * comb(left, size), left - size
    return total


def _put(way: np.ndarray, places: list[int], donors: np.ndarray) -> np.ndarray:
    """Return a copy of an order in which these donors are at these places."""
    out = way.copy()
    out[places] = donors
    return out
