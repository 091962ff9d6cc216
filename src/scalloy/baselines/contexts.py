"""Changes that were seen, by type and structured condition: what simple predictions of others start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy._arguments import one_of
from scalloy.baselines.predictors import SCALE, dense, log_scaled, normalised
from scalloy.data.conditions import Conditions
from scalloy.perturbation.design import SAME, Content, Design, design_of
from scalloy.perturbation.pseudobulk import level

ALL = "all cells"  # name of the type if there are no labels
PSEUDO = 0.5  # counts that are added to each gene before the logarithm of a rate
SCALES = ("mean logs", "log rates", "levels")


@dataclass(frozen=True)
class Contexts:
    """Changes of types under conditions, against the control of the same type at the earliest time.

    Parameters
    ----------
    types, contents
        Type and content of each context.
    changes
        Change of each gene, contexts x genes, on a logarithmic scale.
    design
        Design of the conditions, with descriptors of parts if there are any.

    Examples
    --------
    >>> changes = np.array([[1.0, 0.0], [0.0, 2.0]])  # contexts x genes
    >>> seen = sa.baselines.Contexts.of(["B cells"] * 2, [{"A": 1.0}, {"D": 1.0}], changes)
    >>> seen.design.names
    ['control', 'A 1', 'D 1']
    """

    types: tuple[str, ...]
    contents: tuple[Content, ...]
    changes: np.ndarray
    design: Design
    found: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        types: Sequence[str],
        conditions: Sequence[Content | Mapping[str, float]],
        changes: np.ndarray,
        *,
        times: Sequence[float] | None = None,
        descriptors: Mapping[str, Sequence[float]] | None = None,
    ) -> Contexts:
        """Make contexts from amounts of parts.

        Parameters
        ----------
        types
            Type of each context.
        conditions
            Amount of each part in each context, as in ``{"A": 0.5}``; empty for the control at a later time.
        changes
            Change of each gene, contexts x genes, on a logarithmic scale.
        times
            Time of each context, counted from the control that changes are against; ``None`` without times.
        descriptors
            Numbers that describe each part, also parts without a context.

        Examples
        --------
        >>> sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"A": 3.0}], np.eye(2)).design.highest.tolist()
        [3.0]
        """
        given = [0.0] * len(conditions) if times is None else times
        contents = [c if isinstance(c, Content) else Content.of(c, t) for c, t in zip(conditions, given)]
        known = {"described": descriptors, "dosed": True, "timed": times is not None}
        design = design_of([Content(), *contents], **known)
        return cls(tuple(map(str, types)), tuple(contents), np.asarray(changes, dtype=float), design)

    # look-ups -----------------------------------------------------------------------------------

    def asked(self, to: Content | Mapping[str, float]) -> Content:
        """Return what is asked for as a content, at the earliest time if none is said.

        Examples
        --------
        >>> seen = sa.baselines.Contexts.of(["T"], [{"A": 1.0}], np.ones((1, 2)))
        >>> seen.asked({"A": 2.0}).parts
        (('A', 2.0),)
        """
        return to if isinstance(to, Content) else Content.of(to, self.design.reference.time)

    def position(self, content: Content) -> tuple[dict[str, float], float]:
        """Return the strength of each part and the time, both on the scales of the design.

        A part that the design does not have is as strong as at its largest dose.

        Examples
        --------
        >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"A": 3.0}], np.eye(2))
        >>> seen.position(seen.asked({"A": 3.0, "D": 1.0}))
        ({'A': 1.0, 'D': 1.0}, 0.0)
        """
        if content not in self.found:
            known = Content(tuple(p for p in content.parts if p[0] in self.design.parts), content.time)
            u = dict(zip(self.design.parts, self.design.strengths([known])[0].tolist(), strict=True))
            strengths = {part: u.get(part, 1.0) for part, _ in content.parts}
            self.found[content] = strengths, float(self.design.times([content])[0])
        return self.found[content]

    def mean_of(self, rows: Sequence[int], group: str) -> np.ndarray:
        """Return the mean change of some contexts: those of a type if there are any, otherwise all of them.

        Parameters
        ----------
        rows
            Positions of the contexts.
        group
            Name of the type.

        Examples
        --------
        >>> seen = sa.baselines.Contexts.of(["T", "B"], [{"A": 1.0}] * 2, np.array([[1.0], [3.0]]))
        >>> [seen.mean_of([0, 1], group).item() for group in ("T", "monocytes")]
        [1.0, 2.0]
        """
        own = [i for i in rows if self.types[i] == group]
        return self.changes[own or list(rows)].mean(0)

    def drift(self, group: str, time: float) -> np.ndarray:
        """Return the change of the control of a type at a time on the scale of the design, interpolated.

        Examples
        --------
        >>> seen = sa.baselines.Contexts.of(["T"] * 2, [{}, {"A": 1.0}], np.eye(2), times=[5.0, 5.0])
        >>> [seen.drift("T", time).tolist() for time in (0.5, 1.0)]
        [[0.5, 0.0], [1.0, 0.0]]
        """
        start = self.position(self.design.reference)[1]
        points = {start: np.zeros(self.changes.shape[1])}
        for t, rows in self.by_time([i for i, c in enumerate(self.contents) if not c.parts]).items():
            points[t] = self.mean_of(rows, group)
        return between(points, time)

    def by_time(self, rows: Sequence[int]) -> dict[float, list[int]]:
        """Return the positions of contexts at each time on the scale of the design.

        Examples
        --------
        >>> sa.baselines.Contexts.of(["T"], [{"A": 1.0}], np.ones((1, 2))).by_time([0])
        {0.0: [0]}
        """
        out: dict[float, list[int]] = {}
        for i in rows:
            out.setdefault(self.position(self.contents[i])[1], []).append(i)
        return out

    def effects(self, parts: Sequence[str], group: str) -> list[tuple[dict[str, float], float, np.ndarray]]:
        """Return the effects of conditions that have just these parts: strengths, time, and change by gene.

        Changes are against the control at the same time, in the type if it was seen under the condition, and
        otherwise averaged over the types that were.

        Parameters
        ----------
        parts
            Names of the parts.
        group
            Name of the type.

        Examples
        --------
        >>> seen = sa.baselines.Contexts.of(["T", "T"], [{"A": 1.0}, {"D": 1.0}], np.eye(2))
        >>> [change.tolist() for _, _, change in seen.effects(["A"], "T")]
        [[1.0, 0.0]]
        """
        key = (tuple(sorted(parts)), group)
        if key not in self.found:
            rows: dict[Content, list[int]] = {}
            for i, content in enumerate(self.contents):
                if tuple(part for part, _ in content.parts) == key[0]:
                    rows.setdefault(content, []).append(i)
            self.found[key] = [(*self.position(c), self._effect(r, group)) for c, r in rows.items()]
        return self.found[key]

    def _effect(self, rows: Sequence[int], group: str) -> np.ndarray:
        """Return the effect of a condition against the control at the same time."""
        time = self.position(self.contents[rows[0]])[1]
        own = [i for i in rows if self.types[i] == group] or rows
        return np.mean([self.changes[i] - self.drift(self.types[i], time) for i in own], axis=0)


def between(points: Mapping[float, np.ndarray], at: float) -> np.ndarray:
    """Interpolate linearly between values at points; beyond the first and the last, these are returned.

    Parameters
    ----------
    points
        Values, such as changes by gene, by the points where they are known.
    at
        Point where a value is wanted.
    """
    known = sorted(points)
    i = int(np.searchsorted(known, at))
    if i == 0 or i == len(known):
        return points[known[min(i, len(known) - 1)]]
    low, high = known[i - 1], known[i]
    share = (at - low) / (high - low)
    return points[high] if high - at < SAME else (1 - share) * points[low] + share * points[high]


def contexts_of(
    adata: AnnData,
    conditions: Conditions,
    labels_key: str | None = None,
    *,
    layer: str | None = None,
    scale: str = "mean logs",
    target_sum: float = SCALE,
) -> tuple[Contexts, dict[str, np.ndarray]]:
    """Return the changes of all types and conditions of cells, and the level of the control of each type.

    Parameters
    ----------
    adata
        Cells with raw counts.
    conditions
        Columns with perturbations, doses and times.
    labels_key
        Column of ``.obs`` with the types; ``None`` takes all cells for one type.
    layer
        Layer with the counts; ``None`` uses ``.X``.
    scale
        ``"mean logs"``: means over cells of log-normalised expression; ``"log rates"``: logarithms of the
        share of each gene in the summed counts; ``"levels"``: those of
        :mod:`scalloy.perturbation.pseudobulk`.
    target_sum
        Total count to which each cell is scaled before the logarithm, for ``"mean logs"``.
    """
    one_of("scale", scale, SCALES)
    fitted, column = conditions.fitted(adata)
    design, x = fitted.design, adata.X if layer is None else adata.layers[layer]
    content = design.by_name
    types = np.full(adata.n_obs, ALL) if labels_key is None else adata.obs[labels_key].astype(str).to_numpy()
    table = pd.DataFrame({"type": types, "condition": np.asarray(column).astype(str)})
    levels = {
        (str(t), content[str(c)]): _level(x[rows], scale, target_sum)
        for (t, c), rows in table.groupby(["type", "condition"]).indices.items()
    }
    start = {t: level for (t, c), level in levels.items() if c == design.reference}
    seen = [(t, c) for t, c in levels if t in start and c != design.reference]
    if not seen:
        msg = (
            "No type has cells under the control and under another condition, so there is no change to learn "
            "from. Pass cells of both."
        )
        raise ValueError(msg)
    changes = np.stack([levels[t, c] - start[t] for t, c in seen])
    return Contexts(tuple(t for t, _ in seen), tuple(c for _, c in seen), changes, design), start


def _level(counts: Any, scale: str, target_sum: float) -> np.ndarray:
    """Return the level of each gene in some cells on a logarithmic scale."""
    x = dense(counts).astype(float)
    if scale == "mean logs":
        return log_scaled(normalised(x), target_sum).mean(0)
    if scale == "levels":
        return level(x.sum(0) / max(x.sum(), 1e-12))
    total = x.sum(0) + PSEUDO
    return np.log(total / total.sum())
