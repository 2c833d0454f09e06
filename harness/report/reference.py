"""``results/reference/``: our own measured tables, and the blocks of them in the documents.

``python -m harness.report.reference --from results`` takes over the runs that were made there and
keeps the others; without ``--from`` everything is rebuilt from ``results/reference/metrics.csv``,
and ``--check`` only tells whether that would change a file.
"""

from __future__ import annotations

import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from harness.collect import metrics_frame, read_csv, read_records
from harness.paths import reference_csv, write_atomic
from harness.report.build import BuiltTable, build_table
from harness.report.definition import definitions, tables_file
from harness.report.layout import layout
from harness.report.markdown import grids, markdown
from harness.report.wide import wide

SETS = ("mini", "pretrain", "rates")
"""What is measured here: the tables on embedded data."""

_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"
_ROOT = Path(__file__).resolve().parents[2]
_PAGES = {_ROOT / "README.md": "mini", _ROOT / "docs" / "weights.md": "pretrain"}
"""Page -> the set whose tables stand between its markers."""


def built_tables(metrics: pd.DataFrame) -> list[BuiltTable]:
    """Return every reference table that has a number."""
    nowhere = reference_csv().parent  # holds no runs: what is missing is just not run
    tables = [table for table in definitions(tables_file()).values() if table.set in SETS]
    made = [build_table(table, (), nowhere, metrics) for table in tables]
    return [table for table in made if table.num_done]


def block(tables: Sequence[BuiltTable], chosen: str, *, linked: bool) -> str:
    """Return what stands between a page's markers: the values of the tables of a set.

    The documentation site has no page of the whole tables, so it can only name them.
    """
    parts = []
    for table in tables:
        if table.definition.set != chosen:
            continue
        text = layout(table)
        whole = f"results/reference/tables/{text.name}.md"
        more = f"[differences, cost, notes]({whole})" if linked else f"All of it: `{whole}`."
        parts += [f"### {text.title}", f"{text.caption} {more}".strip(), grids(text, values=True)]
    return "\n\n".join(parts)


def files(tables: Sequence[BuiltTable]) -> Iterator[tuple[Path, str]]:
    """Yield every file that is made from the tables, with its content."""
    folder = reference_csv().parent
    for table in tables:
        name = table.definition.name
        pictures = sorted(path.name for path in (folder / "figures").glob(f"{name}_*.png"))
        yield folder / "tables" / f"{name}.csv", wide(table).to_csv(index=False)
        text = markdown(layout(table), [f"../figures/{picture}" for picture in pictures])
        yield folder / "tables" / f"{name}.md", text
    for page, chosen in _PAGES.items():
        values = block(tables, chosen, linked=page.parent == _ROOT)
        before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
        _, _, after = rest.partition(_END)
        yield page, f"{before}{_BEGIN}\n\n{values}\n\n{_END}{after}"


def take_over(results: Path) -> None:
    """Copy the numbers and pictures of the reference tables from a results folder.

    What it has no run of stays as it is: measuring all takes hours, a change may concern one task.
    """
    metrics = metrics_frame(read_records(results)[0])
    new = set(metrics["run_id"])
    folder = reference_csv().parent
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if reference_csv().is_file():
        kept = read_csv(reference_csv())
        metrics = pd.concat([kept[~kept["run_id"].isin(new)], metrics]).sort_values(
            "run_id", kind="stable"
        )
    tables = built_tables(metrics)
    used = {run for table in tables for run in table.run_ids}
    chosen = metrics[metrics["run_id"].isin(used)]
    write_atomic(reference_csv(), chosen.to_csv(index=False))
    for table in tables:
        if new.isdisjoint(table.run_ids):
            continue
        for picture in (results / "figures").glob(f"{table.definition.name}_*.png"):
            shutil.copyfile(picture, folder / "figures" / picture.name)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = ArgumentParser(prog="python -m harness.report.reference")
    parser.add_argument("--from", dest="results", type=Path, help="take over these results first")
    parser.add_argument("--check", action="store_true", help="change nothing; 5 if it would")
    options = parser.parse_args(arguments)
    if options.results:
        take_over(options.results)
    tables = built_tables(read_csv(reference_csv()))
    stale = [
        (path, text)
        for path, text in files(tables)
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(f"{path} {'is not what metrics.csv gives' if options.check else 'written'}")  # noqa: T201
        if not options.check:
            write_atomic(path, text)
    return 5 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
