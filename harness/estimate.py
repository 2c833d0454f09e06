"""How long runs will take and how much memory: from runs like them, or from steps timed here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.identity import cell_id
from harness.launch import Running
from harness.plan import PlannedRun
from harness.record import RunDir
from harness.schema import Spec

_PATIENCE_S = 600.0
"""How long a calibration may take before it is given up."""


@dataclass(frozen=True)
class Estimate:
    """What one run is expected to need."""

    seconds: float
    mem_mib: float
    source: str
    """``past runs``, or ``N steps`` of a calibration, which know nothing of evaluation."""


def from_records(results: Path) -> dict[str, Estimate]:
    """Return what finished runs took, by ``cell_id``."""
    from harness.collect import read_records

    took: dict[str, list[tuple[float, float]]] = {}
    for record in read_records(results)[0]:
        took.setdefault(record.cell, []).append((record.wall_s, record.peak_mem_mib))
    return {
        cell: Estimate(median(t for t, _ in both), max(m for _, m in both), "past runs")
        for cell, both in took.items()
        if cell
    }


def calibrate(
    cells: Sequence[PlannedRun],
    roots: Mapping[str, Path],
    steps: int,
    known: dict[str, Estimate],
    say: Callable[[str], None],
) -> None:
    """Time some steps of one run of each kind, one after the other, and add them to ``known``.

    The workers get their real specs in a scratch folder and are ended after the steps, so what is
    timed is what a run does; its evaluation is not.

    Args:
        cells: the runs.
        roots: their data, by run id.
        steps: optimiser steps to time, after one that does not count.
        known: estimates by ``cell_id``; what is there is not timed again.
        say: shows a line.
    """
    kinds = {cell_id(cell.spec): cell for cell in cells if cell.run.id in roots}
    todo = {kind: cell for kind, cell in kinds.items() if kind not in known}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (kind, cell) in enumerate(todo.items(), 1):
            estimate = _timed(cell, roots[cell.run.id], steps, Path(scratch))
            if estimate:
                known[kind] = estimate
            told = f"{estimate.seconds:.0f} s" if estimate else "could not be timed"
            say(f"calibrating {number}/{len(todo)}: {cell.run.id}  {told}")


def _timed(cell: PlannedRun, root: Path, steps: int, scratch: Path) -> Estimate | None:
    execution = cell.spec.exec.model_copy(update={"log_s": 1e-6, "checkpoint_s": 1e6})
    changes: dict[str, Any] = {"exec": execution}
    if cell.source is not None:  # whose weights are not there yet, and take no time
        changes["init"] = cell.spec.init.model_copy(update={"source": "scratch", "cell": None})
    spec: Spec = cell.spec.model_copy(update=changes)
    one = Running(PlannedRun(spec, RunDir(scratch, cell.run.id), "todo"), root)
    rates: list[float] = []
    memory, started = 0.0, 0.0
    try:
        while len(rates) <= steps and time.monotonic() - one.began < _PATIENCE_S:
            over = one.ended
            for row in one.news():
                if row["event"] == "train":
                    started = started or time.monotonic() - one.began
                    rates.append(row["images_per_s"])
                    memory = max(memory, row["mem_mib"])
            if over:
                break
            time.sleep(0.05)
    finally:
        if not one.ended:
            one.kill()
    if len(rates) < 2:
        return None
    step_s = spec.batch.size / median(rates[1 : steps + 1])
    return Estimate(started + spec.steps * step_s, memory, f"{min(steps, len(rates) - 1)} steps")
