"""Section of the report on groups of donors: populations and genes that differ between conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy import compare, pl
from scalloy._arguments import few
from scalloy.data.checks import check_layer, find_column
from scalloy.reports import predictions
from scalloy.reports.page import Section, Table, Text, picture
from scalloy.reports.subject import Subject

TITLE = "Groups of donors"
MOST = 4  # largest number of groups that are compared
SHARES, GENES = 0.1, 0.05  # false discovery rates of populations and of genes
NAMED = 5  # genes that are named for each population
ROLES = {"donor_key": "the registered donors", "batch_key": "the registered batches"}
SETTINGS: dict[str, Any] = {"groupby": "group", "by": "population", "donor_key": "donor"}


@dataclass(frozen=True)
class Columns:
    """Columns that the section is about.

    Parameters
    ----------
    groupby, donor_key
        Columns with the groups and with the donors.
    role
        Argument under which the donors were registered; empty if the user named them.
    """

    groupby: str
    donor_key: str
    role: str


def columns(subject: Subject, groupby: str | None, donor_key: str | None) -> Columns | None:
    """Return the columns with groups and donors; ``None`` if there are none and the user named none."""
    for argument, key in (("groupby", groupby), ("donor_key", donor_key)):
        if key is not None:
            find_column(subject.adata.obs, argument, key)
    group, donor, role = groupby or subject.key("condition_key"), donor_key, ""
    for name in ROLES:
        if donor is None and subject.key(name) is not None:
            donor, role = subject.key(name), name
    if group is not None and donor is not None and group != donor:
        return Columns(group, donor, role)
    if groupby is None and donor_key is None:
        return None
    msg = (
        f"Groups of donors need a column of groups and one of donors; these are {group!r} and {donor!r}. "
        "Pass both, `groupby=` and `donor_key=`, or register them as `condition_key` and `donor_key`."
    )
    raise ValueError(msg)


def groups_of_donors(subject: Subject, asked: Columns) -> Section:
    """Make the section."""
    cells, of = _cells(subject, asked)
    order = cells.obs["group"].value_counts().index.astype(str).tolist()
    if len(order) < 2:
        text = f"All cells have the same {asked.groupby}, so there are no groups of donors to compare."
        return Section(TITLE, [Text(text)])
    reference = _reference(subject, asked, order)
    chosen = [reference, *(name for name in order if name != reference)][:MOST]
    cells = cells[cells.obs["group"].isin(chosen).to_numpy()].copy()
    parts: list[Any] = [Text(_compared(subject, asked, cells, of, order, chosen))]
    settings = {**SETTINGS, "reference": reference, "rng": subject.seed}
    shares = compare.abundance(cells, **settings)
    genes = None
    if subject.setup.get("allow_non_counts"):
        parts.append(Text("The data are not counts, so nothing is said about genes."))
    elif shares["pvalue"].notna().any():
        genes = compare.expression(cells, **settings)
    for _, rows in shares.groupby("group_b", sort=False):
        pair = rows[["group_a", "group_b"]].iloc[0].tolist()
        if not rows["pvalue"].notna().any():
            parts.append(Text(_untested(pair, rows["note"].iloc[0]), note=True))
            continue
        parts += _shares(rows, pair, of)
        if genes is not None:
            parts += _genes(genes[genes["group_b"] == pair[1]], pair, of)
    return Section(TITLE, parts)


def _cells(subject: Subject, asked: Columns) -> tuple[AnnData, str]:
    """Return the cells whose group and donor are known, and the name of their populations."""
    obs, labels = subject.obs, subject.key("labels_key")
    if labels is not None and labels != asked.groupby and subject.known.notna().any():
        rest = subject.setup.get("unlabeled_category")
        name, population = labels, subject.known.fillna("not labelled" if rest is None else str(rest))
    else:
        name, population = subject.cluster_key, subject.clusters
    known = (obs[asked.groupby].notna() & obs[asked.donor_key].notna()).to_numpy()
    table = {"group": obs[asked.groupby], "donor": obs[asked.donor_key], "population": population}
    frame = pd.DataFrame({k: column.astype(str).to_numpy()[known] for k, column in table.items()})
    x = check_layer(subject.adata, subject.setup.get("layer"))[subject.rows[known]]
    frame.index = obs.index[known]
    return AnnData(sp.csr_matrix(x), obs=frame, var=pd.DataFrame(index=subject.adata.var_names)), name


def _reference(subject: Subject, asked: Columns, order: list[str]) -> str:
    """Return the group with which the others are compared: the control, or the one with the most cells."""
    name = order[0]
    if asked.groupby == subject.key("condition_key") and predictions.can_transfer(subject.model):
        name = predictions.control_of(subject.model)
    return name if name in order else order[0]


def _compared(
    subject: Subject, asked: Columns, cells: AnnData, of: str, order: list[str], chosen: list[str]
) -> str:
    """Say what is compared, and what a difference cannot tell."""
    said = [
        f"Populations ({of}) are compared between groups of donors ({asked.donor_key}) that differ in "
        f"{asked.groupby}: {few(chosen[1:])} against {chosen[0]}."
    ]
    if len(order) > len(chosen):
        said.append(f"Of {len(order)} groups, those with the most cells are shown.")
    if len(subject.rows) < subject.adata.n_obs:
        said.append(f"{cells.n_obs:,} cells were chosen at random; `sa.compare` uses all.")
    if asked.role:
        said.append(f"Donors are {ROLES[asked.role]}.")
    if asked.role == "batch_key":
        said.append("If several of them come from one donor, name the donors by `donor_key`.")
    if of == subject.cluster_key:
        said.append(
            "Clusters were found in these cells, so one that lies apart because of the group seems to grow."
        )
    said.append(
        "Whatever else goes with the group, such as the day of the experiment, is part of its effect."
    )
    return " ".join(said)


def _untested(pair: list[str], note: str) -> str:
    """Say why two groups cannot be compared."""
    return (
        f"{pair[1]} against {pair[0]}: nothing can be tested ({note}). Cells of one donor are no replicates, "
        "so nobody can say whether these groups differ by more than donors do anyway."
    )


def _shares(rows: pd.DataFrame, pair: list[str], of: str) -> list[Any]:
    """Say which populations grow or shrink, and draw them."""
    found = rows[rows["padj"] <= SHARES].sort_values("pvalue")
    names = [f"{name} ({effect:+.2f})" for name, effect in zip(found["population"], found["effect"])]
    said = f"{len(found)} of {len(rows)} populations differ in number (log2 fold in brackets): {few(names)}."
    if found.empty:
        said = "No population differs in number by more than chance explains; small changes may be missed."
    head = f"{pair[1]} against {pair[0]}, {_donors(rows)}. "
    figure = pl.abundance(rows.rename(columns={"population": of}), level=SHARES).figure
    alt = f"Forest plot of the log2 fold change of each {of}, {pair[1]} over {pair[0]}; numbers in the table."
    caption = f"Change in number of each {of}, {pair[1]} over {pair[0]}, with 95 % intervals."
    shown = ["share_a", "share_b", "effect", "lower", "upper", "pvalue", "padj", "unchanged"]
    names_of = {"share_a": f"share, {pair[0]}", "share_b": f"share, {pair[1]}", "effect": "log2 fold"}
    names_of |= {"pvalue": "p", "padj": "adjusted p", "unchanged": "taken not to change"}
    table = rows.set_index("population")[shown].rename(columns=names_of).rename_axis(of)
    title = f"Number of cells of each {of}, {pair[1]} over {pair[0]}"
    return [Text(head + said), picture(figure, alt, caption, wide=True), Table(table, title, folded=True)]


def _donors(rows: pd.DataFrame) -> str:
    """Say how donors were compared."""
    first = rows.iloc[0]
    if first["design"] == "within donors":
        return f"{first['donors_a']} donors, each compared with itself"
    return f"{first['donors_b']} donors against {first['donors_a']} others"


def _genes(rows: pd.DataFrame, pair: list[str], of: str) -> list[Any]:
    """Make the table of the numbers of genes that differ within each population, with the clearest ones."""
    table = {}
    for name, here in rows.groupby("population", sort=True):
        first, found = here.iloc[0], here[here["padj"] <= GENES]
        up = found["log2_fold_change"] > 0
        clearest = found.sort_values("pvalue", kind="stable").head(NAMED)
        named = [f"{g} ({x:+.1f})" for g, x in zip(clearest["gene"], clearest["shrunken"])]
        table[str(name)] = {
            "donors": " and ".join(dict.fromkeys(f"{first[f'donors_{side}']}" for side in "ba")),
            "genes tested": int(here["pvalue"].notna().sum()),
            "higher": int(up.sum()),
            "lower": int((~up).sum()),
            "clearest (log2 fold change)": few(named) or str(first["note"]) or "none",
        }
    total = sum(row["higher"] + row["lower"] for row in table.values())
    tested = [name for name, row in table.items() if row["genes tested"]]
    said = (
        f"{total:,} genes differ within populations ({GENES:.0%} false discoveries), each counted in every "
        "population in which it does. A population of fewer cells or donors shows fewer, so numbers do not "
        "say which responds most."
    )
    if len(tested) < len(table):
        said += f" Nothing can be said about {few(name for name in table if name not in tested)}."
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis(of)
    return [Text(said), Table(frame, f"Genes that differ, {pair[1]} over {pair[0]}")]
