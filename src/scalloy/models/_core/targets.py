"""Conditions that a model is asked to predict: known ones by name, others from parts that it knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from scalloy._arguments import category
from scalloy.blocks.composed import with_categories
from scalloy.data.asked_conditions import content_of
from scalloy.models._core.protocols import Conditioned
from scalloy.models._core.structure import rows_of
from scalloy.perturbation.design import Content
from scalloy.vae.base import HasConditions


@dataclass(frozen=True)
class Target:
    """A condition that is asked for, with its content if conditions have structure."""

    name: str
    content: Content | None = None
    seen: bool = True


def target_of(model: Conditioned[HasConditions], to: Any) -> Target:
    """Return the condition that is asked for, known or (if conditions have structure) new.

    Parameters
    ----------
    model
        A model with conditions.
    to
        What the user asks for.
    """
    known = model.reader.conditions
    if (structure := model.reader.structure) is None:
        return Target(category("to", to, known))
    content = content_of(structure, to)
    assert structure.design is not None
    name = structure.design.name_of(content)
    return Target(name, content, seen=name in known)


@contextmanager
def knowing(model: Conditioned[HasConditions], target: Target) -> Iterator[int]:
    """Let the model know the condition that is asked for, and yield its code.

    Parameters
    ----------
    model
        A model with conditions.
    target
        The condition.
    """
    known = model.reader.conditions
    if target.seen:
        yield known.index(target.name)
        return
    structure = model.reader.structure
    assert structure is not None
    assert structure.design is not None
    assert target.content is not None
    assert isinstance(model.module, nn.Module)
    with with_categories(model.module, rows_of(structure.design, [target.content])) as code:
        yield code
