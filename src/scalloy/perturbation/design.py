r"""Conditions with structure: amounts of parts, and a time.

    condition     parts and amounts              strength of a part        time
    control       none                           0                         t
    A, dose 0.5   {A: 0.5}                       u_A = s(0.5)              t
    A+B           {A: 1, B: 1}                   u_A = u_B = 1             t

    s(a) = log(1 + a / low) / log(1 + high / low)       low, high: the smallest and largest dose of the part

A part is a drug, a gene that is perturbed, or the level of a factor. Strengths are 0 without the part, and 1
at its largest dose. The same function brings times to a scale on which the latest is 1.

The decoder of a model reads a condition as a row of numbers (:meth:`Design.rows`), from which weights that
belong to parts make its effect: a part has one column for its strength, one for the bend of its dose curve,
``u (1 - u)``, and one for its strength times the time. Described parts share columns with the numbers that
describe them. So a condition that was never seen has a row, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

MOST_COLUMNS = 10  # largest number of columns for what describes a part
SAME = 1e-9


class Content(NamedTuple):
    """Amount of each part, by its name, and the time (0 if there are no times)."""

    parts: tuple[tuple[str, float], ...] = ()
    time: float = 0.0

    @classmethod
    def of(cls, parts: Mapping[str, float], time: float = 0.0) -> Content:
        """Make the content of a condition, leaving out parts without an amount.

        Numbers are rounded to six digits, as in names: 0.1 + 0.2 is the dose 0.3, in single precision, too.
        """
        amounts = sorted((k, _rounded(v)) for k, v in parts.items() if v)
        return cls(tuple(amounts), _rounded(time) if time else 0.0)


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


@dataclass(frozen=True)
class Design:
    """Conditions as amounts of parts.

    Parameters
    ----------
    parts
        Names of the parts: those that were seen, and further ones that are described.
    contents
        Content of each condition.
    lowest, highest
        Smallest and largest amount in which each part was seen; those of a typical part if it was not.
    control
        Name of the condition without parts.
    separator
        Text between the parts in the name of a combination.
    dosed, timed
        Whether amounts are doses, and whether times differ.
    log_dose
        Whether strengths are logarithmic in the dose.
    clock
        Smallest time above zero, largest time, and time of the control that others are compared with.
    descriptors
        Numbers that describe each part, parts x numbers, scaled so that their squares add up to about 1.
    """

    parts: tuple[str, ...]
    contents: tuple[Content, ...]
    lowest: np.ndarray
    highest: np.ndarray
    control: str = "control"
    separator: str = "+"
    dosed: bool = False
    timed: bool = False
    log_dose: bool = True
    clock: tuple[float, float, float] = (1.0, 1.0, 0.0)
    descriptors: np.ndarray | None = None
    _position: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._position.update({name: i for i, name in enumerate(self.parts)})

    # names --------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Name of each condition."""
        return [self.name_of(content) for content in self.contents]

    @property
    def by_name(self) -> dict[str, Content]:
        """Content of each condition, by its name."""
        return dict(zip(self.names, self.contents, strict=True))

    def name_of(self, content: Content) -> str:
        """Return the name of a condition, the same however it was written."""
        each = [f"{part} {amount:.6g}" if self.dosed else part for part, amount in content.parts]
        name = self.separator.join(each) or self.control
        return f"{name} at {content.time:.6g}" if self.timed else name

    @property
    def reference(self) -> Content:
        """Content of the control with which other conditions are compared."""
        return Content((), self.clock[2] if self.timed else 0.0)

    def with_condition(self, content: Content) -> Design:
        """Return the same design with one more condition."""
        return replace(self, contents=(*self.contents, content), _position={})

    # numbers ------------------------------------------------------------------------------------

    def amounts(self, contents: Sequence[Content]) -> np.ndarray:
        """Return the amounts of all parts, conditions x parts."""
        out = np.zeros((len(contents), len(self.parts)))
        for i, content in enumerate(contents):
            for part, amount in content.parts:
                out[i, self._position[part]] = amount
        return out

    def strengths(self, contents: Sequence[Content]) -> np.ndarray:
        """Return the strengths of all parts, conditions x parts."""
        return strength(self.amounts(contents), self.lowest, self.highest, log=self.log_dose)

    def times(self, contents: Sequence[Content]) -> np.ndarray:
        """Return the time of each condition on a scale on which the latest is 1."""
        low, high, _ = self.clock
        return strength(np.array([content.time for content in contents]), low, high)

    def beyond(self, content: Content) -> list[str]:
        """List what lies outside of what was seen: doses, times, and parts that are known by description."""
        seen = self.amounts(self.contents)
        out = []
        for part, amount in content.parts:
            of_part = seen[:, self._position[part]]
            if not of_part.any():
                out.append(f"{part!r} was never seen")
            elif not of_part[of_part > 0].min() - SAME <= amount <= of_part.max() + SAME:
                low, high = of_part[of_part > 0].min(), of_part.max()
                out.append(f"{part!r} was seen from {low:.6g} to {high:.6g}, not at {amount:.6g}")
        if self.timed:
            low, high = (f(c.time for c in self.contents) for f in (min, max))
            if not low - SAME <= content.time <= high + SAME:
                out.append(f"times were seen from {low:.6g} to {high:.6g}, not at {content.time:.6g}")
        return out

    # rows ---------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Number of columns of a part in :meth:`rows`."""
        return 1 + self.dosed + self.timed

    @property
    def n_shared(self) -> int:
        """Number of columns that no single part has."""
        return int(self.timed) + (0 if self.descriptors is None else self._few_descriptors.shape[1])

    @property
    def n_columns(self) -> int:
        """Number of columns of :meth:`rows`."""
        return self.n_shared + self.width * len(self.parts)

    @property
    def _few_descriptors(self) -> np.ndarray:
        assert self.descriptors is not None
        return self.descriptors[:, :MOST_COLUMNS]

    def rows(self, contents: Sequence[Content]) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns of each condition that are not zero, and the numbers there, both padded.

        Times and doses beyond those that were seen count as the farthest that were.
        """
        u, t = self.strengths(contents).clip(0, 1), self.times(contents).clip(0, 1)
        found: list[tuple[list[int], list[float]]] = []
        for strengths, time in zip(u, t, strict=True):
            shared = [float(time)] if self.timed else []
            if self.descriptors is not None:
                shared += (strengths @ self._few_descriptors).tolist()
            at, values = list(range(len(shared))), shared
            for p in np.flatnonzero(strengths):
                s = float(strengths[p])
                own = [s, *([4 * s * (1 - s)] if self.dosed else []), *([s * time] if self.timed else [])]
                at += [self.n_shared + self.width * int(p) + i for i in range(len(own))]
                values = values + own
            found.append((at, values))
        most = max(1, *(len(at) for at, _ in found))
        index, value = np.zeros((len(found), most), dtype=np.int64), np.zeros((len(found), most), np.float32)
        for i, (at, values) in enumerate(found):
            index[i, : len(at)], value[i, : len(at)] = at, values
        return index, value

    # plain --------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """Return the design as numbers, text and arrays, from which :meth:`from_plain` makes it again."""
        return {
            "parts": list(self.parts),
            "amounts": [{"parts": [list(part) for part in c.parts], "time": c.time} for c in self.contents],
            "lowest": self.lowest,
            "highest": self.highest,
            "control": self.control,
            "separator": self.separator,
            "dosed": self.dosed,
            "timed": self.timed,
            "log_dose": self.log_dose,
            "clock": list(self.clock),
            "descriptors": self.descriptors,
        }

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Design:
        """Make a design from what :meth:`plain` has returned."""
        known = dict(given)
        contents = tuple(Content.of(dict(c["parts"]), c["time"]) for c in known.pop("amounts"))
        low, high, start = known.pop("clock")
        return cls(
            parts=tuple(known.pop("parts")),
            contents=contents,
            clock=(low, high, start),
            **known,
        )


def strength(amounts: np.ndarray, low: Any, high: Any, *, log: bool = True) -> np.ndarray:
    """Return amounts on a scale on which none is 0 and the largest that was seen is 1.

    Parameters
    ----------
    amounts
        Amounts of parts, conditions x parts, or times.
    low, high
        Smallest amount above zero and largest amount that were seen.
    log
        Whether the scale is logarithmic above ``low``.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    return np.log1p(amounts / low) / np.log1p(high / low) if log else amounts / high


