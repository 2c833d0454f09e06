"""A results folder of the toy task with everything that the page shows, hostile texts included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from harness.collect import metrics_frame, read_records
from harness.record import Record, RunDir, write_record
from harness.report.build import BuiltTable, Published, build_table
from harness.report.html.page import page
from harness.samples import Sample, write_samples
from tests.report.cases import VALUES, definition, fail, records

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)
PUBLISHED = Published(
    value=61.5,
    shown="61.50 (unverified)",
    source=f"Table 1 of {HOSTILE}",
    verified=False,
    comparable="partly",
    why="half the steps",
)
AUDIT = """\
path,kind,role,fan_in,norm_before,norm_after,groups,standardised,ws,trainable,num_params,paired_with,why
conv1,Conv2d,layer,27,,,,yes,authors,yes,216,norm1,
norm1,BatchNorm2d,site,,bn,gn,4,no,,yes,16,conv1,
conv2,Conv2d,layer,72,,,,yes,authors,yes,576,norm2,
norm2,BatchNorm2d,site,,bn,gn,4,no,,yes,16,conv2,
head,Conv2d,layer,8,,,,no,,yes,27,,<b>no norm</b> follows
"""


def filled(results: Path) -> None:
    """Write records, journals, audits and samples; one run failed, and texts are hostile."""
    table = definition(title=f"Toy {HOSTILE}", caption="Accuracy of noise & more in %.")
    for number, record in enumerate(records(table, results, VALUES)):
        _leave(results, _hostile(record) if number == 0 else record, number)
    failed = RunDir(results, "toy-bn-mb4-s1-ffffffff")
    fail(failed)


def _hostile(record: Record) -> Record:
    return record.model_copy(update={"dataset": HOSTILE})


def _leave(results: Path, record: Record, number: int) -> None:
    run = RunDir(results, record.run_id)
    run.path.mkdir(parents=True)
    write_record(run, record)
    run.audit.write_text(AUDIT)
    rows = [
        f'{{"event": "train", "step": {step}, "loss": {4 / step + 0.01 * number}, "parts": {{}}, '
        f'"lr": 0.1, "images_per_s": 9.0, "mem_mib": 9.0, "eta_s": 1.0}}\n'
        for step in range(1, 12)
    ]
    run.metrics.write_text("".join(rows))
    write_samples(run.samples, [sample(0, right=True), sample(1, right=False)])


def sample(number: int, *, right: bool | None) -> Sample:
    picture = Image.new("RGB", (24, 16), (40 * number, 90, 120))
    return Sample(f"p{number}", f"disc {HOSTILE}"[:60], "ring", right, picture, picture.rotate(90))


def built_of(results: Path) -> tuple[list[Record], list[str], BuiltTable]:
    found, warnings = read_records(results)
    defined = definition(title=f"Toy {HOSTILE}", caption="Accuracy of noise & more in %.")
    table = build_table(defined, (), results, metrics_frame(found))
    # As if two of its numbers had been published.
    cells = [
        replace(cell, published=PUBLISHED) if cell.summary and cell.row == "gn" else cell
        for cell in table.cells
    ]
    return found, warnings, replace(table, cells=tuple(cells))


def html_of(results: Path, live: str = "") -> str:
    found, warnings, table = built_of(results)
    return page(results, found, warnings, [table], live=live)
