r"""Distances between the cells of donors, which are zero on average between random halves of one donor.

    D^2(i, j) = K(i, i) + K(j, j) - 2 K(i, j)        K(i, j) = mean k(cell of i, cell of j)

With minus the Euclidean distance as ``k`` this is the energy distance, with a Gaussian kernel the squared
maximum mean discrepancy. ``K(i, i)`` leaves out the pairs of a cell with itself. Otherwise a donor with few
cells would be far from everybody, by

    s(i) = (k(x, x) - K(i, i)) / n(i)

which is what the sampling of ``n(i)`` cells adds to the squared distances of donor ``i``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scalloy.blocks.divergences import median_scales
from scalloy.compare.statistics import centred, mean_kernels

ALL_PAIRS = 10_000  # cells of a population of which all pairs are compared


@dataclass(frozen=True)
class Squared:
    """Squared distances between donors.

    Parameters
    ----------
    between
        Unbiased estimates, donors x donors; they may be negative. NaN where a donor has too few cells.
    noise
        What the sampling of cells adds to the squared distances of each donor if it is not left out.
    """

    between: np.ndarray
    noise: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Whether each donor has distances."""
        return np.isfinite(self.noise)

    def of(self, rows: np.ndarray) -> Squared:
        """Return the distances among some donors."""
        return Squared(self.between[np.ix_(rows, rows)], self.noise[rows])

    def raw(self) -> np.ndarray:
        """Return the distances with what the sampling of cells adds; none is negative."""
        out = self.between + self.noise[:, None] + self.noise
        np.fill_diagonal(out, 0.0)
        return out


def squared_distances(
    x: np.ndarray,
    donor: np.ndarray,
    n_donors: int,
    *,
    distance: str,
    at_least: int,
    rng: np.random.Generator,
) -> Squared:
    """Return the squared distances between donors in one population.

    The energy distance looks at up to 10,000 cells, as equally many of each donor as possible. Above 5,000
    cells, the Gaussian kernel is approximated by random features of all cells.

    Parameters
    ----------
    x
        Cells x dimensions.
    donor, n_donors
        Code of the donor of each cell, and the number of donors.
    distance
        ``"energy"`` or ``"mmd"``.
    at_least
        Number of cells that a donor needs, at least two.
    rng
        Generator of the random features and of the cells that are looked at.
    """
    sizes = np.bincount(donor, minlength=n_donors)
    known = np.flatnonzero(sizes >= max(2, at_least))
    between, noise = np.full((n_donors, n_donors), np.nan), np.full(n_donors, np.nan)
    if len(known) == 0:
        return Squared(between, noise)
    cells = np.flatnonzero(np.isin(donor, known))
    if distance == "energy":
        cells = cells[_evenly(donor[cells], ALL_PAIRS, rng)]
    unit = np.searchsorted(known, donor[cells])
    z, sizes = centred(x[cells]), np.bincount(unit)
    scales, itself = (None, 0.0) if distance == "energy" else (median_scales(z), 1.0)
    k = mean_kernels(z, torch.as_tensor(unit), len(known), scales, rng).double().numpy()
    own = (sizes * np.diagonal(k) - itself) / (sizes - 1)
    found = own[:, None] + own - 2 * k
    np.fill_diagonal(found, 0.0)
    between[np.ix_(known, known)], noise[known] = found, (itself - own) / sizes
    return Squared(between, noise)


def _evenly(donor: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose at most ``n`` cells so that donors have equally many, or all that they have."""
    if len(donor) <= n:
        return np.arange(len(donor))
    sizes = np.sort(np.bincount(donor)[np.unique(donor)])
    left = n - np.concatenate([[0], np.cumsum(sizes)[:-1]])  # for donors from each one on
    most = left // np.arange(len(sizes), 0, -1)
    most = max(2, int(most[np.argmax(most < sizes)]))
    order = rng.permutation(len(donor))
    order = order[np.argsort(donor[order], kind="stable")]
    first = np.searchsorted(donor[order], donor[order])
    return np.sort(order[np.arange(len(order)) - first < most])


def average(parts: list[Squared], weights: np.ndarray) -> Squared:
    """Return the mean over populations; each pair of donors uses those populations that both have.

    Parameters
    ----------
    parts
        Distances in each population.
    weights
        Weight of each population.
    """
    w = weights[:, None, None] * np.array([np.isfinite(p.between) for p in parts])
    between = np.array([np.nan_to_num(p.between) for p in parts])
    own = weights[:, None] * np.array([p.known for p in parts])
    noise = np.array([np.nan_to_num(p.noise) for p in parts])
    with np.errstate(invalid="ignore"):
        return Squared((w * between).sum(0) / w.sum(0), (own * noise).sum(0) / own.sum(0))
