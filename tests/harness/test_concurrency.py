"""Several processes and one results folder: each run once, each file whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
from filelock import FileLock
from rich.console import Console

from harness import pool
from harness.board import Lines
from harness.collect import collecting, read_csv
from harness.launch import Outcome
from harness.plan import plan
from harness.record import RunDir, read_record
from harness.run import run
from tests.harness.test_collect import record_of, store
from tests.toycli import alive, events, finish, only_run, start, tree, wait_for_step, wait_until

TABLES = """\
mini:
  tiny:
    task: toy
    title: Tiny
    metrics: [pixel_acc]
    seeds: 0..1
    base: {steps: 4}
    rows: {norm: [gn, gn_ws]}
    reference: gn
"""


@pytest.mark.slow
def test_two_reproductions_share_the_work(tmp_path):
    tables = tmp_path / "tables.yaml"
    tables.write_text(TABLES)
    words = ("reproduce", "tiny", "--jobs", "1", "--tables", str(tables))
    both = [start(tmp_path, *words) for _ in range(2)]
    while any(process.poll() is None for process in both):
        for path in tmp_path.glob("results/*.csv"):
            pd.read_csv(path)  # whole at any time
        time.sleep(0.1)
    for process in both:
        code, out, err = finish(process)
        assert (code, err) == (0, ""), out
    runs = [RunDir(tmp_path / "results", path.name) for path in tmp_path.glob("results/runs/*")]
    assert len(runs) == 4
    for one in runs:
        assert len(events(one, "start")) == 1
        assert read_record(one.record).num_resumed == 0
    assert len(read_csv(tmp_path / "results" / "runs.csv")) == 4


@pytest.mark.slow
def test_the_same_run_twice_is_made_once_and_taken_over_from_the_dead(tmp_path):
    words = ("run", "toy", "steps=3000", "exec.log_s=0.01", "exec.checkpoint_s=0.1")
    first = start(tmp_path, *words)
    one = wait_for_step(tmp_path, 2)
    wait_until(one.checkpoint.is_file)
    pids = tree(first.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # it shall not be done before the second looks
    second = start(tmp_path, *words)
    lines = iter(second.stdout.readline, "")
    assert any("in another process" in line for line in lines)
    assert len(events(one, "start")) == 1
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not alive(pids))
    code, out, err = finish(second)
    assert (code, err) == (0, ""), out
    assert "resumed at step" in out
    assert read_record(only_run(tmp_path).record).num_resumed == 1


def held(cell) -> FileLock:
    """Take a run's lock, as another process that is making it has."""
    cell.run.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cell.run.path / "run.lock", thread_local=False)
    lock.acquire()
    return lock


class Worker:
    """Stands in for a process that makes a run at once, and notes which were started."""

    started: list[str]

    def __init__(self, cell, _root, _threads=None, *, gpus=None) -> None:
        self.cell, self.began, self.ended = cell, time.monotonic(), True
        self.started.append(cell.run.id)

    def news(self):
        return iter(())

    def outcome(self, _received):
        self.cell.run.path.mkdir(parents=True, exist_ok=True)
        self.cell.run.record.write_text("{}")
        return Outcome(0)


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(Worker, "started", [], raising=False)
    monkeypatch.setattr(pool, "Running", Worker)
    monkeypatch.setattr(pool, "_LOOK_S", 0.05)
    return Worker.started


def sit(cells, tmp_path, capsys) -> tuple[pool.Sitting, str]:
    roots = {cell.run.id: tmp_path for cell in cells}
    sitting = pool.run_all(cells, roots, 1, Lines(len(cells), 1, Console(width=200)))
    return sitting, capsys.readouterr().out


@pytest.mark.parametrize("left", ["done", "failed", "stopped"])
def test_what_another_process_makes_is_waited_for(tmp_path, toy, workers, capsys, left):
    cells = plan(toy, ["seed=0..2"], tmp_path)
    theirs, mine = cells[0], [cell.run.id for cell in cells[1:]]
    lock = held(theirs)

    def end() -> None:
        wait_until(lambda: len(workers) == len(mine))
        if left == "done":
            theirs.run.record.write_text("{}")
        if left == "failed":
            theirs.run.failure.write_text('{"exit_code": 6, "message": "diverged there"}')
        lock.release()

    other = threading.Thread(target=end)
    other.start()
    sitting, out = sit(cells, tmp_path, capsys)
    other.join()
    assert workers[:2] == mine
    assert workers[2:] == ([theirs.run.id] if left == "stopped" else [])
    assert f"{theirs.run.id} runs in another process" in out
    assert len(sitting.outcomes) == 3
    assert sitting.failed == ({theirs.run.id: "diverged there"} if left == "failed" else {})


def test_what_another_process_finished_meanwhile_is_not_started(tmp_path, toy, workers, capsys):
    cells = plan(toy, ["seed=0..1"], tmp_path)
    cells[1].run.path.mkdir(parents=True)
    cells[1].run.record.write_text("{}")
    sitting, out = sit(cells, tmp_path, capsys)
    assert workers == [cells[0].run.id]
    assert not sitting.failed
    assert len(sitting.outcomes) == 2
    assert "[2/2]" in out


def test_a_worker_that_loses_the_race_is_no_failure(tmp_path, toy, workers, monkeypatch, capsys):
    (cell,) = plan(toy, [], tmp_path)
    lost = iter([Outcome(1, "elsewhere", elsewhere=True)])
    right = Worker.outcome
    monkeypatch.setattr(Worker, "outcome", lambda self, n: next(lost, None) or right(self, n))
    sitting, out = sit([cell], tmp_path, capsys)
    assert not sitting.failed
    assert workers == [cell.run.id] * 2
    assert "runs in another process" in out


def test_a_stopped_sitting_does_not_wait_for_others(tmp_path, toy, workers, capsys):
    (cell,) = plan(toy, [], tmp_path)
    lock, before = held(cell), signal.getsignal(signal.SIGINT)

    def stop() -> None:
        wait_until(lambda: signal.getsignal(signal.SIGINT) is not before)
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=stop)
    other.start()
    sitting, _ = sit([cell], tmp_path, capsys)
    other.join()
    lock.release()
    assert sitting.stopped == 130
    assert workers == []


def test_a_sweep_comes_back_to_what_ran_elsewhere(tmp_path, toy, monkeypatch, capsys):
    cells = plan(toy, ["seed=0..1"], tmp_path)
    lock, made = held(cells[0]), []

    def launch(cell, _root, _show):
        made.append(cell.run.id)
        store(tmp_path, record_of().model_copy(update={"run_id": cell.run.id}))
        if len(made) == 1:
            lock.release()
        return Outcome(0)

    monkeypatch.setattr("harness.run.launch", launch)
    run(toy, ["seed=0..1"], tmp_path, Console(width=200))
    assert made == [cells[1].run.id, cells[0].run.id]


def test_tables_are_written_by_one_at_a_time(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from harness.collect import collecting\n"
        "with collecting(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"in\n"
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        other.kill()

    threading.Timer(1.0, kill).start()
    with collecting(tmp_path):  # what a killed owner held is free at once
        assert killed.is_set()
    other.communicate()
    assert other.returncode == -signal.SIGKILL  # it did not end of itself
