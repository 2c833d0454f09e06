"""`normbench report`: CSV files, tables, figures and the page, rebuilt from all runs' records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.collect import collecting, metrics_frame, read_records, told, write_csv
from harness.errors import NormbenchError
from harness.record import Record
from harness.report.build import BuiltTable, build_table
from harness.report.definition import (
    TableDefinition,
    Words,
    choose,
    definitions,
    tables_file,
)
from harness.report.export import write
from harness.report.markdown import to_markdown
from harness.wording import counted


def report(
    tables: Sequence[TableDefinition],
    words: Words,
    results: Path,
    console: Console,
    *,
    asked: bool = True,
    html: bool = False,
) -> bool:
    """Rebuild ``runs.csv``, ``metrics.csv`` and the tables; print the tables.

    Args:
        tables: to build.
        words: as ``definition.choose`` returned them.
        results: folder of the records, and of everything that is written.
        console: where to print.
        asked: whether the user named these tables; of others only those with a number are made.
        html: whether to write ``report.html`` too.

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
        page = _page(results, records, warnings, made) if html else None
    for line in told(warnings):
        _say(console, line)
    for table in made:
        _say(console, f"\n{to_markdown(table)}")
    for table in made:
        if not table.complete:
            _say(console, _incomplete(table))
    pictures = sum(path.suffix == ".png" for path in paths)
    _say(
        console,
        f"{counted(len(records), 'run')}, {counted(len(made), 'table')}, "
        f"{counted(pictures, 'picture')}\n{runs}\n{metrics}"
        + (f"\n{results / 'tables'}" if made else "")
        + (f"\n{results / 'figures'}" if pictures else "")
        + (f"\n{page}" if page else ""),
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
    html: bool = False,
) -> None:
    """Report the named tables, those of a set, or all that have a number.

    Raises:
        NormbenchError: if one is incomplete.
    """
    tables, pairs, asked = shown(names, words, every=every, path=path)
    if not report(tables, pairs, results, console, asked=asked, html=html):
        raise NormbenchError("a table is incomplete: see above")


def shown(
    names: Sequence[str], words: Sequence[str], *, every: bool, path: Path | None
) -> tuple[list[TableDefinition], Words, bool]:
    """Choose what to show: the named tables, those of a set, or all.

    Returns:
        The tables, the words for their runs, and whether the user asked for these tables.

    Raises:
        UsageError: as ``definition.choose``.
    """
    if names or every:
        return *choose(names, words, every=every, path=path), True
    known = definitions(path or tables_file())
    return *choose(list(known), words, every=False, path=path), False


def _page(
    results: Path, records: list[Record], warnings: list[str], made: list[BuiltTable]
) -> Path:
    from harness.report.html.page import write_page

    return write_page(results, records, warnings, made)


def _incomplete(table: BuiltTable) -> str:
    missing = table.num_runs - table.num_done
    what = f"{missing} of its {table.num_runs} runs are missing" if missing else "nothing can run"
    return f"table {table.definition.name} is incomplete: {what} (normbench reproduce makes them)"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
