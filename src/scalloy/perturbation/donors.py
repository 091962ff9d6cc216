"""Cells from which the change of a group is learned, compared within donors.

The cells of a group before and after a change may be those of different donors. The difference of their means
is then one of donors as well: in a cluster of a single patient whose treated cells were never seen, the few
treated cells are strays of other patients. So where donors are known, cells are compared with cells of the
same donor:

    paired donor     has cells of the group under both conditions
    unit             a group in a paired donor; its change is seen, with the noise of its own cells
    group            over its paired donors, all with the same weight before and after,
                     h_d = n_d n'_d / (n_d + n'_d) for n_d cells before and n'_d after

The change of a group in a donor is predicted from units, if some donor has shown the group. Otherwise that of
the group in all donors is predicted from groups. If no donor has cells under both conditions, groups are
compared over all donors, and nothing can tell donors from conditions.

If nothing is known of donors, and groups are clusters, the numbers of cells tell strays: a cluster with ten
times fewer cells under one of the conditions than the shares of all cells let expect is not taken as seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from scalloy.perturbation.group_effects import Shown
from scalloy.perturbation.group_moments import Moments, Piece, averaged, moments_of, pooled

AT_LEAST = 10  # minimum number of cells of a group under a condition
PAIRED = 3  # minimum number of cells of a donor on either side, to be compared
WELL_SEEN = 50  # minimum number of cells on either side from which the change of a unit is taken as it is
MOST_UNITS = 48  # largest number of units that a change is learned from; beyond, only those of the same group
MOST_APART = 256  # largest number of units whose changes are predicted; beyond, donors of a group are alike
STRAYS = 10.0  # a cluster is not seen if its cells are so many times fewer than expected
Names = Sequence[str] | np.ndarray
Pair = tuple[Moments, Moments]


@dataclass
class Seen:
    """Moments of the cells of each group, donor and condition, and what changes are learned from.

    Parameters
    ----------
    moments
        Moments by group, donor and condition; the donor is ``""`` for all cells if donors are not known.
    dispersion
        Negative binomial dispersion of each gene, or ``None`` if the data are not counts.
    scale
        Total count to which cells were scaled before the logarithm.
    clusters
        Whether the groups are clusters that a model has found, in which cells may be strays.
    """

    moments: dict[tuple[str, str, str], Moments]
    dispersion: np.ndarray | None = None
    scale: float = 1e4
    clusters: bool = False
    _shown: dict[tuple[str, ...], Shown] = field(default_factory=dict)
    _names: dict[tuple[str, str], str] = field(default_factory=dict)
    _under: dict[str, dict[tuple[str, str], Moments]] = field(init=False)

    def __post_init__(self) -> None:
        self._under = {}
        for (group, donor, condition), found in self.moments.items():
            self._under.setdefault(condition, {})[group, donor] = found

    @classmethod
    def of(
        cls,
        groups: Names,
        donors: Names | None,
        conditions: Names,
        pieces: Iterable[Piece],
        scale: float = 1e4,
        *,
        clusters: bool = False,
    ) -> Seen:
        """Compute the moments of each group, donor and condition, piece by piece.

        Parameters
        ----------
        groups, donors, conditions
            Group, donor and condition of each cell; donors are ``None`` if they are not known.
        pieces
            Expression and raw counts of successive cells; counts are ``None`` if the data are not counts.
        scale
            Total count to which cells were scaled before the logarithm.
        clusters
            Whether the groups are clusters that a model has found.
        """
        donors = np.full(len(groups), "") if donors is None else donors
        moments, dispersion = moments_of([groups, donors, conditions], pieces)
        return cls(moments, dispersion, scale, clusters)  # type: ignore[arg-type]  # keys of three

    @property
    def donors(self) -> list[str]:
        """Donors, in order; one without a name if they are not known."""
        return sorted({donor for _, donor, _ in self.moments})

    def of_groups(self) -> dict[tuple[str, str], Moments]:
        """Return the moments of each group under each condition, with the cells of all donors together."""
        parts: dict[tuple[str, str], list[Moments]] = {}
        for (group, _, condition), found in self.moments.items():
            parts.setdefault((group, condition), []).append(found)
        return {k: pooled(v) for k, v in parts.items() if sum(m.n for m in v) >= AT_LEAST}

    def chosen(self, group: str, donor: str, source: str, to: str) -> tuple[Shown, str]:
        """Return what the change of a group in a donor is learned from, and the name that it has there.

        If ``donor`` is empty, the change is that of the group in all donors.
        """
        if not donor:
            return self.by_group(source, to), group
        units = self.by_donor(source, to)
        if len(units.others(source, to)) > MOST_UNITS:
            units = self.by_donor(source, to, group)
        return units, self.unit(group, donor)

    def per_donor(self, group: str, source: str, to: str) -> bool:
        """Return whether the change of a group is predicted for each donor by itself.

        It is if some donor has shown it, and if there are not too many groups and donors.
        """
        if len(self.donors) == 1 or source == to:
            return False
        own = len(self.by_donor(source, to, group).others(source, to))
        return own > 0 and len(self.by_donor(source, to).others(source, to)) <= MOST_APART

    def by_donor(self, source: str, to: str, group: str | None = None) -> Shown:
        """Return the changes of units: of each group, or one, in each of its paired donors."""
        key = ("donor", source, to, *([] if group is None else [group]))
        if key not in self._shown:
            pairs = {
                self.unit(g, d): pair
                for g, each in self._pairs(source, to).items()
                for d, pair in each.items()
                if group in (None, g) and min(m.n for m in pair) >= AT_LEAST
            }
            self._shown[key] = self._as_shown(pairs, source, to, WELL_SEEN)
        return self._shown[key]

    def by_group(self, source: str, to: str) -> Shown:
        """Return the changes of groups, each over its paired donors."""
        key = ("group", source, to)
        if key not in self._shown:
            self._shown[key] = self._as_shown(self._group_pairs(source, to), source, to)
        return self._shown[key]

    def strays(self, source: str, to: str) -> dict[str, tuple[int, int]]:
        """Return the numbers of cells of the clusters of which one is too small to be believed."""
        if not self.clusters or len(self.donors) > 1:
            return {}
        n = {g: [self._number(g, c) for c in (source, to)] for g in {g for g, _, _ in self.moments}}
        total = np.sum(list(n.values()), axis=0)
        odd = {}
        for group, (before, after) in n.items():
            if min(before, after) >= AT_LEAST:
                ratio = (after / before) / (total[1] / total[0])
                if not 1 / STRAYS <= ratio <= STRAYS:
                    odd[group] = (before, after)
        return odd

    def _number(self, group: str, condition: str) -> int:
        return int(sum(m.n for (g, _), m in self._under.get(condition, {}).items() if g == group))

    def _pairs(self, source: str, to: str) -> dict[str, dict[str, Pair]]:
        """Return the moments before and after a change, by group and paired donor."""
        out: dict[str, dict[str, Pair]] = {}
        for (group, donor), before in self._under.get(source, {}).items():
            after = self.moments.get((group, donor, to))
            if after is not None and min(before.n, after.n) >= PAIRED:
                out.setdefault(group, {})[donor] = (before, after)
        return out

    def _group_pairs(self, source: str, to: str) -> dict[str, Pair]:
        """Return the moments of groups before and after a change, compared within donors if possible."""
        pairs = {}
        for group, each in self._pairs(source, to).items():
            weight = np.array([1 / (1 / before.n + 1 / after.n) for before, after in each.values()])
            before, after = zip(*each.values(), strict=True)
            pairs[group] = averaged(before, weight), averaged(after, weight)
        pairs = {g: pair for g, pair in pairs.items() if min(m.n for m in pair) >= AT_LEAST}
        if not pairs and len(self.donors) > 1:  # no donor was seen under both conditions
            every = self.of_groups()
            pairs = {g: (m, every[g, to]) for (g, c), m in every.items() if c == source and (g, to) in every}
        odd = self.strays(source, to)
        return {g: pair for g, pair in pairs.items() if g not in odd}

    def _as_shown(self, pairs: dict[str, Pair], source: str, to: str, well_seen: int = 0) -> Shown:
        """Return the changes of these groups or units."""
        moments = {(name, c): m for name, pair in pairs.items() for c, m in zip((source, to), pair)}
        return Shown(moments, self.dispersion, self.scale, well_seen)

    def unit(self, group: str, donor: str) -> str:
        """Return the name of a group in a donor, which no other group has in another donor."""
        if (group, donor) not in self._names:
            name, taken = f"{group} of {donor}", set(self._names.values())
            while name in taken:
                name += "'"
            self._names[group, donor] = name
        return self._names[group, donor]
