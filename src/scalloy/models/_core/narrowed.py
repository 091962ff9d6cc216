"""Methods without the arguments that a class of models has no use for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any


def narrowed(method: Callable[..., Any], lacks: frozenset[str]) -> Callable[..., Any]:
    """Return a method without the arguments that a model has no use for, in signature and docstring.

    Parameters
    ----------
    method
        Function whose first argument is the model or its class.
    lacks
        Names of arguments.
    """
    signature = inspect.signature(method)
    kept = [p for name, p in signature.parameters.items() if name not in lacks]

    @wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        if refused := sorted(lacks & kwargs.keys()):
            owner = args[0] if isinstance(args[0], type) else type(args[0])
            msg = (
                f"`{refused[0]}` is no argument of `{owner.__name__}.{method.__name__}`: the model has no "
                "use for it. Leave it out, or take a model that has, such as `sa.CGMDVAE`."
            )
            raise TypeError(msg)
        given = dict(narrow.bind(*args, **kwargs).arguments)
        return method(**given, **given.pop("kwargs", {}))

    narrow = signature.replace(parameters=kept)
    called.__signature__ = narrow  # type: ignore[attr-defined]  # which `inspect` reads
    called.__doc__ = inspect.cleandoc(method.__doc__ or "")
    for name in lacks:
        called.__doc__ = re.sub(rf"\n{name}\n(?: {{4,}}.*\n)+", "\n", called.__doc__)
    return called
