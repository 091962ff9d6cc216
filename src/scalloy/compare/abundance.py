"""Test which populations grow or shrink between groups of donors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scalloy._arguments import one_of, positive, warn, whole
from scalloy.compare import count_models
from scalloy.compare.count_families import BetaBinomial
from scalloy.compare.count_models import Tested
from scalloy.compare.covariates import names_of
from scalloy.compare.discoveries import adjusted
from scalloy.compare.groups import check_free, column, pairs_of
from scalloy.compare.populations import Populations, populations
from scalloy.compare.samples import Paired, Samples, check_columns, check_separable, samples_of
from scalloy.compare.unequal import warn_of_unequal

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._core.base import ScalloyModel

TESTS = ("model", "permutation")
ROUNDS = 10  # rounds in which the populations that do not move are looked for
MUCH = np.log(2)  # change from the common one from which on a population moves, however uncertain it is
RESERVED = (  # columns of the table
    "group_a",
    "group_b",
    "share_a",
    "share_b",
    "effect",
    "lower",
    "upper",
    "pvalue",
    "padj",
    "relative_to",
    "unchanged",
    "donors_a",
    "donors_b",
    "design",
    "smallest",
    "note",
)
FEWEST = 3  # parts that must stay the same
HELD = 0.05  # share of each group's cells that these must hold
FAR = 2.0  # standard errors from the common change at which a population counts as moving


def abundance(
    data: AnnData | ScalloyModel,
    *,
    groupby: str,
    by: str,
    donor_key: str,
    covariates: str | Sequence[str] | None = None,
    reference: str | None = None,
    unchanged: Literal["auto"] | Sequence[str] | None = "auto",
    paired: Paired = "auto",
    test: Literal["model", "permutation"] = "model",
    use_rep: str | None = None,
    n_neighbors: int | None = None,
    n_neighborhoods: int | None = None,
    n_permutations: int = 1000,
    at_least: int = 10,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Test which populations of cells are more or less frequent in one group of donors than in another.

    The counts of the donors are compared by a regression with the variance of a beta-binomial, which all
    populations share, and of which each has its own multiple (:mod:`scalloy.compare.count_models`). Donors
    with cells in both groups are compared with themselves.

    Shares add up to one, so a population that grows makes all others shrink. With ``unchanged="auto"``, the
    populations that move together, which are most, are taken to stay as they are, and each is compared with
    them. If there is no such majority, shares of all cells are compared.

    Parameters
    ----------
    data
        Cells, or a trained model, whose own cells are used.
    groupby
        Column of ``.obs`` with the groups. If there are more than two, all pairs are compared.
    by
        Populations: a column of ``.obs``; ``"clusters"`` or ``"tree"`` for a model's clusters or each node of
        their tree; or ``"neighbourhoods"`` in a latent space, which overlap.
    donor_key
        Column of ``.obs`` with donors, mice, or whatever else was assigned to a group.
    covariates
        Columns of ``.obs`` with properties of donors or samples to account for, such as sex, age or batch.
        Numbers have a slope; make codes, such as batches 1 to 4, text.
    reference
        Group with which the others are compared; ``None`` compares all pairs.
    unchanged
        Populations whose numbers are taken not to change: ``"auto"`` finds them, ``None`` compares shares of
        all cells, and a list names them.
    paired
        Whether donors are in both groups. ``False`` refuses donors that are, and ``"auto"`` uses the kind
        with more permutations if there are both.
    test
        ``"model"`` (moderated F test) or ``"permutation"`` (of the groups of donors, exact if there are at
        most ``n_permutations`` ways, up to the choice of unchanged populations by ``"auto"``).
    use_rep
        Key of ``.obsm`` with the latent space, for neighbourhoods of cells.
    n_neighbors
        Number of cells of a neighbourhood; ``None`` is five for each sample, and 50 or more.
    n_neighborhoods
        Maximum number of neighbourhoods; ``None`` is a tenth of the cells, up to 2,000.
    n_permutations
        Maximum number of permutations.
    at_least
        Minimum number of cells of a donor in a group; smaller samples are left out.
    rng
        Seed or generator of the permutations and the neighbourhoods.

    Returns
    -------
    One row per comparison and population:

    - ``share_a`` and ``share_b``: means over donors.
    - ``effect`` with ``lower`` and ``upper`` (95 %): log2 fold of the number relative to the unchanged
      populations, or of the share of all cells, as ``relative_to`` says.
    - ``pvalue`` and ``padj``: Benjamini-Hochberg within a comparison. Neighbourhoods are weighted by how
      close their cells are, since they overlap.
    - ``unchanged``: whether the population belongs to those that are taken not to change.
    - ``donors_a``, ``donors_b``, ``design``: numbers of donors, and which design was used
      (:mod:`scalloy.compare.designs`).
    - ``smallest``: the smallest p-value possible, for permutations.
    - ``note``: why there is no p-value.

    Examples
    --------
    >>> cells = sa.datasets.trial(600, 20, n_donors=6)
    >>> found = sa.compare.abundance(cells, groupby="condition", by="cell_type", donor_key="donor")
    >>> list(found.columns[:4])
    ['cell_type', 'group_a', 'group_b', 'share_a']
    """
    one_of("test", test, TESTS)
    positive(at_least=at_least)
    whole(n_permutations=n_permutations)
    sizes = {"n_neighbors": n_neighbors, "n_neighborhoods": n_neighborhoods}
    whole(**{name: size for name, size in sizes.items() if size is not None})
    check_free(by, RESERVED)
    rng, names = np.random.default_rng(rng), names_of(covariates)
    obs = data.obs if hasattr(data, "obs") else data.adata.obs
    of, donor = column(obs, "groupby", groupby), column(obs, "donor_key", donor_key)
    check_columns(of, donor, paired, groupby=groupby, donor_key=donor_key, by=by)
    parts = populations(
        data,
        obs,
        by,
        use_rep,
        n_samples=len(set(zip(donor, of))),
        size=n_neighbors,
        most=n_neighborhoods,
        rng=rng,
    )
    frames = []
    for a, b in pairs_of(of, reference):
        group = np.where(of == a, 0, np.where(of == b, 1, -1))
        chosen = samples_of(obs, group, donor, covariates=names, paired=paired, at_least=at_least)
        frame = _compared(chosen, parts, unchanged, names, test, n_permutations, rng)
        frames.append(pd.concat([parts.table.assign(group_a=a, group_b=b), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def _warn_of_separate(counts: np.ndarray, group: np.ndarray) -> None:
    """Warn if most neighbourhoods have cells of one group only."""
    one = np.mean([(counts[:, group == k].sum(1) == 0) for k in (0, 1)], axis=1).sum()
    if one > 0.5:
        warn(
            f"{one:.0%} of the neighbourhoods hold cells of one group only: this latent space separates the "
            "groups, be it by biology or by batch. To find populations that grow or shrink, use one in which "
            "donors are integrated (`batch_key` of a model).",
        )


def _compared(
    chosen: Samples,
    parts: Populations,
    unchanged: Literal["auto"] | Sequence[str] | None,
    covariates: Sequence[str],
    test: str,
    n_permutations: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Compare two groups; return a row for each population."""
    counts, of_part = chosen.sums(parts.members), chosen.sums(parts.one_hot)
    shares = counts / np.maximum(of_part.sum(0), 1)
    donors = [len(set(chosen.donor[chosen.group == k])) for k in (0, 1)]
    mean = [shares[:, chosen.group == k].mean(1) if donors[k] else np.nan for k in (0, 1)]
    rows = pd.DataFrame({"share_a": mean[0], "share_b": mean[1]}, index=range(len(counts)))
    if parts.weight is not None and min(donors) > 0:
        _warn_of_separate(counts, chosen.group)
    null, note = chosen.null(), chosen.note
    missing = dict.fromkeys(("effect", "lower", "upper", "pvalue"), np.nan)
    if min(donors) == 0:
        more = {"padj": np.nan, "relative_to": "all cells", "unchanged": False} | _described(chosen, donors)
        return rows.assign(**missing, **more, note=note)
    note = note or check_separable(null, chosen.group, covariates)
    stay = _staying(unchanged, parts, of_part, null, chosen.group, bool(note))
    same = np.ones(len(of_part), dtype=bool) if stay is None else stay
    reference = of_part[same].sum(0)
    inside = chosen.sums(parts.members.multiply(same[parts.part][:, None]).tocsr())
    total = reference - inside + counts
    alone = (total - counts).sum(1) == 0  # nothing is left to compare with
    family, found = _tested(counts, np.maximum(total, counts), null, chosen.group)
    if not (note or chosen.paired):
        warn_of_unequal(family, counts, found.full, chosen.group)
    factor = _of_shares(found, null) if stay is None else np.ones(len(counts))  # from odds to shares
    low, high = found.interval
    rows = rows.assign(
        effect=found.effect * factor, lower=low * factor, upper=high * factor, pvalue=found.pvalue
    )
    rows[["effect", "lower", "upper"]] /= np.log(2)
    more = _described(chosen, donors)
    if test == "permutation" and not note:
        labels, smallest = chosen.labelings(n_permutations, rng)
        rows["pvalue"] = count_models.permuted(BetaBinomial, family.total, counts, null, labels)
        more["smallest"] = smallest
    if note:
        rows[["lower", "upper", "pvalue"]] = np.nan
    empty = counts.sum(1) == 0
    rows.loc[alone | empty, list(missing)] = np.nan
    notes = np.where(alone, "Nothing is left to compare it with", note)
    notes = np.where(empty, "No cells in either group", notes)
    untold = rows["pvalue"].isna() & (notes == "")
    notes = np.where(untold, "Donors of a group do not vary, so nothing tells the variance", notes)
    rows["padj"] = adjusted(rows["pvalue"].to_numpy(), parts.weight)
    against = "all cells" if stay is None else "unchanged populations"
    stays = stay is not None and inside.sum(1) / np.maximum(counts.sum(1), 1e-12) > 0.5
    return rows.assign(relative_to=against, unchanged=stays, **more, note=notes)


def _staying(
    unchanged: Literal["auto"] | Sequence[str] | None,
    parts: Populations,
    counts: np.ndarray,
    null: np.ndarray,
    group: np.ndarray,
    untested: bool,
) -> np.ndarray | None:
    """Mark the parts that are taken not to change; ``None`` compares shares of all cells."""
    if unchanged is None:
        return None
    if isinstance(unchanged, str) and unchanged in parts.parts and unchanged != "auto":
        msg = f"`unchanged={unchanged!r}` is one name. Pass a list of names: [{unchanged!r}]."
        raise TypeError(msg)
    if isinstance(unchanged, str):
        one_of("unchanged", unchanged, ("auto",))
        some = counts.sum(1) > 0
        still = None if untested else _unmoved(counts[some], null, group)
        if still is not None:
            some[some] = still
        return None if still is None else some
    if not isinstance(unchanged, list | tuple | np.ndarray | pd.Index) or not len(unchanged):
        msg = (
            f"`unchanged={unchanged!r}` names no population. Pass a list of names, 'auto' to find them, or "
            "None for all cells."
        )
        raise ValueError(msg)
    if parts.weight is not None:
        msg = "Neighbourhoods have no names. Pass `unchanged='auto'`, or None for shares of all cells."
        raise ValueError(msg)
    return np.isin(parts.parts, [one_of("unchanged", str(name), parts.parts) for name in unchanged])


def _described(chosen: Samples, donors: list[int]) -> dict[str, Any]:
    """Return the columns that are the same for all populations."""
    return {"donors_a": donors[0], "donors_b": donors[1], "design": chosen.kind, "smallest": np.nan}


def _tested(
    counts: np.ndarray, total: np.ndarray, null: np.ndarray, group: np.ndarray
) -> tuple[BetaBinomial, Tested]:
    """Test the group of the samples for each population."""
    column = group.astype(float)
    x = np.column_stack([null, column])
    family = BetaBinomial(total, count_models.shared_dispersion(BetaBinomial, total, counts, x))
    return family, count_models.f_test(family, counts, null, column)


def _of_shares(found: Tested, null: np.ndarray) -> np.ndarray:
    """Return the log fold of the mean share over the log odds ratio, by population.

    Mean shares are those of all samples, as if all were in the one group or in the other.
    """
    base, effect = found.firm.coef[:, :-1] @ null.T, found.effect
    folds = [1 / (1 + np.exp(-(base + k * effect[:, None]))) for k in (0, 1)]
    change = np.log(folds[1].mean(1) / folds[0].mean(1))
    flat = np.abs(effect) < 1e-6
    return np.where(flat, 1 - folds[0].mean(1), change / np.where(flat, 1, effect))


def _unmoved(counts: np.ndarray, null: np.ndarray, group: np.ndarray) -> np.ndarray | None:
    """Find the parts that do not move against each other, or return ``None`` if there is no such majority.

    Each part is compared with all others at first, and their common change is the median. From then on each
    is compared with the parts that were found not to move. Of two parts that move against each other, nobody
    can say which one moves, so there must be more.
    """
    same = np.ones(len(counts), dtype=bool)
    seen: list[bytes] = []
    for i in range(ROUNDS):
        rest = counts[same].sum(0) - same[:, None] * counts
        _, found = _tested(counts, rest + counts, null, group)
        error, centre = np.maximum(found.error, 1e-9), 0.0
        if i == 0:
            weight, order = 1 / (error**2 + np.median(error**2)), np.argsort(found.effect)
            centre = found.effect[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)]
        near = np.abs(found.effect - centre) <= np.minimum(FAR * error, MUCH)
        share = counts[near].sum(0) / np.maximum(counts.sum(0), 1)
        held = min(share[group == k].mean() for k in (0, 1))
        if near.sum() < max(FEWEST, len(counts) / 3) or held < HELD:
            return None
        if near.tobytes() in seen:
            return near
        seen.append(near.tobytes())
        same = near
    return same
