"""`normbench` with the toy task, and what tests ask of its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.record import RunDir

ROOT = Path(__file__).resolve().parents[1]


def installed(folder: Path) -> dict[str, str]:
    """Install the toy task beside ours, as another package would; return the environment.

    Workers find it by its entry point. Its recipe is not among ours: the command line is started
    through this module.
    """
    package = folder / "site" / "toy-0.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0\n")
    (package / "entry_points.txt").write_text("[normbench.tasks]\ntoy = tests.toy:INFO\n")
    path = os.pathsep.join([str(folder / "site"), str(ROOT)])
    return os.environ | {"CI": "true", "PYTHONPATH": path, "TOY": str(folder / "configs")}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start the command line in a session of its own; results go to ``folder/results``."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.toycli", *words, "--results", str(folder / "results")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=installed(folder),
        cwd=ROOT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_until(true: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def only_run(folder: Path) -> RunDir:
    (path,) = (folder / "results" / "runs").iterdir()
    return RunDir(folder / "results", path.name)


def events(run: RunDir, event: str) -> list[dict]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines(keepends=True)[:-1]]
    return [row for row in rows if row["event"] == event]


def wait_for_step(folder: Path, step: int) -> RunDir:
    """Wait until a run logged a step; return it."""

    def reached() -> bool:
        if not list(folder.glob("results/runs/*/metrics.jsonl")):
            return False
        return any(row["step"] >= step for row in events(only_run(folder), "train"))

    wait_until(reached)
    return only_run(folder)


def tree(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def alive(pids: list[int]) -> list[int]:
    """Return those of ``pids`` that still run; a zombie does not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


if __name__ == "__main__":
    from harness.cli import main
    from tests.chaos.runs import registered

    registered(Path(os.environ["TOY"]))
    main()
