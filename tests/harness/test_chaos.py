"""SIGKILL anywhere, inputs of any kind: the short form of ``python -m tests.chaos``."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest

from tests.chaos.files import FILES
from tests.chaos.killing import Tally
from tests.toycli import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, reads /proc")


def chaos(out, *words: str) -> dict:
    process = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words, "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=580,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads((out / "chaos.json").read_text())


@pytest.mark.slow
def test_kills_of_real_tasks_change_no_bit(tmp_path):
    tasks = ("classification", "segmentation", "pointcloud", "detection")
    only = [word for task in tasks for word in ("--only", task)]
    rows = chaos(tmp_path, "--kills", "15", "--inputs", "0", *only)["kills"]
    assert len(rows) == 4
    assert sum(row["kills"] for row in rows.values()) >= 15


@pytest.mark.slow
def test_no_input_wins(tmp_path):
    rows = chaos(tmp_path, "--kills", "0", "--inputs", "300")["inputs"]
    assert sum(row["inputs"] for row in rows.values()) >= 300
    refused = {
        name: sum(n for s, n in row["statuses"].items() if s != "0") for name, row in rows.items()
    }
    good = ("records", "run folders")  # what is damaged there is passed over
    assert [name for name, number in refused.items() if not number] == [*good]


@pytest.mark.slow
def test_kills_of_the_toy_task_change_no_bit(tmp_path):
    """Training, evaluation on the way, checkpoints and the record, mid-epoch, at many lines."""
    rows = chaos(tmp_path, "--kills", "20", "--inputs", "0", "--only", "toy")["kills"]
    assert sum(row["kills"] for row in rows.values()) >= 5
    assert sum(row["resumed"] for row in rows.values()) >= 1  # others died before a checkpoint


@pytest.mark.parametrize("name", FILES)
def test_kills_leave_whole_files(tmp_path, toy, name):
    tally: Tally = partial(FILES[name], kills=3 if name == "reporting" else 8, seed=1)(tmp_path)
    assert tally.different == []
    assert tally.kills >= 3
