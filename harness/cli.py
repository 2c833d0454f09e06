"""The command line: every verb but those of ``data``, a few lines each that call what is behind it.

Only typer is imported here; each command imports what it needs, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness import completion
from harness.arguments import (
    AsJson,
    Every,
    Jobs,
    LauncherName,
    Pretrain,
    Results,
    Tables,
    TableWords,
    TaskName,
    Words,
    new_console,
    results_of,
)
from harness.data_cli import data_app

if TYPE_CHECKING:
    from harness.errors import NormbenchError

_LONGEST = 4000
"""Letters of an error's line that are shown: it may quote what was typed, or a path."""

app = typer.Typer(
    name="normbench",
    help="One `norm` switch for four vision tasks: run, compare, report.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")


@app.command("run")
def run_command(task: TaskName, words: Words = None, results: Results = None) -> None:
    """Run what is asked for and not done yet.

    Lists and ranges sweep: norm=bn,gn_ws seed=0..2.
    """
    from harness.run import run

    run(task, words or [], results_of(results), new_console())


@app.command("plan")
def plan_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK | TABLE...] [KEY=VALUE]...",
            help="as for run or reproduce",
            autocompletion=completion.table_words,
        ),
    ] = None,
    every: Every = False,
    jobs: Jobs = None,
    calibrate: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Time N steps of each kind of run, for an estimate."),
    ] = None,
    pretrain: Pretrain = False,
    tables: Tables = None,
    as_json: AsJson = False,
    results: Results = None,
) -> None:
    """Show what `run TASK` or `reproduce TABLE` would start; start nothing."""
    from harness.plan import plan
    from harness.registry import task_names
    from harness.reproduce import plan_tables, pretrained, split_names
    from harness.terminal import plan_lines, plan_row, plan_table, print_json

    names, pairs = split_names(words or [])
    folder, console = results_of(results), new_console()
    if len(names) == 1 and not every and names[0] in task_names():
        pairs += ["init=pretrain"] * pretrain
        cells = plan(names[0], pairs, folder)
        if as_json:
            print_json([plan_row(cell) for cell in cells])
        elif len(cells) > 1000:
            typer.echo(plan_lines(cells))
        else:
            console.print(plan_table(cells))
        return
    if pretrain:
        pairs, every = pretrained(names, pairs, every=every)
    plan_tables(
        *(names, pairs, folder, console),
        every=every,
        jobs=jobs,
        steps=calibrate,
        path=tables,
        as_json=as_json,
    )


@app.command("reproduce")
def reproduce_command(
    words: TableWords = None,
    every: Every = False,
    jobs: Jobs = None,
    launcher: LauncherName = None,
    pretrain: Pretrain = False,
    tables: Tables = None,
    results: Results = None,
) -> None:
    """Make the runs that tables need and lack, then build the tables.

    normbench reproduce --all preset=mini; the same command goes on where it was stopped.
    With --launcher slurm partition=NAME time=MINUTES gpus_per_run=N ...: through a job array.
    """
    from harness.reproduce import pretrained, reproduce, split_names

    names, pairs = split_names(words or [])
    if pretrain:
        pairs, every = pretrained(names, pairs, every=every)
    folder, console = results_of(results), new_console()
    reproduce(names, pairs, folder, console, every=every, jobs=jobs, path=tables, launcher=launcher)


@app.command("retry")
def retry_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]... [KEY=VALUE]...", help="default: all; launcher's options"),
    ] = None,
    jobs: Jobs = None,
    launcher: LauncherName = None,
    results: Results = None,
) -> None:
    """Make the runs that failed, were cancelled or lost, from their checkpoints."""
    from harness.jobs import retry

    retry(words or [], results_of(results), new_console(), launcher=launcher, jobs=jobs)


@app.command("cancel")
def cancel_command(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="default: all")
    ] = None,
    results: Results = None,
) -> None:
    """Tell runs that were handed to a launcher to save and stop."""
    from harness.jobs import cancel

    cancel(runs or [], results_of(results), typer.echo)


@app.command("export")
def export_command(
    words: TableWords = None,
    slurm_script: Annotated[
        bool, typer.Option("--slurm-script", help="The sbatch script of what is left to run.")
    ] = False,
    every: Every = False,
    jobs: Jobs = None,
    tables: Tables = None,
    results: Results = None,
) -> None:
    """Print a plain job script for the runs that tables need, and write their specs."""
    from harness.errors import UsageError
    from harness.jobscript import slurm_script as script
    from harness.launchers import split_options
    from harness.paths import require_writable
    from harness.reproduce import split_names, to_make

    if not slurm_script:
        raise UsageError("say what to export: --slurm-script")
    options, rest = split_options("slurm", words or [])
    names, pairs = split_names(rest)
    folder = results_of(results)
    require_writable(folder)
    cells = to_make(names, pairs, folder, every=every, path=tables)
    typer.echo(script(cells, options, jobs, folder), nl=False)


