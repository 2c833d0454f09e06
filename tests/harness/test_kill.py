"""SIGKILL anywhere, then the same again: bit by bit what it would have been (``tests.chaos``)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness.archives import Layout, unpack
from harness.collect import read_csv, read_records, write_csv
from harness.embedded import generate_once
from tests.chaos import fork
from tests.harness.test_collect import record_of, store
from tests.toycli import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")
OFTEN = ("exec.checkpoint_s=0", "exec.log_s=0.000001")


def chaos(*words: str, kills: int, seed: int = 0) -> dict:
    process = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words, "--kills", str(kills), "--seed", str(seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=500,
    )
    assert process.stdout, process.stderr
    tally = json.loads(process.stdout)
    assert tally["different"] == []
    assert tally["kills"] >= kills
    return tally


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "kills"),
    [
        (("norm=bn", "batch.micro=2", "exec.eval_every=2", "--lines"), 20),
        (("norm=gn_ws", "batch.micro=1", "exec.workers=2", "exec.eval_every=2"), 10),
        (("norm=bn", "batch.micro=8", "data.num_train=21", "batch.tail=keep", "--lines"), 10),
    ],
)
def test_toy(words, kills):
    """Training, evaluation on the way, checkpoints and the record, mid-epoch, at many lines."""
    assert chaos("toy", *words, *OFTEN, kills=kills)["resumed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("classification", "batch.micro=1", "norm=gn_ws", "exec.workers=2"),
        ("segmentation", "batch.micro=2", "norm=bn", "exec.workers=1"),
        ("pointcloud", "batch.micro=4", "norm=bn_ws"),
        ("detection", "batch.micro=1", "norm=gn"),
    ],
    ids=lambda words: words[0],
)
def test_real_tasks(words):
    chaos(*words, "preset=smoke", *OFTEN, "--lines", kills=2, seed=3)


def killed_often(work, whole, kills: int = 12) -> None:
    """Kill ``work`` at random lines; after each, and after a free attempt, ``whole`` must hold."""
    draw = random.Random(0)

    def quiet() -> int:
        work()
        return 0

    lines = fork(quiet, traced=True).lines
    assert lines > 10
    whole(after_a_kill=False)
    for _ in range(kills):
        one = fork(quiet, at=draw.randint(1, lines), traced=True)
        assert one.status in (-signal.SIGKILL, 0)
        whole(after_a_kill=True)
    assert fork(quiet).status == 0
    whole(after_a_kill=False)


def test_collecting(tmp_path):
    for number in range(3):
        store(tmp_path, record_of(number))
    write_csv(tmp_path, read_records(tmp_path)[0])
    expected = (tmp_path / "metrics.csv").read_bytes()

    def work() -> None:
        for name in ("runs.csv", "metrics.csv"):
            if os.getpid() % 2:  # what is replaced, and what is new
                (tmp_path / name).unlink(missing_ok=True)
        write_csv(tmp_path, read_records(tmp_path)[0])

    def whole(*, after_a_kill: bool) -> None:
        found = tmp_path / "metrics.csv"
        if not after_a_kill or found.exists():
            assert found.read_bytes() == expected
            assert len(read_csv(found)) == 3

    killed_often(work, whole)


def content(root: Path) -> dict[str, bytes]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_generating_data(tmp_path):
    root = tmp_path / "data"
    expected = {f"{i}.txt": f"number {i}".encode() for i in range(20)}

    def write(folder: Path) -> None:
        for name, data in expected.items():
            (folder / name).write_bytes(data)

    def work() -> None:
        generate_once(root, "v1", write)

    def whole(*, after_a_kill: bool) -> None:
        if root.exists() or not after_a_kill:
            assert content(root) == expected | {"generator.txt": b"v1\n"}
            shutil.rmtree(root)  # begin anew

    killed_often(work, whole)


def test_unpacking(tmp_path):
    archive, root = tmp_path / "a.zip", tmp_path / "data"
    expected = {f"pictures/{i}.jpg": os.urandom(3000) for i in range(10)}
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in expected.items():
            file.writestr(name, data)
    layout = Layout(place=lambda path: path, archives=("a.zip",), downloads="pictures")

    def work() -> None:
        unpack([archive], root, layout, lambda *_: None)

    def whole(*, after_a_kill: bool) -> None:
        found = {k: v for k, v in content(root).items() if not Path(k).name.startswith(".")}
        assert found.items() <= expected.items()  # what is there is whole
        assert after_a_kill or found == expected
        if found == expected:
            shutil.rmtree(root)  # begin anew

    killed_often(work, whole)
