"""Runs in their own processes, as a user starts, interrupts and resumes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.collect import read_csv
from harness.record import Record, RunDir, read_record

SMOKE = ("run", "detection", "preset=smoke", "exec.threads=1")


def start(*words: str, results: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *words, "--results", str(results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CI": "true"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def run(*words: str, results: Path) -> tuple[int, str, str]:
    return finish(start(*words, results=results))


def only_run(results: Path) -> RunDir:
    (path,) = (results / "runs").iterdir()
    return RunDir(results, path.name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    results = tmp_path_factory.mktemp("finished")
    code, out, err = run(*SMOKE, "norm=gn_ws", results=results)
    assert (code, err) == (0, ""), out
    return results, out


def test_a_run_leaves_all_it_should(finished):
    results, out = finished
    one = only_run(results)
    for path in (one.spec, one.environment, one.audit, one.metrics, one.checkpoint, one.log):
        assert path.stat().st_size or path == one.log, path
    record = read_record(one.record)
    assert record.norm.num_standardised == record.norm.num_norm_sites > 0
    assert not record.is_result
    metrics = read_csv(results / "metrics.csv")
    assert {"box_AP", "mask_AP50"} <= set(metrics["metric"])
    assert metrics["run_id"].unique().tolist() == [one.id]
    assert "mechanics only, not a result" in out
    assert str(results / "metrics.csv") in out


def test_progress_lines_say_step_losses_rate_memory_and_eta(finished):
    line = next(line for line in finished[1].splitlines() if line.startswith("step 1/3"))
    for part in ("loss", "mask", "rpn_cls", "lr", "images/s", "MiB", "eta"):
        assert part in line


def test_the_same_command_again_makes_nothing_anew(finished):
    results, _ = finished
    before = only_run(results).record.read_bytes()
    code, out, _ = run(*SMOKE, "norm=gn_ws", results=results)
    assert code == 0
    assert "is done" in out
    assert "mask_AP50" in out
    assert only_run(results).record.read_bytes() == before


def wait_for_step(results: Path, step: int) -> RunDir:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for journal in results.glob("runs/*/metrics.jsonl"):
            rows = [
                json.loads(line)
                for line in journal.read_text().splitlines(keepends=True)
                if line.endswith("\n")
            ]
            if any(row.get("step", 0) >= step and row["event"] == "train" for row in rows):
                return only_run(results)
        time.sleep(0.05)
    raise TimeoutError


LONG = (*SMOKE, "norm=bn", "steps=40", "exec.log_s=0.001", "exec.checkpoint_s=0.5")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Record:
    results = tmp_path_factory.mktemp("uninterrupted")
    assert run(*LONG, results=results)[0] == 0
    return read_record(only_run(results).record)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "the same command resumes"),
        (signal.SIGTERM, 75, "the same command resumes"),
        (signal.SIGUSR1, 75, "the same command resumes"),
    ],
)
def test_a_stopped_run_resumes_to_the_same_result(tmp_path, uninterrupted, number, code, word):
    process = start(*LONG, results=tmp_path)
    one = wait_for_step(tmp_path, 5)
    process.send_signal(number)
    stopped, _, err = finish(process)
    assert stopped == code
    assert word in err
    assert err.count("\n") == 1
    assert one.checkpoint.is_file()
    assert not one.record.exists()
    assert one.state() == "resumable"
    code, out, _ = run(*LONG, results=tmp_path)
    assert code == 0
    assert "resumed at step" in out
    record = read_record(one.record)
    assert record.metrics == uninterrupted.metrics
    assert record.num_resumed == 1
    steps = [json.loads(line) for line in one.metrics.read_text().splitlines()]
    steps = [row["step"] for row in steps if row["event"] == "train"]
    assert steps == sorted(set(steps)) == list(range(1, 41))


def test_a_killed_run_resumes_to_the_same_result(tmp_path, uninterrupted):
    process = start(*LONG, results=tmp_path)
    one = wait_for_step(tmp_path, 20)
    os.killpg(process.pid, signal.SIGKILL)  # the launcher; its worker notices and saves
    process.communicate()
    deadline = time.monotonic() + 60
    while one.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run(*LONG, results=tmp_path)[0] == 0
    assert read_record(one.record).metrics == uninterrupted.metrics


def test_a_sweep_runs_each_cell_and_names_the_impossible(tmp_path):
    code, out, _ = run(*SMOKE, "norm=frozen_bn,gn", "steps=1", results=tmp_path)
    assert code == 0
    assert "n/a: frozen_bn only applies statistics" in out
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_two_devices_share_a_step(tmp_path):
    """torchrun with two gloo processes; the numbers' equality is another test's concern."""
    code, out, err = run(*SMOKE, "norm=gn", "devices=2", "exec.device=cpu", results=tmp_path)
    assert code == 0, err
    one = only_run(tmp_path)
    assert read_record(one.record).environment["world"] == 2
    assert one.log.read_text().count("norm sites") == 1  # of two processes, one speaks
    assert "devices 2" in out
