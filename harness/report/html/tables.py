"""Tables of the page: the same text as in every other format, with what sorting needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from harness.report.build import BuiltTable
from harness.report.html.charts import Chart, Series, charts, series
from harness.report.layout import Layout, layout
from harness.report.panels import micro_batches, panels

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
_HEADINGS = {
    "micro": "Against the micro-batch",
    "curves": "Learning curves",
    "cost": "Cost against accuracy",
}


@dataclass(frozen=True)
class Picture:
    """Charts under one heading."""

    kind: str
    heading: str
    charts: tuple[Chart, ...]
    caption: str


@dataclass(frozen=True)
class TableView:
    """A table as the page shows it."""

    built: BuiltTable
    text: Layout
    series: tuple[Series, ...]
    pictures: tuple[Picture, ...]

    @property
    def name(self) -> str:
        """Return its name, which is an anchor too."""
        return self.built.definition.name


@dataclass(frozen=True)
class Effect:
    """The picture of a table in short: one chart, and the smallest micro-batch in numbers."""

    view: TableView
    chart: Chart
    column: str
    """The smallest micro-batch, in words."""
    rows: tuple[tuple[Series, str], ...]
    """What each row is worth there, compared with the reference."""

    @property
    def has_intervals(self) -> bool:
        """Return whether seeds suffice for an interval somewhere."""
        return any("[" in text for _, text in self.rows)


def view(built: BuiltTable, results: Path) -> TableView:
    """Draw a table's charts and lay its text out."""
    pictures = []
    for shown in panels(built, results):
        drawn = charts(built, shown, f"{built.definition.name}-{shown.kind}")
        pictures.append(Picture(shown.kind, _HEADINGS[shown.kind], tuple(drawn), shown.caption))
    return TableView(built, layout(built), tuple(series(built)), tuple(pictures))


def effects(views: list[TableView]) -> Iterator[Effect]:
    """Yield the effect of every table over the micro-batch that has a number."""
    for one in views:
        picture = next((picture for picture in one.pictures if picture.kind == "micro"), None)
        if picture is None:
            continue
        places = micro_batches(one.built)
        measured = {cell.column for cell in one.built.cells if cell.summary}
        column = min(measured, key=places.__getitem__)
        yield Effect(one, _again(picture.charts[0]), column, tuple(_worth(one, column)))


def _again(chart: Chart) -> Chart:
    """Return a chart with ids of its own, to be shown a second time."""
    svg = re.sub(r'(\bid="|url\(#|href="#)', r"\1effect-", str(chart.svg))
    return replace(chart, svg=Markup(svg))


def _worth(one: TableView, column: str) -> Iterator[tuple[Series, str]]:
    """Read the comparisons of a column from the table's own text."""
    grid = next((grid for grid in one.text.grids if grid.kind == "differences"), None)
    if grid is None:
        return
    place = grid.header.index(column, grid.num_labels)
    for row in grid.rows:
        found = next((item for item in one.series if item.label == row[0].text), None)
        if found is not None:
            yield found, row[place].text


def sort_key(text: str) -> str:
    """Return what a cell sorts by: its first number, else '' (which comes last)."""
    found = _NUMBER.match(text.strip())
    return found[0].replace(",", "") if found else ""
