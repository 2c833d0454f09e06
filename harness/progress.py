"""Showing a running run: one bar in a terminal, plain lines in a log or in CI."""

from __future__ import annotations

import os
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Display(Protocol):
    """Shows the rows of a journal to a person."""

    def __enter__(self) -> Display:
        """Start showing."""
        ...

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        ...

    def row(self, row: dict[str, Any]) -> None:
        """Show one row."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...


def describe(row: dict[str, Any]) -> str:
    """Write the numbers of a training row in words, e.g. ``loss 1.21 (cls 0.40 ...)``."""
    parts = " ".join(f"{name.removeprefix('loss_')} {v:.3f}" for name, v in row["parts"].items())
    return (
        f"loss {row['loss']:.3f} ({parts})  lr {row['lr']:.2g}  "
        f"{row['images_per_s']:.1f} images/s  {row['mem_mib']:.0f} MiB"
    )


def clock(seconds: float) -> str:
    """Write a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainLines:
    """One line a row, for logs; stages are told at their start and end."""

    def __init__(self, steps: int, console: Console) -> None:
        """Write to ``console``."""
        self.steps, self.console = steps, console

    def __enter__(self) -> PlainLines:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Print ``text`` on a line of its own."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def row(self, row: dict[str, Any]) -> None:
        """Print a row."""
        match row["event"]:
            case "train":
                width = len(str(self.steps))
                eta = f"  eta {clock(row['eta_s'])}" if row["eta_s"] else ""
                self.say(f"step {row['step']:>{width}}/{self.steps}  {describe(row)}{eta}")
            case "stage" if row["done"] in (0, row["total"]):
                self.say(f"{row['stage']} {row['done']}/{row['total']}")
            case "remark":
                self.say(row["text"])


class Bar:
    """A live bar with the newest numbers under it."""

    def __init__(self, steps: int, console: Console) -> None:
        """Draw on ``console``."""
        self.steps = steps
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self.task = self.progress.add_task("starting", total=steps, numbers="")

    def __enter__(self) -> Bar:
        """Start drawing."""
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self.progress.stop()

    def say(self, text: str) -> None:
        """Print ``text`` above the bar."""
        self.progress.console.print(text, markup=False, highlight=False)

    def row(self, row: dict[str, Any]) -> None:
        """Draw a row."""
        match row["event"]:
            case "train":
                numbers = f"eta {clock(row['eta_s'])}  {describe(row)}"
                self._draw("training", row["step"], self.steps, numbers)
            case "stage":
                self._draw(row["stage"], row["done"], row["total"], "")
            case "remark":
                self.say(row["text"])

    def _draw(self, what: str, done: int, total: int, numbers: str) -> None:
        self.progress.update(
            self.task, description=what, completed=done, total=total, numbers=numbers
        )


def display(steps: int, console: Console) -> Display:
    """Choose the bar for a terminal, plain lines for anything else (and where CI is set)."""
    live = console.is_terminal and not os.environ.get("CI")
    return Bar(steps, console) if live else PlainLines(steps, console)
