"""Test which genes change within populations between groups of donors, on summed counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scalloy._arguments import category, one_of, positive, whole
from scalloy.compare import count_models
from scalloy.compare.count_families import NegativeBinomial
from scalloy.compare.count_models import Tested
from scalloy.compare.covariates import names_of
from scalloy.compare.discoveries import adjusted
from scalloy.compare.groups import check_free, column, pairs_of
from scalloy.compare.pseudobulks import common, library_sizes, shrunken
from scalloy.compare.samples import (
    Paired,
    Samples,
    check_columns,
    check_separable,
    independent,
    samples_of,
    within,
)
from scalloy.compare.unequal import warn_of_unequal
from scalloy.data.checks import check_counts, check_layer, check_type

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._core.base import ScalloyModel

TESTS = ("model", "permutation")
MIN_COUNTS = 10  # of a gene in all samples of a comparison
CENTRED = 2  # rounds in which library sizes are corrected by the change that most genes have in common
RESERVED = (  # columns of the table
    "gene",
    "group_a",
    "group_b",
    "mean",
    "log2_fold_change",
    "lower",
    "upper",
    "shrunken",
    "pvalue",
    "padj",
    "level",
    "against",
    "donors_a",
    "donors_b",
    "design",
    "smallest",
    "note",
)


def expression(
    data: AnnData | ScalloyModel,
    *,
    groupby: str,
    by: str | None = None,
    donor_key: str,
    covariates: str | Sequence[str] | None = None,
    interaction: str | None = None,
    against: str | None = None,
    reference: str | None = None,
    paired: Paired = "auto",
    test: Literal["model", "permutation"] = "model",
    layer: str | None = None,
    min_counts: int = MIN_COUNTS,
    at_least: int = 10,
    n_permutations: int = 1000,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Test which genes differ between groups of donors within each population.

    The counts of a donor's cells are summed, because cells of a donor are not independent observations. The
    sums are compared by a negative binomial regression (:mod:`scalloy.compare.count_models`). Its dispersions
    follow a trend, and each gene's own variance is drawn towards that of all genes. Donors with cells in both
    groups are compared with themselves.

    Parameters
    ----------
    data
        Cells with raw counts, or a trained model, whose own cells are used.
    groupby
        Column of ``.obs`` with the groups. If there are more than two, all pairs are compared.
    by
        Column of ``.obs``, such as cell types, within each value of which the groups are compared.
    donor_key
        Column of ``.obs`` with donors, mice, or whatever else was assigned to a group.
    covariates
        Columns of ``.obs`` with properties of donors or samples to account for, such as sex, age or batch.
        Numbers have a slope; make codes, such as batches 1 to 4, text.
    interaction
        Column of ``.obs``, such as sex or cell type, that may change the difference between the groups. The
        table then holds how much larger the difference is at each level than at another one.
    against
        Level of ``interaction`` with which the others are compared; ``None`` is the first.
    reference
        Group with which the others are compared; ``None`` compares all pairs.
    paired
        Whether donors are in both groups. ``False`` refuses donors that are, and ``"auto"`` uses the kind
        with more permutations if there are both.
    test
        ``"model"`` (moderated F test) or ``"permutation"`` (of the groups of donors, exact if there are at
        most ``n_permutations`` ways).
    layer
        Layer with raw counts; ``None`` uses ``.X``, or the layer that the model was set up with.
    min_counts
        Minimum number of counts of a gene in a comparison, in as many samples as the smaller group has.
        Genes with fewer are left out of the table.
    at_least
        Minimum number of cells of a sample; smaller ones are left out.
    n_permutations
        Maximum number of permutations.
    rng
        Seed or generator of the permutations.

    Returns
    -------
    One row per comparison and gene, the smallest p-value first:

    - ``mean``: counts per million, geometric mean over samples.
    - ``log2_fold_change`` with ``lower`` and ``upper`` (95 %).
    - ``shrunken``: the log2 fold change that is expected, given those of all genes.
    - ``pvalue`` and ``padj``: Benjamini-Hochberg within a comparison.
    - ``donors_a``, ``donors_b``, ``design``: numbers of donors, and which design was used
      (:mod:`scalloy.compare.designs`).
    - ``smallest``: the smallest p-value possible, for permutations.
    - ``note``: why there is no p-value.

    A comparison that is impossible is one row without a gene. Without replicates, genes have fold changes and
    no p-value.

    Examples
    --------
    >>> cells = sa.datasets.trial(600, 20, n_types=2, n_donors=6)
    >>> found = sa.compare.expression(cells, groupby="condition", by="cell_type", donor_key="donor")
    >>> list(found.columns[:4])
    ['cell_type', 'group_a', 'group_b', 'gene']
    """
    one_of("test", test, TESTS)
    positive(at_least=at_least, min_counts=min_counts)
    whole(n_permutations=n_permutations)
    if against is not None and interaction is None:
        msg = "`against` is a level of `interaction`. Pass both, or neither."
        raise ValueError(msg)
    if interaction is not None and test == "permutation":
        msg = "No permutation of groups leaves an interaction alone. Use `test='model'` with `interaction`."
        raise ValueError(msg)
    adata, layer = _cells(data, layer)
    x, obs, rng = check_layer(adata, layer), adata.obs, np.random.default_rng(rng)
    check_counts(adata, layer, genes=False)
    genes, names = adata.var_names.astype(str).to_numpy(), names_of(covariates)
    of, donor = column(obs, "groupby", groupby), column(obs, "donor_key", donor_key)
    roles = {"groupby": groupby, "donor_key": donor_key, "by": by, "interaction": interaction}
    check_columns(of, donor, paired, **roles)
    level = None if interaction is None else column(obs, "interaction", interaction)
    check_free(by, RESERVED)
    parts = [("", np.ones(len(obs), dtype=bool))]
    if by is not None:
        within_each = column(obs, "by", by)
        parts = [(name, within_each == name) for name in sorted(set(within_each))]
    frames = []
    for part, inside in parts:
        for a, b in pairs_of(of, reference):
            group = np.where(inside & (of == a), 0, np.where(inside & (of == b), 1, -1))
            row = {by: part, "group_a": a, "group_b": b} if by is not None else {"group_a": a, "group_b": b}
            for first, other in [(None, None)] if level is None else _levels(level, against):
                cells = group if level is None else np.where(np.isin(level, (first, other)), group, -1)
                chosen = samples_of(
                    obs, cells, donor, covariates=names, paired=paired, at_least=at_least, level=level
                )
                second = None if level is None else level[_firsts(chosen)] == other
                more = {} if level is None else {"level": other, "against": first}
                permuted = (n_permutations, rng) if test == "permutation" else None
                found = compared(x, genes, chosen, second, names, min_counts, permuted)
                for i, (name, value) in enumerate((row | more).items()):
                    found.insert(i, name, value)
                frames.append(found)
    return pd.concat(frames, ignore_index=True)


