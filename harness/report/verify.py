"""`normbench verify`: measured numbers against our reference, or against the published ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.collect import metrics_frame, read_csv, read_records, told
from harness.errors import NormbenchError, UsageError
from harness.paths import reference_csv
from harness.report.build import BuiltCell, build_table
from harness.report.definition import TableDefinition, choose
from harness.report.uncertainty import half_interval
from harness.terminal import new_table

LEVEL = 0.99
"""Of the interval that a difference of means must lie in."""


@dataclass(frozen=True)
class Check:
    """One measured cell beside what it is held against."""

    table: str
    cell: str
    metric: str
    measured: float
    expected: float
    limit: float | None
    """Largest difference allowed; None where nothing can be said."""
    against: str

    @property
    def outside(self) -> bool:
        """Return whether the difference is larger than allowed."""
        return self.limit is not None and abs(self.measured - self.expected) > self.limit


class OutsideTolerance(NormbenchError):
    """Measured numbers that are not those of the reference."""

    exit_code = 5


def verify(
    names: Sequence[str],
    words: Sequence[str],
    results: Path,
    console: Console,
    *,
    every: bool,
    tolerance: float | None,
    path: Path | None = None,
) -> None:
    """Compare every measured cell with its reference and print the list.

    Raises:
        UsageError: if a table or word is wrong.
        NormbenchError: if nothing can be compared.
        OutsideTolerance: naming the cells that are outside.
    """
    if tolerance is not None and not tolerance >= 0:
        raise UsageError(f"--tolerance {tolerance}: give 0 or more, in the metric's unit")
    tables, pairs = choose(names, words, every=every, path=path)
    records, warnings = read_records(results)
    for line in told(warnings):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    measured = metrics_frame(records)
    known = read_csv(reference_csv()) if reference_csv().is_file() else measured.iloc[:0]
    checks = []
    for table in tables:
        ours = build_table(table, pairs, results, measured)
        theirs = build_table(table, pairs, results, known)
        for cell, reference in zip(ours.cells, theirs.cells, strict=True):
            checks += list(_check(table, cell, reference, tolerance))
    if not checks:
        raise NormbenchError(
            f"nothing to compare: no number of these tables is both measured in {results} and in "
            f"{reference_csv()} or among the published ones (normbench reproduce makes the runs)"
        )
    console.print(_shown(checks))
    outside = [check for check in checks if check.outside]
    unsure = sum(check.limit is None for check in checks)
    if unsure:
        what = f"{unsure} of {len(checks)} cannot be judged: give a second seed or --tolerance"
        console.print(what, markup=False, highlight=False)
    if outside:
        lines = [f"{len(outside)} of {len(checks)} numbers are outside:"]
        lines += [
            f"{c.table} {c.cell} {c.metric}: {c.measured:.2f} against {c.expected:.2f} "
            f"({c.against}), more than {c.limit:.2f} apart"
            for c in outside
        ]
        raise OutsideTolerance("\n".join(lines))


def _check(
    table: TableDefinition, cell: BuiltCell, reference: BuiltCell, tolerance: float | None
) -> Iterator[Check]:
    if cell.summary is None:
        return
    place = ", ".join(filter(None, (cell.row, cell.column)))
    if table.set == "paper":
        published = cell.published
        if published is None or published.comparable == "no":
            return
        limit = _limit(cell.values, pd.Series([published.value]))
        expected, against = published.value, f"published, {published.shown}"
    elif reference.summary is not None:
        limit = _limit(cell.values, reference.values)
        expected, against = reference.summary.mean, "reference"
    else:
        return
    limit = tolerance if tolerance is not None else limit
    yield Check(table.name, place, cell.metric, cell.summary.mean, expected, limit, against)


def _limit(ours: pd.Series[float], theirs: pd.Series[float]) -> float | None:
    """Return half the interval of a difference of means, the spread taken from both.

    Both are runs of one experiment, so they share one standard deviation: Student's two-sample t.
    """
    degrees = len(ours) + len(theirs) - 2
    if degrees < 1:
        return 0.0 if ours.to_list() == theirs.to_list() else None
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in (ours, theirs))
    spread = math.sqrt(squares / degrees) * math.sqrt(1 / len(ours) + 1 / len(theirs))
    return half_interval(spread, degrees, LEVEL)


def _shown(checks: Sequence[Check]) -> Table:
    numbers = ("measured", "expected", "difference", "allowed")
    shown = new_table("", "table", "cell", "metric", *numbers, "", numbers=numbers)
    for check in checks:
        verdict = "?" if check.limit is None else "[red]outside[/]" if check.outside else "ok"
        shown.add_row(
            check.table,
            escape(check.cell),
            check.metric,
            f"{check.measured:.2f}",
            f"{check.expected:.2f}",
            f"{check.measured - check.expected:+.2f}",
            "?" if check.limit is None else f"{check.limit:.2f}",
            verdict,
        )
    return shown
