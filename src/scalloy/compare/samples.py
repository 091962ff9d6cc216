"""Samples of a study, which are the cells of a donor in a group, and their design matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.abc import CSRDataset

from scalloy._arguments import few
from scalloy.compare import designs
from scalloy.compare.count_models import outside
from scalloy.compare.covariates import covariates_of
from scalloy.compare.designs import Design

Paired = Literal["auto"] | bool
PAIRS = "`paired=True` needs two donors in both groups or more, but {} are. Pass 'auto'."
TIED = 1e-6  # difference of two labelings, apart from the null, up to which their statistics are the same
AT_ONCE = 10_000  # cells that are read from a file at a time
SAME = 1e-8  # share of a column's variation that is left outside of others at which it adds nothing


@dataclass(frozen=True)
class Samples:
    """Samples of two groups.

    Parameters
    ----------
    of
        Sample of each cell; -1 for a cell that is left out.
    donor, group
        Donor of each sample, and its group, 0 or 1.
    design
        How labels may be permuted; ``None`` without replicates.
    note
        Why there can be no p-value; empty if there can.
    covariates
        Columns of the design matrix that hold the covariates, ``(samples, columns)``.
    blocks
        Code of the categorical covariates of each sample; ``None`` if a covariate is a number.
    """

    of: np.ndarray
    donor: np.ndarray
    group: np.ndarray
    design: Design | None
    note: str
    covariates: np.ndarray
    blocks: np.ndarray | None

    @property
    def paired(self) -> bool:
        """Whether donors are in both groups."""
        return self.design is not None and self.design.kind == "within donors"

    @property
    def kind(self) -> str:
        """Name of the design."""
        return "no replicates" if self.design is None else self.design.kind

    def sums(self, x: object) -> np.ndarray:
        """Return the sums of rows of a matrix over the cells of each sample, ``(columns, samples)``."""
        used = np.flatnonzero(self.of >= 0)
        one = sp.csr_matrix((np.ones(len(used)), (self.of[used], used)), (len(self.group), len(self.of)))
        if isinstance(x, CSRDataset):  # in a file, of which some cells are read at a time
            parts = [slice(i, i + AT_ONCE) for i in range(0, len(self.of), AT_ONCE)]
            found = sum(one[:, part] @ x[part] for part in parts)
        else:
            found = one @ x
        return np.asarray(found.todense() if sp.issparse(found) else found, dtype=float).T

    def null(self) -> np.ndarray:
        """Return the design matrix without the group: a level of each donor or of all, and covariates."""
        base = pd.get_dummies(self.donor).to_numpy(float) if self.paired else np.ones((len(self.group), 1))
        return independent(base, self.covariates)

    def labelings(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return the real labeling and permuted ones, ``(samples, labelings)``, and the smallest p-value.

        Parameters
        ----------
        n
            Maximum number of permutations.
        rng
            Generator of the permutations.
        """
        if self.design is None or self.blocks is None:
            msg = (
                "`test='permutation'` permutes groups among donors of equal covariates, so that covariates "
                "must be categories. Use `test='model'`, or divide the numbers into a few classes."
            )
            raise ValueError(msg)
        block = np.unique(np.column_stack([self.design.block, self.blocks]), axis=0, return_inverse=True)[1]
        design = replace(self.design, block=block.ravel())
        labels, _ = design.labelings(n, rng)
        own = outside(self.null(), labels)
        same, opposite = (np.abs(own - sign * own[:, :1]).max(0) < TIED for sign in (1, -1))
        return labels, float((same | opposite).mean())  # these tie whatever the counts are


