"""Thousands of runs: what planning and collecting them takes, and what making them would."""

from __future__ import annotations

import time
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


def test_ten_thousand_cells_plan_in_three_seconds(tmp_path):
    plan("classification", ["seed=0"], tmp_path)
    began = time.process_time()
    cells = plan("classification", ["norm=bn,gn_ws", f"seed=0..{NUM // 2 - 1}"], tmp_path)
    text = plan_lines(cells)
    seconds = time.process_time() - began
    assert len({cell.run.id for cell in cells}) == NUM == len(text.splitlines()) - 1
    assert seconds * 10_000 / NUM < 3


def test_ten_thousand_records_are_collected_in_ten_seconds(tmp_path):
    record = read_record(GOLDEN)
    text = record.model_dump_json()
    for number in range(NUM):
        run = RunDir(tmp_path, f"{record.run_id}{number}")
        run.path.mkdir(parents=True)
        run.record.write_text(text.replace(f'"{record.run_id}"', f'"{run.id}"'))
    began = time.process_time()
    records, warnings = read_records(tmp_path)
    write_csv(tmp_path, records)
    seconds = time.process_time() - began
    assert (len(records), warnings) == (NUM, [])
    assert seconds * 10_000 / NUM < 10


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
