"""The page: plain HTML and CSS in one file. Every text is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MplFigure

DPI = 180  # of what is drawn as points
SMALL = 4.0  # inches up to which three figures have room side by side
# names of the user are no formulas; the same page has the same bytes
SVG: dict[str, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "scalloy",
    "font.size": 9.0,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page: see :func:`picture`.

    Parameters
    ----------
    svg
        The figure.
    inches
        Its width.
    alt
        What it shows, for those who cannot see it.
    caption
        Below it.
    wide
        Whether it has a row for itself.
    """

    svg: bytes
    inches: float
    alt: str
    caption: str
    wide: bool

    def html(self) -> str:
        source = base64.b64encode(self.svg).decode()
        return (
            f'<figure{" class=wide" if self.wide else ""}><img src="data:image/svg+xml;base64,{source}" '
            f'width="{round(96 * self.inches)}" alt="{escape(self.alt)}">'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )


def picture(figure: MplFigure, alt: str, caption: str, *, wide: bool = False) -> Picture:
    """A figure of matplotlib, which is closed."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    settings = {"dpi": DPI, "bbox_inches": "tight", "facecolor": "w", "metadata": {"Date": None}}
    with mpl.rc_context(SVG):
        figure.savefig(buffer, format="svg", **settings)
    plt.close(figure)
    return Picture(buffer.getvalue(), figure.get_size_inches()[0], alt, caption, wide)


@dataclass(frozen=True)
class Table:
    """A table with a caption; numbers are rounded to three digits.

    Parameters
    ----------
    frame
        Its index is the first column.
    caption
        What it holds.
    folded
        Whether it is shown when asked for only.
    """

    frame: pd.DataFrame
    caption: str
    folded: bool = False

    def html(self) -> str:
        index = self.frame.index
        numbers = [t.kind in "iuf" for t in self.frame.dtypes]
        head = zip([index.name or "", *self.frame.columns], [False, *numbers], strict=True)
        cells = "".join(f'<th scope="col"{" class=n" if n else ""}>{shown(name)}</th>' for name, n in head)
        rows = "".join(
            f'<tr><th scope="row">{shown(name)}</th>{"".join(_cell(v) for v in values)}</tr>'
            for name, values in zip(index, self.frame.itertuples(index=False), strict=True)
        )
        table = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}">'
            f"<table><caption>{escape(self.caption)}</caption><thead><tr>{cells}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
        if not self.folded:
            return table
        return f"<details><summary>{escape(self.caption)}</summary>{table}</details>"


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Parameters
    ----------
    text
        What it says.
    note
        Whether it is a remark that must not be overlooked.
    """

    text: str
    note: bool = False

    def html(self) -> str:
        return f"<p{' class=note' if self.note else ''}>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Parameters
    ----------
    title
        Its heading.
    parts
        Paragraphs, tables and pictures in their order.
    """

    title: str
    parts: list[Text | Table | Picture] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Of links to it."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())

    def html(self) -> str:
        body, row, small = [], list[str](), " small"
        for part in [*self.parts, None]:
            if isinstance(part, Picture) and not part.wide:
                small = small if part.inches <= SMALL else ""
                row.append(part.html())
                continue
            if row:
                body.append(f'<div class="row{small}">{"".join(row)}</div>')
                row, small = [], " small"
            if part is not None:
                body.append(part.html())
        head = f'<section aria-labelledby="{self.anchor}"><h2 id="{self.anchor}">{escape(self.title)}</h2>'
        return head + "".join(body) + "</section>"


def shown(value: Any) -> str:
    """A value as text that is safe in HTML."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return escape(str(value))


def _cell(value: Any) -> str:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    return f"<td{' class=n' if number else ''}>{shown(value)}</td>"


def page(
    title: str, about: str, facts: Sequence[tuple[str, Any]], sections: Iterable[Section], foot: str
) -> str:
    """The whole page.

    Parameters
    ----------
    title, about
        Heading, and a line below it.
    facts
        Names and values at a glance.
    sections
        Of the page.
    foot
        The last line.
    """
    sections = list(sections)
    style = (files("scalloy.report") / "style.css").read_text(encoding="utf-8")
    cards = "".join(f"<div><dt>{escape(k)}</dt><dd>{shown(v)}</dd></div>" for k, v in facts)
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(s.html() for s in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head><body>"
        '<a class="skip" href="#content">Skip to the content</a>'
        f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p><dl>{cards}</dl></header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
        f'<main id="content" tabindex="-1">{body}</main>'
        f"<footer><p>{escape(foot)}</p></footer></body></html>\n"
    )
