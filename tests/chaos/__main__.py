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
from tests.chaos.fuzz import fuzz
from tests.chaos.killing import Tally
from tests.chaos.kinds import KINDS
from tests.chaos.runs import OFTEN, TASKS, killed, registered

FEW = 32
"""Below so many kills one run of each task is killed, else every one of ``TASKS``."""


def runs(kills: int, seed: int) -> Iterator[tuple[str, Callable[[Path], Tally]]]:
    """Iterate over the runs to be killed, at lines and at times in turn.

    The toy task comes with as many kills a run as the four real ones, beyond their number.
    """
    chosen = [
        (task, words, number % 2 == 0)
        for task, variants in TASKS.items()
        for number, words in enumerate(variants[: 1 if kills < FEW else None])
    ]
    share = -(-kills // sum(task != "toy" for task, *_ in chosen))
    for task, words, lines in chosen:
        how = "at lines" if lines else "at times"
        given = [*(() if task == "toy" else ("preset=smoke",)), *words, *OFTEN]
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
        report["inputs"] = _inputs(given, Path(scratch), console)
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


def _inputs(given: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """Try every kind of input, print the table, and return it as data."""
    if not given.inputs:
        return {}
    numbers = ("inputs", "found", "s")
    table = new_table("", "tried", *numbers, "exit statuses", numbers=numbers)
    rows: dict[str, Any] = {}
    total = sum(share for share, _ in KINDS.values())
    for number, (name, (share, make)) in enumerate(KINDS.items()):
        if given.only and not name.startswith(tuple(given.only)):
            continue
        folder = scratch / f"inputs{number}"
        folder.mkdir()
        began = time.monotonic()
        tried = fuzz(make, -(-given.inputs * share // total), given.seed, folder)
        seconds = time.monotonic() - began
        rows[name] = {**vars(tried), "seconds": round(seconds, 1)}
        ended = ", ".join(f"{status}: {n:,}" for status, n in sorted(tried.statuses.items()))
        table.add_row(name, f"{tried.inputs:,}", str(len(tried.found)), str(round(seconds)), ended)
        for line in tried.found:
            print(f"FOUND {name}: {line}", flush=True)
        print(f"{name}: {tried.inputs} inputs, {len(tried.found)} found", flush=True)
    table.add_section()
    table.add_row("all", f"{sum(row['inputs'] for row in rows.values()):,}")
    console.print(table)
    return rows


if __name__ == "__main__":
    sys.exit(main())
