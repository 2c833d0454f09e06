"""Figures of a table: metric against micro-batch, learning curves, and cost against accuracy.

The same numbers make the same bytes: no dates, no random ids, and sizes that do not depend on the
machine. Colours can be told apart by colour-blind readers, and so can markers and line styles.
"""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, StrMethodFormatter

from harness.record import RunDir
from harness.report.build import BuiltCell, BuiltTable
from harness.report.curves import Band, Curve, evaluation_band, loss_band, read_curve
from harness.report.layout import unit_of

FORMATS = ("png", "svg", "pdf")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito (2008), Color Universal Design; its yellow is too light for lines."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_LOOK: Any = {
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
    measured = [cell for cell in table.cells if cell.summary]
    if not measured:
        return
    with mpl.rc_context(_LOOK):
        if table.definition.over_micro:
            yield "micro", _micro(table)
        if (drawn := _curves(table, results)) is not None:
            yield "curves", drawn
        if any(cell.cost for cell in measured):
            yield "cost", _cost(table)


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of one of ``FORMATS``; equal figures are equal bytes."""
    with mpl.rc_context(_LOOK), io.BytesIO() as file:
        figure.savefig(file, format=kind, dpi=_DPI, metadata=_NO_DATE[kind])
        return file.getvalue()


_Style = dict[str, Any]


def _styles(table: BuiltTable) -> dict[str, _Style]:
    """Give each measured row a look; which it is does not depend on what else was measured."""
    measured = {cell.row for cell in table.cells if cell.summary}
    return {
        row.label: {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _LINES[i % len(_LINES)],
        }
        for i, row in enumerate(table.definition.rows)
        if row.label in measured
    }


def _panels(
    table: BuiltTable, names: Sequence[str], draw: Callable[[Axes, str], None], caption: str
) -> Figure:
    """Return a row of panels, one a name, under a title and above what they show."""
    panels = len(names) * (_LEFT + _PANEL[0] + _RIGHT)
    styles = _styles(table)
    legend = 0.55 + _LETTER * max(map(len, styles))
    width, height = panels + legend, _BELOW + _PANEL[1] + _ABOVE
    figure = Figure(figsize=(width, height))
    for index, name in enumerate(names):
        left = index * panels / len(names) + _LEFT
        place = (left / width, _BELOW / height, _PANEL[0] / width, _PANEL[1] / height)
        draw(figure.add_axes(place), name)
    title = _wrapped(table.definition.title, 13 * (width - _LEFT), max_lines=2)
    figure.text(_LEFT / width, 1 - 0.1 / height, title, fontsize=9, va="top")
    lines = _wrapped(caption, 17 * (width - 0.2))
    figure.text(0.1 / width, 0.06 / height, lines, fontsize=7, color="0.35")
    handles = [Line2D([], [], label=row, **styles[row]) for row in styles]
    corner = (panels / width, 1 - _ABOVE / height)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=corner, frameon=False, fontsize=8
    )
    return figure


def _wrapped(text: str, letters: float, max_lines: int | None = None) -> str:
    lines = textwrap.wrap(
        text, int(letters), max_lines=max_lines, placeholder="...", break_on_hyphens=False
    )
    return "\n".join(lines)


def _of(table: BuiltTable, metric: str, row: str) -> list[BuiltCell]:
    """Return a row's cells that have numbers, in the order of the columns."""
    return [
        cell
        for cell in table.cells
        if (cell.metric, cell.row) == (metric, row) and cell.summary is not None
    ]


def _metric_label(table: BuiltTable, metric: str) -> str:
    unit = unit_of(cell for cell in table.cells if cell.metric == metric)
    return f"{metric} ({unit})" if unit else metric


def _micro(table: BuiltTable) -> Figure:
    micro = _micro_batches(table)
    styles = _styles(table)

    def draw(axes: Axes, metric: str) -> None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(micro.values()), [str(m) for m in sorted(micro.values())])
        axes.minorticks_off()
        axes.set_xlabel(table.definition.columns_are or "batch.micro")
        axes.set_ylabel(_metric_label(table, metric))
        for index, (row, style) in enumerate(styles.items()):
            if cells := _of(table, metric, row):
                # Aside by a hair, so that bars of different norms can be told apart.
                shift = 2 ** (0.06 * (index - (len(styles) - 1) / 2))
                xs = [micro[cell.column] * shift for cell in cells]
                _with_seeds(axes, xs, cells, style, flat=len(cells) > 1 and _same(cells))

    caption = (
        "Mean ± standard deviation over seeds; faint dots are single seeds. Where the standard "
        "deviation is a band, all columns are the same runs: the norm does not see the micro-batch."
    )
    return _panels(table, table.definition.metrics, draw, caption)


