"""Thousands of runs: what planning and collecting them takes, and what making them would."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.collect import read_records, write_csv
from harness.estimate import Estimate
from harness.plan import plan
from harness.record import RunDir, read_record
from harness.report.definition import choose
from harness.reproduce import _costs, needed
from harness.terminal import plan_lines

NUM = 2000
GOLDEN = Path(__file__).parents[1] / "golden" / "record_v1.json"


def calls(work: Callable[[], object]) -> int:
    """Count calls of functions, which are the same on any machine, unlike seconds."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


def test_planning_takes_twice_as_much_for_twice_the_cells(tmp_path):
    def planned(num: int) -> None:
        cells = plan("classification", ["norm=bn,gn_ws", f"seed=0..{num // 2 - 1}"], tmp_path)
        lines = plan_lines(cells).splitlines()
        assert len({cell.run.id for cell in cells}) == num == len(lines) - 1

    planned(2)
    once = calls(lambda: planned(NUM // 4))
    assert calls(lambda: planned(NUM // 2)) < 2.1 * once
    assert once < 800 * (NUM // 4)


def test_collecting_takes_twice_as_much_for_twice_the_records(tmp_path):
    record = read_record(GOLDEN)
    text = record.model_dump_json()

    def collected(results: Path) -> None:
        records, warnings = read_records(results)
        write_csv(results, records)
        assert warnings == []

    counts = []
    for num in (NUM // 4, NUM // 2):
        results = tmp_path / str(num)
        for number in range(num):
            run = RunDir(results, f"{record.run_id}{number}")
            run.path.mkdir(parents=True)
            run.record.write_text(text.replace(f'"{record.run_id}"', f'"{run.id}"'))
        assert len(read_records(results)[0]) == num
        counts.append(calls(lambda results=results: collected(results)))
    assert counts[1] < 2.1 * counts[0]
    assert counts[1] - counts[0] < 600 * (NUM // 4)


TABLES = """\
mini:
  one: &one
    task: toy
    title: One
    metrics: [pixel_acc]
    seeds: 0..3
    rows: {norm: [gn, gn_ws]}
    reference: gn
  other: {<<: *one, rows: {norm: [bn]}, reference: bn}
"""


def test_a_plan_says_the_device_hours_of_each_table(toy, tmp_path):
    """Half an hour on each of two devices; a kind of unknown length is not guessed."""
    path = tmp_path / "tables.yaml"
    path.write_text(TABLES)
    tables, pairs = choose(["one", "other"], ["devices=2"], every=False, path=path)
    shown = needed(tables, pairs, tmp_path)
    known = {cell.id: Estimate(1800, 1, "5 steps") for cell in shown if cell.table == "one"}
    costs = _costs(shown, known)
    rows = list(zip(*(column.cells for column in costs.columns), strict=True))
    assert rows == [("one", "8", "8", "8.00", "8.00"), ("other", "4", "4", "?", "?")]
    none = [replace(cell, planned=replace(cell.planned, state="impossible")) for cell in shown]
    rows = list(zip(*(column.cells for column in _costs(none, known).columns), strict=True))
    assert rows == [("one", "8", "0", "n/a", "n/a"), ("other", "4", "0", "n/a", "n/a")]
