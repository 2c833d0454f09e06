"""The command line of data: ``normbench data show``, ``check``, ``prepare`` and ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.arguments import TaskName, Words, new_console

data_app = typer.Typer(help="Show, check, prepare or generate a task's data.", no_args_is_help=True)


@data_app.command("show")
def data_show(
    task: TaskName,
    words: Words = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture.")] = Path("data.png"),
) -> None:
    """Draw samples with their labels into a picture."""
    from harness.inspect import show_data

    show_data(task, words or [], out)
    typer.echo(out)


@data_app.command("check")
def data_check(task: TaskName, words: Words = None) -> None:
    """Verify layout, counts and files; exit 3 where wrong."""
    from harness.inspect import check_data

    check_data(task, words or [], new_console())


@data_app.command("prepare")
def data_prepare(
    task: TaskName,
    words: Words = None,
    given: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="ARCHIVE_OR_DIR", help="An official download; repeatable."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch it, where a library offers that.")
    ] = False,
) -> None:
    """Unpack official downloads into data=DIR and check them; the same command goes on."""
    from harness.prepare import prepare_data

    prepare_data(task, words or [], given or [], download, new_console())


@data_app.command("generate")
def data_generate(task: TaskName, words: Words = None) -> None:
    """Generate the embedded data now; print where they are."""
    from harness.inspect import generate_data

    typer.echo(generate_data(task, words or []))
