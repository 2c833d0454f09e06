"""Draws ratios with their spread and their goals, in the look of the report's figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.kept import Row
from harness.report.figures import LOOK as _LOOK
from harness.report.panels import COLOURS as _COLOURS

FORMATS = ("png", "svg")
_OURS, _PEER = _COLOURS[0], "0.72"
_COLUMNS = 3
_LINE, _NAMES, _WIDTH, _GAP = 0.15, 2.0, 2.3, 0.25
"""Inches: of a bar, of the names beside bars, of the axes, between columns."""
_ABOVE, _BELOW = 0.6, 0.65

Group = tuple[str, list[Row]]
"""A comparison: its heading, and its bars from the top."""


def draw(rows: Sequence[Row]) -> Figure | None:
    """Draw one device's rows as horizontal bars; None where there is nothing to draw.

    A bar is a case's median ratio to the reference of its comparison, which the heading names, with
    the quartiles of the pairs, and a mark at the goal. Cases that have only a goal are shown as
    shares of it.
    """
    groups = [group for group in map(_group, _comparisons(rows)) if group[1]]
    if not groups:
        return None
    columns = _columns(groups)
    lines = max(sum(1.6 + len(bars) for _, bars in column) for column in columns)
    width = len(columns) * (_NAMES + _WIDTH + _GAP)
    height = _ABOVE + lines * _LINE + _BELOW
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(width, height))
        for index, column in enumerate(columns):
            left = index * (_NAMES + _WIDTH + _GAP) + _NAMES
            size = _WIDTH / width, lines * _LINE / height
            axes = figure.add_axes((left / width, _BELOW / height, *size))
            _draw_column(axes, column, lines)
        one = rows[0]
        threads = f"{one.threads} thread{'s' * (one.threads > 1)}"
        title = f"{one.device}, {threads}, torch {one.torch}"
        figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=9, va="top")
        caption = (
            "Medians of paired ratios to the reference of each heading, quartiles, and goals (|); "
            "below 1 is less time or memory. Blue: this repository's."
        )
        figure.text(0.1 / width, 0.08 / height, caption, fontsize=7, color="0.35")
    return figure


def _comparisons(rows: Sequence[Row]) -> list[list[Row]]:
    key = [row.group for row in rows]
    order = {group: key.index(group) for group in key}
    ordered = sorted(rows, key=lambda row: order[row.group])  # stable: cases keep their order
    return [list(group) for _, group in groupby(ordered, key=lambda row: row.group)]


def _group(rows: list[Row]) -> Group:
    one = rows[0]
    name = f"{one.benchmark.replace('_', ' ')}: {one.part}, {one.size}"
    if not one.reference:
        return f"{name}; 1 = the goal", [row for row in rows if row.goal is not None]
    return f"{name}; 1 = {one.reference}", [row for row in rows if row.case != one.reference]


def _columns(groups: Sequence[Group]) -> list[list[Group]]:
    """Spread the groups over columns of about equal length, in order."""
    total = sum(1.6 + len(bars) for _, bars in groups)
    columns: list[list[Group]] = [[] for _ in range(_COLUMNS)]
    done = 0.0
    for group in groups:
        columns[min(int(done / total * _COLUMNS), _COLUMNS - 1)].append(group)
        done += 1.6 + len(group[1])
    return [column for column in columns if column]


def _draw_column(axes: Axes, groups: Sequence[Group], lines: float) -> None:
    names, y = {}, 0.0
    for heading, bars in groups:
        y += 1.1
        place = axes.get_yaxis_transform()
        left = -_NAMES / _WIDTH + 0.05
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # of grid and axis
        style = {"fontsize": 6.5, "weight": "bold", "va": "center", "bbox": clear}
        axes.text(left, y, heading, transform=place, **style)
        y += 0.5
        for row in bars:
            y += 1
            names[y - 0.5] = row.case
            _draw_bar(axes, row, y - 0.5)
    axes.set_yticks(list(names), list(names.values()), fontsize=6.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(lines, 0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=6)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.axvline(1, color="black", linewidth=0.8)


def _draw_bar(axes: Axes, row: Row, y: float) -> None:
    value, low, high, goal = row.ratio, row.ratio_q25, row.ratio_q75, row.goal
    if value is None or low is None or high is None:
        assert goal is not None
        value, low, high, goal = row.median / goal, row.q25 / goal, row.q75 / goal, 1.0
    mine = row.case.startswith(("ours", "torch", "numba", "normbench", "all", "micro"))
    # On a log scale bars start at 1: their length is what a case is away from the reference.
    axes.barh(
        y,
        value - 1,
        left=1,
        height=0.7,
        color=_OURS if mine and row.case != "torch-geometric" else _PEER,
        xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
        error_kw={"elinewidth": 0.8, "capsize": 1.5},
    )
    if goal is not None:
        axes.plot([goal], [y], "|", color=_COLOURS[1], markersize=9, markeredgewidth=1.6)
