"""Elements of the report page in plain HTML and CSS; all text is escaped here and nowhere else."""

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

DPI = 180  # resolution of rasterised points
SMALL = 4.0  # width in inches up to which three figures fit side by side
# names given by the user are not parsed as formulas, and the same report gives the same bytes
SVG: dict[str, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "scalloy",
    "font.size": 9.0,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Picture:
    """Figure in the page, made by :func:`picture`.

    Parameters
    ----------
    svg
        Figure as SVG.
    inches
        Width of the figure in inches.
    alt
        Description for readers who cannot see the figure.
    caption
        Caption below the figure.
    wide
        Whether the figure has a row to itself.
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
    """Turn a figure of matplotlib into a picture, and close it."""
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
    """Table with a caption; numbers are rounded to four significant digits.

    Parameters
    ----------
    frame
        Values; the index becomes the first column.
    caption
        Caption of the table.
    folded
        Whether the table is hidden until the reader opens it.
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
    """Paragraph of text.

    Parameters
    ----------
    text
        Text of the paragraph.
    note
        Whether to highlight it as a remark that must not be overlooked.
    """

    text: str
    note: bool = False

    def html(self) -> str:
        return f"<p{' class=note' if self.note else ''}>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Section:
    """Section of the page.

    Parameters
    ----------
    title
        Heading of the section.
    parts
        Paragraphs, tables and pictures in order.
    """

    title: str
    parts: list[Text | Table | Picture] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Identifier for links to the section."""
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
    """Return a value as text that is safe in HTML."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return escape(str(value))


def _cell(value: Any) -> str:
    """Return a cell of a table in HTML."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    return f"<td{' class=n' if number else ''}>{shown(value)}</td>"


def page(
    title: str, about: str, facts: Sequence[tuple[str, Any]], sections: Iterable[Section], foot: str
) -> str:
    """Return the whole page as HTML.

    Parameters
    ----------
    title, about
        Heading of the page, and the line below it.
    facts
        Names and values to show at a glance.
    sections
        Sections of the page in order.
    foot
        Last line of the page.
    """
    sections = list(sections)
    style = (files("scalloy.reports") / "style.css").read_text(encoding="utf-8")
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
