"""`normbench report`: CSV files, tables and figures, rebuilt from the records of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.collect import collecting, metrics_frame, read_records, write_csv
from harness.errors import NormbenchError
from harness.report.build import BuiltTable, build_table
from harness.report.definition import SETS, TableDefinition, Words, choose
from harness.report.export import write
from harness.report.markdown import to_markdown


def report(
    tables: Sequence[TableDefinition],
    words: Words,
    results: Path,
    console: Console,
    *,
    asked: bool = True,
) -> bool:
    """Rebuild ``runs.csv``, ``metrics.csv`` and the tables; print the tables.

    Args:
        tables: to build.
        words: as ``definition.choose`` returned them.
        results: folder of the records, and of everything that is written.
        console: where to print.
        asked: whether the user named these tables; of others only those with a number are made.

    Returns:
        Whether every table that was made is complete.

    Raises:
        UsageError: if a definition is wrong.
    """
    with collecting(results):
        records, warnings = read_records(results)
        frame = metrics_frame(records)
        runs, metrics = write_csv(results, records, frame)
        built = [build_table(table, words, results, frame) for table in tables]
        made = [table for table in built if asked or table.num_done]
        paths = write(made, results)
    for warning in warnings:
        _say(console, f"warning: {warning}")
    for table in made:
        _say(console, f"\n{to_markdown(table)}")
    for table in made:
        if not table.complete:
            _say(console, _incomplete(table))
    pictures = sum(path.suffix == ".png" for path in paths)
    _say(
        console,
        f"{len(records)} runs, {len(made)} tables, {pictures} pictures\n{runs}\n{metrics}"
        + (f"\n{results / 'tables'}" if made else "")
        + (f"\n{results / 'figures'}" if pictures else ""),
    )
    return all(table.complete for table in made)


def rebuild(
    names: Sequence[str],
    words: Sequence[str],
    results: Path,
    console: Console,
    *,
    every: bool,
    path: Path | None,
) -> None:
    """Report the named tables, those of a set, or all that have a number.

    Raises:
        NormbenchError: if one is incomplete.
    """
    if names or every:
        tables, pairs = choose(names, words, every=every, path=path)
    else:
        sets = [choose((), [*words, f"preset={s}"], every=True, path=path) for s in SETS]
        tables, pairs = [table for group, _ in sets for table in group], sets[0][1]
    if not report(tables, pairs, results, console, asked=bool(names or every)):
        raise NormbenchError("a table is incomplete: see above")


def _incomplete(table: BuiltTable) -> str:
    missing = table.num_runs - table.num_done
    what = f"{missing} of its {table.num_runs} runs are missing" if missing else "nothing can run"
    return f"table {table.definition.name} is incomplete: {what} (normbench reproduce makes them)"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
