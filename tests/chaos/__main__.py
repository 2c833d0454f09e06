"""All of it in one command, with a table of what was tried and what was found.

    python -m tests.chaos [--kills N] [--inputs N] [--seed N] [--only NAME]... [--out DIR]

The long form is the default: 100 kills over the four tasks, and 10,000 inputs. Nothing is written
outside of a temporary folder but with ``--out``. Exit status 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console

from harness import registry
from harness.terminal import new_table
from tests.chaos.files import FILES
from tests.chaos.killing import Tally
from tests.chaos.runs import OFTEN, TASKS, killed, registered

FEW = 32
"""Below so many kills one run of each task is killed, else every one of ``TASKS``."""


def runs(kills: int, seed: int) -> Iterator[tuple[str, Callable[[Path], Tally]]]:
    """Iterate over the runs to be killed: the first of a task at lines, the second at times."""
    chosen = [
        (task, words, number == 0)
        for task, variants in TASKS.items()
        for number, words in enumerate(variants[: 1 if kills < FEW else None])
    ]
    share = -(-kills // len(chosen))
    for task, words, lines in chosen:
        how = "at lines" if lines else "at times"
        given = ["preset=smoke", *words, *OFTEN]
        name = f"{task} {' '.join(words)} ({how})"
        yield name, partial(killed, task, given, share, seed, lines)


def files(kills: int, seed: int) -> Iterator[tuple[str, Callable[[Path], Tally]]]:
    for name, work in FILES.items():
        yield name, partial(work, kills=max(2, kills // 10), seed=seed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--kills", type=int, default=100, help="over the four tasks")
    parser.add_argument("--inputs", type=int, default=10_000, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--only", action="append", default=[], help="parts that begin so")
    parser.add_argument("--out", type=Path, help="folder for chaos.json")
    given = parser.parse_args()
    import harness.worker  # noqa: F401  # all of it before the forks

    torch.set_num_threads(1)
    console, report = Console(width=140), {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NORMBENCH_CACHE"] = str(Path(scratch) / "cache")
        registered(Path(scratch) / "configs")
        report["kills"] = _kills(given, Path(scratch), console)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "chaos.json").write_text(json.dumps(report, indent=1))
    return int(any(row["found"] for part in report.values() for row in part.values()))


def _kills(given: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """Kill everything, print the table, and return it as data."""
    if not given.kills:
        return {}
    numbers = ("kills", "resumed", "too late", "found", "s")
    table = new_table("", "killed", *numbers, numbers=numbers)
    rows: dict[str, Any] = {}
    parts = (*runs(given.kills, given.seed), *files(given.kills, given.seed))
    for number, (name, work) in enumerate(parts):
        if given.only and not name.startswith(tuple(given.only)):
            continue
        if (task := name.partition(" ")[0]) in TASKS:
            registry.task_class(registry.task_info(task))
        folder = scratch / f"kills{number}"
        folder.mkdir()
        began = time.monotonic()
        tally = work(folder)
        seconds = time.monotonic() - began
        rows[name] = {**vars(tally), "found": tally.different, "seconds": round(seconds, 1)}
        found = str(len(tally.different))
        told = (tally.kills, tally.resumed, tally.survived, found, round(seconds))
        table.add_row(name, *map(str, told))
        for line in tally.different:
            print(f"FOUND {name}: {line}", flush=True)
        print(f"{name}: {tally.kills} kills, {found} found, {seconds:.0f} s", flush=True)
    table.add_section()
    table.add_row("all", str(sum(row["kills"] for row in rows.values())))
    console.print(table)
    return rows


if __name__ == "__main__":
    sys.exit(main())
