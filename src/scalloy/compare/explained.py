r"""Variance between donors that covariates explain: permutational analysis of variance of distances.

    G     = -J D^2 J / 2                 D^2 squared distances, J = 1 - 1/n
    SS(c) = tr((H_all - H_others) G)     H projects onto the covariates; others: all but c
    R^2   = SS(c) / tr(G)

McArdle & Anderson, "Fitting multivariate models to community data", Ecology 2001. The donors are permuted. If
there are other covariates, they are regressed out of ``G`` first, and the residuals are permuted (Freedman &
Lane, Journal of Business & Economic Statistics 1983). The statistic of the test is the share of what the
others leave; it orders permutations as pseudo-F does.
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
    "pvalue": float,
    "padj": float,
    "smallest": float,
    "n_permutations": "Int64",
    "note": object,
}
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
    n, found = len(covariates), {}
    designs = {key: _columns(values) for key, values in covariates.items()}
    notes = {key: _impossible(covariates[key]) for key in covariates}
    usable = [key for key in covariates if not notes[key]]
    for key in covariates:
        row: dict[str, Any] = {"covariate": key, "donors": n, "note": notes[key]}
        if not notes[key]:
            others = [k for k in usable if k != key]
            whole, rest = (_basis([designs[k] for k in keys], n) for keys in ([*others, key], others))
            row["df"] = whole.shape[1] - rest.shape[1]
            kinds = covariates[[*others, key]].apply(lambda c: pd.factorize(c)[0]).to_numpy()
            row |= _one(squared, whole, rest, _basis([designs[key]], n), kinds, n_permutations, rng)
            if row["df"] == 0:
                row["note"] = f"cannot be told from {', '.join(others)}"
        found[key] = row
    return list(found.values())


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
    frame["note"] = frame["note"].fillna("")
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


def _one(
    squared: Squared,
    whole: np.ndarray,
    rest: np.ndarray,
    alone: np.ndarray,
    kinds: np.ndarray,
    n_permutations: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return what a covariate explains, and its p-value.

    Parameters
    ----------
    squared
        Distances between donors.
    whole, rest, alone
        Bases of all covariates, of all others, and of the covariate alone.
    kinds
        Codes of the covariates, donors x covariates.
    n_permutations, rng
        As in :func:`explained`.
    """
    n, df, df_left = len(whole), whole.shape[1] - rest.shape[1], len(whole) - whole.shape[1]
    g, raw = gower(squared.between), gower(squared.raw())
    total = np.trace(g)
    if np.trace(raw) <= SMALL:
        return {"note": "donors do not differ at all"}
    has_variance = total > REAL * np.trace(raw)
    out: dict[str, Any] = {"r2_alone": _trace(alone, g) / total if has_variance else nan}
    if not has_variance:
        out["note"] = "sampling of cells makes up most of the distances"
    if df == 0:
        return out
    if df_left == 0:
        return out | {"note": f"{n} donors are too few for {whole.shape[1] - 1} parameters of all covariates"}
    ss, left = _trace(whole, g) - _trace(rest, g), total - _trace(whole, g)
    if has_variance:
        out |= {"r2": ss / total, "r2_adjusted": (ss - df * left / df_left) / total}
        out["f"] = ss / df / (left / df_left) if left > 0 else nan
    return out | _test(g, raw, whole, rest, kinds, n_permutations, rng)


def _trace(basis: np.ndarray, g: np.ndarray) -> float:
    """Return the trace of ``g`` projected onto a basis."""
    return float(np.einsum("ij,ik,kj->", basis, g, basis))


def _test(
    g: np.ndarray,
    raw: np.ndarray,
    whole: np.ndarray,
    rest: np.ndarray,
    kinds: np.ndarray,
    n_permutations: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Permute the donors' residuals.

    The share is relative to distances that include the sampling of cells, because these are never negative.
    """
    residual = np.eye(len(g)) - rest @ rest.T
    g, raw = residual @ g @ residual, residual @ raw @ residual
    own = whole @ whole.T - rest @ rest.T
    orders = arrangements(np.unique(kinds, axis=0, return_inverse=True)[1].ravel(), n_permutations, rng)
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


def arrangements(kinds: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return orders of the donors, the real one first: all that differ if there are few, or random ones.

    Parameters
    ----------
    kinds
        Code of each donor; exchanging donors of the same code makes no difference.
    n
        Maximum number of orders besides the real one.
    rng
        Generator of the random orders.
    """
    kinds = np.unique(kinds, return_inverse=True)[1]
    left, total = len(kinds), 1
    for size in np.bincount(kinds):
        total, left = total * comb(left, int(size)), left - int(size)
    if total > n + 1:
        real = np.arange(len(kinds))
        return np.vstack([real, rng.permuted(np.tile(real, (n, 1)), axis=1)])
    ways = [np.full(len(kinds), -1)]
    for k, size in enumerate(np.bincount(kinds)):
        ways = [
            _put(way, list(chosen), np.flatnonzero(kinds == k))
            for way in ways
            for chosen in itertools.combinations(np.flatnonzero(way < 0), size)
        ]
    orders = np.array(ways)
    others = (orders != np.arange(len(kinds))).any(1)
    return orders[np.argsort(others, kind="stable")]


def _put(way: np.ndarray, places: list[int], donors: np.ndarray) -> np.ndarray:
    """Return a copy of an order in which these donors are at these places."""
    out = way.copy()
    out[places] = donors
    return out