def independent(base: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Append the columns of ``more`` that are no combination of the columns before them."""
    for column in more.T:
        if not within(base, column):
            base = np.column_stack([base, column])
    return base


def within(base: np.ndarray, column: np.ndarray) -> bool:
    """Return whether a column is a combination of the columns of ``base``."""
    left = outside(base, column)
    return float(left @ left) <= SAME * max(float(column @ column), 1e-300)


def samples_of(
    obs: pd.DataFrame,
    group: np.ndarray,
    donor: np.ndarray,
    *,
    covariates: Sequence[str] = (),
    paired: Paired = "auto",
    at_least: int = 10,
    level: np.ndarray | None = None,
) -> Samples:
    """Divide cells into samples.

    Parameters
    ----------
    obs
        Table of the cells.
    group
        Group of each cell, 0 or 1; -1 for cells of others.
    donor
        Donor of each cell.
    covariates
        Columns of ``obs`` that are the same for all cells of a sample.
    paired
        Whether donors are in both groups; ``False`` refuses those that are.
    at_least
        Minimum number of cells of a sample.
    level
        Level of a factor that divides samples further.
    """
    cells = np.flatnonzero(group >= 0)
    both = sorted(set(donor[group == 0]) & set(donor[group == 1]))
    if paired is False and both:
        msg = (
            f"`paired=False`, but {len(both)} donor(s) have cells in both groups: {few(both)}. Pass "
            "`paired=True` if they were meant to, or correct `donor_key`."
        )
        raise ValueError(msg)
    design, note = None, ""
    try:
        if paired is True and len(both) < 2:
            raise ValueError(PAIRS.format(len(both)))
        design = designs.design(group[cells], donor[cells], "auto", at_least=at_least)
        if paired is True and design.kind != "within donors":
            kept = np.isin(donor[cells], both)
            design = designs.design(group[cells][kept], donor[cells][kept], "auto", at_least=at_least)
            cells = cells[kept]
    except ValueError as error:
        design, note = None, str(error).split(". ")[0]
    of = np.full(len(group), -1)
    used = cells if design is None else cells[design.unit >= 0]
    keys = pd.DataFrame({"donor": donor[used], "group": group[used]})
    if level is not None:
        keys["level"] = level[used]
    code, firsts, sizes = _codes(keys)
    large = sizes >= (at_least if design is None or level is not None else 1)
    position = np.where(large, np.cumsum(large) - 1, -1)
    of[used] = position[code]
    firsts = used[firsts[large]]
    columns, blocks = _columns(covariates_of(obs, covariates, of, donor[firsts], "sample of a donor"))
    return Samples(
        of, donor[firsts], group[firsts], _ordered(design, used, firsts, cells), note, columns, blocks
    )


def check_columns(group: np.ndarray, donor: np.ndarray, paired: Paired, **keys: str | None) -> None:
    """Check that columns have a role each, and that ``paired`` can be what it is.

    Parameters
    ----------
    group, donor
        Group and donor of each cell.
    paired
        Whether donors are in both groups.
    **keys
        Column of ``.obs`` of each role; ``None`` for a role without one.
    """
    roles: dict[str, str] = {}
    for role, key in keys.items():
        if key is not None and roles.setdefault(key, role) != role:
            msg = (
                f"`{roles[key]}` and `{role}` are both {key!r}. Pass a column of its own for each: the "
                "groups that are compared, their donors, and the populations."
            )
            raise ValueError(msg)
    if not isinstance(paired, bool) and not (isinstance(paired, str) and paired == "auto"):
        msg = f"`paired={paired!r}` is not known. Pass True, False or 'auto'."
        raise ValueError(msg)
    if paired is True:
        groups = pd.Series(group).groupby(donor).nunique()
        if (n := int((groups > 1).sum())) < 2:
            raise ValueError(PAIRS.format(n))


def _codes(keys: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a code of each row, the first row of each code, and the number of its rows."""
    code = keys.groupby(list(keys), sort=True).ngroup().to_numpy()
    _, firsts, sizes = np.unique(code, return_index=True, return_counts=True)
    return code, firsts, sizes


def _ordered(design: Design | None, used: np.ndarray, firsts: np.ndarray, cells: np.ndarray) -> Design | None:
    """Bring the units of a design into the order of the samples."""
    if design is None:
        return None
    unit = design.unit[np.searchsorted(cells, firsts)]
    return replace(design, group=design.group[unit], block=design.block[unit], apart=design.apart[unit])


def _columns(values: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the columns of the design matrix of covariates, and a code of those that are categories."""
    columns, codes = [np.empty((len(values), 0))], [np.zeros(len(values), dtype=int)]
    numbers = values.select_dtypes("number")
    for name, own in values.items():
        if name in numbers:
            columns.append(((own - own.mean()) / max(own.std(ddof=0), 1e-12)).to_numpy()[:, None])
        else:
            columns.append(pd.get_dummies(own).to_numpy(float))
            codes.append(np.unique(own.astype(str), return_inverse=True)[1])
    blocks = np.unique(np.column_stack(codes), axis=0, return_inverse=True)[1].ravel()
    return np.column_stack(columns), None if len(numbers.columns) else blocks


def check_separable(null: np.ndarray, group: np.ndarray, covariates: Sequence[str]) -> str:
    """Check that covariates do not tell the groups apart; return a note if no degrees of freedom are left."""
    if within(null, group.astype(float)):
        msg = (
            f"`covariates` ({few(covariates)}) tell the groups apart by themselves, so that no effect can be "
            "ascribed to either. Leave out the one that goes with the group."
        )
        raise ValueError(msg)
    if len(group) - null.shape[1] - 1 < 1:
        return "As many columns in the design as samples, so nothing is left to estimate the variance from"
    return ""
