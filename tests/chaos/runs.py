"""Runs that are killed, again and again, must end with the bits of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import registry, spec
from harness.checkpoint import load
from harness.paths import PARTIAL
from harness.plan import PlannedRun, plan
from harness.record import RunDir, read_record
from harness.spec import dump_spec
from tests.chaos.killing import Tally, fork
from tests.conftest import TOY_RECIPE

OFTEN = ("exec.checkpoint_s=0", "exec.log_s=0.000001")
"""A checkpoint and a row of the journal after every step."""
TASKS = {
    "classification": (
        ("norm=gn_ws", "batch.micro=1", "exec.workers=2"),
        ("norm=bn", "batch.micro=4", "exec.eval_every=2"),
    ),
    "segmentation": (
        ("norm=bn", "batch.micro=2", "exec.workers=1"),
        ("norm=gn_ws", "batch.micro=1", "exec.eval_every=1"),
    ),
    "pointcloud": (
        ("norm=bn_ws", "batch.micro=4"),
        ("norm=gn", "batch.micro=1", "exec.workers=2", "exec.eval_every=2"),
    ),
    "detection": (
        ("norm=gn", "batch.micro=1", "exec.workers=1"),
        ("norm=gn_ws", "batch.micro=2"),
    ),
    "toy": (
        ("norm=bn", "batch.micro=2", "exec.eval_every=2"),
        ("norm=gn_ws", "batch.micro=1", "exec.workers=2", "exec.eval_every=2"),
        ("norm=bn", "batch.micro=8", "data.num_train=21", "batch.tail=keep"),
    ),
}
"""Of each task the runs that are killed: several micro-batches, with data workers and without."""
LONGEST_CHAIN = 4


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


def killed(task: str, words: list[str], kills: int, seed: int, lines: bool, folder: Path) -> Tally:
    """Kill until ``kills`` are reached, in chains of one to four that end with a free attempt.

    Args:
        task: name of the task.
        words: the run.
        kills: at least so many.
        seed: of the draws.
        lines: whether to kill at lines of Python, rather than at times, which may be amid a kernel
            or a system call.
        folder: for the results.
    """
    draw, tally = random.Random(seed), Tally()

    def prepared(name: str) -> tuple[PlannedRun, Path]:
        (cell,) = plan(task, words, folder / name)
        assert cell.state != "impossible", cell.reason
        root = registry.task_info(task).prepare(cell.spec, lambda *_: None)
        cell.run.path.mkdir(parents=True)
        cell.run.spec.write_text(dump_spec(cell.spec))
        return cell, root

    cell, root = prepared("alone")
    alone = fork(partial(worker, cell, root))
    assert alone.status == 0, cell.run.log.read_text()
    expected = Result.of(cell.run)
    # Again, for its lines or its time: the first one may have compiled for minutes.
    alone = fork(lambda: worker(*prepared("counted")), traced=lines)
    assert alone.status == 0
    while tally.kills < kills:
        tally.chains += 1
        cell, root = prepared(f"chain{tally.chains}")
        for _ in range(draw.randint(1, LONGEST_CHAIN)):
            work = partial(worker, cell, root)
            if lines:
                one = fork(work, at=draw.randint(1, alone.lines), traced=True)
            else:
                one = fork(work, after=draw.uniform(0, alone.seconds))
            tally.add(one)
            if one.status not in (0, -signal.SIGKILL) and not cell.run.record.is_file():
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
        left = [path.name for path in cell.run.path.glob(f".*{PARTIAL}")]
        tally.different += [f"chain {tally.chains}: left {name}" for name in left]
    return tally
