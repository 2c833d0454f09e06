"""What each picture of a table shows, panel by panel: micro-batch curves, learning curves, cost.

A panel is drawn into axes that somebody else made: in rows for files (``report.figures``), one by
one for the page (``report.html``). Colours can be told apart by colour-blind readers, and so can
markers and line styles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, StrMethodFormatter

from harness.record import RunDir
from harness.report.build import BuiltCell, BuiltTable
from harness.report.curves import Band, Curve, evaluation_band, loss_band, read_curve
from harness.report.layout import unit_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito (2008), Color Universal Design; its yellow is too light for lines."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

Style = dict[str, Any]


@dataclass(frozen=True)
class Panels:
    """One picture: panels that share rows, styles and a caption."""

    kind: str
    """``micro``, ``curves`` or ``cost``."""
    names: tuple[str, ...]
    """Of the panels: metrics, or ``training loss``."""
    draw: Callable[[Axes, str], None]
    """Draws the panel of that name into empty axes."""
    caption: str


def panels(table: BuiltTable, results: Path) -> Iterator[Panels]:
    """Yield the pictures of a table that its numbers allow; none where nothing was measured.

    Args:
        table: with its numbers.
        results: where the runs' journals are.
    """
    measured = [cell for cell in table.cells if cell.summary]
    if not measured:
        return
    if table.definition.over_micro:
        yield micro(table)
    if (drawn := _curves(table, results)) is not None:
        yield drawn
    if any(cell.cost for cell in measured):
        yield _cost(table)


def styles(table: BuiltTable) -> dict[str, Style]:
    """Give each measured row a look; which it is does not depend on what else was measured."""
    measured = {cell.row for cell in table.cells if cell.summary}
    return {
        row.label: look_of(i)
        for i, row in enumerate(table.definition.rows)
        if row.label in measured
    }


def look_of(index: int) -> Style:
    """Return the look of a table's row, by its place in the definition."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }


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


def micro(table: BuiltTable) -> Panels:
    """Return every metric against the micro-batch.

    Args:
        table: whose columns are micro-batches, with a number at least.
    """
    places = micro_batches(table)
    looks = styles(table)

    def draw(axes: Axes, metric: str) -> None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(places.values()), [str(m) for m in sorted(places.values())])
        axes.minorticks_off()
        axes.set_xlabel(table.definition.columns_are or "batch.micro")
        axes.set_ylabel(_metric_label(table, metric))
        for index, (row, style) in enumerate(looks.items()):
            if cells := _of(table, metric, row):
                # Aside by a hair, so that bars of different norms can be told apart.
                shift = 2 ** (0.06 * (index - (len(looks) - 1) / 2))
                xs = [places[cell.column] * shift for cell in cells]
                _with_seeds(axes, xs, cells, style, flat=len(cells) > 1 and _same(cells))

    caption = (
        "Mean ± standard deviation over seeds; faint dots are single seeds. Where the standard "
        "deviation is a band, all columns are the same runs: the norm does not see the micro-batch."
    )
    return Panels("micro", table.definition.metrics, draw, caption)


def micro_batches(table: BuiltTable) -> dict[str, int]:
    """Return the micro-batch of each column of a table over them."""
    return {column.label: int(column.words[0][1]) for column in table.definition.columns}


def _same(cells: Sequence[BuiltCell]) -> bool:
    """Tell whether all columns of a row are the same runs."""
    return all(a.runs == b.runs for a, b in pairwise(cells))


def _with_seeds(
    axes: Axes, xs: Sequence[float], cells: Sequence[BuiltCell], style: Style, *, flat: bool
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


def _cost(table: BuiltTable) -> Panels:
    looks = styles(table)

    def draw(axes: Axes, metric: str) -> None:
        axes.set_xlabel("ms a step")
        axes.set_ylabel(_metric_label(table, metric))
        for row, style in looks.items():
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
    return Panels("cost", table.definition.metrics, draw, caption + ".")


def _curves(table: BuiltTable, results: Path) -> Panels | None:
    """Draw training losses, and metrics that were evaluated on the way, at one column."""
    column = _first_column(table)
    runs = {
        row.label: _row_curves(table, row.label, column, results) for row in table.definition.rows
    }
    bands: dict[str, dict[str, Band]] = {"training loss": {}}
    for row, curves in runs.items():
        if (band := loss_band(curves)) is not None:
            bands["training loss"][row] = band
        for metric in table.definition.metrics:
            if (band := evaluation_band(curves, metric)) is not None:
                bands.setdefault(metric, {})[row] = band
    bands = {name: found for name, found in bands.items() if found}
    if not bands:
        return None
    looks = styles(table)

    def draw(axes: Axes, name: str) -> None:
        axes.set_xlabel("step")
        loss = name == "training loss"
        axes.set_ylabel(name if loss else _metric_label(table, name))
        if loss and min(band.low.min() for band in bands[name].values()) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        for row, band in bands[name].items():
            style = looks[row] | ({"marker": ""} if loss else {})
            axes.plot(band.steps, band.mean, **style)
            axes.fill_between(
                band.steps, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0
            )

    where = f"{table.definition.columns_are} {column}; " if column else ""
    caption = f"{where}mean over seeds, and as a band the range of single seeds; losses smoothed."
    return Panels("curves", tuple(bands), draw, caption)


def _first_column(table: BuiltTable) -> str:
    """Return the column that most rows have numbers in; of these the smallest micro-batch."""
    columns = [column.label for column in table.definition.columns]
    if table.definition.over_micro:
        columns.sort(key=micro_batches(table).__getitem__)
    measured = Counter(cell.column for cell in table.cells if cell.summary)
    return max(columns, key=measured.__getitem__)  # max takes the first of equals


def _row_curves(table: BuiltTable, row: str, column: str, results: Path) -> list[Curve]:
    cell = table.cell(row, column, table.definition.metrics[0])
    return [read_curve(RunDir(results, run_id).metrics) for run_id in cell.runs.values()]