def _cells(data: Any, layer: str | None) -> tuple[AnnData, str | None]:
    """Return the cells, and the layer with their counts."""
    if not hasattr(data, "get_latent_representation"):
        return check_type(data), layer
    return data.adata, layer if layer is not None else data.reader.set_up_with.get("layer")


def _levels(level: np.ndarray, against: str | None) -> list[tuple[str, str]]:
    """List the levels to compare, each with the same one."""
    names = sorted(set(level))
    if len(names) < 2:
        msg = f"`interaction` needs two levels or more, but the column has only {names}."
        raise ValueError(msg)
    first = names[0] if against is None else category("against", against, names)
    return [(first, name) for name in names if name != first]


def _firsts(chosen: Samples) -> np.ndarray:
    """Return the first cell of each sample."""
    used = np.flatnonzero(chosen.of >= 0)
    return used[np.unique(chosen.of[used], return_index=True)[1]]


def compared(
    x: Any,
    genes: np.ndarray,
    chosen: Samples,
    second: np.ndarray | None = None,
    covariates: Sequence[str] = (),
    min_counts: int = MIN_COUNTS,
    permuted: tuple[int, np.random.Generator] | None = None,
) -> pd.DataFrame:
    """Compare two groups of one population; return a row for each gene.

    Parameters
    ----------
    x
        Counts, cells x genes.
    genes
        Names of the genes.
    chosen
        Samples of the two groups.
    second
        Whether each sample is at the second of two levels, whose differences are compared.
    covariates
        Names of the covariates of the samples.
    min_counts
        Minimum number of counts of a gene.
    permuted
        Maximum number of permutations and their generator; ``None`` uses the model.
    """
    donors = [len(set(chosen.donor[chosen.group == k])) for k in (0, 1)]
    more: dict[str, Any] = {
        "donors_a": donors[0],
        "donors_b": donors[1],
        "design": chosen.kind,
        "smallest": np.nan,
    }
    columns = ["mean", "log2_fold_change", "lower", "upper", "shrunken", "pvalue", "padj"]
    empty = pd.DataFrame({"gene": [None], **dict.fromkeys(columns, np.nan)})
    if min(donors) == 0:
        return empty.assign(**more, note=chosen.note or "A group has no sample with enough cells")
    null, tested, note = _design(chosen, second, covariates)
    if tested is None:
        return empty.assign(**more, note=note)
    counts = chosen.sums(x)
    fewest = min(np.bincount(chosen.group, minlength=2))
    often = (counts.sum(1) >= min_counts) & ((counts > 0).sum(1) >= fewest)
    if not often.any():
        return empty.assign(**more, note=f"No gene has {min_counts} counts")
    size = library_sizes(counts)
    counts, offset = counts[often], np.log(size)
    found, offset, family = _tested(counts, offset, null, tested, rounds=0 if note else CENTRED)
    if not (note or chosen.paired) and second is None:
        warn_of_unequal(family, counts, found.full, chosen.group)
    pvalue = found.pvalue
    if permuted is not None and not note:
        labels, more["smallest"] = chosen.labelings(*permuted)
        plain = np.log(size)  # no label may go into an exact test
        pvalue = count_models.permuted(NegativeBinomial, plain, counts, null, labels)
    low, high = found.interval
    drawn = shrunken(found.effect, np.full(len(counts), np.nan) if note else found.error)
    frame = pd.DataFrame(
        {
            "gene": genes[often],
            "mean": 1e6 * np.exp(np.log((counts + 0.5) / size).mean(1)),
            "log2_fold_change": found.effect / np.log(2),
            "lower": low / np.log(2),
            "upper": high / np.log(2),
            "shrunken": drawn / np.log(2),
            "pvalue": pvalue,
        }
    )
    if note:
        frame[["lower", "upper", "shrunken", "pvalue"]] = np.nan
    frame = frame.assign(padj=adjusted(frame["pvalue"].to_numpy()), **more, note=note)
    order = np.lexsort([-frame["log2_fold_change"].abs(), frame["pvalue"].fillna(1)])
    return frame.iloc[order]


