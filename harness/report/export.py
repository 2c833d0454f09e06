"""Files of built tables: CSV, Markdown, LaTeX and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.paths import write_atomic
from harness.report.build import BuiltTable
from harness.report.latex import to_latex
from harness.report.markdown import to_markdown
from harness.report.wide import wide


def write(built: Sequence[BuiltTable], results: Path) -> list[Path]:
    """Write every table as ``tables/NAME.{csv,md,tex}`` and its figures to ``figures/``.

    Files are replaced whole; nothing is removed.

    Args:
        built: tables with their numbers.
        results: the results folder, where the journals of their runs are too.

    Returns:
        The files, table by table.
    """
    for folder in ("tables", "figures"):
        (results / folder).mkdir(parents=True, exist_ok=True)
    return [path for table in built for path in _write(table, results)]


def _write(table: BuiltTable, results: Path) -> Iterator[Path]:
    name = table.definition.name
    pictures = _figures(table, results)
    pngs = [path.name for path in pictures if path.suffix == ".png"]
    for suffix, content in (
        ("csv", wide(table).to_csv(index=False)),
        ("md", to_markdown(table, [f"../figures/{png}" for png in pngs])),
        ("tex", to_latex(table)),
    ):
        path = results / "tables" / f"{name}.{suffix}"
        write_atomic(path, content)
        yield path
    yield from pictures


def _figures(table: BuiltTable, results: Path) -> list[Path]:
    # matplotlib is only needed where something was measured.
    from harness.report.figures import FORMATS, figures, render

    paths = []
    for kind, figure in figures(table, results):
        for suffix in FORMATS:
            path = results / "figures" / f"{table.definition.name}_{kind}.{suffix}"
            write_atomic(path, render(figure, suffix))
            paths.append(path)
    return paths
