"""Writes the tables of docs/performance.md from results/benchmarks.csv, so that nobody types them.

    python -m benchmarks.tables [--check]

A page says where: `<!-- benchmark NAME PART -->`, and `<!-- end of benchmark -->` after the table.
`--check` changes nothing, and ends with status 5 if something would.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.kept import Row, read_rows
from harness.paths import default_results_dir, write_atomic

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
FASTER = {("edge_conv", part) for part in ("layers", "knn", "step")}
"""What is told as how many times as fast instead of as a ratio."""
_BLOCK = re.compile(r"(<!-- benchmark (\w+) (\w+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL)
_COLUMNS = 4


def update(rows: Sequence[Row], page: Path = PAGE, *, check: bool = False) -> list[Path]:
    """Write every table of a page anew; return the page if it was, or would be, changed."""
    if not page.is_file():
        return []
    before = page.read_text(encoding="utf-8")

    def block(found: re.Match[str]) -> str:
        begin, benchmark, part, end = found.groups()
        chosen = [row for row in rows if (row.benchmark, row.part) == (benchmark, part)]
        return f"{begin}\n{table(chosen)}\n\n{end}"

    after = _BLOCK.sub(block, before)
    if after == before:
        return []
    if not check:
        write_atomic(page, after)
    return [page]


def table(rows: Sequence[Row]) -> str:
    """Return the rows of one part as Markdown: a table or several, under where and when."""
    if not rows:
        return "Not measured yet."
    parts = []
    for _, same in groupby(rows, key=lambda row: (row.device, row.torch, row.numba)):
        own = list(same)
        parts += ["\n".join(lines) for lines in _grids(own)]
        parts.append(_where(own))
    return "\n\n".join(parts)


def _where(rows: Sequence[Row]) -> str:
    one, dates = rows[0], sorted({row.date for row in rows})
    rounds = sorted({row.rounds for row in rows})
    numba = f", numba {one.numba}" if one.numba else ""
    return (
        f"{one.device}, torch {one.torch}{numba}, {_span(dates)}; {_span(rounds)} rounds. "
        f"{'Medians' if rounds[-1] > 1 else 'Values'}"
        f"{', ratios of pairs' if one.reference else ''}."
    )


def _span(values: Sequence[object]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _grids(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield tables with cases down and sizes across; those of other cases go into another."""
    columns = [list(same) for _, same in groupby(rows, key=lambda row: row.group)]
    cases = [tuple(row.case for row in column) for column in columns]
    for _, same in groupby(zip(cases, columns, strict=True), key=lambda pair: pair[0]):
        alike = [column for _, column in same]
        for first in range(0, len(alike), _COLUMNS):
            yield _grid(alike[first : first + _COLUMNS])


def _grid(columns: Sequence[Sequence[Row]]) -> list[str]:
    heads = [f"{column[0].size}, {_threads(column[0].threads)}" for column in columns]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {same[0].case} | {' | '.join(map(cell, same))} |" for same in zip(*columns, strict=True)
    ]
    return lines


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def cell(row: Row) -> str:
    """Return a median, its ratio with quartiles, and the goal."""
    value = f"{row.median:.3g} {row.unit}" if row.median < 1000 else f"{row.median:,.0f} {row.unit}"
    goal = row.goal
    if row.ratio is None or row.ratio_q25 is None or row.ratio_q75 is None:
        shown = f"**{value}**"
    elif row.case == row.reference:
        return value
    elif (row.benchmark, row.part) in FASTER:
        shown = (
            f"{value}, **x{1 / row.ratio:.3g}** ({1 / row.ratio_q75:.3g}-{1 / row.ratio_q25:.3g})"
        )
        return shown if goal is None else f"{shown}; goal x{1 / goal:.3g}{_missed(row)}"
    else:
        shown = f"{value}, **{row.ratio:.3g}** ({row.ratio_q25:.3g}-{row.ratio_q75:.3g})"
    return shown if goal is None else f"{shown}; goal {goal:.3g}{_missed(row)}"


def _missed(row: Row) -> str:
    return "" if row.reached else ": not reached"


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 5 if it would")
    options = parser.parse_args()
    path = default_results_dir() / "benchmarks.csv"
    changed = update(read_rows(path) if path.is_file() else [], check=options.check)
    for page in changed:
        print(f"{page} {'is not what benchmarks.csv gives' if options.check else 'written'}")
    return 5 if changed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
