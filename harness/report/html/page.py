"""``results/report.html``: everything that was measured on one page that needs nothing else."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from harness.paths import write_atomic
from harness.record import Record
from harness.report.build import BuiltTable
from harness.report.html.audits import audits
from harness.report.html.charts import symbol
from harness.report.html.gallery import galleries
from harness.report.html.provenance import data_sets, gaps, machines, run_lines, unfinished
from harness.report.html.tables import effects, sort_key, view

NAME = "report.html"


def write_page(
    results: Path, records: Sequence[Record], warnings: Sequence[str], built: Sequence[BuiltTable]
) -> Path:
    """Write the page beside the CSV files.

    Args:
        results: folder of the records.
        records: all that could be read.
        warnings: a line for each that could not.
        built: tables with at least a number.

    Returns:
        Its path.
    """
    path = results / NAME
    write_atomic(path, page(results, records, warnings, built))
    return path


def page(
    results: Path,
    records: Sequence[Record],
    warnings: Sequence[str],
    built: Sequence[BuiltTable],
    *,
    live: str = "",
) -> str:
    """Return the page; equal records make equal pages.

    Args:
        results: folder of the records.
        records: all that could be read.
        warnings: a line for each that could not.
        built: tables with at least a number.
        live: where it is served and shows the progress of runs, what changes with the page.
    """
    views = [view(table, results) for table in built]
    environment = Environment(
        loader=PackageLoader("harness.report.html"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sort_key"] = sort_key
    scripts = [_script("page.js"), *([_script("live.js")] if live else [])]
    return environment.get_template("page.html").render(
        live=live,
        scripts=scripts,
        policy=_policy(scripts),
        effects=list(effects(views)),
        symbols=[symbol(look) for look in sorted({s.look for one in views for s in one.series})],
        views=views,
        gaps=list(gaps(built)),
        unfinished=unfinished(results),
        warnings=warnings,
        audits=list(audits(records, results)),
        galleries=list(galleries(records, results)),
        machines=machines(records),
        data_sets=data_sets(records),
        runs=list(run_lines(records)),
        newest=max((record.finished for record in records), default="")[:10],
    )


def _script(name: str) -> Markup:
    return Markup((resources.files(__package__) / "templates" / name).read_text(encoding="utf-8"))


def _policy(scripts: Sequence[Markup]) -> str:
    """Allow the page's own scripts and nothing else, should a record ever get markup into it."""
    digests = (b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    hashes = (f"'sha256-{digest}'" for digest in digests)
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; script-src " + " ".join(hashes)
    )
