"""What is shown of many runs: a table in a terminal, lines elsewhere, and what is left of them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness import board as module
from harness.board import Lines, LiveTable, board
from harness.launch import Outcome
from harness.plan import plan


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that stands still: a list whose only number is the time."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def a_console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


@pytest.mark.parametrize(
    ("terminal", "ci", "kind"),
    [(True, "", LiveTable), (False, "", Lines), (True, "true", Lines)],
)
def test_a_terminal_gets_the_table_and_anything_else_lines(monkeypatch, terminal, ci, kind):
    monkeypatch.setenv("CI", ci)
    assert type(board(3, 1, a_console(terminal=terminal))) is kind


def test_lines_say_what_came_of_each_run_and_what_is_left(toy, tmp_path, clock):
    cells = plan(toy, ["seed=0..4"], tmp_path)
    console = a_console(terminal=False)
    show = Lines(5, 2, console)
    assert show.left() == ""  # nothing has told yet how long runs take
    show.started(cells[0])
    show.started(cells[1])
    show.row(cells[0], {"event": "evaluation", "metrics": {"acc": 61.257, "other": 1.0}})
    clock[0] += 60
    show.ended(cells[0], Outcome(0), 60.0)
    show.ended(cells[1], Outcome(6, "diverged"), 60.0)
    show.started(cells[2])
    show.started(cells[3])
    clock[0] += 20
    # Of two that told nothing 40 s each are left, and a whole one waits: 140 s of two at a time.
    assert show.left() == "  (about 1:10 left)"
    show.row(cells[2], {"event": "train", "eta_s": 200.0})
    assert show.left() == "  (about 3:20 left)"  # the rest is done beside the longest
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith(f"[1/5] {cells[0].run.id}  acc 61.26  other 1.00  1:00")
    assert f"[2/5] {cells[1].run.id}  failed: diverged  1:00" in lines[1]


def test_the_last_run_is_not_taken_as_done_while_it_starts(toy, tmp_path, clock):
    cells = plan(toy, ["seed=0..1"], tmp_path)
    show = Lines(2, 2, a_console(terminal=False))
    show.started(cells[0])
    show.started(cells[1])
    clock[0] += 10
    show.ended(cells[0], Outcome(0), 40.0)
    assert show.left() == "  (about 0:30 left)"
    clock[0] += 60
    assert show.left() == "  (about 0:00 left)"  # longer than usual, but never less than nothing


def test_the_table_shows_how_far_each_run_is(toy, tmp_path):
    cells = plan(toy, ["seed=0..2"], tmp_path)
    console = a_console(terminal=True)
    with LiveTable(3, 3, console) as show:
        for cell in cells:
            show.started(cell)
        show.row(cells[0], {"event": "stage", "stage": "evaluate", "done": 5, "total": 9})
        row = {"event": "train", "step": 2, "loss": 1.5, "images_per_s": 10.0, "eta_s": 61.0}
        show.row(cells[1], row)
        show.tick()
    text = console.file.getvalue()
    for cell, at in zip(
        cells, ("evaluate 5/9", f"2/{cells[1].spec.steps}", "starting"), strict=True
    ):
        assert any(cell.run.id in line and at in line for line in text.splitlines())
    assert "1.500" in text
    assert "1:01" in text
    assert "0 of 3 runs ended, 3 running" in text