def design_of(
    contents: Sequence[Content],
    *,
    described: Mapping[str, Sequence[float]] | None = None,
    known: Design | None = None,
    **settings: Any,
) -> Design:
    """Return the design of the conditions that were seen.

    Parameters
    ----------
    contents
        Content of each condition.
    described
        Numbers that describe each part, scaled; they may describe further parts.
    known
        An earlier design, whose parts come first and keep their scales.
    **settings
        Further parameters of :class:`Design`.
    """
    seen: dict[str, list[float]] = {}
    for content in contents:
        for part, amount in content.parts:
            seen.setdefault(part, []).append(amount)
    parts = list(known.parts) if known is not None else []
    parts += sorted(set(seen).difference(parts))
    parts += sorted(set(described or ()).difference(parts))
    typical = [np.median([f(v) for v in seen.values()]) if seen else 1.0 for f in (min, max)]
    lowest, highest = (
        np.array([f(seen[p]) if p in seen else of_most for p in parts])
        for f, of_most in zip((min, max), typical, strict=True)
    )
    times = sorted({c.time for c in contents if c.time > 0}) or [1.0]
    clock = (times[0], times[-1], min((c.time for c in contents if not c.parts), default=0.0))
    if known is not None:
        lowest[: len(known.parts)], highest[: len(known.parts)] = known.lowest, known.highest
        clock = known.clock
    descriptors = None if described is None else np.array([described[p] for p in parts], dtype=np.float64)
    return Design(
        tuple(parts), tuple(contents), lowest, highest, clock=clock, descriptors=descriptors, **settings
    )
