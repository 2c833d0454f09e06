"""`normbench reproduce`: the runs that tables need, then the tables. Also their plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.board import Board, board
from harness.errors import DataError, NormbenchError, UsageError
from harness.estimate import Estimate, calibrate, from_records
from harness.garbage import only_growing
from harness.identity import cell_id
from harness.jobs import hand_over
from harness.launch import Outcome
from harness.launchers import split_options
from harness.paths import require_writable
from harness.placement import visible_gpus
from harness.plan import PlannedRun, count_states
from harness.pool import Sitting, default_jobs, prepare_data, run_all
from harness.progress import clock
from harness.report.definition import Cell, TableDefinition, Words, cells, choose
from harness.terminal import new_table, plan_row, print_json, state_text
from harness.weights.source import PRETRAIN
from harness.wording import counted


def split_names(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split what a command got into names of tables and ``key=value`` words."""
    names = [word for word in arguments if "=" not in word]
    return names, [word for word in arguments if "=" in word]


def pretrained(
    names: Sequence[str], words: Sequence[str], *, every: bool
) -> tuple[list[str], bool]:
    """Return the words and ``--all`` that ``--pretrain`` stands for.

    Every run whose backbone a classification run can pretrain starts from it; without tables, the
    tables of the set ``pretrain`` are meant, which compare both.
    """
    if not names and not every:
        return [*words, "preset=pretrain"], True
    return [*words, f"init={PRETRAIN}"], every


@only_growing()
def needed(tables: Sequence[TableDefinition], words: Words, results: Path) -> list[Cell]:
    """Return the cells of all tables; those that are one run come as often as they are shown."""
    return [cell for table in tables for cell in cells(table, words, results)]


def _runs(shown: Sequence[Cell]) -> dict[str, PlannedRun]:
    """Return each run once, in the order of seeds, so that every table grows evenly.

    Those that others start from come before them.
    """
    ordered = sorted(shown, key=lambda cell: cell.seed)
    runs: dict[str, PlannedRun] = {}
    for cell in ordered:
        for key, run in _runs_of(cell):
            runs.setdefault(key, run)
    return runs


def _runs_of(cell: Cell) -> Iterator[tuple[str, PlannedRun]]:
    """Iterate over the runs of a cell, with their keys: what it starts from, then its own."""
    if (source := cell.planned.source) is not None:
        yield f"{cell_id(source.spec)} {cell.seed}", source
    yield _key(cell), cell.planned


def _key(cell: Cell) -> str:
    return f"{cell.id} {cell.seed}"


def to_make(
    names: Sequence[str], words: Sequence[str], results: Path, *, every: bool, path: Path | None
) -> list[PlannedRun]:
    """Return the runs that tables need and that are not done.

    Raises:
        UsageError: if a table or word is wrong.
    """
    tables, pairs = choose(names, words, every=every, path=path)
    runs = _runs(needed(tables, pairs, results)).values()
    return [run for run in runs if run.state not in ("done", "impossible")]


def plan_tables(
    names: Sequence[str],
    words: Sequence[str],
    results: Path,
    console: Console,
    *,
    every: bool,
    jobs: int | None,
    steps: int | None,
    path: Path | None,
    as_json: bool = False,
) -> None:
    """Print the runs that tables need, with states, reasons, and what they will take.

    Raises:
        UsageError: if a table or word is wrong.
    """
    tables, pairs = choose(names, words, every=every, path=path)
    shown = needed(tables, pairs, results)
    runs = _runs(shown)
    todo = [run for run in runs.values() if run.state not in ("done", "impossible")]
    known = from_records(results)
    if steps:
        with board(0, 1, Console(stderr=True) if as_json else console) as lines:
            roots, _ = prepare_data(todo, lambda *_: None)
            calibrate(todo, roots, steps, known, lines.say)
    used_by: dict[str, dict[str, None]] = {}
    for cell in shown:
        for key, _ in _runs_of(cell):
            used_by.setdefault(key, {})[cell.table] = None
    if as_json:
        print_json([_row(key, run, known, list(used_by[key])) for key, run in runs.items()])
        return
    columns = ("run", "state", "time", "MiB", "tables", "why")
    counts = ", ".join(f"{n} {state_text(s)}" for s, n in count_states(runs.values()).items())
    table = new_table(f"{counted(len(runs), 'run')}: {counts}", *columns, numbers=("time", "MiB"))
    for key, run in runs.items():
        guess = known.get(key.split()[0])
        table.add_row(
            run.run.id,
            state_text(run.state, colour=True),
            clock(guess.seconds) if guess else "?",
            f"{guess.mem_mib:.0f}" if guess else "?",
            ", ".join(used_by[key]),
            escape(run.reason),
        )
    console.print(table)
    console.print(_costs(shown, known))
    _say(console, _total(runs, todo, known, jobs or default_jobs(todo)))


