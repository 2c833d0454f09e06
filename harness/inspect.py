"""Looking without running: audits, states and data, as the command line shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from harness.errors import AuditError, DataError, UsageError
from harness.live import RunStatus, status
from harness.norm.catalogue import norm_info
from harness.plan import impossible
from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build, parse_words
from harness.terminal import audit_table, new_table

if TYPE_CHECKING:
    from rich.table import Table

    from harness.compare import Built
    from harness.norm.audit import AuditRow
    from harness.task import Task, TaskInfo


def one_spec(task: str, words: Sequence[str]) -> Spec:
    """Build the one spec that the words describe.

    Raises:
        UsageError: if something is wrong with them.
    """
    return build(task, parse_words(words))


def audit_rows(task: str, words: Sequence[str]) -> list[AuditRow]:
    """Build a model with random weights, apply the switch and return every layer's row.

    Raises:
        UsageError: if the switch cannot be applied to this model.
    """
    return list(_built(one_spec(task, words))[0].audit)


def audit(
    task: str, words: Sequence[str], vs: Sequence[str], csv: Path | None, console: Console
) -> None:
    """Build a model with random weights, apply the switch and print every layer's row.

    Args:
        task: name of the task.
        words: the run.
        vs: words that turn it into another run, to prove what the two differ in; may be empty.
        csv: file for the rows, if any.
        console: where to print.

    Raises:
        UsageError: if the switch cannot be applied to this model.
        AuditError: if the two runs differ in more than the norm.
    """
    from harness.totals import parameter_counts

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    spec = one_spec(task, words)
    built, present, working = _built(spec)
    console.print(audit_table(f"{spec.model.name}, norm={spec.norm.name}", built.audit))
    say(built.audit.summary())
    every, trained = parameter_counts(built.model)
    say(f"{every:,} parameters, {trained:,} of them trained")
    if note := norm_info(spec.norm.layer).constraints:
        say(f"note: {note}")
    reason = impossible(spec)
    if reason:
        say(f"cannot train: {reason}")
    if csv:
        built.audit.to_csv(csv)
    if vs:
        _prove(built, _built(one_spec(task, [*words, *vs]))[0], console)
    if reason is None:
        say(_flops(working, built, present))


def _built(spec: Spec) -> tuple[Built, bool, Task]:
    """Build a spec's model; tell whether its data are there, and give the task."""
    from harness.compare import Built
    from harness.registry import task_class
    from harness.worker import build_model

    info = task_info(spec.task)
    try:
        root = info.data_root(spec)
    except DataError:
        root = None
    present = root if root and root.is_dir() else None
    task = task_class(info)(spec, present)
    model, found = build_model(task, spec)
    return Built(spec, model, found), present is not None, task


def _flops(task: Task, built: Built, has_data: bool) -> str:
    from harness.totals import forward_flops

    if not has_data:
        return f"FLOPs: not counted without data (normbench data generate {built.spec.task})"
    flops = forward_flops(task, built.model, built.spec)
    return (
        f"{flops / 1e9:.3g} GFLOPs per image in a training forward: convolutions and matrix "
        "products, not the norms"
    )


def _prove(a: Built, b: Built, console: Console) -> None:
    """Print what two runs share and differ in.

    Raises:
        AuditError: with one line a confound.
    """
    from harness.compare import compare

    found = compare(a, b)
    table = new_table(f"norm={a.spec.norm.name} against norm={b.spec.norm.name}", "", "what")
    for kind, lines in (("norm", found.intended), ("equal", found.equal)):
        for line in lines:
            table.add_row(kind, escape(line))
    for line in found.confounds:
        table.add_row("[red]CONFOUND[/]", escape(line))
    console.print(table)
    if found.confounds:
        raise AuditError("\n".join(f"confound: {line}" for line in found.confounds))
    console.print("the two runs differ in the normalisation alone")


def status_rows(results: Path) -> list[RunStatus]:
    """Return the status of every run directory; of one that a launcher has, what that says."""
    from harness.launchers import LiveJobs, run_dirs

    live, rows = LiveJobs(results), []
    for run in run_dirs(results):
        one = status(run)
        if one.state not in ("done", "running") and (queued := live.state(run)):
            one = replace(one, state=queued)
        rows.append(one)
    return rows


def status_table(results: Path) -> Table:
    """Return one row a run directory."""
    table = new_table(escape(str(results)), "run", "state", "step", "note")
    for one in status_rows(results):
        table.add_row(escape(one.id), one.state, one.step, escape(one.message))
    return table


def generate_data(task: str, words: Sequence[str]) -> Path:
    """Generate the embedded data of a spec if they are absent; return their folder."""
    spec = one_spec(task, words)
    with progress_bar() as progress:
        return task_info(task).prepare(spec, progress)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar while the context lasts; give what moves it."""
    with Progress(TextColumn("{task.description}"), BarColumn(), transient=True) as bar:
        shown = bar.add_task("data")

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(shown, description=escape(stage), completed=done, total=total)

        yield progress


def show_data(task: str, words: Sequence[str], out: Path) -> None:
    """Draw samples into ``out``.

    Raises:
        UsageError: if the picture cannot be written there.
    """
    generate_data(task, words)
    try:
        task_info(task).show(one_spec(task, words), out)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the picture {out}: {error}") from None


def check_data(task: str, words: Sequence[str], console: Console) -> None:
    """Print what a deep look at the data finds.

    Raises:
        DataError: with one line a problem.
    """
    spec = one_spec(task, words)
    if spec.data.root is None:
        generate_data(task, words)
    info = task_info(task)
    try:
        report = info.check(spec, lambda *_: None)
    except DataError as error:
        raise DataError(f"{error}{_sources(info, spec)}") from None
    table = new_table(str(report.root), "what", "found")
    for name, value in report.facts.items():
        table.add_row(name, value)
    console.print(table)
    if report.problems:
        raise DataError("\n".join(report.problems) + _sources(info, spec))
    console.print("the data are as they should be")


def _sources(info: TaskInfo, spec: Spec) -> str:
    return f"\nofficial downloads of {info.downloads}" if spec.data.root else ""
