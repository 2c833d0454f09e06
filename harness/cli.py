"""The command line: every verb in one place, each a few lines that call the module behind it.

Only typer is imported here; each command imports what it needs, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness import completion

if TYPE_CHECKING:
    from rich.console import Console

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
data_app = typer.Typer(help="Show, check, prepare or generate a task's data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

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


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # Logs and pipes have no width: do not fold tables there.
    return console if console.is_terminal else Console(width=160)


def _results(chosen: Path | None) -> Path:
    from harness.paths import default_results_dir, require_folder

    return require_folder(chosen if chosen else default_results_dir())


@app.command("run")
def run_command(task: TaskName, words: Words = None, results: Results = None) -> None:
    """Run what is asked for and not done yet.

    Lists and ranges sweep: norm=bn,gn_ws seed=0..2.
    """
    from harness.run import run

    run(task, words or [], _results(results), _console())


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
    folder, console = _results(results), _console()
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
    folder, console = _results(results), _console()
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

    retry(words or [], _results(results), _console(), launcher=launcher, jobs=jobs)


@app.command("cancel")
def cancel_command(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="default: all")
    ] = None,
    results: Results = None,
) -> None:
    """Tell runs that were handed to a launcher to save and stop."""
    from harness.jobs import cancel

    cancel(runs or [], _results(results), typer.echo)


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
    folder = _results(results)
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
    folder, console = _results(results), _console()
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
    audit(task, words or [], vs or [], csv, _console())


@app.command("selftest")
def selftest_command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[norm=NAME]", help="default: every norm")
    ] = None,
) -> None:
    """Prove what each norm declares of itself; exit 5 if not."""
    from harness.selftest import parse_words, selftest

    selftest(parse_words(words or []), _console())


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

        print_json([asdict(row) for row in status_rows(_results(results))])
    elif watch:
        watch_runs(_results(results), _console())
    else:
        _console().print(status_table(_results(results)))


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

    folder = _results(results)
    require_writable(folder)
    names, pairs = split_names(words or [])
    rebuild(names, pairs, folder, _console(), every=every, path=tables, html=html)


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
    serve(Site(_results(results), chosen, free, asked=asked), host, port, typer.echo)


@app.command("doctor")
def doctor_command() -> None:
    """Tell what this machine has: packages, devices, data, disk."""
    from harness.doctor import doctor

    doctor(_console())


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
        _console().print(listing_table(what, rows))


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

    check_data(task, words or [], _console())


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

    prepare_data(task, words or [], given or [], download, _console())


@data_app.command("generate")
def data_generate(task: TaskName, words: Words = None) -> None:
    """Generate the embedded data now; print where they are."""
    from harness.inspect import generate_data

    typer.echo(generate_data(task, words or []))


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
