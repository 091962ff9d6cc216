"""Registries: things of one kind by their names, to which users add their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from scalloy._arguments import one_of

T = TypeVar("T")


class NotRegisteredError(ValueError):
    """Error for a name that nothing is registered under."""


class Registry(dict[str, T]):
    """Things of one kind by their names.

    Parameters
    ----------
    place
        Where users find the registry, for messages.
    built_in
        Things that ship with the package.
    """

    def __init__(self, place: str, built_in: Mapping[str, T]) -> None:
        super().__init__(built_in)
        self.place, self.built_in = place, frozenset(built_in)

    @property
    def added(self) -> list[str]:
        """Names that users have added."""
        return [name for name in self if name not in self.built_in]

    def add(self, name: str, thing: T, *, taken: Collection[str] = ()) -> None:
        """Add a thing under a name that is free.

        Parameters
        ----------
        name
            Name of the thing.
        thing
            The thing itself.
        taken
            Names outside of the registry that are not free either.
        """
        if not isinstance(name, str) or not name.strip():
            msg = f"`name={name!r}` is not a name. Pass a text, such as 'my_own'."
            raise TypeError(msg)
        if name in self:
            msg = (
                f"{name!r} is registered already. Use another name, or remove what has it: "
                f"`del {self.place}[{name!r}]`."
            )
            raise ValueError(msg)
        if name in taken:
            msg = f"{name!r} is the name of something else. Use another name."
            raise ValueError(msg)
        self[name] = thing

    def one_of(self, argument: str, given: Any, known: Collection[str] | None = None) -> str:
        """Return ``given`` if it is a known name; otherwise raise an error that lists added names first.

        Parameters
        ----------
        argument
            Argument that the name was given for.
        given
            Name to look up.
        known
            All known names, if there are more than those of the registry.
        """
        others = [name for name in (self if known is None else known) if name not in self.added]
        try:
            return one_of(argument, given, [*self.added, *others])
        except ValueError as error:
            raise NotRegisteredError(*error.args) from None


def check_function(
    argument: str,
    function: Any,
    must: Sequence[str] = (),
    *,
    by_name: Collection[str] = (),
    may: Collection[str] = (),
) -> None:
    """Check that a function can be called in the way in which it will be called.

    Parameters
    ----------
    argument
        Argument that the function was given for.
    function
        The function.
    must
        Arguments that it is given in this order.
    by_name
        Arguments that it is given by their names.
    may
        Arguments that it is given by their names if it takes them.
    """
    if not callable(function):
        msg = f"`{argument}` is a {type(function).__name__}. Pass a function, or a class."
        raise TypeError(msg)
    try:
        taken = taken_by(function, dict.fromkeys(may))
        inspect.signature(function).bind(*must, **dict.fromkeys(by_name), **taken)
    except (TypeError, ValueError) as error:
        rules = {"must take ": must, "must take by name ": by_name, "may take by name ": may}
        said = ", ".join(rule + " and ".join(names) for rule, names in rules.items() if names)
        msg = f"`{argument}` does not take the right arguments ({error}). It {said}."
        raise TypeError(msg) from None


def taken_by(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the given arguments that a function takes by their names."""
    known = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in known):
        return dict(given)
    names = {p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {k: v for k, v in given.items() if k in names}
