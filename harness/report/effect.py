"""The README's picture: the metric against the micro-batch, all four tasks side by side.

``python -m harness.report.effect`` writes ``docs/effect.svg`` and ``docs/effect-dark.svg`` from
``results/reference/metrics.csv``; equal numbers make equal files.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.collect import metrics_frame, read_csv, read_records
from harness.errors import UsageError
from harness.paths import reference_csv, write_atomic
from harness.report.build import BuiltTable
from harness.report.figures import LOOK, render
from harness.report.panels import COLOURS, micro, styles
from harness.report.reference import built_tables

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_SIZE = (11.0, 3.15)
"""Inches; a README is some 880 pixels wide, where text of 10 points is still read."""
_PLACES = {"left": 0.045, "right": 0.995, "bottom": 0.16, "top": 0.76, "wspace": 0.22}
_LIGHT: dict[str, Any] = {"font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold"}
_DARK: dict[str, Any] = _LIGHT | {
    "figure.facecolor": "#0d1117",  # GitHub's own dark paper
    "axes.facecolor": "#0d1117",
    "savefig.facecolor": "#0d1117",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), "#c9d1d9"),
    **dict.fromkeys(("xtick.color", "ytick.color"), "#c9d1d9"),
}
_LIGHTER = ("#4ba6e0", "#f9814b", "#2fc496", "#e4a0c7", "#f3b83c", "#9ad5f7", "#ffffff")
"""The same hues for dark paper, as in the page's style sheet."""


def effect(tables: Sequence[BuiltTable], *, dark: bool = False) -> bytes:
    """Draw the first metric of every table over the micro-batch, as SVG.

    Args:
        tables: with their numbers; others than those over the micro-batch are left out.
        dark: for dark paper.

    Raises:
        UsageError: if no table over the micro-batch has a number.
    """
    shown = [table for table in tables if table.definition.over_micro and table.num_done]
    if not shown:
        raise UsageError("no table over the micro-batch has a number: normbench reproduce --all")
    with mpl.rc_context(LOOK | (_DARK if dark else _LIGHT)):
        figure = Figure(figsize=_SIZE)
        for axes, table in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
        ):
            micro(table).draw(axes, table.definition.metrics[0])
            what = table.definition.title.partition(",")[0]
            axes.set_title(f"{what}\n{axes.get_ylabel()}", loc="left")
            axes.set_ylabel("")
        figure.subplots_adjust(**_PLACES)
        looks = {row: look for table in reversed(shown) for row, look in styles(table).items()}
        handles = [Line2D([], [], label=row, **looks[row]) for row in sorted(looks)]
        figure.legend(handles=handles, loc="upper right", ncols=len(handles), frameon=False)
        drawn = render(figure, "svg")
    for colour, lighter in zip(COLOURS, _LIGHTER, strict=True) if dark else ():
        drawn = drawn.replace(colour.lower().encode(), lighter.encode())
    return drawn


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = ArgumentParser(prog="python -m harness.report.effect")
    parser.add_argument("--from", dest="results", type=Path, help="results folder, not reference/")
    parser.add_argument("--to", type=Path, default=_DOCS, help="folder to write to (docs/)")
    options = parser.parse_args(arguments)
    source = options.results
    metrics = metrics_frame(read_records(source)[0]) if source else read_csv(reference_csv())
    tables = [table for table in built_tables(metrics) if table.definition.set == "mini"]
    for name, dark in (("effect.svg", False), ("effect-dark.svg", True)):
        write_atomic(options.to / name, effect(tables, dark=dark))
        print(options.to / name)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
