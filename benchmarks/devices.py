"""What a step of each mini task costs when several processes of this machine share it.

    python -m benchmarks.devices [--steps 20] [--most 4]

Real workers under torchrun with gloo, one thread each, on the presets' batches with gn_ws; prints
the median images/s of the steps after the first three, and the speed-up over one process. On a
machine with fewer cores than processes it shows what the reductions cost, and no speed-up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from harness.launch import Running
from harness.placement import usable_cores
from harness.plan import PlannedRun
from harness.record import RunDir
from harness.registry import TASKS, task_info
from harness.spec import build, parse_words

_SETTLING = 3


def rate(task: str, devices: int, steps: int, folder: Path) -> float:
    """Return the median images/s of one run's steps."""
    words = ["norm=gn_ws", f"devices={devices}", "batch.micro=1", "exec.device=cpu"]
    words += ["exec.threads=1", "exec.log_s=0.000001", "exec.checkpoint_s=1000000"]
    spec = build(task, parse_words(words))
    root = task_info(task).prepare(spec, lambda *_: None)
    run = RunDir(folder, f"{task}-{devices}")
    one = Running(PlannedRun(spec, run, "todo"), root)
    rates: list[float] = []
    try:
        while len(rates) < steps + _SETTLING and not one.ended:
            rates += [row["images_per_s"] for row in one.news() if row["event"] == "train"]
            time.sleep(0.05)
    finally:
        if not one.ended:
            one.kill()
    return median(rates[_SETTLING : steps + _SETTLING])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps to time of each run")
    parser.add_argument("--most", type=int, default=4, help="processes at most, doubling from 1")
    given = parser.parse_args()
    print(f"{usable_cores()} cores")
    print(f"{'task':16}{'processes':>10}{'images/s':>10}{'speed-up':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            alone = 0.0
            devices = 1
            while devices <= given.most:
                found = rate(task, devices, given.steps, Path(folder))
                alone = alone or found
                print(f"{task:16}{devices:10}{found:10.1f}{found / alone:10.2f}", flush=True)
                devices *= 2


if __name__ == "__main__":
    main()
