"""Section of the report on conditions with structure: dose curves, and combinations beside their parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scalloy import pl
from scalloy.data.asked_conditions import design_in
from scalloy.perturbation.design import Design
from scalloy.reports.page import Section, Table, Text
from scalloy.reports.sections import picture

DRAWN, DOSES, ROWS = 2, 8, 15  # drugs whose curves are drawn, their doses, and rows of the table
FALSE = 0.05  # false discovery rate of interactions


def responses(model: Any) -> Section | None:
    """Make the section, if the model knows doses or combinations."""
    if (structure := model.reader.structure) is None:
        return None
    design, parts = design_in(structure), list[Any]()
    for part in _most_doses(design)[:DRAWN]:
        at = design.parts.index(part)
        doses = np.geomspace(design.lowest[at], design.highest[at], DOSES)
        curves = model.dose_response(part, doses)
        axes = pl.dose_response(curves)
        for axis in (ax.xaxis for ax in axes):
            axis.set_major_formatter("{x:g}")
        size = curves["log_fold_change"].abs().groupby(curves["gene"]).max().nlargest(4)
        alt = f"Log fold change by dose of {part}, of the genes that change most: {', '.join(size.index)}."
        parts.append(picture(axes[0].figure, alt, f"{part}: predicted dose curves with 90 % intervals."))
    if any(len(content.parts) > 1 for content in design.contents):
        found = model.interactions()
        parts.append(Table(_numbers(found), f"Genes that deviate from the sum of the parts ({FALSE:.0%})"))
        columns = ["group", "combination", "gene", "observed", "additive", "interaction", "q_value"]
        most = found.sort_values("p_value", kind="stable")[columns].head(ROWS).set_index("gene")
        parts.append(Table(most, "The clearest of them", folded=True))
    if not parts:
        return None
    text = (
        "Curves are predictions from all doses, groups and perturbations, also where cells were seen. What "
        "is measured of a combination is compared with the sum of what is measured of its parts."
    )
    return Section("Doses and combinations", [Text(text), *parts])


def _most_doses(design: Design) -> list[str]:
    """Return parts that were seen at several doses, those with the most doses first."""
    if not design.dosed:
        return []
    amounts = design.amounts(design.contents)
    n = {part: len(np.unique(column[column > 0])) for part, column in zip(design.parts, amounts.T)}
    return [part for part, doses in sorted(n.items(), key=lambda item: -item[1]) if doses > 1]


def _numbers(found: pd.DataFrame) -> pd.DataFrame:
    """Return how many genes interact in each combination and group."""
    is_found = found.assign(genes=found["q_value"] <= FALSE)
    return is_found.pivot_table(index="combination", columns="group", values="genes", aggfunc="sum")
