"""Kills runs with SIGKILL at random places and holds what they end with against a run left alone.

    python -m tests.chaos TASK [KEY=VALUE]... [--kills N] [--seed N] [--lines] [--results DIR]

The product has no hooks for this. One process imports what a worker needs and forks one child an
attempt, so that an attempt costs milliseconds. A child dies at a random line of Python
(``--lines``: every line of the harness, the task and torch's serialisation counts) or at a random
time, which may be amid a kernel or a system call. What is not killed must end with the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from harness import registry, spec
from harness.checkpoint import load
from harness.plan import PlannedRun, plan
from harness.record import RunDir, read_record
from harness.spec import dump_spec
from tests.conftest import TOY_RECIPE

ROOT = Path(__file__).resolve().parents[1]
TRACED = (str(ROOT / "harness"), str(ROOT / "tasks"), str(ROOT / "tests" / "toy"))
SERIALIZATION = str(Path(torch.__file__).parent / "serialization.py")
LONGEST_CHAIN = 4


def trace(at: int, report: Callable[[int, str], None] | None = None) -> None:
    """Kill this process at its ``at``-th traced line; report the lines so far if it gets that far.

    Processes that it forks are not traced.
    """
    owner, lines = os.getpid(), 0

    def local(frame, event, _argument):
        nonlocal lines
        if event == "line" and os.getpid() == owner:
            lines += 1
            if lines == at:
                if report:
                    where = Path(frame.f_code.co_filename).name
                    report(lines, f"{where}:{frame.f_code.co_name}")
                os.kill(owner, signal.SIGKILL)
        return local

    def enter(frame, _event, _argument):
        name = frame.f_code.co_filename
        # persistent_id alone would be most of the lines: it is called for every object.
        saves = name == SERIALIZATION and frame.f_code.co_name != "persistent_id"
        return local if saves or name.startswith(TRACED) else None

    sys.settrace(enter)
    trace.count = lambda: lines  # type: ignore[attr-defined]


@dataclass
class Attempt:
    """How a child ended."""

    status: int
    """Exit status, or minus the signal."""
    seconds: float
    lines: int = 0
    place: str = ""


def fork(
    work: Callable[[], int], *, at: int = 0, after: float | None = None, traced: bool = False
) -> Attempt:
    """Do ``work`` in a child, which is killed at a line or after a time, with all it started."""
    tell, told = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(tell)
        status = 70
        try:
            if traced:
                trace(at, lambda n, place: os.write(told, f"{n} {place}".encode()) and None)
            status = work()
            sys.settrace(None)
            if traced:
                os.write(told, f"{trace.count()} end".encode())  # type: ignore[attr-defined]
        finally:
            os._exit(status)
    os.close(told)
    if after is not None:
        while (
            time.monotonic() - began < after
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with suppress(ProcessLookupError):  # as the launcher does: the data workers of a killed owner
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(tell) as pipe:
        lines, _, place = pipe.read().partition(" ")
    code = os.waitstatus_to_exitcode(status)
    return Attempt(code, time.monotonic() - began, int(lines or 0), place)


def registered(configs: Path) -> None:
    """Make the toy task known, with its recipe under ``configs``."""
    (configs / "toy").mkdir(parents=True, exist_ok=True)
    (configs / "toy" / "mini.yaml").write_text(TOY_RECIPE)
    ours = spec.configs_dir()
    for task in registry.TASKS:
        if not (configs / task).exists():
            (configs / task).symlink_to(ours / task)
    registry.TASKS["toy"] = "tests.toy:INFO"
    spec.configs_dir = lambda: configs


def worker(cell: PlannedRun, root: Path) -> int:
    """Do what the worker's process does."""
    from harness.worker import main

    with cell.run.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return main([str(cell.run.path), str(root)])


@dataclass
class Result:
    """What a run ended with, to the bit."""

    metrics: tuple
    best: dict
    weights: dict[str, bytes]
    steps: list[int]

    @staticmethod
    def of(run: RunDir) -> Result:
        record = read_record(run.record)
        content, _ = load(run.checkpoint, run.id)
        assert content is not None
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        return Result(
            record.metrics,
            record.best,
            {k: v.contiguous().numpy().tobytes() for k, v in content["model"].items()},
            [row["step"] for row in rows if row["event"] == "train"],
        )


@dataclass
class Tally:
    """What was done and found."""

    kills: int = 0
    chains: int = 0
    resumed: int = 0
    survived: int = 0
    """Attempts that ended before their time came."""
    places: Counter = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)


def chaos(task: str, words: list[str], kills: int, seed: int, lines: bool, folder: Path) -> Tally:
    """Kill until ``kills`` are reached, in chains of one to four that end with a free attempt."""
    draw, tally = random.Random(seed), Tally()

    def prepared(name: str) -> tuple[PlannedRun, Path]:
        (cell,) = plan(task, words, folder / name)
        assert cell.state != "impossible", cell.reason
        root = registry.task_info(task).prepare(cell.spec, lambda *_: None)
        cell.run.path.mkdir(parents=True)
        cell.run.spec.write_text(dump_spec(cell.spec))
        return cell, root

    cell, root = prepared("alone")
    alone = fork(partial(worker, cell, root), traced=lines)
    assert alone.status == 0, cell.run.log.read_text()
    expected = Result.of(cell.run)
    seconds = alone.seconds if lines else fork(lambda: worker(*prepared("timed"))).seconds
    while tally.kills < kills:
        tally.chains += 1
        cell, root = prepared(f"chain{tally.chains}")
        for _ in range(draw.randint(1, LONGEST_CHAIN)):
            if lines:
                one = fork(
                    partial(worker, cell, root), at=draw.randint(1, alone.lines), traced=True
                )
            else:
                one = fork(partial(worker, cell, root), after=draw.uniform(0, seconds))
            if one.status == -signal.SIGKILL:
                tally.kills += 1
                tally.places[one.place] += 1
            else:
                tally.survived += 1
                if one.status != 0 and not cell.run.record.is_file():
                    tally.different.append(f"chain {tally.chains}: status {one.status}")
        last = fork(partial(worker, cell, root))
        if not cell.run.record.is_file():
            log = cell.run.log.read_text()[-2000:]
            tally.different.append(f"chain {tally.chains}: status {last.status}\n{log}")
            continue
        found = Result.of(cell.run)
        tally.resumed += bool(read_record(cell.run.record).num_resumed)
        for part in ("metrics", "best", "weights", "steps"):
            if getattr(found, part) != getattr(expected, part):
                tally.different.append(f"chain {tally.chains}: {part} differ")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--results", type=Path)
    given = parser.parse_intermixed_args()
    import torch._dynamo

    import harness.worker  # noqa: F401  # all of it before the forks

    with tempfile.TemporaryDirectory() as scratch:
        folder = given.results or Path(scratch) / "results"
        registered(Path(scratch) / "configs")
        torch.set_num_threads(1)
        info = registry.task_info(given.task)
        registry.task_class(info)
        tally = chaos(given.task, given.words, given.kills, given.seed, given.lines, folder)
    print(json.dumps(vars(tally)))
    return bool(tally.different)


if __name__ == "__main__":
    sys.exit(main())
