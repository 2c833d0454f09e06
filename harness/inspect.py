"""Looking without running: audits, states, listings and data, as the command line shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from harness.documents import read_yaml
from harness.errors import AuditError, DataError, UsageError, did_you_mean, visible
from harness.foreign import is_plain
from harness.norm.catalogue import norm_info
from harness.plan import impossible
from harness.record import RunDir
from harness.registry import task_info, task_names
from harness.schema import Section, Spec
from harness.spec import build, keys, parse_words, presets
from harness.terminal import audit_table, new_table

if TYPE_CHECKING:
    from rich.table import Table

    from harness.compare import Built
    from harness.task import Task, TaskInfo


def one_spec(task: str, words: Sequence[str]) -> Spec:
    """Build the one spec that the words describe.

    Raises:
        UsageError: if something is wrong with them.
    """
    return build(task, parse_words(words))


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


def status_table(results: Path) -> Table:
    """Return one row a run directory."""
    table = new_table(escape(str(results)), "run", "state", "step", "note")
    for path in sorted((results / "runs").glob("*/spec.yaml")):
        run = RunDir(results, path.parent.name)
        state = run.state()
        failure = run.read_failure() if state == "failed" else None
        why = failure.message if failure else ""
        table.add_row(escape(visible(run.id)), state, _step(run), escape(why))
    return table


def _step(run: RunDir) -> str:
    """Read ``step/steps`` from the tail of the journal."""
    try:
        if not (is_plain(run.spec) and is_plain(run.metrics, 2**30)):
            return "-"
        steps = int(read_yaml(run.spec)["steps"])
        with run.metrics.open("rb") as file:
            file.seek(max(0, run.metrics.stat().st_size - 20_000))
            tail = file.read().decode(errors="replace").splitlines()
    except (OSError, LookupError, TypeError, ValueError, OverflowError):
        return "-"
    for line in reversed(tail):
        try:
            row = json.loads(line)
            if row["event"] == "train":
                return f"{int(row['step'])}/{steps}"
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            continue
    return f"0/{steps}"


def listing(what: str, task: str | None) -> Table:
    """Return the table of ``normbench ls``.

    Raises:
        UsageError: if there is no such listing, or it needs a task.
    """
    if what in ("presets", "keys") and task is None:
        raise UsageError(f"ls {what} needs a task: normbench ls {what} TASK")
    if what == "tasks":
        table = new_table("", "task", "what")
        for name in task_names():
            table.add_row(name, task_info(name).title)
    elif what == "norms":
        from harness.norm.catalogue import NORMS

        table = new_table(
            "", "norm", "what", "paper", "batch-independent", "train = eval", "statistics", "note"
        )
        for name, norm in NORMS.items():
            declared = (_word(norm.batch_independent), _word(norm.train_is_eval))
            note = norm.constraints
            table.add_row(name, norm.title, norm.paper, *declared, norm.statistics, note)
        table.caption = (
            "each also as NAME_ws, with weight standardisation; `normbench selftest` proves it"
        )
    elif what == "ws":
        from harness.norm.catalogue import WS_VARIANTS

        table = new_table("", "norm.ws", "variance", "epsilon", "scaled", "source")
        for name, ws in WS_VARIANTS.items():
            variance = "unbiased" if ws.unbiased else "biased"
            eps = f"{ws.eps:g} {'inside' if ws.eps_inside_root else 'outside'} the root"
            table.add_row(name, variance, eps, "yes" if ws.scaled else "no", ws.source)
    elif what == "presets":
        table = new_table("", "preset")
        for name in presets(str(task)):
            table.add_row(name)
    elif what == "keys":
        table = new_table("", "key", "mini", "meaning")
        for key, text in keys(str(task)).items():
            value = _mini(str(task), key)
            if not isinstance(value, dict):
                table.add_row(key, str(value), text)
    else:
        known = ("tasks", "norms", "ws", "presets", "keys")
        near = did_you_mean(what, known)
        raise UsageError(f"ls {what!r} is not known.{near} Lists: {', '.join(known)}")
    return table


def _word(claim: bool | None) -> str:
    return "?" if claim is None else "yes" if claim else "no"


def _mini(task: str, key: str) -> object:
    # Not from a dump: that leaves out keys which came later and have their default.
    value: object = one_spec(task, [])
    for part in key.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


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