def _row(
    key: str, run: PlannedRun, known: Mapping[str, Estimate], tables: Sequence[str]
) -> dict[str, Any]:
    guess = known.get(key.split()[0])
    return plan_row(run) | {
        "seconds": guess.seconds if guess else None,
        "mem_mib": guess.mem_mib if guess else None,
        "tables": tables,
    }


def _costs(shown: Sequence[Cell], known: Mapping[str, Estimate]) -> Table:
    """Return one row a table: its runs, and the device-hours that all of them and the rest take."""
    columns = ("table", "runs", "to make", "device-hours", "of them left")
    table = new_table("", *columns, numbers=columns[1:])
    table.caption = (
        "of one device each, as calibrated or as past runs took; ? where a kind of run is of "
        "unknown length, n/a where none can be made; a run that two tables show is in both"
    )
    by_table: dict[str, dict[str, PlannedRun]] = {}
    for cell in shown:
        by_table.setdefault(cell.table, {}).update(_runs_of(cell))
    for name, runs in by_table.items():
        every = [run for run in runs.values() if run.state != "impossible"]
        left = [run for run in every if run.state != "done"]
        hours = (_device_hours(part, known) if every else "n/a" for part in (every, left))
        table.add_row(name, str(len(runs)), str(len(left)), *hours)
    return table


def _device_hours(runs: Sequence[PlannedRun], known: Mapping[str, Estimate]) -> str:
    total = 0.0
    for run in runs:
        guess = known.get(cell_id(run.spec))
        if guess is None:
            return "?"
        total += guess.seconds * run.spec.devices / 3600
    return f"{total:.2f}"


def _total(
    runs: Mapping[str, PlannedRun],
    todo: Sequence[PlannedRun],
    known: Mapping[str, Estimate],
    jobs: int,
) -> str:
    guesses = [known.get(cell_id(run.spec)) for run in todo]
    found = [guess for guess in guesses if guess]
    cannot = sum(run.state == "impossible" for run in runs.values())
    why = f"{cannot} of {len(runs)} runs cannot be made, for the reasons given"
    if not todo:
        return "nothing is left to run" + f": {why}" * bool(cannot)
    head = f"{len(todo)} to run, {jobs} at a time" + f" ({why})" * bool(cannot)
    if not found:
        return f"{head}; give --calibrate 5 for an estimate of time and memory"
    seconds = sum(guess.seconds for guess in found) / jobs * len(todo) / len(found)
    memory = max(guess.mem_mib for guess in found)
    sources = sorted({guess.source for guess in found})
    unknown = len(todo) - len(found)
    rest = f"; {unknown} of them are of unknown length, taken as the others" if unknown else ""
    return (
        f"{head}: about {clock(seconds)} (from {' and '.join(sources)}; evaluation is not in "
        f"timed steps), up to {memory:.0f} MiB a run{rest}"
    )


