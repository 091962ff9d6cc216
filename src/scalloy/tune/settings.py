"""Names and types of the settings that a model, its ``train`` and its training plan take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from scalloy.train.plan import TermsPlan

PLAN = set(inspect.signature(TermsPlan).parameters) - {"module"}
TRAIN = {"max_epochs", "batch_size", "early_stopping", "n_samples_per_label"}
KINDS: dict[Any, Any] = {int: int, float: Real, bool: bool, str: str, NoneType: NoneType}


def owners(cls: type) -> list[type]:
    """List the class and its bases in this package, as far as they have a constructor of their own."""
    return [c for c in cls.__mro__ if "__init__" in vars(c) and c.__module__.startswith("scalloy")]


def arguments(cls: type) -> set[str]:
    """Return the names of all arguments of a model's constructor, with those it passes on to its bases."""
    names = {k for c in owners(cls) for k in inspect.signature(c.__init__).parameters}  # type: ignore[misc]
    return names - {"self", "adata", "registry", "kwargs"}


def divided(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Divide settings into those of the model, of ``train``, and of the plan."""
    plan, train = ({k: v for k, v in given.items() if k in names} for names in (PLAN, TRAIN))
    return {k: v for k, v in given.items() if k not in PLAN | TRAIN}, train, plan


def check_kinds(cls: type, given: Mapping[str, Any]) -> None:
    """Raise an error if a value has not the type of its argument.

    Only arguments that are annotated with plain types (numbers, booleans, text, ``None``) are checked.

    Parameters
    ----------
    cls
        Class of the model.
    given
        Settings of the model, of its ``train`` and of the plan.
    """
    hints: dict[str, Any] = {"max_epochs": int | None, "batch_size": int | None, "early_stopping": bool}
    for owner in (*reversed(owners(cls)), TermsPlan):
        hints |= get_type_hints(owner.__init__)  # type: ignore[misc]
    for name, value in given.items():
        hint = hints.get(name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not all(k in KINDS for k in kinds):
            continue
        fits = any(isinstance(value, KINDS[k]) for k in kinds)
        if not fits or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("none" if k is NoneType else k.__name__ for k in kinds)
            msg = f"`{name}={value!r}` is of kind {type(value).__name__}. Expected {expected}."
            raise TypeError(msg)
