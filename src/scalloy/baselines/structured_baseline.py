"""Simple predictions of structured conditions that are used like models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy._arguments import totals
from scalloy.baselines.contexts import ALL, Contexts, contexts_of
from scalloy.baselines.predictors import SCALE, dense, log_scaled, normalised
from scalloy.baselines.structured import STRUCTURED
from scalloy.data import checks
from scalloy.data.asked_conditions import columns_of, content_of
from scalloy.data.conditions import Conditions
from scalloy.data.genes import aligned


class StructuredBaseline:
    """Simple prediction of a structured condition, called in the same way as a model.

    Parameters
    ----------
    adata
        Cells to learn from, with raw counts.
    method
        One of the methods in the table of :mod:`scalloy.baselines.structured`.
    conditions
        Columns with perturbations, doses and times.
    labels_key
        Column of ``.obs`` with cell types; ``None`` takes all cells for one type.
    layer
        Layer with the counts; ``None`` uses ``.X``.

    Examples
    --------
    >>> cells = sa.datasets.screen(800, 30)
    >>> told = sa.Conditions("drug", dose="dose")
    >>> simple = sa.baselines.StructuredBaseline(cells, conditions=told, labels_key="cell_type")
    >>> simple.train()
    >>> controls = cells[cells.obs["drug"] == "control"].copy()
    >>> set(simple.transfer(controls, to={"drug_0": 2.0, "drug_1": 10.0}).obs["drug"])
    {'drug_0+drug_1'}
    """

    def __init__(
        self,
        adata: AnnData,
        method: str = "additive",
        *,
        conditions: Conditions,
        labels_key: str | None = None,
        layer: str | None = None,
    ) -> None:
        checks.check_object(adata)
        if not isinstance(conditions, Conditions):
            kind = type(conditions).__name__
            msg = f"`conditions` is a {kind}. Pass `Conditions(...)`, which names the columns."
            raise TypeError(msg)
        self._labels = {} if labels_key is None else {"labels_key": labels_key}
        checks.check_keys(adata, self._labels)
        checks.check_counts(adata, layer, allow_non_counts=False)
        self.adata, self.method = adata, STRUCTURED.one_of("method", method)
        self.conditions, _ = conditions.fitted(adata)
        self.labels_key, self.layer = labels_key, layer
        self._seen: dict[float, Contexts] = {}

    def train(self, **_: Any) -> None:
        """Compute the changes that were seen; arguments for models are ignored.

        Examples
        --------
        >>> simple = sa.baselines.StructuredBaseline(adata, conditions=sa.Conditions("condition"))
        >>> simple.train()
        """
        self._seen_at(SCALE)

    def _seen_at(self, target_sum: float) -> Contexts:
        """Return the changes of means of log-normalised expression that were seen."""
        if target_sum not in self._seen:
            given = {"layer": self.layer, "target_sum": target_sum}
            self._seen[target_sum], _ = contexts_of(self.adata, self.conditions, self.labels_key, **given)
        return self._seen[target_sum]

    def transfer(self, cells: AnnData, to: Any, *, target_sum: float = SCALE, **_: Any) -> AnnData:
        """Predict cells as they would look under another condition.

        Parameters
        ----------
        cells
            Cells with the genes of ``adata``, of one or more types and conditions.
        to
            Condition to predict: its name, the amounts of its parts, or the values of the columns.
        target_sum
            Total count to which each cell is scaled before the logarithm.
        **_
            Further arguments of the ``transfer`` of models, which are ignored.

        Returns
        -------
        AnnData with expected log-normalised expression in ``.X``, not below 0.

        Examples
        --------
        >>> simple = sa.baselines.StructuredBaseline(adata, conditions=sa.Conditions("condition"))
        >>> treated = simple.transfer(adata[adata.obs["condition"] == "control"].copy(), to="treated_1")
        """
        totals(target_sum=target_sum)
        seen, content = self._seen_at(float(target_sum)), content_of(self.conditions, to)
        cells = aligned(checks.check_type(cells), list(self.adata.var_names))
        checks.check_keys(cells, self._labels)
        checks.check_counts(cells, self.layer, genes=False)
        counts = cells.X if self.layer is None else cells.layers[self.layer]
        x = log_scaled(normalised(dense(counts)), target_sum)
        codes, sources = self.conditions.of_cells(cells)
        types = np.full(len(x), ALL) if self.labels_key is None else cells.obs[self.labels_key].astype(str)
        predict, table = STRUCTURED[self.method], pd.DataFrame({"type": np.asarray(types), "source": codes})
        for (name, source), rows in table.groupby(["type", "source"]).indices.items():
            x[rows] += predict(seen, name, content) - predict(seen, name, sources[source])
        out = AnnData(x.clip(0).astype(np.float32), obs=cells.obs.copy(), var=cells.var[[]].copy())
        for key, value in columns_of(self.conditions, content).items():
            out.obs[key] = pd.Categorical([value] * out.n_obs) if isinstance(value, str) else value
        out.uns["transfer"] = {"model": f"Baseline: {self.method}", "to": seen.design.name_of(content)}
        return out