def reproduce(
    names: Sequence[str],
    words: Sequence[str],
    results: Path,
    console: Console,
    *,
    every: bool,
    jobs: int | None,
    path: Path | None,
    launcher: str | None = None,
) -> None:
    """Make every run that the tables need and that is not done, then build the tables.

    With a launcher: hand the runs over to it and return; the same command builds the tables once
    they are there.

    Raises:
        UsageError: if a table or word is wrong.
        NormbenchError: exit 1 if runs failed or a table is incomplete, 3 if all of the missing
            ones lack their data, 75 or 130 if stopped.
    """
    from harness.report.command import report

    options, words = split_options(launcher, words) if launcher else ({}, words)
    tables, pairs = choose(names, words, every=every, path=path)
    runs = list(_runs(needed(tables, pairs, results)).values())
    require_writable(results)
    todo = [run for run in runs if run.state not in ("done", "impossible")]
    if launcher and todo:
        hand_over(todo, launcher, options, jobs, results, lambda text: _say(console, text))
        return
    done = sum(run.state == "done" for run in runs)
    jobs = jobs or default_jobs(todo)
    _say(
        console, f"{counted(len(runs), 'run')}, {done} done, {len(todo)} to make, {jobs} at a time"
    )
    with board(len(todo), jobs, console) as show:
        roots, problems = prepare_data(todo, _stages(show.say))
        ready = [run for run in todo if run.run.id in roots]
        sitting = _in_order(ready, roots, jobs, show, problems, _memory(ready, results))
    if sitting.stopped:
        error = NormbenchError("stopped: the same command goes on")
        error.exit_code = sitting.stopped
        raise error
    without = [r for r in runs if r.state == "impossible" and r.exit_code != UsageError.exit_code]
    unstarted = [*problems.items(), *((r.run.id, Outcome(r.exit_code, r.reason)) for r in without)]
    complete = report(tables, pairs, results, console)
    if failed := [*sitting.failed.items(), *((run, one.message) for run, one in unstarted)]:
        lines = [f"{len(failed)} of {len(runs)} runs could not be made:", *_by_reason(failed)]
        error = NormbenchError("\n".join(lines))
        if not sitting.failed and all(o.exit_code == DataError.exit_code for _, o in unstarted):
            error.exit_code = DataError.exit_code
        raise error
    if not complete:
        raise NormbenchError("a table is incomplete: see its notes")


def _by_reason(failed: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Say each reason once, with the first run that it holds for: hundreds may lack one folder."""
    runs: dict[str, list[str]] = {}
    for run, reason in failed:
        runs.setdefault(" ".join(reason.splitlines()), []).append(run)
    for reason, (first, *others) in runs.items():
        yield f"{first}{f' and {len(others)} more' * bool(others)}: {reason}"


def _memory(cells: Sequence[PlannedRun], results: Path) -> dict[str, float]:
    """Return the memory that finished runs of the same kinds took, by run id."""
    if not visible_gpus():
        return {}
    known = from_records(results)
    guesses = {cell.run.id: known.get(cell_id(cell.spec)) for cell in cells}
    return {run: guess.mem_mib for run, guess in guesses.items() if guess}


def _in_order(
    runs: Sequence[PlannedRun],
    roots: Mapping[str, Path],
    jobs: int,
    show: Board,
    problems: dict[str, Outcome],
    needs: Mapping[str, float],
) -> Sitting:
    """Make the runs that start from nothing here first, then those that start from them.

    Those whose beginning could not be made are noted in ``problems``.
    """
    sitting = run_all([run for run in runs if run.source is None], roots, jobs, show, needs=needs)
    if sitting.stopped:
        return sitting
    later = []
    for run in runs:
        if run.source is None:
            continue
        if run.source.run.state() == "done":
            later.append(run)
        else:
            problems[run.run.id] = Outcome(3, f"{run.source.run.id}, its pretraining, is not there")
    if later:
        second = run_all(later, roots, jobs, show, needs=needs)
        sitting.outcomes |= second.outcomes
        sitting.stopped = second.stopped
    return sitting


def _stages(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            say(f"{stage} {done}/{total}")

    return progress


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
