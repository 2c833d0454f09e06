"""Showing a running run: one bar in a terminal, plain lines in a log or in CI."""

from __future__ import annotations

import os
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text


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


def _values(row: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in row["metrics"].items())


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
            case "evaluation" if row["step"] < self.steps:
                self.say(f"step {row['step']}/{self.steps}  {_values(row)}")
            case "stage" if row["done"] in (0, row["total"]):
                self.say(f"{row['stage']} {row['done']}/{row['total']}")
            case "remark":
                self.say(row["text"])


class Bar:
    """A live bar with the newest numbers under it."""

    def __init__(self, steps: int, console: Console) -> None:
        """Draw on ``console``."""
        self.steps, self.console = steps, console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[eta]}"),
        )
        self.task = self.progress.add_task("starting", total=steps, eta="")
        self.numbers = Text()
        self.live = Live(Group(self.progress, self.numbers), console=console)

    def __enter__(self) -> Bar:
        """Start drawing."""
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self.live.stop()

    def say(self, text: str) -> None:
        """Print ``text`` above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def row(self, row: dict[str, Any]) -> None:
        """Draw a row."""
        match row["event"]:
            case "train":
                self.numbers.plain = describe(row)
                self._draw("training", row["step"], self.steps, f"eta {clock(row['eta_s'])}")
            case "stage":
                self._draw(row["stage"], row["done"], row["total"], "")
            case "evaluation" if row["step"] < self.steps:
                self.say(f"step {row['step']}/{self.steps}  {_values(row)}")
            case "remark":
                self.say(row["text"])

    def _draw(self, what: str, done: int, total: int, eta: str) -> None:
        self.progress.update(self.task, description=what, completed=done, total=total, eta=eta)


def display(steps: int, console: Console) -> Display:
    """Choose the bar for a terminal, plain lines for anything else (and where CI is set)."""
    live = console.is_terminal and not os.environ.get("CI")
    return Bar(steps, console) if live else PlainLines(steps, console)