def _micro_batches(table: BuiltTable) -> dict[str, int]:
    return {column.label: int(column.words[0][1]) for column in table.definition.columns}


def _same(cells: Sequence[BuiltCell]) -> bool:
    """Tell whether all columns of a row are the same runs."""
    return all(a.runs == b.runs for a, b in pairwise(cells))


def _with_seeds(
    axes: Axes, xs: Sequence[float], cells: Sequence[BuiltCell], style: _Style, *, flat: bool
) -> None:
    means, spreads = _means(cells)
    if flat:
        axes.plot(xs, means, **style)
        low, high = means[0] - spreads[0], means[0] + spreads[0]
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
        return
    axes.errorbar(xs, means, yerr=spreads, **style)
    for x, cell in zip(xs, cells, strict=True):
        seeds = cell.values.to_numpy()
        axes.plot([x] * len(seeds), seeds, ".", color=style["color"], alpha=0.35, markersize=4)


def _means(cells: Sequence[BuiltCell]) -> tuple[list[float], list[float]]:
    """Return the means and standard deviations (0 for one seed) of measured cells."""
    found = [cell.summary for cell in cells if cell.summary is not None]
    return [one.mean for one in found], [one.sd or 0.0 for one in found]


def _cost(table: BuiltTable) -> Figure:
    styles = _styles(table)

    def draw(axes: Axes, metric: str) -> None:
        axes.set_xlabel("ms a step")
        axes.set_ylabel(_metric_label(table, metric))
        for row, style in styles.items():
            if not (cells := [cell for cell in _of(table, metric, row) if cell.cost]):
                continue
            if _same(cells):
                cells = cells[:1]
            means, spreads = _means(cells)
            xs = [cell.cost["step_ms"] for cell in cells]
            axes.errorbar(xs, means, yerr=spreads, **style | {"linestyle": ":"}, elinewidth=0.8)
            for x, y, cell in zip(xs, means, cells, strict=True):
                if len(cells) > 1:
                    axes.annotate(
                        cell.column,
                        (x, y),
                        xytext=(4, 4),
                        textcoords="offset points",
                        color=style["color"],
                        fontsize=7,
                    )
        axes.set_xlim(0, 1.1 * axes.dataLim.x1)

    caption = "Mean ± standard deviation over seeds"
    if table.definition.columns_are:
        caption += f"; at each point: {table.definition.columns_are}"
    return _panels(table, table.definition.metrics, draw, caption + ".")


def _curves(table: BuiltTable, results: Path) -> Figure | None:
    """Draw training losses, and metrics that were evaluated on the way, at one column."""
    column = _first_column(table)
    runs = {
        row.label: _row_curves(table, row.label, column, results) for row in table.definition.rows
    }
    panels: dict[str, dict[str, Band]] = {"training loss": {}}
    for row, curves in runs.items():
        if (band := loss_band(curves)) is not None:
            panels["training loss"][row] = band
        for metric in table.definition.metrics:
            if (band := evaluation_band(curves, metric)) is not None:
                panels.setdefault(metric, {})[row] = band
    panels = {name: bands for name, bands in panels.items() if bands}
    if not panels:
        return None
    styles = _styles(table)

    def draw(axes: Axes, name: str) -> None:
        axes.set_xlabel("step")
        loss = name == "training loss"
        axes.set_ylabel(name if loss else _metric_label(table, name))
        if loss and min(band.low.min() for band in panels[name].values()) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        for row, band in panels[name].items():
            style = styles[row] | ({"marker": ""} if loss else {})
            axes.plot(band.steps, band.mean, **style)
            axes.fill_between(
                band.steps, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0
            )

    where = f"{table.definition.columns_are} {column}; " if column else ""
    caption = f"{where}mean over seeds, and as a band the range of single seeds; losses smoothed."
    return _panels(table, list(panels), draw, caption)


def _first_column(table: BuiltTable) -> str:
    """Return the column that most rows have numbers in; of these the smallest micro-batch."""
    columns = [column.label for column in table.definition.columns]
    if table.definition.over_micro:
        columns.sort(key=_micro_batches(table).__getitem__)
    measured = Counter(cell.column for cell in table.cells if cell.summary)
    return max(columns, key=measured.__getitem__)  # max takes the first of equals


def _row_curves(table: BuiltTable, row: str, column: str, results: Path) -> list[Curve]:
    cell = table.cell(row, column, table.definition.metrics[0])
    return [read_curve(RunDir(results, run_id).metrics) for run_id in cell.runs.values()]
