"""Charts of the page: matplotlib's SVG whose colours, type and theme are the page's own.

A panel is drawn once; what it looks like in the light, in the dark, on paper, or with one norm
picked out is style sheet, because every colour is a CSS variable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.build import BuiltTable
from harness.report.figures import LOOK
from harness.report.panels import COLOURS, Panels, look_of, styles

_TEXT, _AXIS, _GRID = "#010203", "#040506", "#070809"
"""Colours that no series has, each to be replaced by a variable of the page."""
_VARIABLES = {
    **{colour.lower(): f"var(--s{i})" for i, colour in enumerate(COLOURS)},
    _TEXT: "var(--ink)",
    _AXIS: "var(--axis)",
    _GRID: "var(--grid)",
}
_PAGE_LOOK = LOOK | {
    "axes.edgecolor": _AXIS,
    "axes.facecolor": "none",
    "axes.labelcolor": _TEXT,
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.alpha": 1.0,
    "grid.color": _GRID,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",  # text stays text: found by a search, set in the page's type
    "text.color": _TEXT,
    "xtick.color": _AXIS,
    "xtick.labelcolor": _TEXT,
    "ytick.color": _AXIS,
    "ytick.labelcolor": _TEXT,
}
_SIZE = (4.3, 3.1)
_PLACE = (0.155, 0.155, 0.83, 0.815)
"""Of the axes in the figure, in shares of it: left, bottom, width, height."""
_ID = re.compile(r' id="([^"]+)"')
_REFERENCE = re.compile(r'(url\(#|href="#)')
_USED = re.compile(r'(?:url\(|href=")#([^)"]+)')
_DIGITS = re.compile(r"(\d+\.\d\d)\d+")
_FONT = re.compile(r"'DejaVu Sans'")
_BEGIN = re.compile(r"<svg [^>]*viewBox=\"([^\"]+)\"[^>]*>")
_META = re.compile(r"<metadata>.*?</metadata>|<style .*?</style>", re.DOTALL)
"""Of its style element only one rule is read, which the page's own style sheet has."""


@dataclass(frozen=True)
class Series:
    """A row of a table as the legend shows it."""

    label: str
    number: int
    """Of its colour variable."""
    look: int
    """Of its line and marker, which the page holds once (``symbol``)."""


@dataclass(frozen=True)
class Chart:
    """One panel."""

    name: str
    svg: Markup


def charts(table: BuiltTable, shown: Panels, prefix: str) -> Iterator[Chart]:
    """Draw panels one by one.

    Args:
        table: whose panels they are.
        shown: the panels.
        prefix: of all ids inside, so that many charts can share a page.
    """
    for index, name in enumerate(shown.names):
        with mpl.rc_context(_PAGE_LOOK), io.StringIO() as file:
            figure = Figure(figsize=_SIZE)
            shown.draw(figure.add_axes(_PLACE), name)
            figure.savefig(file, format="svg", metadata={"Date": None})
            text = file.getvalue()
        label = f"{table.definition.title}. {name}, {_KINDS[shown.kind]}; as numbers in the tables."
        yield Chart(name, _inline(text, f"{prefix}{index}-", label))


_KINDS = {
    "micro": "against the micro-batch",
    "curves": "against the training step",
    "cost": "against the time of a step",
}


def series(table: BuiltTable) -> list[Series]:
    """Return the legend of a table's charts."""
    numbers = {row.label: i for i, row in enumerate(table.definition.rows)}
    return [Series(row, numbers[row] % len(COLOURS), numbers[row]) for row in styles(table)]


def symbol(index: int) -> Markup:
    """Return the piece of line of a row by its place, to be referred to as ``#look-INDEX``."""
    with mpl.rc_context(_PAGE_LOOK), io.StringIO() as file:
        figure = Figure(figsize=(0.5, 0.16))
        figure.add_artist(Line2D([0.02, 0.5, 0.98], [0.5] * 3, markevery=[1], **look_of(index)))
        figure.savefig(file, format="svg", metadata={"Date": None})
        box, body = _body(file.getvalue(), f"look-{index}-")
    opening = Markup('<symbol id="look-{}" viewBox="{}">').format(index, box)
    return opening + body + Markup("</symbol>")


def _inline(text: str, prefix: str, label: str) -> Markup:
    """Turn a file of matplotlib's into an element of the page."""
    box, body = _body(text, prefix)
    opening = Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">')
    return opening.format(box, label) + body + Markup("</svg>")


def _body(text: str, prefix: str) -> tuple[str, Markup]:
    """Return the view box of a file of matplotlib's, and what is inside, in the page's colours."""
    found = _BEGIN.search(text)
    assert found is not None  # matplotlib's
    body = _META.sub("", text[found.end() : text.rindex("</svg>")])
    used = set(_USED.findall(body))
    body = _ID.sub(lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", body)
    body = _REFERENCE.sub(rf"\1{prefix}", body)
    body = _DIGITS.sub(r"\1", body)
    body = _FONT.sub("var(--sans)", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    # All text in it went through matplotlib's writer, which escapes what it writes.
    return found[1], Markup(body)
