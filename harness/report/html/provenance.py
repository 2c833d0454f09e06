"""Where the numbers come from, and which are not there: in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.environment import device_title
from harness.errors import visible
from harness.progress import clock
from harness.record import Record, RunDir
from harness.report.build import BuiltTable

_PACKAGES = ("torch", "torchvision", "detectron2", "pb1-detectron2", "numpy", "normbench")
_MOST = 200
"""Letters of a failure's reason."""


@dataclass(frozen=True)
class Machine:
    """Runs that were made on and with the same."""

    num: int
    device: str
    threads: str
    python: str
    packages: str
    commits: str
    first: str
    last: str
    """Days."""


@dataclass(frozen=True)
class DataSet:
    """What runs were made on."""

    task: str
    name: str
    fingerprint: str
    num: int


@dataclass(frozen=True)
class Unfinished:
    """A run without a record."""

    run_id: str
    state: str
    reason: str


@dataclass(frozen=True)
class RunLine:
    """One finished run."""

    run_id: str
    preset: str
    norm: str
    micro: int
    seed: int
    metrics: tuple[str, ...]
    first: float | None
    """The first metric, to sort by."""
    rate: float
    memory: float
    wall: str
    wall_s: float
    finished: str
    is_result: bool


def machines(records: Sequence[Record]) -> list[Machine]:
    """Group runs by what they were made with, the largest group first."""
    groups: dict[tuple[str, str, str, str], list[tuple[str, str]]] = {}
    for record in records:
        made = _commit(record.environment), record.finished[:10]
        groups.setdefault(_machine(record.environment), []).append(made)
    found = []
    for key, runs in groups.items():
        commits = Counter(commit for commit, _ in runs).most_common()
        named = ", ".join(f"{commit} ({num})" for commit, num in commits)
        days = [day for _, day in runs]
        found.append(Machine(len(runs), *key, named, min(days), max(days)))
    return sorted(found, key=lambda one: (-one.num, one.device, one.packages))


def _machine(where: dict[str, Any]) -> tuple[str, str, str, str]:
    packages = where["packages"]
    named = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
    return (
        device_title(where),
        f"{where['threads']} x {where['world']}",
        str(where.get("python", "unknown")),
        named,
    )


def _commit(where: dict[str, Any]) -> str:
    sha = where["git_sha"]
    return f"{str(sha)[:10]}{'+' if where['dirty'] else ''}" if sha else "unknown"


def data_sets(records: Sequence[Record]) -> list[DataSet]:
    """Count runs by task, data set and fingerprint."""
    counts: dict[tuple[str, str, str], int] = {}
    for record in records:
        key = record.spec["task"], record.dataset, record.fingerprint
        counts[key] = counts.get(key, 0) + 1
    return [DataSet(*key, num) for key, num in sorted(counts.items())]


def run_lines(records: Sequence[Record]) -> Iterator[RunLine]:
    """Yield every finished run."""
    for record in records:
        spec, norm = record.spec, record.spec["norm"]
        yield RunLine(
            run_id=record.run_id,
            preset=spec["preset"],
            norm=f"{norm['layer']}{'_ws' if norm['ws'] else ''}",
            micro=spec["batch"]["micro"],
            seed=spec["seed"],
            metrics=tuple(f"{one.name} {one.value:.1f}" for one in record.metrics[:2]),
            first=record.metrics[0].value if record.metrics else None,
            rate=record.images_per_s,
            memory=record.peak_mem_mib,
            wall=clock(record.wall_s),
            wall_s=record.wall_s,
            finished=record.finished[:16].replace("T", " "),
            is_result=record.is_result,
        )


def unfinished(results: Path) -> list[Unfinished]:
    """Return the runs that began and left no record, with the reason where there is one."""
    found = []
    for path in sorted((results / "runs").glob("*")):
        run = RunDir(results, path.name)
        state = run.state()
        if not path.is_dir() or state == "done":
            continue
        failure = run.read_failure() if state == "failed" else None
        reason = " ".join(failure.message.split()) if failure else ""
        if failure and failure.step is not None and f"step {failure.step}" not in reason:
            reason += f" (at step {failure.step})"
        words = {"todo": "begun, nothing saved", "resumable": "stopped, can go on"}
        found.append(Unfinished(visible(run.id), words.get(state, state), visible(reason)[:_MOST]))
    return found


def gaps(built: Sequence[BuiltTable]) -> Iterator[tuple[BuiltTable, str]]:
    """Say of each incomplete table what it lacks, and what makes it."""
    for table in built:
        if table.complete:
            continue
        missing = table.num_runs - table.num_done
        if not table.num_runs:
            yield table, "nothing of it can run (its notes say why)"
        else:
            yield table, f"{missing} of its {table.num_runs} runs are not there"
