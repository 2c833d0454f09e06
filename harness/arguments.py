"""What commands take: arguments that several of them share, and where they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import completion

if TYPE_CHECKING:
    from rich.console import Console

TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="detection, segmentation, ... (see `ls tasks`)",
        autocompletion=completion.tasks,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="norm=gn_ws preset=mini seed=0..2 ...",
        autocompletion=completion.words,
    ),
]
Results = Annotated[
    Path | None, typer.Option("--results", help="Results folder; default results/.", metavar="DIR")
]

AsJson = Annotated[bool, typer.Option("--json", help="Rows for scripts, on standard output.")]

TableWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TABLE]... [KEY=VALUE]...",
        help="preset=mini seed=0 data=DIR ...",
        autocompletion=completion.table_words,
    ),
]
Every = Annotated[bool, typer.Option("--all", help="Every table of the set that preset= names.")]
Pretrain = Annotated[
    bool,
    typer.Option(
        "--pretrain",
        help="Start from classification under the same norm, made first (init=pretrain).",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, metavar="N", help="Runs at a time; default: what fits."),
]
LauncherName = Annotated[
    str | None,
    typer.Option(
        "--launcher", metavar="NAME", help="Hand the runs over (slurm, ray, local) and return."
    ),
]
Tables = Annotated[
    Path | None,
    typer.Option("--tables", metavar="FILE", help="Tables; default configs/tables.yaml."),
]


def new_console() -> Console:
    """Return a console that folds no table in a log."""
    from rich.console import Console

    console = Console()
    # Logs and pipes have no width: do not fold tables there.
    return console if console.is_terminal else Console(width=160)


def results_of(chosen: Path | None) -> Path:
    """Return the results folder that is meant, without making it.

    Raises:
        UsageError: if something else than a folder is there.
    """
    from harness.paths import default_results_dir, require_folder

    return require_folder(chosen if chosen else default_results_dir())
