"""`reproduce` as a user types it: runs what is missing, goes on after failures, can be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from harness.errors import NormbenchError
from harness.record import RunDir, read_record
from harness.reproduce import plan_tables, reproduce

TABLES = """\
mini:
  tiny:
    task: classification
    title: Tiny
    metrics: [top1_acc]
    seeds: 0..1
    base: {steps: STEPS, data.num_train: 64, data.num_val: 32, exec.checkpoint_s: 0}
    rows: {norm: [bn, gn_ws]}
    columns: {batch.micro: [1, 16]}
    reference: gn_ws
"""


def start(results: Path, *words: str, steps: int = 6) -> subprocess.Popen[str]:
    tables = results.parent / "tables.yaml"
    tables.write_text(TABLES.replace("STEPS", str(steps)))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "harness", *words),
            *("--tables", str(tables), "--results", str(results)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CI": "true"},
        start_new_session=True,
    )


def run(results: Path, *words: str, **kinds: int) -> tuple[int, str, str]:
    process = start(results, *words, **kinds)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    results = tmp_path_factory.mktemp("reproduced") / "results"
    code, out, err = run(results, "reproduce", "tiny", "--jobs", "2")
    assert (code, err) == (0, ""), out
    return results, out


@pytest.mark.slow
def test_every_run_once_then_the_tables(reproduced):
    results, out = reproduced
    assert "6 runs, 0 done, 6 to make, 2 at a time" in out  # gn_ws once, whatever the micro-batch
    assert len(list((results / "runs").iterdir())) == 6
    assert "[6/6]" in out
    table = pd.read_csv(results / "tables" / "tiny.csv")
    assert len(table) == 4
    assert (table["top1_acc_n"] == 2).all()
    assert (results / "tables" / "tiny.md").is_file()
    assert (results / "tables" / "tiny.tex").is_file()
    assert (results / "figures" / "tiny_micro.png").stat().st_size > 1000


@pytest.mark.slow
def test_again_is_nothing_to_do_and_changes_no_file(reproduced):
    results, _ = reproduced
    files = {path: path.read_bytes() for path in sorted(results.rglob("*.*")) if path.is_file()}
    code, out, _ = run(results, "reproduce", "tiny")
    assert code == 0
    assert "6 runs, 6 done, 0 to make" in out
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.slow
def test_a_missing_seed_is_listed_and_makes_the_table_incomplete(reproduced, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for path in (reproduced[0] / "runs").iterdir():
        if "-s1-" not in path.name or "gn_ws" in path.name:
            (results / "runs" / path.name).mkdir(parents=True)
            record = (path / "record.json").read_bytes()
            (results / "runs" / path.name / "record.json").write_bytes(record)
    code, out, err = run(results, "report", "tiny")
    assert code == 1
    assert "2 of its 6 runs are missing" in out
    assert "seed 1 not run" in out
    assert err.count("\n") == 1
    code, out, _ = run(results, "plan", "tiny")
    assert code == 0
    assert "4 done, 2 todo" in out


@pytest.mark.slow
def test_a_broken_record_is_passed_over_with_one_warning(reproduced, tmp_path):
    results = tmp_path / "results"
    for number, path in enumerate(sorted((reproduced[0] / "runs").iterdir())):
        (results / "runs" / path.name).mkdir(parents=True)
        record = (path / "record.json").read_bytes()
        if number == 0:
            record = record[: len(record) // 2]
            broken = path.name
        (results / "runs" / path.name / "record.json").write_bytes(record)
    code, out, _ = run(results, "report", "tiny")
    assert code == 1
    warnings = [line for line in out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert broken in warnings[0]
    assert "delete that file to have the run made again" in out
    assert len(pd.read_csv(results / "runs.csv")) == 5
    (results / "runs" / broken / "record.json").unlink()
    code, out, err = run(results, "reproduce", "tiny")
    assert (code, err) == (0, "")
    assert "6 runs, 5 done, 1 to make" in out


@pytest.mark.slow
def test_stopped_and_repeated_it_ends_as_if_never_stopped(reproduced, tmp_path):
    results = tmp_path / "results"
    process = start(results, "reproduce", "tiny", "seed=0", "--jobs", "2")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(results.glob("runs/*/checkpoint.pt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out
    assert "the same command goes on" in err
    code, out, err = run(results, "reproduce", "tiny", "seed=0", "--jobs", "2")
    assert code == 0, err
    for path in (results / "runs").iterdir():
        whole = read_record(RunDir(reproduced[0], path.name).record)
        assert read_record(RunDir(results, path.name).record).metrics == whole.metrics


def test_what_all_runs_lack_is_said_once_and_ends_with_3(tmp_path):
    """Runs without data have no id of their own: those of four backbones are called the same."""
    words = [f"data={tmp_path / 'nowhere'}"]
    with pytest.raises(NormbenchError) as caught:
        reproduce(
            *(["imagenet", "modelnet40"], words, tmp_path / "results", Console()),
            **{"every": False, "jobs": None, "path": None},
        )
    first, *rest = str(caught.value).splitlines()
    assert caught.value.exit_code == 3
    assert first == "100 of 100 runs could not be made:"
    assert [line.partition("-")[0] for line in rest] == ["classification", "pointcloud"]
    assert " and 79 more: data folder" in rest[0]


def test_a_plan_without_data_does_not_say_that_all_is_done(tmp_path, capsys):
    options = {"every": False, "jobs": None, "steps": None, "path": None}
    plan_tables(["modelnet40"], [], tmp_path, Console(width=160), **options)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("nothing is left to run: 20 of 20 runs cannot be made")


def test_wrong_words_are_one_line(tmp_path):
    for words, message in (
        (("reproduce", "tini"), "unknown table 'tini'. Did you mean 'tiny'?"),
        (("reproduce", "tiny", "steps=3"), "steps= would change"),
        (("report", "tiny", "sed=1"), "sed= would change"),
        (("verify", "tiny", "--tolerance", "-1"), "--tolerance -1"),
        (("plan",), "name tables"),
        (("plan", "tiny", "seed=x"), "seeds: 'x' is not like 0..2"),
    ):
        code, out, err = run(tmp_path / "results", *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err
    assert not (tmp_path / "results" / "runs").exists()