@app.command("verify")
def verify_command(
    words: TableWords = None,
    every: Every = False,
    table: Annotated[
        list[str] | None, typer.Option(metavar="T", help="A table; the same as naming it bare.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="X", help="Largest difference; default: what seeds explain (99 %)."),
    ] = None,
    tables: Tables = None,
    results: Results = None,
) -> None:
    """Compare measured tables with our reference or the published numbers; exit 5 outside."""
    from harness.report.verify import verify
    from harness.reproduce import split_names

    names, pairs = split_names([*(table or []), *(words or [])])
    every = every or not names
    folder, console = results_of(results), new_console()
    verify(names, pairs, folder, console, every=every, tolerance=tolerance, path=tables)


@app.command("audit")
def audit_command(
    task: TaskName,
    words: Words = None,
    vs: Annotated[
        list[str] | None,
        typer.Option("--vs", metavar="KEY=VALUE", help="Prove what another run differs in."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all rows to a CSV file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the switch does to each layer, and why; exit 5 on a confound.

    With --vs norm=bn: prove that the two runs differ in the normalisation alone.
    """
    from harness.inspect import audit, audit_rows

    if as_json:
        from dataclasses import asdict

        from harness.errors import UsageError
        from harness.terminal import print_json

        if vs or csv:
            raise UsageError("--json prints the rows: give it without --vs and --csv")
        print_json([asdict(row) for row in audit_rows(task, words or [])])
        return
    audit(task, words or [], vs or [], csv, new_console())


@app.command("selftest")
def selftest_command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[norm=NAME]", help="default: every norm")
    ] = None,
) -> None:
    """Prove what each norm declares of itself; exit 5 if not."""
    from harness.selftest import parse_words, selftest

    selftest(parse_words(words or []), new_console())


@app.command("status")
def status_command(
    watch: Annotated[
        bool, typer.Option("--watch", help="Until no run is waiting or running.")
    ] = False,
    as_json: AsJson = False,
    results: Results = None,
) -> None:
    """Show every run: its state and how far it is, wherever it is made."""
    from harness.inspect import status_rows, status_table
    from harness.jobs import watch as watch_runs

    if as_json:
        from dataclasses import asdict

        from harness.terminal import print_json

        print_json([asdict(row) for row in status_rows(results_of(results))])
    elif watch:
        watch_runs(results_of(results), new_console())
    else:
        new_console().print(status_table(results_of(results)))


@app.command("report")
def report_command(
    words: TableWords = None,
    every: Every = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write report.html too: one page of everything.")
    ] = False,
    tables: Tables = None,
    results: Results = None,
) -> None:
    """Rebuild the CSV files, tables and figures from all records; exit 1 if one is incomplete.

    Without a name: every table that has a number.
    """
    from harness.paths import require_writable
    from harness.report.command import rebuild
    from harness.reproduce import split_names

    folder = results_of(results)
    require_writable(folder)
    names, pairs = split_names(words or [])
    rebuild(names, pairs, folder, new_console(), every=every, path=tables, html=html)


@app.command("serve")
def serve_command(
    words: TableWords = None,
    every: Every = False,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any free one.")] = 8000,
    tables: Tables = None,
    results: Results = None,
) -> None:
    """Show the page of `report --html` in a browser while runs go on; read-only.

    Without a name: every table that has a number.
    """
    from harness.report.command import shown
    from harness.reproduce import split_names
    from harness.serve import Site, serve

    names, pairs = split_names(words or [])
    chosen, free, asked = shown(names, pairs, every=every, path=tables)
    serve(Site(results_of(results), chosen, free, asked=asked), host, port, typer.echo)


@app.command("doctor")
def doctor_command() -> None:
    """Tell what this machine has: packages, devices, data, disk."""
    from harness.doctor import doctor

    doctor(new_console())


@app.command("ls")
def ls_command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help=" ".join(completion.LISTS), autocompletion=completion.lists
        ),
    ],
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", autocompletion=completion.tasks)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List tasks, norms, ws, or a task's presets or keys."""
    from harness.listing import listing, listing_table
    from harness.terminal import print_json

    rows = listing(what, task)
    if as_json:
        print_json(rows)
    else:
        new_console().print(listing_table(what, rows))


def _refuse_shadows() -> None:
    """Refuse to start where another package named ``tasks`` would be imported as ours."""
    import tasks
    from harness.errors import EnvironmentProblem

    ours, found = Path(__file__).resolve().parent.parent, Path(str(tasks.__file__)).resolve()
    if found.parent.parent != ours:
        raise EnvironmentProblem(
            f"another package named tasks hides ours: {found.parent} (ours: {ours / 'tasks'}); "
            "uninstall it or leave that folder"
        )


def main() -> None:
    """Run the command line; every known error is one line on stderr and an exit status."""
    from harness.errors import NormbenchError, of_the_machine
    from harness.stop import stoppable

    try:
        with stoppable():
            _refuse_shadows()
            app()
    except NormbenchError as error:
        _fail(error)
    except OSError as error:
        if (problem := of_the_machine(error)) is None:
            raise
        _fail(problem)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        sys.exit(130)


def _fail(error: NormbenchError) -> NoReturn:
    for line in str(error).splitlines():
        shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
        sys.stderr.write(f"error: {shown}\n")
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
