"""Tables as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from harness.report.build import BuiltTable
from harness.report.layout import Entry, Grid, Layout, layout

_SPECIAL = re.compile(r"[\\`*<>|#~$&]|^\[|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
"""What means something inside a line: an underscore inside a word and most brackets do not."""


def escape(text: str) -> str:
    r"""Return ``text`` so that it reads as it stands: ``gn_ws`` stays, ``a|b`` becomes ``a\|b``."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", text)


def to_markdown(table: BuiltTable, figures: Sequence[str] = ()) -> str:
    """Return a table as Markdown: ``markdown`` of its ``layout``."""
    return markdown(layout(table), figures)


def markdown(shown: Layout, figures: Sequence[str] = ()) -> str:
    """Return the text of a table as Markdown.

    Args:
        shown: the text.
        figures: pictures of the table, relative to where the text will lie.
    """
    parts = [f"## {escape(shown.title)}"]
    if shown.caption:
        parts.append(escape(shown.caption))
    parts += [_titled(grid) for grid in shown.grids]
    if shown.verdicts:
        parts += ["**In words**", _list(shown.verdicts)]
    if shown.notes:
        parts.append(_notes(shown, range(len(shown.notes))))
    if shown.remarks:
        parts += ["**Of all runs**", _list(shown.remarks)]
    parts += [f"![{path.rpartition('/')[2]}](<{path}>)" for path in figures]
    parts.append(f"```\n{shown.command}\n```")
    return "\n\n".join(parts) + "\n"


def grids(shown: Layout, *, values: bool = False) -> str:
    """Return the grids of a table and the notes that they refer to, as Markdown.

    Args:
        shown: the text of the table.
        values: whether only those of its metrics' values are wanted.
    """
    chosen = [grid for grid in shown.grids if grid.kind == "values" or not values]
    marks = sorted({mark for grid in chosen for mark in grid.marks()})
    return "\n\n".join([*map(_titled, chosen), *([_notes(shown, marks)] if marks else [])])


def _notes(shown: Layout, marks: Iterable[int]) -> str:
    """Return notes a line each, with the numbers that entries refer to them by."""
    return "\\\n".join(f"<sup>{mark + 1}</sup> {escape(shown.notes[mark])}" for mark in marks)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _titled(grid: Grid) -> str:
    return f"**{escape(grid.title)}**\n\n" + "\n".join(_grid(grid))


def _grid(grid: Grid) -> Iterator[str]:
    labels = grid.num_labels
    yield _row([escape(text) for text in grid.header])
    yield "|" + "|".join(["---"] * labels + ["---:"] * (len(grid.header) - labels)) + "|"
    for row in grid.rows:
        yield _row([_entry(entry) for entry in row])


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _entry(entry: Entry) -> str:
    """Return a cell; Markdown has no grey, so what is incomplete stands in italics."""
    text = escape(entry.text)
    if entry.incomplete:
        text = f"*{text}*"
    marks = ", ".join(str(mark + 1) for mark in entry.marks)
    return f"{text} <sup>{marks}</sup>" if marks else text
