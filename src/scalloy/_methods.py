"""Model methods whose code lives in a higher-level subpackage.

Models do not import the subpackages that build on them, such as :mod:`scalloy.reports`, yet
``model.report(...)`` is convenient. So the model class has a placeholder for the method, and the top-level
:mod:`scalloy` registers the function that it stands for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES: dict[str, tuple[str, str]] = {}


def register(method: str, module: str, function: str) -> None:
    """Register the function that serves as the method of that name."""
    _PLACES[method] = module, function


class FromAbove:
    """Placeholder of a method, which is imported when it is accessed; see :func:`register`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        module, function = _PLACES[self.name]
        found = getattr(import_module(module), function)
        return found if instance is None else found.__get__(instance, owner)
