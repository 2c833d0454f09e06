"""What `normbench run` does: plan, prepare the data, launch what is missing, show the numbers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.errors import NormbenchError
from harness.launch import POLL_S, Outcome, launch
from harness.paths import require_writable
from harness.plan import PlannedRun, plan
from harness.progress import display
from harness.registry import task_info
from harness.schema import Spec


def run(task: str, words: Sequence[str], results: Path, console: Console) -> None:
    """Run every cell that the words ask for and that is not done yet.

    Raises:
        NormbenchError: for one cell its own error; for several, exit status 1 at the end if some
            failed.
    """
    cells = plan(task, words, results)
    if all(cell.state == "impossible" for cell in cells):
        error = NormbenchError("\n".join(dict.fromkeys(cell.reason for cell in cells)))
        error.exit_code = cells[0].exit_code
        raise error
    require_writable(results)
    problems: list[str] = []
    waiting = deque(enumerate(cells, 1))
    put_off: set[int] = set()
    while waiting:
        number, cell = waiting.popleft()
        head = f"[{number}/{len(cells)}] " if len(cells) > 1 else ""
        if cell.state == "impossible":
            _say(console, f"{head}{cell.run.id}  n/a: {cell.reason}")
            continue
        if waiting and number not in put_off and cell.run.state() == "running":
            put_off.add(number)
            waiting.append((number, cell))
            continue
        outcome = _run_cell(cell, head, console)
        if outcome.exit_code in (75, 130) or (outcome.exit_code and len(cells) == 1):
            _show(cells, results, console)
            raise _error(outcome)
        if outcome.exit_code:
            problems.append(f"{cell.run.id}: {outcome.message}")
            _say(console, f"failed: {outcome.message}")
    problems += _show(cells, results, console)
    if len(cells) == 1 and problems:
        raise NormbenchError(problems[0])
    if problems:
        raise NormbenchError(
            f"{len(problems)} of {len(cells)} runs failed:\n" + "\n".join(problems)
        )


def _run_cell(cell: PlannedRun, head: str, console: Console) -> Outcome:
    """Make one run here, unless another process does: then wait, and go on where it left off."""
    while True:
        state = cell.run.state()  # of now: the plan is as old as the runs before this one
        if state == "done":
            _say(console, f"{head}{cell.run.id} is done")
            return Outcome(0)
        if state == "running":
            _say(console, f"{head}{cell.run.id} runs in another process: waiting for it")
            while cell.run.state() == "running":
                time.sleep(POLL_S)
            continue
        _say(console, f"{head}{cell.run.id}  {summary(cell.spec)}")
        outcome = _make(cell, console)
        if not outcome.elsewhere:
            return outcome


def _make(cell: PlannedRun, console: Console) -> Outcome:
    with display(cell.spec.steps, console) as show:
        try:
            root = task_info(cell.spec.task).prepare(
                cell.spec, lambda *at: show.row(dict(zip(_STAGE, ("stage", *at), strict=True)))
            )
        except NormbenchError as error:
            return Outcome(error.exit_code, str(error))
        return launch(cell, root, show)


_STAGE = ("event", "stage", "done", "total")


def summary(spec: Spec) -> str:
    """Say the batch in its three numbers, and the schedule, before the first step."""
    accumulation = spec.batch.size // (spec.batch.micro * spec.devices)
    batch = f"micro {spec.batch.micro} x accumulation {accumulation} x devices {spec.devices}"
    return (
        f"{spec.model.name}, {spec.steps} steps, {batch} = batch {spec.batch.size}, "
        f"{spec.optim.name} lr {spec.optim.lr:g} {spec.schedule.name}, {spec.precision}"
    )


def _show(cells: Sequence[PlannedRun], results: Path, console: Console) -> list[str]:
    """Rebuild the CSV files and print the numbers; return what is done and cannot be read."""
    from harness.collect import collecting, read_records, told, write_csv
    from harness.terminal import result_table

    with collecting(results):
        records, warnings = read_records(results)
        runs, metrics = write_csv(results, records)
    for line in told(warnings):
        _say(console, line)
    known = {record.run_id: record for record in records}
    done = [cell.run for cell in cells if cell.run.record.is_file()]
    if shown := [known[run.id] for run in done if run.id in known]:
        console.print(result_table(shown))
        _say(console, f"{metrics}\n{runs}")
    return [
        f"{run.id}: its record was passed over, and the warning above says why: update normbench, "
        f"or remove {run.record} and give the same command"
        for run in done
        if run.id not in known
    ]


def _error(outcome: Outcome) -> NormbenchError:
    error = NormbenchError(outcome.message)
    error.exit_code = outcome.exit_code
    return error


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
