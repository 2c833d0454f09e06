"""Runs that somebody else was asked to make: handed over, watched, cancelled, tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from harness.board import board
from harness.errors import NormbenchError, UsageError, did_you_mean
from harness.inspect import status_table
from harness.launchers import (
    Job,
    LiveJobs,
    launcher_class,
    read_job,
    run_dirs,
    split_options,
    submit,
)
from harness.plan import PlannedRun
from harness.pool import default_jobs, prepare_data, run_all
from harness.record import RunDir
from harness.spec import load_spec
from harness.wording import counted

Say = Callable[[str], None]


def hand_over(
    cells: Sequence[PlannedRun],
    name: str,
    options: Mapping[str, str],
    jobs: int | None,
    results: Path,
    say: Say,
) -> None:
    """Submit the runs that no living job makes already; return at once.

    Raises:
        UsageError: if an option is wrong.
        NormbenchError: if the data of a run are not to be had; the others are submitted.
    """
    launcher = launcher_class(name)(results, options)
    live = LiveJobs(results)
    waiting = [c for c in cells if c.run.state() != "running" and not live.state(c.run)]
    if already := len(cells) - len(waiting):
        say(f"{already} of {len(cells)} runs are waiting or running already")
    roots, problems = prepare_data(waiting, lambda *_: None)
    ready = [cell for cell in waiting if cell.run.id in roots]
    if ready:
        names = submit(name, launcher, ready, roots, jobs)
        first = sorted({job.partition("_")[0] for job in names.values()})
        say(
            f"{counted(len(ready), 'run')} handed to {name} (job {', '.join(first)}); "
            "`normbench status --watch` shows them, the same command builds the tables once "
            "they are done"
        )
    if problems:
        lines = [f"{run}: {outcome.message}" for run, outcome in problems.items()]
        error = NormbenchError("\n".join(lines))
        error.exit_code = next(iter(problems.values())).exit_code
        raise error


def watch(results: Path, console: Console, every_s: float = 2.0) -> None:
    """Show the state of every run again and again, until none is waiting or running."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            table = status_table(results)
            live.update(table, refresh=True)
            states = set(table.columns[1].cells)
            if not states & {"queued", "running"}:
                break
            time.sleep(every_s)
    console.print(table)


def cancel(runs: Sequence[str], results: Path, say: Say) -> None:
    """Ask the jobs of runs (of all, if none is named) to save and stop.

    Raises:
        UsageError: if a run is unknown.
    """
    live = LiveJobs(results)
    chosen = [run for run in _chosen(runs, results) if live.state(run)]
    if not chosen:
        say("nothing that a launcher has is waiting or running")
        return
    jobs: dict[str, list[str]] = {}
    for run in chosen:
        job = read_job(run)
        assert isinstance(job, Job)
        jobs.setdefault(job.launcher, []).append(job.job)
    for launcher, names in jobs.items():
        launcher_class(launcher)(results, {}).cancel(names)
    say(f"{counted(len(chosen), 'run')} told to stop; `normbench retry` goes on with them")


def retry(
    words: Sequence[str],
    results: Path,
    console: Console,
    *,
    launcher: str | None,
    jobs: int | None,
) -> None:
    """Make the runs that failed or were left before their end, here or through a launcher.

    Args:
        words: run ids (all, if none is named), and the launcher's options.
        results: the folder.
        console: where to say what happens.
        launcher: its name; None makes the runs here, now.
        jobs: runs at a time.

    Raises:
        UsageError: if a run is unknown.
        NormbenchError: if a run fails again.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    options, names = split_options(launcher, words) if launcher else ({}, list(words))
    live = LiveJobs(results)
    left = [run for run in _chosen(names, results) if run.state() not in ("done", "running")]
    cells = [PlannedRun(load_spec(r.spec), r, r.state()) for r in left if not live.state(r)]
    if not cells:
        say("no run has failed or been left")
        return
    if launcher:
        hand_over(cells, launcher, options, jobs, results, say)
        return
    jobs = jobs or default_jobs(cells)
    with board(len(cells), jobs, console) as show:
        roots, problems = prepare_data(cells, lambda *_: None)
        sitting = run_all([c for c in cells if c.run.id in roots], roots, jobs, show)
    failed = sitting.failed | {run: outcome.message for run, outcome in problems.items()}
    if sitting.stopped:
        error = NormbenchError("stopped: the same command goes on")
        error.exit_code = sitting.stopped
        raise error
    if failed:
        raise NormbenchError("\n".join(f"{run}: {why}" for run, why in failed.items()))


def _chosen(names: Sequence[str], results: Path) -> list[RunDir]:
    found = {run.id: run for run in run_dirs(results)}
    for name in names:
        if name not in found:
            raise UsageError(f"no run {name!r} in {results}.{did_you_mean(name, found)}")
    return [found[name] for name in names] if names else list(found.values())
