"""Cells of which contexts are held out, what is true of these, and the scores of a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy import datasets, metrics
from scalloy.baselines import additive_null
from scalloy.baselines.contexts import ALL
from scalloy.baselines.predictors import dense
from scalloy.benchmark.hold_outs import Context, HoldOut, hold_outs
from scalloy.benchmark.structured_rivals import Fold, Predicted
from scalloy.data.conditions import Conditions
from scalloy.perturbation.design import Content
from scalloy.perturbation.pseudobulk import Pseudobulk, dispersions, level

CONDITION = "condition_name"  # column of .obs with the name of the condition, for judges
NOTHING = 0.05  # largest log fold change that counts as none, root mean square over genes
EXPRESSED = 0.5  # smallest mean count per cell with which a simulated gene is scored


def is_simulated(cells: AnnData) -> bool:
    """Return whether the truth of cells is known under every condition."""
    return "screen" in cells.uns and "mean_control" in cells.layers


class Task:
    """Cells of which contexts are held out, and what is true of these.

    Parameters
    ----------
    cells
        Cells with raw counts.
    conditions, labels_key
        Columns of ``.obs``.
    judged
        Whether another judge scores the counts. Then changes are those of means of log-normalised expression,
        also of simulated cells, and all controls are trained on.
    """

    def __init__(
        self, cells: AnnData, *, conditions: Conditions, labels_key: str | None, judged: bool = False
    ) -> None:
        self.cells, self.conditions, self.labels_key = cells, conditions, labels_key
        self.simulated, self.judged = is_simulated(cells) and not judged, judged
        fitted, column = conditions.fitted(cells)
        assert fitted.design is not None
        self.design, self.names = fitted.design, np.asarray(column).astype(str)
        every = np.full(cells.n_obs, ALL)
        self.types = every if labels_key is None else cells.obs[labels_key].astype(str).to_numpy()
        content = self.design.by_name
        self._known: dict[Content, pd.DataFrame] = {}
        self.apart = np.zeros(cells.n_obs, dtype=bool)  # controls that only the truth is measured against
        table = pd.DataFrame({"type": self.types, "condition": self.names})
        self.rows: dict[Context, np.ndarray] = {
            (str(t), content[str(c)]): rows
            for (t, c), rows in table.groupby(["type", "condition"]).indices.items()
        }

        if not self.simulated and not judged:
            rng = np.random.default_rng(0)
            for (_, c), rows in self.rows.items():
                if c == self.design.reference:
                    self.apart[rng.permutation(rows)[: len(rows) // 2]] = True

    def hold_outs(self, kind: str, most: int | None, min_cells: int) -> list[HoldOut]:
        """List what is held out; types without a control are not."""
        start = {t for t, c in self.rows if c == self.design.reference}
        sizes = {(t, c): len(rows) for (t, c), rows in self.rows.items() if t in start}
        described = frozenset(() if self.design.descriptors is None else self.design.parts)
        return hold_outs(sizes, kind, described=described, most=most, min_cells=min_cells)

    def fold(self, held: HoldOut) -> Fold:
        """Return what methods are given: the cells that are not held out, and the controls of each type."""
        kept = ~self.apart
        for context in held.held:
            kept[self.rows[context]] = False
        start = {t: rows for (t, c), rows in self.rows.items() if c == self.design.reference}
        source = {t: self.plain(rows[~self.apart[rows]]) for t, rows in start.items()}
        scale = "log rates" if self.simulated else "mean logs" if self.judged else "levels"
        return Fold(self.plain(np.flatnonzero(kept)), self.conditions, self.labels_key, source, scale)

    def plain(self, rows: np.ndarray) -> AnnData:
        """Return some cells without what is true of them."""
        cells, uns = self.cells[rows], self.conditions.descriptors
        out = AnnData(cells.X.copy(), obs=cells.obs.copy(), var=cells.var.copy())
        out.obs[CONDITION] = pd.Categorical(self.names[rows])
        if isinstance(uns, str):
            out.uns[uns] = self.cells.uns[uns]
        return out

    def truth(self, context: Context, fold: Fold) -> Truth:
        """Return the true change in a context."""
        group, content = context
        if self.simulated:
            control = self._true(group, Content((), content.time))
            parts = [self._true(group, Content((part,), content.time)) - control for part in content.parts]
            genes = self.rates[group] >= EXPRESSED
            return Truth(self._true(group, content), sum(parts, control), genes)
        start = self.rows[group, self.design.reference]
        before, after = (self._bulk(rows) for rows in (start[self.apart[start]], self.rows[context]))
        usual = (before.rate + after.rate) / 2
        noise = sum(b.variance_of_few(self.dispersion, usual) for b in (before, after))
        alone = {c.parts[0][0] for c in fold.seen.contents if len(c.parts) == 1}
        known = alone.issuperset(part for part, _ in content.parts)
        parts = additive_null(fold.seen, group, content) if known else np.full(len(usual), np.nan)
        return Truth(level(after.rate) - level(before.rate), parts, np.ones(len(usual), dtype=bool), noise)

    def _bulk(self, rows: np.ndarray) -> Pseudobulk:
        """Return the summed counts of some cells."""
        x = dense(self.cells.X[rows]).astype(float)
        ell = x.sum(1)
        return Pseudobulk(x.sum(0), float(ell.sum()), float(np.square(ell).sum()))

    @cached_property
    def dispersion(self) -> np.ndarray:
        """Dispersion of the counts of each gene within types and conditions."""
        bulks, squares, products = [], [], []
        for rows in self.rows.values():
            x = dense(self.cells.X[rows]).astype(float)
            bulks.append(self._bulk(rows))
            squares.append(np.square(x).sum(0))
            products.append(x.sum(1) @ x)
        return dispersions(bulks, squares, products)

    def _true(self, group: str, content: Content) -> np.ndarray:
        """Return the log fold changes of a simulated context."""
        if content not in self._known:
            time = content.time if self.conditions.time else None
            self._known[content] = datasets.true_changes(self.cells, dict(content.parts), time=time)
        return self._known[content].loc[group].to_numpy()

    @cached_property
    def rates(self) -> dict[str, np.ndarray]:
        """Mean counts of each gene in simulated cells of each type without a drug."""
        table = pd.DataFrame(np.asarray(self.cells.layers["mean_control"], dtype=float))
        return {str(t): mean.to_numpy() for t, mean in table.groupby(self.types).mean().iterrows()}


@dataclass(frozen=True)
class Truth:
    """Change of each gene in a context, and that of the sum of its parts.

    Parameters
    ----------
    change, parts
        True change, and sum of the effects of the parts; the latter is not a number if it is not known.
    genes
        Mask of the genes that are scored.
    noise
        Sampling variance of the change; 0 if it is known.
    """

    change: np.ndarray
    parts: np.ndarray
    genes: np.ndarray
    noise: np.ndarray | float = 0.0

    def scores(self, found: Predicted, combined: bool) -> dict[str, float]:
        """Return the scores of a prediction."""
        true, predicted, parts = (v[self.genes] for v in (self.change, found.change, self.parts))
        noise = float(np.sum(self.noise))
        error, change = (float(np.square(true - p).sum()) - noise for p in (predicted, 0.0))
        least = 2 * float(np.sqrt(2 * np.square(self.noise).sum()))  # seldom more if nothing changes
        least = least if noise > 0 else NOTHING**2 * len(true)
        return {
            "skill": 1 - error / change if change > least else np.nan,
            "pearson_delta": metrics.pearson_delta(predicted, true, np.zeros(len(true))),
            "beyond_additive": _beyond(predicted, true, parts) if combined else np.nan,
            "coverage_90": np.nan if found.sd is None else self._coverage(found.change, found.sd),
            "error": error,
            "change": change,
        }

    def _coverage(self, predicted: np.ndarray, sd: np.ndarray) -> float:
        """Return the share of genes within intervals, which are wider by the noise of what was measured."""
        given = (predicted, self.change, np.sqrt(np.square(sd) + self.noise))
        return metrics.coverage(*(v[self.genes] for v in given))


def _beyond(predicted: np.ndarray, true: np.ndarray, parts: np.ndarray) -> float:
    """Return the correlation of what is beyond the sum of the parts; it is not a number if nothing is."""
    if not np.ptp(true - parts) > NOTHING:
        return float("nan")
    return metrics.pearson_delta(predicted, true, parts)
