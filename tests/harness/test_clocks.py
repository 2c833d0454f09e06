"""Clocks that jump under a run change nothing."""

from __future__ import annotations

import ast
import time
from pathlib import Path

from harness.record import read_record
from tests.harness.sittings import prepared, sit


def test_a_clock_that_jumps_changes_nothing(toy, tmp_path, monkeypatch, whole):
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9)
    run = prepared(tmp_path, "exec.log_s=0.001")
    assert sit(run) == (0, None)
    record = read_record(run.record)
    assert record.wall_s >= 0
    assert record.images_per_s > 0
    assert record.metrics == whole().metrics


def test_no_code_reads_the_wall_clock_but_for_the_date_of_a_record():
    """Durations and limits are monotonic; the date stands in the record, and a file has an age."""
    readers = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
    readers |= {("date", "today"), ("datetime", "today")}
    root = Path(__file__).parents[2]
    found = [
        (path.relative_to(root).as_posix(), node.attr)
        for folder in ("harness", "tasks", "normbench")
        for path in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in readers
    ]
    assert found == [("harness/live.py", "time"), ("harness/worker.py", "now")]
