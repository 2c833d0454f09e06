"""The ordered, de-duplicated runs that a command asks for, each with its state and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.chunk import resolve_chunk
from harness.errors import AuditError, DataError, UsageError
from harness.identity import run_id, stat_batch
from harness.norm.catalogue import NORMS
from harness.record import RunDir, State
from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build, sweep


@dataclass(frozen=True)
class PlannedRun:
    """One cell of a plan."""

    spec: Spec
    run: RunDir
    state: State
    reason: str = ""
    """Why the run is impossible, or how it failed."""
    exit_code: int = 2
    """What asking for this impossible run alone ends with."""


def impossible(spec: Spec) -> str | None:
    """Return why ``spec`` cannot train, known without building the model; None if it can."""
    info = task_info(spec.task)
    facts = info.norm_facts(spec)
    norm = NORMS[spec.norm.layer]
    if norm.uses_groups:
        odd = [width for width in facts.widths if width % spec.norm.groups]
        if odd:
            legal = [g for g in range(1, 65) if not any(width % g for width in facts.widths)]
            near = sorted(sorted(legal, key=lambda g: abs(g - spec.norm.groups))[:3])
            return (
                f"norm.groups={spec.norm.groups} does not divide the {odd[0]} channels of a norm "
                f"site of {spec.model.name}: use norm.groups={' or '.join(map(str, near))}"
            )
    seen = facts.min_values * (1 if norm.batch_independent else stat_batch(spec) or 1)
    if seen < norm.min_values:
        return (
            f"{spec.norm.layer} sees {seen} value per channel at {facts.smallest_site} with "
            f"batch.micro={spec.batch.micro} and cannot train there: use batch.micro="
            f"{-(-norm.min_values // facts.min_values)} or more, or a norm that does not "
            "normalise over the batch (gn, gn_ws)"
        )
    if spec.norm.layer == "frozen_bn" and spec.init.source in (None, "scratch"):
        return (
            "frozen_bn only applies statistics that came with pretrained weights, and init=scratch "
            "has none: give init=FILE, or choose bn"
        )
    try:
        resolve_chunk(spec, info)
    except UsageError as error:
        return str(error)
    return info.refuse(spec)


def plan_one(spec: Spec, results: Path) -> PlannedRun:
    """Find the state of one spec."""
    reason = impossible(spec)
    try:
        run = RunDir(results, run_id(spec))
    except DataError as error:
        run = RunDir(results, f"{spec.task}-{spec.norm.name}-mb{spec.batch.micro}-s{spec.seed}-?")
        reasons = "\n".join(filter(None, (reason, str(error))))
        return PlannedRun(spec, run, "impossible", reasons, 2 if reason else 3)
    state = run.state()
    if reason:
        return PlannedRun(spec, run, "impossible", reason)
    failure = run.read_failure() if state == "failed" else None
    return PlannedRun(spec, run, state, failure.message if failure else "")


def plan(task: str, words: Sequence[str], results: Path) -> list[PlannedRun]:
    """Expand a command's words into its runs, each once, in the order they are asked for.

    Raises:
        UsageError: with one line a problem, each once.
    """
    cells: dict[str, PlannedRun] = {}
    problems: dict[str, None] = {}
    for pairs in sweep(words):
        try:
            cell = plan_one(build(task, pairs), results)
        except (UsageError, AuditError) as error:
            problems.update(dict.fromkeys(str(error).splitlines()))
            continue
        key = cell.run.id if cell.state != "impossible" else f"{cell.run.id} {cell.reason}"
        cells.setdefault(key, cell)
    if problems:
        raise UsageError("\n".join(problems))
    return list(cells.values())


def count_states(cells: Iterable[PlannedRun]) -> dict[State, int]:
    """Count the runs of each state that occurs."""
    counts: dict[State, int] = {}
    for cell in cells:
        counts[cell.state] = counts.get(cell.state, 0) + 1
    return counts
