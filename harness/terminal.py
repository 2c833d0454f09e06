"""Plans, records and audits as tables that a person reads in a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from harness.norm.audit import NormAudit
from harness.plan import PlannedRun, count_states
from harness.progress import clock
from harness.record import Record, State

_COLOURS = {"done": "green", "running": "cyan", "resumable": "yellow", "failed": "red"}


def new_table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    """Return an empty table in the house style; ``numbers`` are aligned to the right."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def print_json(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows for scripts: one list of objects, numbers as numbers."""
    sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def plan_row(cell: PlannedRun) -> dict[str, Any]:
    """Return a planned run for scripts."""
    spec = cell.spec
    return {
        "run": cell.run.id,
        "state": cell.state,
        "task": spec.task,
        "preset": spec.preset,
        "norm": spec.norm.name,
        "batch_micro": spec.batch.micro,
        "seed": spec.seed,
        "reason": cell.reason,
    }


def plan_table(cells: Sequence[PlannedRun]) -> Table:
    """Return one row a planned run."""
    counts = ", ".join(f"{n} {state_text(s)}" for s, n in count_states(cells).items())
    table = new_table(f"{len(cells)} run{'s' * (len(cells) != 1)}: {counts}", "run", "state", "why")
    for cell in cells:
        table.add_row(cell.run.id, state_text(cell.state, colour=True), escape(cell.reason))
    return table


def plan_lines(cells: Sequence[PlannedRun]) -> str:
    """Return a plan as plain lines, for thousands of runs: a table takes rich as long as them."""
    counts = ", ".join(f"{n} {state_text(s)}" for s, n in count_states(cells).items())
    width = max(len(cell.run.id) for cell in cells)
    lines = [f"{c.run.id:{width}}  {state_text(c.state):9}  {c.reason}".rstrip() for c in cells]
    return "\n".join([f"{len(cells)} runs: {counts}", *lines])


def state_text(state: State, *, colour: bool = False) -> str:
    """Return a state as users see it, with rich's markup if ``colour``."""
    word = "n/a" if state == "impossible" else state
    tint = _COLOURS.get(state, "dim" if state == "impossible" else "default")
    return f"[{tint}]{word}[/]" if colour else word


def result_table(records: Sequence[Record]) -> Table:
    """Return the metrics: one row a metric for one run, one row a run for several."""
    return _one_run(records[0]) if len(records) == 1 else _several_runs(records)


def _one_run(record: Record) -> Table:
    columns = ("metric", "value", "unit", "split", "n", "protocol")
    table = new_table(escape(record.run_id), *columns, numbers=("value", "n"))
    for metric in record.metrics:
        table.add_row(
            escape(metric.name),
            f"{metric.value:.2f}",
            escape(metric.unit),
            escape(metric.split),
            str(metric.n_eval),
            escape(metric.protocol),
        )
    table.caption = (
        f"{'' if record.is_result else 'preset=smoke: mechanics only, not a result.  '}"
        f"{record.steps} steps, {clock(record.wall_s)} in all, {record.images_per_s:.1f} images/s, "
        f"{record.peak_mem_mib:.0f} MiB, {100 * record.data_wait_share:.0f} % waiting for data"
    )
    table.caption_justify = "left"
    return table


def _several_runs(records: Sequence[Record]) -> Table:
    names = list(dict.fromkeys(metric.name for record in records for metric in record.metrics))
    numbers = *map(escape, names), "wall", "data wait"
    table = new_table("", "run", *numbers, numbers=numbers)
    for record in records:
        values = {metric.name: f"{metric.value:.2f}" for metric in record.metrics}
        cells = [values.get(name, "-") for name in names]
        waits = f"{100 * record.data_wait_share:.0f} %"
        table.add_row(escape(record.run_id), *cells, clock(record.wall_s), waits)
    return table


def audit_table(title: str, audit: NormAudit) -> Table:
    """Return one row a layer: what it was, what the switch made of it, and why."""
    columns = ("layer", "kind", "fan-in", "params", "the switch", "why")
    table = new_table(title, *columns, numbers=("fan-in", "params"))
    table.columns[0].no_wrap = True
    for row in audit:
        if row.role == "site":
            change = f"{row.norm_before} -> {row.norm_after}"
            change += f", {row.groups} groups" if row.groups else ""
        else:
            change = f"standardised ({row.ws})" if row.standardised else "-"
        why = "; ".join(word for word in (row.why, "" if row.trainable else "frozen") if word)
        fan_in = "" if row.fan_in is None else str(row.fan_in)
        table.add_row(row.path, row.kind, fan_in, f"{row.num_params:,}", change, escape(why))
    return table
