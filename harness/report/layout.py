"""The text of a table, once, for every format that it is written in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.report.build import COSTS, BuiltCell, BuiltTable
from harness.report.uncertainty import Difference, verdict

MISSING = "\N{EN DASH}"
IMPOSSIBLE = "n/a"
Kind = Literal["values", "differences", "published", "cost"]


@dataclass(frozen=True)
class Entry:
    """One cell of a grid."""

    text: str
    marks: tuple[int, ...] = ()
    """Indices into ``Layout.notes``."""
    incomplete: bool = False
    """Whether seeds are missing, all or some: to be shown grey, or as near to it as can be."""


@dataclass(frozen=True)
class Grid:
    """Rows of text under a heading; the first entries of a row are its labels."""

    kind: Kind
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    num_labels: int = 1

    def marks(self) -> list[int]:
        """Return the indices of the notes that its entries refer to, ascending."""
        return sorted({mark for row in self.rows for entry in row for mark in entry.marks})


@dataclass(frozen=True)
class Layout:
    """A whole table as text."""

    name: str
    title: str
    caption: str
    grids: tuple[Grid, ...]
    verdicts: tuple[str, ...]
    """What each difference is worth, in words; each comparison once."""
    notes: tuple[str, ...]
    remarks: tuple[str, ...]
    command: str
    """What makes the table again, runs included."""


def layout(table: BuiltTable) -> Layout:
    """Turn numbers into text.

    Values have one decimal, differences two; the CSV file has all digits.
    """
    definition = table.definition
    notes = list(table.notes)
    grids: list[Grid] = []
    verdicts: list[str] = []
    for metric in definition.metrics:
        cells = [cell for cell in table.cells if cell.metric == metric]
        grids += [_values(table, cells), *_differences(table, cells)]
        grids += _published(table, cells, notes)
        prefix = f"{metric}, " if len(definition.metrics) > 1 else ""
        verdicts += [prefix + line for line in _verdicts(table, cells)]
    return Layout(
        name=definition.name,
        title=one_line(definition.title),
        caption=one_line(definition.caption),
        grids=(*grids, *_costs(table)),
        verdicts=tuple(verdicts),
        notes=tuple(map(one_line, notes)),
        remarks=tuple(map(one_line, _remarks(table))),
        command=f"normbench reproduce {definition.name}",
    )


def one_line(text: str) -> str:
    """Return ``text`` without line breaks, which neither a table nor a note can hold."""
    return " ".join(text.split())


def _remarks(table: BuiltTable) -> Iterator[str]:
    if not table.complete:
        yield f"incomplete: {table.num_done} of {table.num_runs} runs are there"
    if any(cell.missing and cell.summary for cell in table.cells):
        yield "numbers that lack seeds are set apart; tests use the seeds that both sides have"
    yield from table.remarks


def _table(
    table: BuiltTable, kind: Kind, title: str, cells: Sequence[BuiltCell], entries: Iterable[Entry]
) -> Grid:
    """Set entries, one a cell, into rows and columns as defined."""
    definition = table.definition
    of_place = dict(zip(((cell.row, cell.column) for cell in cells), entries, strict=True))
    columns = [column.label for column in definition.columns]
    if definition.columns_are:
        title += f", by {definition.columns_are}"
    return Grid(
        kind,
        one_line(title),
        (definition.rows_are, *(column or cells[0].metric for column in columns)),
        tuple(
            (Entry(row.label), *(of_place[row.label, column] for column in columns))
            for row in definition.rows
        ),
    )


def unit_of(cells: Iterable[BuiltCell]) -> str:
    """Return the unit of a metric, as far as a run has measured it."""
    return next((cell.unit for cell in cells if cell.unit), "")


def _values(table: BuiltTable, cells: Sequence[BuiltCell]) -> Grid:
    unit = f" in {unit}" if (unit := unit_of(cells)) else ""
    lower = "" if cells[0].higher_is_better else ", lower is better"
    title = f"{cells[0].metric}{unit}{lower}: mean ± standard deviation over seeds (their number)"
    return _table(table, "values", title, cells, map(_value, cells))


def _value(cell: BuiltCell) -> Entry:
    marks = tuple(sorted(cell.marks))
    if cell.summary is None:
        return Entry(IMPOSSIBLE if cell.impossible else MISSING, marks, incomplete=True)
    spread = "" if cell.summary.sd is None else f" ± {cell.summary.sd:.1f}"
    text = f"{cell.summary.mean:.1f}{spread} ({cell.summary.n})"
    return Entry(text, marks, incomplete=bool(cell.missing))


def _differences(table: BuiltTable, cells: Sequence[BuiltCell]) -> Iterator[Grid]:
    if not any(cell.difference and cell.difference.n for cell in cells):
        return
    reference = table.definition.reference
    title = (
        f"{cells[0].metric} compared with {reference}, paired by seed: mean [95 % interval], "
        "p (Holm)"
    )
    yield _table(table, "differences", title, cells, map(_difference, cells))


def _difference(cell: BuiltCell) -> Entry:
    found = cell.difference
    if found is None:
        return Entry("reference")
    if not found.n:
        return Entry(IMPOSSIBLE if cell.impossible else MISSING, incomplete=True)
    text = f"{found.mean:+.2f}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low:.2f}, {found.high:.2f}]"
    if found.p_holm is not None:
        text += ", p < 0.001" if found.p_holm < 0.001 else f", p = {found.p_holm:.3f}"
    return Entry(text, incomplete=bool(cell.missing))


def _verdicts(table: BuiltTable, cells: Sequence[BuiltCell]) -> Iterator[str]:
    """Say each comparison once: a run that stands in several columns is one."""
    found: dict[tuple[str, Difference], list[str]] = {}
    direction = cells[0].higher_is_better
    for cell in cells:
        if cell.difference and cell.difference.n:
            found.setdefault((cell.row, cell.difference), []).append(cell.column)
    for (row, difference), columns in found.items():
        place = ", ".join(filter(None, columns))
        if place and table.definition.columns_are:
            place = f"{table.definition.columns_are} {place}"
        where = f"{row} ({place})" if place else row
        yield one_line(f"{where}: {verdict(difference, higher_is_better=direction)}")


def _published(table: BuiltTable, cells: Sequence[BuiltCell], notes: list[str]) -> Iterator[Grid]:
    """Set published numbers beside ours, as far as both allow; sources become notes."""
    rows = []
    for cell in cells:
        if (theirs := cell.published) is None or cell.summary is None:
            continue
        note = f"source: {theirs.source}" + f"; {theirs.why}" * bool(theirs.why)
        if note not in notes:
            notes.append(note)
        delta = f"{cell.summary.mean - theirs.value:+.1f}"
        rows.append(
            (
                *_labels(cell),
                replace(_value(cell), marks=()),
                Entry(theirs.shown, (notes.index(note),)),
                Entry(MISSING if theirs.comparable == "no" else delta),
                Entry(theirs.comparable),
            )
        )
    if rows:
        unit = f" in {unit}" if (unit := unit_of(cells)) else ""
        header = (*_axes(table), "measured", "published", "measured - published", "comparable")
        yield _long("published", f"{cells[0].metric}{unit}, measured and published", header, rows)


def _costs(table: BuiltTable) -> Iterator[Grid]:
    """Lay out what runs cost: a cell's cost is that of its first metric that was measured."""
    first: dict[tuple[str, str], BuiltCell] = {}
    for cell in table.cells:
        if cell.cost:
            first.setdefault((cell.row, cell.column), cell)
    rows = []
    for cell in first.values():
        costs = [
            Entry(f"{cell.cost[name]:,.{_decimals(name)}f}{_ratio(cell, name)}") for name in COSTS
        ]
        rows.append((*_labels(cell), *costs))
    if rows:
        title = f"Cost, and in brackets its ratio to {table.definition.reference}"
        yield _long("cost", title, (*_axes(table), *COSTS.values()), rows)


def _decimals(name: str) -> int:
    return 1 if name == "step_ms" else 0


def _ratio(cell: BuiltCell, name: str) -> str:
    return f" ({cell.relative[name]:.2f})" if name in cell.relative else ""


def _axes(table: BuiltTable) -> tuple[str, str]:
    return table.definition.rows_are, table.definition.columns_are


def _labels(cell: BuiltCell) -> tuple[Entry, Entry]:
    return Entry(cell.row), Entry(cell.column)


def _long(
    kind: Kind, title: str, header: tuple[str, ...], rows: Sequence[tuple[Entry, ...]]
) -> Grid:
    """Return a grid with a row a cell, without the column's label where there is only ''."""
    if any(row[1].text for row in rows):
        return Grid(kind, one_line(title), header, tuple(rows), num_labels=2)
    short = tuple((row[0], *row[2:]) for row in rows)
    return Grid(kind, one_line(title), (header[0], *header[2:]), short)
