"""Cells at which the groups of a prediction start, if no context is passed.

    a new donor                                     all cells that are passed
    a known one with fewer than ten own cells of    his cells of the group that are passed, if they are ten
    the group under the condition before            or more
    a condition before that was never seen          all cells that are passed
    any other                                       the model's own cells

Donors differ. A group of a donor that starts at the cells of others gets their level of expression.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from anndata import AnnData

from scalloy.data.chunks import some_of_file
from scalloy.models._core.changes import Change, Changes, changes_of
from scalloy.models._core.decoding import How
from scalloy.models._core.groups import donors_of
from scalloy.models._core.protocols import Conditioned
from scalloy.models._core.structure import condition_of_each
from scalloy.models._core.targets import Target
from scalloy.models._core.unknowns import new_donors
from scalloy.perturbation.donors import AT_LEAST, Seen
from scalloy.perturbation.structured import Structured
from scalloy.vae.base import HasConditions


@dataclass
class Starts:
    """Changes of groups that start at the model's own cells, or where it lacks a donor, at passed ones.

    Attributes
    ----------
    own
        Changes that start at the model's own cells.
    passed
        Cells that are predicted, all of them, even if they are predicted in pieces.
    new
        Donors of these that the model does not know.
    """

    own: Changes
    passed: AnnData
    new: frozenset[str]
    _parts: dict[tuple[str, ...], Changes | None] = field(default_factory=dict)

    @property
    def seen(self) -> Seen:
        """Moments of the model's own cells, and what changes are learned from."""
        return self.own.seen

    @property
    def structured(self) -> Structured | None:
        """Changes that conditions with structure have shown, if they have any."""
        return self.own.structured

    def of(self, group: str, donor: str, source: str, target: Target) -> Change | None:
        """Return the change of a group in a donor between two conditions, or ``None`` if it has no cells."""
        return self._at(group, donor, source).of(group, donor, source, target)

    def _at(self, group: str, donor: str, source: str) -> Changes:
        """Return the changes that start where this group does."""
        never_seen = source not in self.own.model.reader.conditions
        if never_seen or (self.new and (not donor or donor in self.new)):
            part = self._part()
        elif not donor or self.own.number(group, donor, source) >= AT_LEAST:
            part = None
        else:
            part = self._part(donor, source)
            part = part if part is not None and part.number(group, donor, source) >= AT_LEAST else None
        return self.own if part is None else part

    def _part(self, *of: str) -> Changes | None:
        """Return changes that start at all passed cells, or at those of a donor and condition, if enough."""
        if of not in self._parts:
            rows = np.arange(self.passed.n_obs)
            if of:
                model, cells = self.own.model, self.passed
                under = condition_of_each(cells, model.reader.set_up_with)
                rows = np.flatnonzero((donors_of(model, cells) == of[0]) & (under == of[1]))
            self._parts[of] = None if of and len(rows) < AT_LEAST else self._from(rows if of else None)
        return self._parts[of]

    def _from(self, rows: np.ndarray | None) -> Changes:
        """Return changes that start at these rows of the passed cells."""
        cells = self.passed
        if rows is not None:
            cells = some_of_file(cells, rows) if cells.isbacked else cells[rows]
        return changes_of(self.own.model, self.own.how, cells)


def started(
    model: Conditioned[HasConditions], how: How, cells: AnnData | None, context: AnnData | None
) -> Changes | Starts:
    """Return an object that finds the changes of groups, each from the cells at which it starts.

    Parameters
    ----------
    model
        A trained model with conditions.
    how
        Settings of the prediction.
    cells
        Cells to predict, all of them; ``None`` is the model's own.
    context
        Cells at which all groups start; ``None`` leaves it to donors.
    """
    own = changes_of(model, how, context)
    if context is not None or cells is None:
        return own
    key = model.reader.set_up_with.get("donor_key")
    return Starts(own, cells, new_donors(cells, key, model.registry))
