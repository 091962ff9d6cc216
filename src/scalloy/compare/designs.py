"""Designs of the permutation tests between two groups: permuting donors, samples of a donor, or cells.

Cells of a donor resemble each other for reasons that have nothing to do with the groups. The group labels are
therefore permuted over the units that were assigned to a group independently:

===========================  ==============================  =============================================
design                       used if                         permuted
===========================  ==============================  =============================================
``"across donors"``          each donor is in one group      the groups of whole donors
``"within donors"``          donors are in both groups       the groups of the two samples of a donor
``"cells within donors"``    as above, with ``unit="cell"``  cells of a donor, as if each were independent
``"cells"``                  no donors are given             all cells, as if each were independent
===========================  ==============================  =============================================
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import comb, inf, prod

import numpy as np

UNITS = ("auto", "donor", "cell")
COUNTED = 10**12  # number of labelings from which on they count as infinitely many
MANY = 100  # units per group above which labelings are not counted
AT_LEAST = 100  # cells of a group that thinning keeps if there are so many
AT_ONCE = 64  # permutations drawn at a time


@dataclass(frozen=True)
class Design:
    """Units whose group labels are permuted.

    Parameters
    ----------
    kind
        Name of the design in the table of :mod:`scalloy.compare.designs`.
    unit
        Code of the unit of each cell; -1 for a cell that is left out.
    group
        Group of each unit, 0 or 1.
    block
        Code of the block of each unit; labels are permuted among the units of a block.
    apart
        Code of each unit; units with the same code are not compared with each other.
    """

    kind: str
    unit: np.ndarray
    group: np.ndarray
    block: np.ndarray
    apart: np.ndarray

    @property
    def blocks(self) -> list[np.ndarray]:
        """Units of each block."""
        return [np.flatnonzero(self.block == b) for b in np.unique(self.block)]

    @property
    def n_labelings(self) -> float:
        """Number of ways to label the units; infinite if there are a great many."""
        sizes = [(len(b), int(self.group[b].sum())) for b in self.blocks]
        many = any(min(k, n - k) > MANY for n, k in sizes)
        total = COUNTED if many else prod(comb(n, k) for n, k in sizes)
        return inf if total >= COUNTED else float(total)

    @property
    def smallest(self) -> float:
        """Smallest p-value that is possible; with few donors it is not small."""
        # where both groups are equally large, exchanging them gives another labeling with the same statistic
        swapped = all(2 * self.group[b].sum() == len(b) for b in self.blocks)
        return (2 if swapped else 1) / self.n_labelings

    def thinned(self, n: int, rng: np.random.Generator) -> Design:
        """Return a design with about ``n`` of the cells.

        Each unit keeps the same number of cells. If each cell is a unit, each group of a block is reduced in
        proportion to its size.
        """
        cells = np.flatnonzero(self.unit >= 0)
        if len(cells) <= n:
            return self
        each, of = len(cells) == len(self.group), self.unit[cells]
        part = 2 * self.block[of] + self.group[of] if each else of
        sizes = np.bincount(part)
        parts = int((sizes > 0).sum())
        share = np.maximum(sizes * n // len(cells), AT_LEAST) if each else np.full_like(sizes, n // parts)
        order = rng.permutation(len(cells))
        order = order[np.argsort(part[order], kind="stable")]
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # position within its part
        kept = np.sort(cells[order[place < np.maximum(share, 2)[part[order]]]])
        unit = np.full_like(self.unit, -1)
        if not each:
            unit[kept] = self.unit[kept]
            return replace(self, unit=unit)
        unit[kept], of = np.arange(len(kept)), self.unit[kept]
        return Design(self.kind, unit, self.group[of], self.block[of], self.apart[of])

    def labelings(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """Return the real labeling and others, ``(units, 1 + permutations)``, and whether these are all.

        If there are at most ``n`` others, all are returned, otherwise ``n`` random ones.
        """
        if self.n_labelings <= n + 1:
            ways = [itertools.combinations(b, int(self.group[b].sum())) for b in self.blocks]
            chosen = [
                np.concatenate([np.asarray(w, dtype=int) for w in way]) for way in itertools.product(*ways)
            ]
            out = np.zeros((len(self.group), len(chosen)), dtype=np.int8)
            for i, ones in enumerate(chosen):
                out[ones, i] = 1
            others = (out != self.group[:, None]).any(0)
            return out[:, np.argsort(others, kind="stable")], True
        rows = np.empty((1 + n, len(self.group)), dtype=np.int8)
        rows[0] = self.group
        for first in range(1, 1 + n, AT_ONCE):
            some = rows[first : first + AT_ONCE]
            for b in self.blocks:
                some[:, b] = rng.permuted(np.tile(self.group[b].astype(np.int8), (len(some), 1)), axis=1)
        return rows.T, False


def design(group: np.ndarray, donor: np.ndarray | None, unit: str, *, at_least: int) -> Design:
    """Choose the design for two groups of cells.

    If some donors are in both groups and others in one only, the kind of donors that allows more labelings is
    used, and the others are left out.

    Parameters
    ----------
    group
        Group of each cell, 0 or 1.
    donor
        Donor of each cell; ``None`` permutes all cells.
    unit
        ``"cell"`` permutes the cells within each donor, ``"auto"`` and ``"donor"`` permute donors.
    at_least
        Minimum number of cells of a donor in a group; smaller samples are left out.
    """
    if donor is None:
        each = np.arange(len(group))
        return Design("cells", each, group, 0 * each, each)
    codes = np.unique(donor, return_inverse=True)[1]
    samples = 2 * codes + group
    sizes = np.bincount(samples, minlength=2 * codes.max() + 2).reshape(-1, 2)
    enough = sizes >= at_least
    both, one = enough.all(1), enough.sum(1) == 1
    if unit == "cell":
        return _cells_within(group, codes, both)
    in_each = [int((one & enough[:, k]).sum()) for k in (0, 1)]
    more = 2.0 ** int(both.sum()) >= comb(sum(in_each), in_each[0]) or min(in_each) < 2
    paired = both.sum() >= 2 and more
    if not paired and min(in_each) < 2:
        found = f"{both.sum()} in both groups, {in_each[0]} and {in_each[1]} in one only"
        msg = (
            f"At least two donors in both groups, or two in each, with {at_least} cells or more are needed; "
            f"here are {found}. Without replicates a difference between groups cannot be told from one "
            "between donors: pass more donors, a smaller `at_least`, or `donor_key=None` for a test that "
            "treats every cell as independent."
        )
        raise ValueError(msg)
    kept = both[codes] if paired else one[codes] & enough[codes, group]
    names, unit_of = np.unique(samples[kept], return_inverse=True)
    units = np.full(len(group), -1)
    units[kept] = unit_of
    of_donor, each = names // 2, np.arange(len(names))
    if paired:
        return Design("within donors", units, names % 2, of_donor, of_donor)
    return Design("across donors", units, names % 2, 0 * each, each)


def _cells_within(group: np.ndarray, codes: np.ndarray, both: np.ndarray) -> Design:
    """Make the design that permutes the cells of each donor with enough cells in both groups."""
    kept = np.flatnonzero(both[codes])
    if min(np.bincount(group[kept], minlength=2)) < 2:
        msg = "`unit='cell'` permutes the cells of a donor, but no donor has enough cells in both groups."
        raise ValueError(msg)
    units = np.full(len(group), -1)
    units[kept] = each = np.arange(len(kept))
    return Design("cells within donors", units, group[kept], codes[kept], each)
