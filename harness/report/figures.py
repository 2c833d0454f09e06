"""Figures of a table: its panels in a row under a title, in the formats of papers and slides.

The same numbers make the same bytes: no dates, no random ids, and sizes that do not depend on the
machine.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.build import BuiltTable
from harness.report.panels import Panels, panels, styles

FORMATS = ("png", "svg", "pdf")
LOOK: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "errorbar.capsize": 2.5,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "svg.hashsalt": "normbench",
    "text.parse_math": False,  # labels may hold $
}
_NO_DATE = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
_DPI = 150
_PANEL = (3.0, 2.6)
"""Inches of one panel's axes; what stands around them has fixed room, which needs no measuring."""
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.65, 0.1, 0.85, 0.5
_LETTER = 0.075
"""Inches that a letter of the legend takes."""


def figures(table: BuiltTable, results: Path) -> Iterator[tuple[str, Figure]]:
    """Draw the figures of a table that its numbers allow.

    Args:
        table: with its numbers.
        results: where the runs' journals are.

    Yields:
        ``micro``, ``curves`` or ``cost``, and the figure; none where nothing was measured.
    """
    with mpl.rc_context(LOOK):
        for shown in panels(table, results):
            yield shown.kind, _row(table, shown)


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of one of ``FORMATS``; equal figures are equal bytes."""
    with mpl.rc_context(LOOK), io.BytesIO() as file:
        figure.savefig(file, format=kind, dpi=_DPI, metadata=_NO_DATE[kind])
        return file.getvalue()


def _row(table: BuiltTable, shown: Panels) -> Figure:
    """Return a row of panels, one a name, under a title and above what they show."""
    names, looks = shown.names, styles(table)
    room = len(names) * (_LEFT + _PANEL[0] + _RIGHT)
    legend = 0.55 + _LETTER * max(map(len, looks))
    width, height = room + legend, _BELOW + _PANEL[1] + _ABOVE
    figure = Figure(figsize=(width, height))
    for index, name in enumerate(names):
        left = index * room / len(names) + _LEFT
        place = (left / width, _BELOW / height, _PANEL[0] / width, _PANEL[1] / height)
        shown.draw(figure.add_axes(place), name)
    title = _wrapped(table.definition.title, 13 * (width - _LEFT), max_lines=2)
    figure.text(_LEFT / width, 1 - 0.1 / height, title, fontsize=9, va="top")
    lines = _wrapped(shown.caption, 17 * (width - 0.2))
    figure.text(0.1 / width, 0.06 / height, lines, fontsize=7, color="0.35")
    handles = [Line2D([], [], label=row, **looks[row]) for row in looks]
    corner = (room / width, 1 - _ABOVE / height)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=corner, frameon=False, fontsize=8
    )
    return figure


def _wrapped(text: str, letters: float, max_lines: int | None = None) -> str:
    lines = textwrap.wrap(
        text, int(letters), max_lines=max_lines, placeholder="...", break_on_hyphens=False
    )
    return "\n".join(lines)
