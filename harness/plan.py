"""The ordered, de-duplicated runs that a command asks for, each with its state and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.chunk import resolve_chunk
from harness.environment import continues_elsewhere
from harness.errors import AuditError, DataError, UsageError
from harness.garbage import only_growing
from harness.identity import run_id, run_name, stat_batch
from harness.norm.catalogue import NORMS, NormInfo
from harness.pretrain import linked, pretraining, starting_from
from harness.record import RunDir, State
from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build, sweep
from harness.task import NormFacts, TaskInfo


@dataclass(frozen=True)
class PlannedRun:
    """One cell of a plan."""

    spec: Spec
    run: RunDir
    state: State
    reason: str = ""
    """Why the run is impossible, how it failed, or what has changed since it was stopped."""
    exit_code: int = 2
    """What asking for this impossible run alone ends with."""
    source: PlannedRun | None = None
    """The run that must be made before, whose weights this one starts from (init=pretrain)."""


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
    if reason := _too_few_values(spec, facts, info.num_train(spec)):
        return reason
    if spec.norm.layer == "frozen_bn" and spec.init.source in (None, "scratch"):
        return (
            "frozen_bn only applies statistics that came with pretrained weights, and init=scratch "
            "has none: give init=FILE, or choose bn"
        )
    if reason := _statistics_impossible(spec, norm, info):
        return reason
    try:
        resolve_chunk(spec, info)
    except UsageError as error:
        return str(error)
    return info.refuse(spec)


def _too_few_values(spec: Spec, facts: NormFacts, num_train: int | None) -> str | None:
    """Return why a statistic would have too little to see, be it only at the end of an epoch."""
    norm, batch = NORMS[spec.norm.layer], spec.batch
    usual = stat_batch(spec) or 1
    fewest, tail = usual, 0
    if num_train and batch.tail == "keep" and spec.steps > num_train // batch.size:
        tail = num_train % batch.size
    if not norm.batch_independent and tail % usual:
        together = usual if batch.stat == "sync" else batch.ghost or batch.micro
        fewest = tail % together or batch.micro
    if (seen := facts.min_values * fewest) >= norm.min_values:
        return None
    sees = f"{spec.norm.layer} sees {seen} value per channel at {facts.smallest_site}"
    other = "or a norm that does not normalise over the batch (gn, gn_ws)"
    if norm.batch_independent:
        return f"{sees} and cannot train there: use another norm (gn, gn_ws)"
    if fewest < usual:
        return (
            f"{sees} in an epoch's last micro-batch ({num_train} samples in batches of "
            f"{batch.size} leave {tail}, and batch.micro={batch.micro} of those {fewest}) and "
            f"cannot train there: use batch.tail=drop, another batch.micro, {other}"
        )
    return (
        f"{sees} with batch.micro={batch.micro} and cannot train there: use batch.micro="
        f"{-(-norm.min_values // facts.min_values)} or more, {other}"
    )


def _statistics_impossible(spec: Spec, norm: NormInfo, info: TaskInfo) -> str | None:
    """Return why the norm cannot have the batch statistics that the spec asks for."""
    if spec.bn_eval == "precise" and not norm.uses_batch_norm:
        return (
            f"bn_eval=precise re-estimates the averages of torch's batch norm, which {norm.name} "
            "does not use: use bn_eval=running"
        )
    if norm.batch_independent or stat_batch(spec) == spec.batch.micro:
        return None
    if not norm.uses_batch_norm:
        return f"batch.stat={spec.batch.stat} is for bn, {norm.name} sees the whole forward"
    if spec.batch.ghost and not info.sees_samples:
        return (
            f"batch.stat={spec.batch.stat}: norms of {info.name} see regions and not only images, "
            "so that no K images can be told apart; use batch.micro"
        )
    return None


def plan_one(spec: Spec, results: Path) -> PlannedRun:
    """Find the state of one spec, and of the run that it is to start from.

    Raises:
        UsageError: if ``init=`` names what cannot be.
    """
    reason, source = impossible(spec), None
    try:
        if (before := pretraining(spec)) is not None:
            source = plan_one(before, results)
            spec = starting_from(spec, before)
            if source.state == "impossible" and not reason:
                return _impossible(spec, results, f"its pretraining: {source.reason}", source)
        else:
            spec, other = linked(spec, results)
            reason = reason or other
        run = RunDir(results, run_id(spec))
    except DataError as error:
        run = RunDir(results, f"{run_name(spec)}-?")
        reasons = "\n".join(filter(None, (reason, str(error))))
        return PlannedRun(spec, run, "impossible", reasons, 2 if reason else 3)
    state = run.state()
    if reason:
        return PlannedRun(spec, run, "impossible", reason)
    failure = run.read_failure() if state == "failed" else None
    told = [failure.message] if failure else []
    if state in ("failed", "resumable"):
        changes = continues_elsewhere(run.environment, spec.exec.device)
        told += [f"would continue under {'; '.join(changes)}"] if changes else []
    return PlannedRun(spec, run, state, "; ".join(told), source=source)


def _impossible(spec: Spec, results: Path, reason: str, source: PlannedRun) -> PlannedRun:
    run = RunDir(results, run_id(spec))
    return PlannedRun(spec, run, "impossible", reason, source.exit_code)


@only_growing()
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
        if cell.source is not None:
            cells.setdefault(cell.source.run.id, cell.source)
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
