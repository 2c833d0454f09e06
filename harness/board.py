"""Showing many runs at once: a live table in a terminal, a line an event elsewhere."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from harness.plan import PlannedRun
from harness.progress import clock
from harness.terminal import new_table

if TYPE_CHECKING:
    from harness.launch import Outcome


class Board(Protocol):
    """Shows what happens to many runs."""

    def __enter__(self) -> Board:
        """Start showing."""
        ...

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...

    def started(self, cell: PlannedRun) -> None:
        """Show that a run began."""
        ...

    def elsewhere(self, cell: PlannedRun) -> None:
        """Show that another process makes a run."""
        ...

    def row(self, cell: PlannedRun, row: dict[str, Any]) -> None:
        """Show a row of a run's journal."""
        ...

    def ended(self, cell: PlannedRun, outcome: Outcome, seconds: float) -> None:
        """Show how a run ended."""
        ...

    def tick(self) -> None:
        """Draw anew, if it is time to."""
        ...


class Lines:
    """One line an event, with what is left, for logs and CI."""

    def __init__(self, total: int, jobs: int, console: Console) -> None:
        """Count ``total`` runs, ``jobs`` at a time."""
        self.total, self.jobs, self.console = total, jobs, console
        self.done = 0
        self.took: list[float] = []
        self.began: dict[str, float] = {}
        self.eta: dict[str, float] = {}
        self.values: dict[str, str] = {}

    def __enter__(self) -> Lines:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Print ``text`` on a line of its own."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, cell: PlannedRun) -> None:
        """Print the run's name."""
        self.began[cell.run.id] = time.monotonic()
        if cell.state == "resumable":
            self.say(f"{cell.run.id} resumes")

    def elsewhere(self, cell: PlannedRun) -> None:
        """Print that the run is left to another process."""
        self.began.pop(cell.run.id, None)
        self.say(f"{cell.run.id} runs in another process: waiting for it at the end")

    def row(self, cell: PlannedRun, row: dict[str, Any]) -> None:
        """Remember the newest estimate and the metrics."""
        if row["event"] == "train":
            self.eta[cell.run.id] = row["eta_s"]
        elif row["event"] == "evaluation":
            first = list(row["metrics"].items())[:2]
            self.values[cell.run.id] = "  ".join(f"{name} {value:.2f}" for name, value in first)

    def ended(self, cell: PlannedRun, outcome: Outcome, seconds: float) -> None:
        """Print the result, the time and what is left."""
        run = cell.run.id
        self.done += 1
        self.began.pop(run, None)
        self.eta.pop(run, None)
        if outcome.exit_code == 0:
            self.took.append(seconds)
            what = self.values.pop(run, "done")
        elif outcome.exit_code in (75, 130):
            what = f"stopped: {outcome.message}"
        else:
            what = f"failed: {outcome.message}"
        self.say(f"[{self.done}/{self.total}] {run}  {what}  {clock(seconds)}{self.left()}")

    def tick(self) -> None:
        """Do nothing."""

    def left(self) -> str:
        """Say how long the rest will take, from what the finished runs took."""
        waiting = self.total - self.done - len(self.began)
        if not self.took or self.done == self.total:
            return ""
        usual, now = sum(self.took) / len(self.took), time.monotonic()
        # What has not told an estimate yet, as it starts, is taken to last as long as the others.
        running = [self.eta.get(run, usual + began - now) for run, began in self.began.items()]
        seconds = max(0.0, (waiting * usual + sum(running)) / self.jobs, *running)
        return f"  (about {clock(seconds)} left)"


class LiveTable(Lines):
    """The running runs as a table that redraws itself; finished ones scroll by above it."""

    def __init__(self, total: int, jobs: int, console: Console) -> None:
        """Draw on ``console``."""
        super().__init__(total, jobs, console)
        self.live = Live(console=console, auto_refresh=False)
        self.now: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> LiveTable:
        """Start drawing."""
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self.live.update(Text(""), refresh=True)
        self.live.stop()

    def row(self, cell: PlannedRun, row: dict[str, Any]) -> None:
        """Remember the newest row."""
        super().row(cell, row)
        if row["event"] in ("train", "stage"):
            self.now[cell.run.id] = {"steps": cell.spec.steps, **row}

    def tick(self) -> None:
        """Redraw the table."""
        table = new_table("", "run", "at", "loss", "images/s", "left", numbers=("loss", "left"))
        for run in self.began:
            row = self.now.get(run, {})
            match row.get("event"):
                case "train":
                    at = f"{row['step']}/{row['steps']}"
                    rate = f"{row['images_per_s']:.1f}"
                    table.add_row(run, at, f"{row['loss']:.3f}", rate, clock(row["eta_s"]))
                case "stage":
                    table.add_row(run, f"{row['stage']} {row['done']}/{row['total']}", "", "", "")
                case _:
                    table.add_row(run, "starting", "", "", "")
        head = f"{self.done} of {self.total} runs ended, {len(self.began)} running{self.left()}"
        self.live.update(Group(table, Text(head)), refresh=True)


def board(total: int, jobs: int, console: Console) -> Board:
    """Choose the live table for a terminal, lines for anything else (and where CI is set)."""
    live = console.is_terminal and not os.environ.get("CI")
    return LiveTable(total, jobs, console) if live else Lines(total, jobs, console)
