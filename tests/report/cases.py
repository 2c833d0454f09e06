"""A table of the toy task with everything that a table can show, and records that fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.collect import metrics_frame
from harness.errors import Diverged
from harness.record import MetricRow, Record, RunDir
from harness.report.build import BuiltTable, build_table
from harness.report.definition import Cell, TableDefinition, cells
from tests.harness.test_collect import record_of

ROWS = (
    {"label": "bn", "norm": "bn"},
    {"label": "bn|fast", "norm": "bn", "optim.lr": 0.5},
    {"label": "gn", "norm": "gn"},
    {"label": "gn, 3 groups", "norm": "gn", "norm.groups": 3},
    {"label": "gn_ws", "norm": "gn_ws"},
)
VALUES = {
    ("bn", "1"): (50.0, 51.0, 52.0),
    ("bn", "2"): (58.0, 61.0),
    ("bn", "4"): (61.0, None, 63.5),
    ("bn|fast", "1"): (40.0, 45.0, 47.0),
    ("gn", "1"): (60.0, 63.0, 65.0),
    ("gn_ws", "1"): (60.0, 62.0, 64.0),
}
"""By row and column, one a seed; norms that do not see the micro-batch have the same in all."""


def definition(**changes) -> TableDefinition:
    content = {
        "name": "toy_micro",
        "set": "mini",
        "task": "toy",
        "title": "Toy at 100 % & more: accuracy against the micro-batch",
        "caption": "Accuracy of *noise* in %.",
        "metrics": ["m0"],
        "seeds": "0..2",
        "rows": list(ROWS),
        "rows_are": "norm",
        "columns": {"batch.micro": [1, 2, 4]},
        "columns_are": "micro-batch",
        "reference": "gn_ws",
    }
    return TableDefinition(**content | changes)


def record(cell: Cell, values: Sequence[float], **changes) -> Record:
    """Return what a planned run would have recorded, had it measured ``values``."""
    spec = cell.planned.spec
    plain = record_of()
    names = [f"m{i}" for i in range(len(values))]
    metrics = tuple(
        MetricRow(
            name=name,
            value=value,
            unit="%",
            n_eval=100,
            split="val",
            protocol="p",
            higher_is_better=True,
            se=2.0,
        )
        for name, value in zip(names, values, strict=True)
    )
    norm = {"numerics": 1} | ({"ws_numerics": 1} if spec.norm.ws else {})
    content = {
        "run_id": cell.planned.run.id,
        "cell": cell.id,
        "spec": spec.model_dump(mode="json"),
        "science": {"norm": norm, "numerics": 1, "init": "scratch"},
        "metrics": metrics,
        "images_per_s": 100.0 if spec.norm.ws else 125.0,
        "peak_mem_mib": 200.0 if spec.norm.ws else 150.0,
        "environment": plain.environment | {"git_sha": "0" * 40, "dirty": False},
    }
    return plain.model_copy(update=content | changes)


def records(
    table: TableDefinition, results: Path, values: Mapping[tuple[str, str], Sequence] = VALUES
) -> list[Record]:
    """Return a record for each value; a run that stands in several columns has one."""
    found: dict[str, Record] = {}
    for cell in cells(table, (), results):
        of_place = values.get((cell.row, cell.column), ())
        if cell.seed < len(of_place) and (value := of_place[cell.seed]) is not None:
            found.setdefault(cell.planned.run.id, record(cell, [value]))
    return list(found.values())


def fail(run: RunDir) -> None:
    """Leave behind what a run does that diverged."""
    run.path.mkdir(parents=True)
    run.write_failure(Diverged("the loss became NaN at step 4"), 4)


def built(results: Path, table: TableDefinition | None = None) -> BuiltTable:
    """Return the whole case: a failed run, one not run, one impossible, one confound."""
    table = table or definition()
    failed = next(
        cell
        for cell in cells(table, (), results)
        if (cell.row, cell.column, cell.seed) == ("bn", "4", 1)
    )
    if not failed.planned.run.failure.is_file():
        fail(failed.planned.run)
    return build_table(table, (), results, metrics_frame(records(table, results)))
