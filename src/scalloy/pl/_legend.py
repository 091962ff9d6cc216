"""Legends that show every name as it is, even those with a leading underscore, which matplotlib omits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend


def legend(ax: Axes, handles: Sequence[Any], names: Sequence[Any], **style: Any) -> Legend:
    """Draw a legend that shows the names as they are."""
    drawn = ax.legend(list(handles), [str(i) for i in range(len(names))], frameon=False, **style)
    texts = drawn.get_texts()
    for text, name in zip(reversed(texts) if style.get("reverse") else texts, names, strict=True):
        text.set_parse_math(False)
        text.set_text(str(name))
    return drawn
