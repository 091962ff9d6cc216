"""Hold-outs of data with structured conditions: combinations, doses, times, types and perturbations.

    kind                          held out                                          scored
    combination                   all cells with just these parts                   the same
    combination, one part seen    the same, and all cells with one of the parts     the combination
    inner dose                    all cells with a part at its middle dose          the part alone
    largest dose                  all cells with a part at its largest dose         the part alone
    inner time                    all cells with a part at its middle time          the part alone
    latest time                   all cells with a part at its latest time          the part alone
    type                          all cells of a type with a part                   the part alone
    perturbation                  all cells with a part, which has descriptors      the part alone

Each combination and each part is held out in turn, of all types together but for ``type``, where the types
take turns. A combination of which only one part was seen alone counts as the second kind as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq, ge

from scalloy.perturbation.design import Content

Context = tuple[str, Content]  # type and condition


@dataclass(frozen=True)
class HoldOut:
    """Contexts that no model is given, and those of them that are scored.

    Parameters
    ----------
    kind, name
        Kind of hold-out, see :mod:`scalloy.benchmark.hold_outs`, and what is held out.
    held, scored
        Contexts without which models are trained, and contexts that they predict.
    """

    kind: str
    name: str
    held: frozenset[Context]
    scored: tuple[Context, ...]


def hold_outs(
    sizes: Mapping[Context, int],
    kind: str,
    *,
    described: frozenset[str] = frozenset(),
    most: int | None = None,
    min_cells: int = 1,
) -> list[HoldOut]:
    """List what is held out.

    Parameters
    ----------
    sizes
        Number of cells in each context.
    kind
        One of :data:`KINDS`.
    described
        Parts that have descriptors.
    most
        Largest number of hold-outs; ``None`` is all.
    min_cells
        Minimum number of cells of a context that is scored.
    """
    found = []
    for name, held, scored in KINDS[kind](_Seen(sizes, described)):
        kept = tuple(c for c in scored if sizes[c] >= min_cells)
        if kept:
            found.append(HoldOut(kind, name, frozenset(held), kept))
    return found if most is None else found[:most]


class _Seen:
    """Contexts that there are, and what they have in common."""

    def __init__(self, sizes: Mapping[Context, int], described: frozenset[str]) -> None:
        self.contexts = sorted(sizes)
        self.types = sorted({t for t, _ in sizes})
        self.parts = sorted({part for _, c in sizes for part, _ in c.parts})
        self.described = described
        self.alone = {p: [c for c in self.contexts if _names(c) == (p,)] for p in self.parts}

    def combinations(self) -> list[tuple[str, ...]]:
        """List the parts of each combination."""
        return sorted({_names(c) for c in self.contexts if len(_names(c)) > 1})

    def of(self, parts: tuple[str, ...]) -> list[Context]:
        """List the contexts that have just these parts."""
        return [c for c in self.contexts if _names(c) == parts]

    def where(self, part: str, true: Callable[[float, float], bool]) -> tuple[list[Context], list[Context]]:
        """List the contexts with a part at some amounts and times, and those of it alone."""
        held = [c for c in self.contexts if any(p == part and true(v, c[1].time) for p, v in c[1].parts)]
        return held, [c for c in held if len(c[1].parts) == 1]


def _names(context: Context) -> tuple[str, ...]:
    """Return the names of the parts of a condition."""
    return tuple(part for part, _ in context[1].parts)


Held = Iterator[tuple[str, Sequence[Context], Sequence[Context]]]


def _combinations(seen: _Seen) -> Held:
    for parts in seen.combinations():
        if all(seen.alone[p] for p in parts):
            yield "+".join(parts), seen.of(parts), seen.of(parts)


def _combinations_with_an_unseen_part(seen: _Seen) -> Held:
    for parts in seen.combinations():
        lacking = [p for p in parts if not seen.alone[p]]
        if len(lacking) < len(parts):
            without = lacking or [parts[-1]]
            held = [c for c in seen.contexts if _names(c) == parts or set(without) & set(_names(c))]
            yield f"{'+'.join(parts)} without {'+'.join(without)}", held, seen.of(parts)


Which, Compare = Callable[[list[float]], float], Callable[[float, float], bool]


def _doses(least: int, which: Which, compare: Compare) -> Callable[[_Seen], Held]:
    def held_out(seen: _Seen) -> Held:
        for part in seen.parts:
            doses = sorted({c.parts[0][1] for _, c in seen.alone[part]})
            if len(doses) >= least:
                dose = which(doses)
                yield f"{part} {dose:g}", *seen.where(part, lambda v, t, dose=dose: compare(v, dose))

    return held_out


def _times(least: int, which: Which, compare: Compare) -> Callable[[_Seen], Held]:
    def held_out(seen: _Seen) -> Held:
        for part in seen.parts:
            times = sorted({c.time for _, c in seen.alone[part]})
            if len(times) >= least:
                time = which(times)
                yield f"{part} at {time:g}", *seen.where(part, lambda v, t, time=time: compare(t, time))

    return held_out


def _in_one_type(seen: _Seen) -> Held:
    for i, part in enumerate(seen.parts):
        types = sorted({t for t, _ in seen.alone[part]})
        if len(types) > 1:
            name = types[i % len(types)]
            held, scored = seen.where(part, lambda v, t: True)
            yield f"{part} in {name}", *([c for c in some if c[0] == name] for some in (held, scored))


def _altogether(seen: _Seen) -> Held:
    for part in seen.parts:
        if part in seen.described:
            yield part, *seen.where(part, lambda v, t: True)


def _middle(values: list[float]) -> float:
    return values[len(values) // 2]


#: What is held out, by the name of the kind.
KINDS: dict[str, Callable[[_Seen], Held]] = {
    "combination": _combinations,
    "combination, one part seen": _combinations_with_an_unseen_part,
    "inner dose": _doses(3, _middle, eq),
    "largest dose": _doses(2, max, ge),
    "inner time": _times(3, _middle, eq),
    "latest time": _times(2, max, ge),
    "type": _in_one_type,
    "perturbation": _altogether,
}
