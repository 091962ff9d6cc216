"""Map of donors: how far their cells are apart, what explains it, and which donors lie outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from scalloy._arguments import one_of, whole
from scalloy.compare.covariates import covariates_of, names_of
from scalloy.compare.donor_distances import Squared, average, squared_distances
from scalloy.compare.explained import explained, gower, table
from scalloy.compare.groups import column, representation

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._core.base import ScalloyModel

DISTANCES = ("energy", "mmd")
JUDGED = 5  # donors from which on outliers are looked for
FEW = {5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}  # Croux & Rousseeuw, COMPSTAT 1992
ALL = "all cells"  # name of the only population if there is no `by`


@dataclass(frozen=True, eq=False)
class DonorMap:
    """Distances between donors and what was found from them; :func:`donors` makes it.

    Parameters
    ----------
    distances
        Squared distances, donors x donors: the mean over the populations that both donors have. They are zero
        on average between random halves of one donor, so that some may be negative.
    by_population
        The same within each population. NaN where a donor has too few cells.
    weights
        Weight of each population: the donors' mean share of cells in it.
    tree
        Average linkage of the distances (the root of the positive ones), as SciPy writes it.
    explained
        Variance between donors that each covariate explains, one row per covariate.
    explained_by_population
        The same within each population, adjusted for all of its rows.
    outlying
        How far each donor is from the others, the farthest first.
    coordinates
        Donors in two dimensions (classical scaling). ``coordinates.attrs["share"]`` has their shares of the
        variance.
    covariates
        Covariates of each donor.
    distance
        Kind of distance.

    Examples
    --------
    >>> adata.obs["lane"] = [f"lane {i % 6}" for i in range(adata.n_obs)]
    >>> found = sa.compare.donors(model, donor_key="lane")
    >>> found.distances.shape, found.coordinates.shape
    ((6, 6), (6, 2))
    """

    distances: pd.DataFrame
    by_population: dict[str, pd.DataFrame]
    weights: pd.Series
    tree: np.ndarray
    explained: pd.DataFrame
    explained_by_population: pd.DataFrame
    outlying: pd.DataFrame
    coordinates: pd.DataFrame
    covariates: pd.DataFrame
    distance: str

    def groups(self, n: int) -> pd.Series:
        """Cut the tree into groups of donors.

        The groups come from the same cells that a test between them would look at, so that its p-value means
        nothing. Use them to ask which cells make them differ.

        Parameters
        ----------
        n
            Number of groups.

        Returns
        -------
        Name of the group of each donor, by donor. Groups are numbered as they stand in the tree.

        Examples
        --------
        >>> adata.obs["lane"] = [f"lane {i % 6}" for i in range(adata.n_obs)]
        >>> sa.compare.donors(model, donor_key="lane").groups(2).nunique()
        2
        """
        whole(n=n)
        names = self.distances.index
        if n > len(names):
            msg = f"`n={n}` is more than the {len(names)} donors of the tree. Pass at most so many."
            raise ValueError(msg)
        members = {i: [i] for i in range(len(names))}
        for i, (a, b) in enumerate(self.tree[: len(names) - n, :2].astype(int)):
            members[len(names) + i] = members.pop(a) + members.pop(b)
        place, code = np.argsort(leaves_list(self.tree)), np.empty(len(names), dtype=int)
        for k, some in enumerate(sorted(members.values(), key=lambda some: place[some].min())):
            code[some] = k
        return pd.Series([f"group {k + 1}" for k in code], index=names, name="group")


def donors(
    data: AnnData | ScalloyModel,
    use_rep: str | None = None,
    *,
    donor_key: str,
    by: str | None = None,
    covariates: str | Sequence[str] | None = None,
    distance: Literal["energy", "mmd"] = "energy",
    n_permutations: int = 1000,
    at_least: int = 10,
    rng: int | np.random.Generator = 0,
) -> DonorMap:
    """Measure how far donors are apart in a latent space, and which covariates explain it.

    All donors have the same weight, however many cells they have. With ``by``, cells are compared with cells
    of the same population, so that different shares of populations do not count. A population has the same
    weight for all donors: their mean share of cells in it.

    Parameters
    ----------
    data
        Cells, or a trained model, whose latent representation of its own cells is used.
    use_rep
        Key of ``.obsm`` with the latent space; required with cells.
    donor_key
        Column of ``.obs`` with donors. If a donor has several samples, pass the column of samples; the donor
        can then be one of the covariates.
    by
        Column of ``.obs``, such as cell types, within each value of which donors are compared.
    covariates
        Column of ``.obs``, or several, with one value for each donor. A column of numbers is a straight line,
        all else are categories. Convert codes of batches to text.
    distance
        ``"energy"`` (energy distance, in the units of the latent space) or ``"mmd"`` (maximum mean
        discrepancy, Gaussian kernels around the median distance of each population).
    n_permutations
        Maximum number of permutations of donors. If there are at most so many, all of them are used.
    at_least
        Minimum number of cells. Donors with fewer cells in a population are left out of it.
    rng
        Seed or generator of the permutations, and of the choice of cells where there are many.

    Returns
    -------
    The distances, their tree, and three tables.

    ``explained`` has, for each covariate, ``donors``; ``df`` (degrees of freedom); ``r2``, the share of the
    squared distances that it explains beyond the other covariates; ``r2_alone``, its share without them;
    ``r2_adjusted`` (zero on average for a covariate without meaning); ``f`` (pseudo-F); ``permuted`` (donors,
    or residuals if there are other covariates, see :mod:`scalloy.compare.explained`); ``pvalue``; ``padj``
    (Benjamini-Hochberg over all rows); ``smallest`` (the smallest possible p-value); and ``n_permutations``
    (without the real order).
    A ``note`` says why a covariate cannot be judged, or that its share is not known because sampling of cells
    makes up most of the distances.

    ``outlying`` has, for each donor, ``n_cells``; ``distance`` (root of the mean squared distance to the
    others); ``zscore`` (difference of its logarithm from the median of all donors, in robust standard
    deviations; above 3.5 is commonly called an outlier; it takes five donors); ``population``, in which this
    score is highest; and a ``note`` if the donor was left out.

    Examples
    --------
    >>> adata.obs["lane"] = [f"lane {i % 6}" for i in range(adata.n_obs)]
    >>> adata.obs["run"] = [f"run {i % 2}" for i in range(adata.n_obs)]
    >>> found = sa.compare.donors(model, donor_key="lane", by="cluster", covariates="run", at_least=5)
    >>> found.explained["n_permutations"].tolist()
    [19]
    """
    one_of("distance", distance, DISTANCES)
    whole(n_permutations=n_permutations, at_least=at_least)
    rng = np.random.default_rng(rng)
    x, obs = representation(data, use_rep)
    names, code = np.unique(column(obs, "donor_key", donor_key), return_inverse=True)
    population = np.full(len(x), ALL, dtype=object) if by is None else column(obs, "by", by)
    values = covariates_of(obs, names_of(covariates), code, names, f"donor ({donor_key!r})").set_axis(names)
    parts, share = {}, np.zeros((len(set(population)), len(names)))
    for i, level in enumerate(sorted(set(population))):
        cells, counts = np.flatnonzero(population == level), np.bincount(code, minlength=len(names))
        share[i] = np.bincount(code[cells], minlength=len(names)) / counts
        parts[level] = squared_distances(
            x[cells], code[cells], len(names), distance=distance, at_least=at_least, rng=rng
        )
    kept = np.any([p.known for p in parts.values()], axis=0)
    _check(names[kept], donor_key, at_least)
    weights = share[:, kept].mean(1)
    squared = average([p.of(kept) for p in parts.values()], weights)
    _check_common(squared, names[kept], at_least)
    values, rows, frames = values.loc[names[kept]], [], {}
    for level, part in parts.items():
        frames[level] = pd.DataFrame(part.of(kept).between, names[kept], names[kept])
        there = part.known[kept]
        if there.any():
            some = explained(part.of(kept).of(there), values[there], n_permutations, rng)
            rows += [{"population": level} | row for row in some]
    return DonorMap(
        distances=pd.DataFrame(squared.between, names[kept], names[kept]),
        by_population=frames,
        weights=pd.Series(weights, list(parts), name="weight"),
        tree=_tree(squared.between),
        explained=table(explained(squared, values, n_permutations, rng)),
        explained_by_population=table(rows, "population"),
        outlying=_outlying(squared.between, frames, np.bincount(code), kept, names, at_least),
        coordinates=_coordinates(squared.between, names[kept]),
        covariates=values,
        distance=distance,
    )


def _check(names: np.ndarray, donor_key: str, at_least: int) -> None:
    """Check that there are donors to compare."""
    if len(names) < 3:
        msg = (
            f"At least three donors (`donor_key={donor_key!r}`) with {at_least} cells or more of a "
            f"population are needed; here are {len(names)}. Pass a smaller `at_least`, or no `by`."
        )
        raise ValueError(msg)


def _check_common(squared: Squared, names: np.ndarray, at_least: int) -> None:
    """Check that any two donors have a population in common."""
    missing = np.argwhere(np.isnan(squared.between))
    if len(missing):
        a, b = names[missing[0]]
        msg = (
            f"Donors {a!r} and {b!r} have no population in common with {at_least} cells or more of each. "
            "Pass a smaller `at_least`, coarser populations (`by`), or leave one of the donors out."
        )
        raise ValueError(msg)


def _tree(squared: np.ndarray) -> np.ndarray:
    """Return the average linkage of donors, with similar donors next to each other."""
    root = np.sqrt(np.maximum(squared, 0.0))
    return linkage(squareform(root, checks=False), "average", optimal_ordering=True)


def _outlying(
    squared: np.ndarray,
    frames: dict[str, pd.DataFrame],
    n_cells: np.ndarray,
    kept: np.ndarray,
    names: np.ndarray,
    at_least: int,
) -> pd.DataFrame:
    """Return how far each donor is from the others, in all and in the population where it is most unusual."""
    far, score = _far(squared)
    frame = pd.DataFrame({"n_cells": n_cells}, index=pd.Index(names, name="donor"))
    frame.loc[kept, "distance"], frame.loc[kept, "zscore"] = far, score
    left_out = f"fewer than {at_least} cells in each population"
    frame["population"], frame["note"] = "", np.where(kept, "", left_out)
    scores = pd.DataFrame({level: _far(part.to_numpy())[1] for level, part in frames.items()}, names[kept])
    judged = scores.notna().any(axis=1)
    frame.loc[scores.index[judged], "population"] = scores[judged].idxmax(axis=1)
    return frame.sort_values("distance", ascending=False, kind="stable")


def _far(squared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each donor from the others and its robust z-score."""
    others = ~np.eye(len(squared), dtype=bool) & np.isfinite(squared)
    n = others.sum(1)
    mean = np.where(others, squared, 0.0).sum(1) / np.maximum(n, 1)
    far, score = np.where(n > 0, np.sqrt(np.maximum(mean, 0.0)), np.nan), np.full(len(n), np.nan)
    known = np.flatnonzero(n > 0)
    if len(known) >= JUDGED:
        with np.errstate(divide="ignore", invalid="ignore"):
            log = np.log(far[known])
            off = log - np.median(log)
            score[known] = off / (np.median(np.abs(off)) * 1.4826 * _correction(len(known)))
    return far, np.where(np.isfinite(score), score, np.nan)


def _correction(n: int) -> float:
    """Return the factor by which the median absolute deviation of ``n`` normal values is too small."""
    return FEW.get(n, n / (n - 0.8))


def _coordinates(squared: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """Return donors in two dimensions by classical scaling."""
    values, vectors = np.linalg.eigh(gower(squared))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    axes = vectors[:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    frame = pd.DataFrame(axes * np.sqrt(values[:2]), names, ["MDS1", "MDS2"])
    frame.attrs["share"] = (values[:2] / max(values.sum(), 1e-300)).tolist()
    return frame
