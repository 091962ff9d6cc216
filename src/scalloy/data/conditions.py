"""Conditions with structure, as a user names them: which columns hold perturbations, doses and times.

:class:`Conditions` is what a user passes to ``setup_anndata``. It reads the columns of the cells into a
:class:`~scalloy.perturbation.design.Design`. What is asked for is read in
:mod:`scalloy.data.asked_conditions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy._arguments import few
from scalloy.data import checks
from scalloy.data.descriptors import as_described, check_described, described_parts
from scalloy.perturbation.design import Content, Design, design_of

MISSING = ("nan", "None", "<NA>", "")


@dataclass(frozen=True, eq=False)
class Conditions:
    """Columns that say under which condition each cell is: perturbations, doses, times.

    Pass it as ``conditions=`` to ``setup_anndata`` of a model with conditions, in place of ``condition_key``.
    Then :meth:`~scalloy.CGMDVAE.transfer` predicts doses, times and combinations that were never seen, and
    perturbations that were not seen but described.

    Parameters
    ----------
    factors
        Column of ``.obs`` with the name of the perturbation of each cell; several columns if several act
        together, such as two drugs, or a genotype and a drug; or an entry of ``.obsm`` with the amount of
        each perturbation (a DataFrame, or an array whose columns are then called 0, 1, ...).
    control
        Value that stands for no perturbation, or several such values.
    dose
        Numeric column of ``.obs`` with the dose; 0 is the control. For several factors, one for each. In a
        combination, one number is the dose of each part, and text such as ``"0.5+1"`` has one dose for each.
    time
        Numeric column of ``.obs`` with the time.
    separator
        Text between the parts of a combination in the names of ``factors``; ``None`` if there are none.
    descriptors
        Numbers that describe each perturbation, such as a fingerprint of a drug or an embedding of a gene: a
        DataFrame with one row for each, or its key in ``.uns``. Rows of perturbations that were not seen are
        kept, so that these can be predicted.
    log_dose
        Whether effects are taken to follow the logarithm of the dose; otherwise the dose itself.
    key_added
        Column of ``.obs`` that is written, with one name for each condition.

    Examples
    --------
    >>> sa.Conditions("drug", control="DMSO", dose="dose").factors
    ('drug',)
    """

    factors: str | Sequence[str]
    control: str | Sequence[str] = "control"
    dose: str | Sequence[str] | None = None
    time: str | None = None
    separator: str | None = "+"
    descriptors: pd.DataFrame | str | None = None
    log_dose: bool = True
    key_added: str = "conditions"
    design: Design | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("factors", "control", "dose"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _names(name, value))
        for name, lacks in {"factors": "column with perturbations", "control": "value without one"}.items():
            if not getattr(self, name):
                msg = f"`{name}=()` is empty. Pass the name of the {lacks}."
                raise ValueError(msg)
        for name in ("time", "separator", "key_added"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and not (value is None and name != "key_added"):
                msg = f"`{name}={value!r}` is a {type(value).__name__}. Expected text that is not empty."
                raise TypeError(msg)
        if self.dose is not None and len(self.dose) not in (1, len(self.factors)):
            msg = (
                f"`dose` names {len(self.dose)} columns, and `factors` {len(self.factors)}. Pass one column "
                "of doses for each factor, in the same order, or one for all."
            )
            raise ValueError(msg)
        if self.key_added in (*self.factors, *(self.dose or ()), self.time):
            msg = (
                f"`key_added={self.key_added!r}` is one of the columns that are read, and it would be "
                "overwritten. Pass another name."
            )
            raise ValueError(msg)

    # cells --------------------------------------------------------------------------------------

    def of_cells(self, adata: AnnData) -> tuple[np.ndarray, list[Content]]:
        """Read the condition of each cell: its position in a list of contents, and this list.

        Parameters
        ----------
        adata
            Cells with the columns that are named here.

        Examples
        --------
        >>> codes, contents = sa.Conditions("condition").of_cells(adata)
        >>> sorted(dict(content.parts) for content in contents if content.parts)
        [{'treated_1': 1.0}]
        """
        if len(self.factors) == 1 and self.factors[0] not in adata.obs and self.factors[0] in adata.obsm:
            codes, found = self._from_obsm(adata)
        else:
            codes, found = self._from_obs(adata)
        position = {content: i for i, content in enumerate(dict.fromkeys(found))}
        return np.array([position[content] for content in found])[codes], list(position)

    def _from_obsm(self, adata: AnnData) -> tuple[np.ndarray, list[Content]]:
        """Read amounts of perturbations from an entry of ``.obsm``."""
        key = self.factors[0]
        if self.dose is not None:
            msg = f"`.obsm[{key!r}]` holds amounts, so `dose={self.dose[0]!r}` has no use. Leave it out."
            raise ValueError(msg)
        table = adata.obsm[key]
        table = table.toarray() if sp.issparse(table) else table
        table = table if isinstance(table, pd.DataFrame) else pd.DataFrame(np.asarray(table))
        names = [str(name) for name in table.columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = f"`.obsm[{key!r}]` has several columns for {few(map(repr, twice))}. Keep one of each."
            raise ValueError(msg)
        try:
            amounts = table.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            msg = f"`.obsm[{key!r}]` holds something that is no number. Pass the amount of each perturbation."
            raise TypeError(msg) from None
        if not (np.isfinite(amounts) & (amounts >= 0)).all():
            msg = f"`.obsm[{key!r}]` has amounts below zero or not finite. An amount of 0 stands for none."
            raise ValueError(msg)
        kept = [i for i, name in enumerate(names) if name not in self.control]
        names, times = [names[i] for i in kept], self._times(adata.obs)
        rows, codes = np.unique(np.column_stack([amounts[:, kept], times]), axis=0, return_inverse=True)
        found = [Content.of(dict(zip(names, row[:-1], strict=True)), row[-1]) for row in rows]
        return codes.ravel(), found

    def _from_obs(self, adata: AnnData) -> tuple[np.ndarray, list[Content]]:
        """Read names, doses and times of perturbations from columns of ``.obs``."""
        obs = adata.obs
        columns = [checks.complete_column(obs, "factors", key).astype(str).to_numpy() for key in self.factors]
        columns += [self._doses(obs, key).to_numpy() for key in self.dose or ()]
        table = pd.DataFrame(dict(enumerate([*columns, self._times(obs)])))
        codes = table.groupby(list(table.columns), sort=False, dropna=False).ngroup().to_numpy()
        n, found, odd = len(self.factors), list[Content](), list[str]()
        for row in table.drop_duplicates().itertuples(index=False, name=None):
            parts, contradictions = self.parts(row[:n], row[n:-1])
            odd += contradictions
            found.append(Content.of(parts, row[-1]))
        if odd:
            msg = (
                f"`dose` and `factors` contradict each other: {few(dict.fromkeys(odd))}. The control has no "
                "dose (0 or missing), every perturbation has a name and a dose, and no dose is below zero."
            )
            raise ValueError(msg)
        return codes, found

    def parts(self, names: Sequence[str], doses: Sequence[Any]) -> tuple[dict[str, float], list[str]]:
        """Return the amount of each part, and descriptions of doses that cannot be.

        Parameters
        ----------
        names, doses
            Values of the columns of factors and doses.

        Examples
        --------
        >>> sa.Conditions("drug", dose="dose").parts(["A+B"], ["0.5+1"])
        ({'A': 0.5, 'B': 1.0}, [])
        """
        parts: dict[str, float] = {}
        odd = []
        for i, name in enumerate(names):
            dose = None if not doses else doses[i if len(doses) > 1 else 0]
            split = [name] if self.separator is None else name.split(self.separator)
            split = [part.strip() for part in split]
            each = self._each_dose(dose, len(split))
            if len(doses) < len(names) and set(split) <= set(self.control):
                continue  # the doses are those of the other factors
            if each is None:
                odd.append(f"{name!r} has {len(split)} parts and the doses {dose!r}")
                continue
            if "" in split and "" not in self.control:
                odd.append(f"{name!r} has a part without a name")
                continue
            for part, amount in zip(split, each, strict=True):
                if part in self.control:
                    if len(split) == 1 and len(doses) == len(names) and amount not in (None, 0):
                        odd.append(f"{part!r} has dose {amount:.6g}")
                elif amount is None or not np.isfinite(amount) or amount < 0:
                    odd.append(f"{part!r} has dose {amount}")
                else:
                    parts[part] = parts.get(part, 0.0) + amount
        return parts, odd

    def _each_dose(self, dose: Any, n: int) -> list[float | None] | None:
        """Return the dose of each of ``n`` parts; ``None`` if there are not as many doses."""
        if self.dose is None:
            return [1.0] * n
        if isinstance(dose, str):
            split = self._split_doses(dose)
            if len(split) not in (1, n) or not all(_is_number(v) for v in split if v not in MISSING):
                return None
            each = [float(v) if v not in MISSING else None for v in split]
            return each * n if len(each) == 1 else each
        return [None if not _is_number(dose) or pd.isna(dose) else float(dose)] * n

    def _doses(self, obs: pd.DataFrame, key: str) -> pd.Series:
        """Return a column of doses: numbers, or text with one number for each part of a combination."""
        column = checks.find_column(obs, "dose", key)
        column = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            return column.astype(float)
        text = pd.Series([str(value) for value in column], index=column.index, dtype=object)
        split = {v for value in text.unique() for v in self._split_doses(value)}.difference(MISSING)
        if odd := sorted(v for v in split if not _is_number(v)):
            msg = (
                f"`dose={key!r}` holds text that is no number: {few(map(repr, odd))}. Pass a "
                "column of numbers; one with units can be converted first."
            )
            raise TypeError(msg)
        return text

    def _split_doses(self, text: str) -> list[str]:
        """Return the doses in a text, each still as text; the sign of an exponent separates none."""
        separator = re.escape(self.separator or "+")
        return [v.strip() for v in re.split(rf"(?<![0-9.][eE]){separator}", text)]

    def _times(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the time of each cell, 0 if there are no times."""
        if self.time is None:
            return np.zeros(len(obs))
        column = checks.complete_column(obs, "time", self.time)
        checks.check_numbers(column, "time", self.time)
        times = column.to_numpy(dtype=np.float64)
        if (times < 0).any():
            msg = f"`time={self.time!r}` has times below zero. Count them from the earliest one."
            raise ValueError(msg)
        return times

    # design -------------------------------------------------------------------------------------

    def fitted(self, adata: AnnData) -> tuple[Conditions, pd.Categorical]:
        """Return the same with the design that was found in the cells, and the condition of each cell.

        If this has a design, as that of a trained model has, parts of it keep their scales.

        Parameters
        ----------
        adata
            Cells with the columns that are named here.

        Examples
        --------
        >>> known, names = sa.Conditions("condition").fitted(adata)
        >>> known.design.names
        ['control', 'treated_1']
        """
        codes, own = self.of_cells(adata)
        contents, known = own, self.design
        if known is None and not any(not content.parts for content in contents):
            values = sorted({part for content in contents for part, _ in content.parts})
            msg = (
                f"No cell is under `control={self.control[0]!r}`. `factors` holds {few(map(repr, values))}. "
                "Pass the value of cells without a perturbation."
            )
            raise ValueError(msg)
        if known is None:
            parts = {part for content in contents for part, _ in content.parts}
            described = described_parts(self.descriptors, adata, parts, self.control)
        else:
            described = as_described(known)
            contents = list(dict.fromkeys([*known.contents, *own]))
            check_described(described, contents)
        design = design_of(
            contents,
            described=described,
            known=known,
            control=self.control[0],
            separator=self.separator or "+",
            dosed=self._has_doses(contents) if known is None else known.dosed,
            timed=self.time is not None,
            log_dose=self.log_dose,
        )
        names = design.names
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            msg = f"Different conditions would have the same name: {few(map(repr, twice))}. Rename the parts."
            raise ValueError(msg)
        made = Conditions(**{f.name: getattr(self, f.name) for f in fields(self)} | {"design": design})
        position = dict(zip(contents, names, strict=True))
        return made, pd.Categorical(np.array([position[content] for content in own], dtype=object)[codes])

    def _has_doses(self, contents: Iterable[Content]) -> bool:
        """Return whether amounts are doses, as different ones in ``.obsm`` are, too."""
        return self.dose is not None or any(v != 1.0 for content in contents for _, v in content.parts)

    # plain --------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """Return everything but the descriptors as numbers, text and arrays; the design has the latter.

        Examples
        --------
        >>> known, names = sa.Conditions("condition").fitted(adata)
        >>> known.plain()["factors"]
        ['condition']
        """
        assert self.design is not None
        names = ("factors", "control", "dose", "time", "separator", "log_dose", "key_added")
        out = {name: getattr(self, name) for name in names}
        out = {name: list(v) if isinstance(v, tuple) else v for name, v in out.items()}
        return {**out, "design": self.design.plain()}

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Conditions:
        """Make the same again from what :meth:`plain` has returned.

        Examples
        --------
        >>> known, names = sa.Conditions("condition").fitted(adata)
        >>> sa.Conditions.from_plain(known.plain()).design.names == known.design.names
        True
        """
        known = dict(given)
        return cls(design=Design.from_plain(known.pop("design")), **known)


def _is_number(given: Any) -> bool:
    """Return whether something is a number, or text of one."""
    try:
        float(given)
    except (TypeError, ValueError):
        return False
    return True


def _names(argument: str, given: Any) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    single = isinstance(given, str | Mapping) or not isinstance(given, Iterable)
    names = (given,) if single else tuple(given)
    if odd := [name for name in names if not isinstance(name, str)]:
        msg = f"`{argument}` has {odd[0]!r}, a {type(odd[0]).__name__}. Expected names, as text."
        raise TypeError(msg)
    if len(set(names)) < len(names) or ("" in names and argument != "control"):
        msg = f"`{argument}={names!r}` has a name twice, or one without a letter. Pass each column once."
        raise ValueError(msg)
    return names