def _tested(
    counts: np.ndarray, offset: np.ndarray, null: np.ndarray, column: np.ndarray, *, rounds: int
) -> tuple[Tested, np.ndarray, NegativeBinomial]:
    """Test a column of the design for each gene; return the result, and the offset and family it is for.

    The change that most genes have in common is one of library sizes, so it goes into the offset.
    """
    design = np.column_stack([null, column])
    for i in range(rounds + 1):
        dispersion = count_models.shared_dispersion(NegativeBinomial, offset, counts, design)
        family = NegativeBinomial(offset, dispersion)
        found = count_models.f_test(family, counts, null, column)
        if i < rounds:
            offset = offset + common(found.effect, found.error) * (column - column.mean())
    return found, offset, family


def _design(
    chosen: Samples, second: np.ndarray | None, covariates: Sequence[str]
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Return the design matrix without the tested column, this column, and a note if it cannot be tested.

    A level that is found within donors is compared within them: each sample of a donor and group has a level
    of its own, and so has each donor and level if donors are in both groups.
    """
    group = chosen.group.astype(float)
    if second is None:
        null = chosen.null()
        return null, group, chosen.note or check_separable(null, chosen.group, covariates)
    if chosen.note:
        return chosen.null(), None, chosen.note
    cells = pd.crosstab([chosen.group], [second])
    if cells.shape != (2, 2) or cells.to_numpy().min() < 2:
        return chosen.null(), None, "Fewer than two donors have both a level and a group"
    level = second.astype(float)
    inside = len(set(zip(chosen.donor, chosen.group))) < len(group)  # both levels within a sample of a donor
    if inside:
        base = _dummies(chosen.donor, chosen.group)
        more = [level[:, None], _dummies(chosen.donor, second)] if chosen.paired else [level[:, None]]
    else:
        base, more = chosen.null(), [group[:, None], level[:, None]]
    null, tested = independent(base, np.column_stack([*more, chosen.covariates])), group * level
    if within(null, tested) or len(group) - null.shape[1] - 1 < 1:
        return null, None, "Too few donors have both levels to tell whether they differ"
    return null, tested, ""


def _dummies(*keys: np.ndarray) -> np.ndarray:
    """Return a column for each combination of values."""
    codes = pd.MultiIndex.from_arrays(keys)
    return (codes.factorize()[0][:, None] == np.arange(len(codes.unique()))).astype(float)
