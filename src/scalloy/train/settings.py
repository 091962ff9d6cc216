"""Settings by their names: which of them a model, its training and the plan take, and of which kind."""

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
    """The class and those that it passes arguments on to."""
    return [c for c in cls.__mro__ if "__init__" in vars(c) and c.__module__.startswith("scalloy")]


def arguments(cls: type) -> set[str]:
    """Of the constructor, and of those that it passes on."""
    names = {k for c in owners(cls) for k in inspect.signature(c.__init__).parameters}  # type: ignore[misc]
    return names - {"self", "adata", "registry", "kwargs"}


def divided(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings of the model, of ``train``, and of the plan."""
    plan, train = ({k: v for k, v in given.items() if k in names} for names in (PLAN, TRAIN))
    return {k: v for k, v in given.items() if k not in PLAN | TRAIN}, train, plan


def check_kinds(cls: type, given: Mapping[str, Any]) -> None:
    """Each value is of a kind that its argument takes; only plain kinds are looked at.

    Parameters
    ----------
    cls
        The user's class.
    given
        Settings of the model, its training and the plan.
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
