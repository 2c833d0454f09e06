"""One table made from its definition and the measured numbers: values, differences, cost, notes.

Nothing is formatted here; ``harness.report.layout`` makes text of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from harness.errors import UsageError
from harness.identity import confounds
from harness.report.definition import Cell, TableDefinition, Words, cells
from harness.report.uncertainty import Difference, Summary, corrected, paired, summary

COSTS = {"images_per_s": "images/s", "step_ms": "ms a step", "peak_mem_mib": "peak MiB"}
"""Columns of what a run cost, with their headings."""


@dataclass(frozen=True)
class Published:
    """The number that others reported for a cell."""

    value: float
    shown: str
    source: str
    verified: bool
    comparable: str
    """``yes``, ``partly`` or ``no``; only then is there a difference."""
    why: str


@dataclass(frozen=True)
class BuiltCell:
    """Row x column x metric."""

    row: str
    column: str
    metric: str
    values: pd.Series[float]
    """Measured values, by seed."""
    runs: Mapping[int, str]
    """Seed to the id of the run that measured it."""
    missing: Mapping[int, str]
    """Seeds without a number, and why."""
    impossible: str
    """Why no seed can ever run, or ''."""
    summary: Summary | None
    """None where nothing was measured."""
    difference: Difference | None
    """Paired by seed, this cell minus its reference; None for the reference itself."""
    standard_error: float | None
    """Of one run's metric over the evaluated samples, where it is defined (mean over seeds)."""
    published: Published | None
    higher_is_better: bool
    unit: str
    cost: Mapping[str, float]
    """``COSTS`` as means over seeds; empty where nothing was measured."""
    relative: Mapping[str, float]
    """The same, divided by the reference's."""
    marks: tuple[int, ...]
    """Indices into ``BuiltTable.notes``."""


@dataclass(frozen=True)
class BuiltTable:
    """A table of numbers, complete or not."""

    definition: TableDefinition
    cells: tuple[BuiltCell, ...]
    """By metric, then row, then column."""
    notes: tuple[str, ...]
    """Footnotes of single cells."""
    remarks: tuple[str, ...]
    """What a reader must know of all."""
    num_runs: int
    """Runs that the table needs and that can run."""
    num_done: int
    run_ids: tuple[str, ...]
    """The runs that its numbers come from."""

    @property
    def complete(self) -> bool:
        """Return whether every run that can run is there."""
        return 0 < self.num_runs == self.num_done

    def cell(self, row: str, column: str, metric: str) -> BuiltCell:
        """Return one cell."""
        place = (row, column, metric)
        return next(cell for cell in self.cells if (cell.row, cell.column, cell.metric) == place)


def build_table(
    table: TableDefinition, words: Words, results: Path, metrics: pd.DataFrame
) -> BuiltTable:
    """Fill a table with measured numbers.

    Args:
        table: its definition.
        words: as ``definition.choose`` returned them.
        results: where runs are, for the state of those that have no number.
        metrics: ``harness.collect.metrics_frame`` or a file of it.

    Returns:
        The table; what is missing in it says why.

    Raises:
        UsageError: if the definition is wrong.
    """
    planned = list(cells(table, words, results))
    measured = _measured(planned, metrics)
    notes: list[str] = []
    built = [
        cell
        for metric in table.metrics
        for cell in _of_metric(table, planned, measured, metric, notes)
    ]
    possible = {(cell.id, cell.seed) for cell in planned if not _never(cell)}
    done = set(zip(measured["cell"], measured["seed"], strict=True)) & possible
    used = measured.drop_duplicates("run_id")
    return BuiltTable(
        definition=table,
        cells=tuple(built),
        notes=tuple(notes),
        remarks=tuple(_remarks(used)),
        num_runs=len(possible),
        num_done=len(done),
        run_ids=tuple(sorted(used["run_id"])),
    )


def _never(cell: Cell) -> bool:
    """Tell a cell that cannot run from one whose data are only not here."""
    return cell.planned.state == "impossible" and cell.planned.exit_code == UsageError.exit_code


def _measured(planned: Sequence[Cell], metrics: pd.DataFrame) -> pd.DataFrame:
    """Select the numbers of the table's runs: of the run planned now, else the newest like it."""
    wanted = {cell.id for cell in planned}
    seeds = {cell.seed for cell in planned}
    chosen = metrics["cell"].isin(wanted) & metrics["seed"].isin(seeds) & metrics["is_result"]
    now = {cell.planned.run.id for cell in planned}
    frame = metrics[chosen]
    frame = frame.assign(_now=frame["run_id"].isin(now)).sort_values(["_now", "finished"])
    return frame.drop_duplicates(["cell", "seed", "metric"], keep="last").drop(columns="_now")


def _of_metric(
    table: TableDefinition,
    planned: Sequence[Cell],
    measured: pd.DataFrame,
    metric: str,
    notes: list[str],
) -> Iterator[BuiltCell]:
    numbers = measured[measured["metric"] == metric]
    by_place = {
        place: list(group)
        for place, group in itertools.groupby(planned, key=lambda cell: (cell.row, cell.column))
    }
    of_id = dict(tuple(numbers.groupby("cell")))
    nothing = numbers.iloc[:0]
    differences: dict[tuple[str, str], Difference] = {}
    for place, group in by_place.items():
        other = by_place[table.reference_of(*place)]
        pair = (group[0].id, other[0].id)
        if pair[0] != pair[1] and pair not in differences:
            own, theirs = (_by_seed(of_id.get(name, nothing)) for name in pair)
            differences[pair] = paired(own, theirs)
    # A run that stands in several columns is one comparison, not several.
    made = dict(zip(differences, corrected(list(differences.values())), strict=True))
    for (row, column), group in by_place.items():
        other = by_place[table.reference_of(row, column)]
        cell = _cell(group, of_id.get(group[0].id, nothing), of_id.get(other[0].id, nothing))
        yield replace(
            cell,
            metric=metric,
            difference=made.get((group[0].id, other[0].id)),
            marks=tuple(
                _noted(notes, (*_gaps(group, cell), *_confounds(table, group[0], other[0])))
            ),
        )


def _noted(notes: list[str], texts: Iterable[str]) -> Iterator[int]:
    for text in texts:
        if text not in notes:
            notes.append(text)
        yield notes.index(text)


def _by_seed(frame: pd.DataFrame) -> pd.Series[float]:
    return pd.Series(frame["value"].to_numpy(float), index=frame["seed"].to_numpy()).sort_index()


def _cell(group: Sequence[Cell], own: pd.DataFrame, reference: pd.DataFrame) -> BuiltCell:
    values = _by_seed(own)
    first = group[0]
    cost, theirs = _cost(own), _cost(reference)
    errors = own["se"].dropna()
    return BuiltCell(
        row=first.row,
        column=first.column,
        metric="",
        values=values,
        runs=dict(zip(map(int, own["seed"]), map(str, own["run_id"]), strict=True)),
        missing={
            cell.seed: cell.planned.reason or cell.planned.state
            for cell in group
            if cell.seed not in values.index
        },
        impossible=first.planned.reason if _never(first) else "",
        summary=summary(values) if len(values) else None,
        difference=None,
        standard_error=float(errors.mean()) if len(errors) else None,
        published=_published(own),
        higher_is_better=bool(own["higher_is_better"].iloc[0]) if len(own) else True,
        unit=str(own["unit"].iloc[0]) if len(own) else "",
        cost=cost,
        relative={name: cost[name] / theirs[name] for name in cost if theirs.get(name)},
        marks=(),
    )


def _cost(frame: pd.DataFrame) -> dict[str, float]:
    if frame.empty:
        return {}
    step_ms = 1000 * frame["batch_size"] / frame["images_per_s"]
    means = frame[["images_per_s", "peak_mem_mib"]].mean()
    return {
        "images_per_s": float(means["images_per_s"]),
        "step_ms": float(step_ms.mean()),
        "peak_mem_mib": float(means["peak_mem_mib"]),
    }


def _published(frame: pd.DataFrame) -> Published | None:
    rows = frame[frame["published"].notna()]
    if rows.empty:
        return None
    row = rows.iloc[-1]
    return Published(
        value=float(row["published"]),
        shown=str(row["published_shown"]),
        source=str(row["published_source"]),
        verified=bool(row["published_verified"]),
        comparable=str(row["comparable"]),
        why=str(row["comparable_why"]),
    )


_STATES = {
    "todo": "not run",
    "impossible": "not run",
    "resumable": "not finished",
    "running": "still running",
    "done": "ran, but its record has no such number",
}
"""What a planned run without a number is called, where not as its state."""


def _gaps(group: Sequence[Cell], cell: BuiltCell) -> Iterator[str]:
    """Say which seeds have no number, and why; an impossible cell says it once."""
    if cell.impossible:
        yield f"n/a: {cell.impossible}"
        return
    by_reason: dict[str, list[int]] = {}
    for seed, reason in cell.missing.items():
        state = next(one.planned.state for one in group if one.seed == seed)
        word = _STATES.get(state, state)
        text = f"{word}: {reason}" if reason != state else word
        by_reason.setdefault(text, []).append(seed)
    for reason, seeds in by_reason.items():
        if len(seeds) < len(group):
            yield f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {reason}"
        else:
            yield reason


def _confounds(table: TableDefinition, cell: Cell, reference: Cell) -> Iterator[str]:
    """Say what a cell and its reference differ in besides the norm."""
    if _never(cell) or cell.id == reference.id:
        return
    # Where columns are compared, what their heading names is the comparison itself.
    columns = () if table.reference_is_row else table.columns
    meant = {key for column in columns for key, _ in column.words}
    differing = confounds(cell.planned.spec, reference.planned.spec)
    both = [one.planned.source for one in (cell, reference)]
    if both[0] and both[1]:  # each from weights of its own norm: what do these differ in?
        differing = [text for text in differing if not text.startswith("init.cell ")]
        differing += [f"pretraining: {text}" for text in confounds(both[0].spec, both[1].spec)]
    found = [text for text in differing if not _named(text, meant)]
    if found:
        yield f"not only the norm differs from {table.reference}: " + "; ".join(found)


def _named(text: str, meant: set[str]) -> bool:
    """Tell whether what a text says to differ is a key of ``meant``, or in a section of it."""
    key = text.partition(" ")[0]
    return key in meant or key.partition(".")[0] in meant


def _remarks(runs: pd.DataFrame) -> Iterator[str]:
    """Say what all runs do not share, and what else a reader must know of them."""
    if runs.empty:
        return
    if dirty := int(runs["dirty"].fillna(False).sum()):
        yield f"{dirty} of {len(runs)} runs come from a git tree with uncommitted changes"
    if unknown := int(runs["dirty"].isna().sum()):
        yield f"{unknown} of {len(runs)} runs come from code that no git tree tells the version of"
    yield from _faults(runs)
    for column, what in (
        ("device", "on different devices, so that costs cannot be compared"),
        ("torch", "with different versions of torch"),
        ("fingerprint", "on different data"),
    ):
        yield from _differing(runs[column], what)
    yield from _differing(_given(runs["init"]), "from different initial weights")
    # The task's version, then the norm's, in which norms differ at all times.
    parts = runs["numerics"].str.partition(".")
    yield from _differing(parts[0], "with different versions of the task's code")
    for (norm, _), own in parts[2].groupby([runs["norm"], runs["ws_variant"]], dropna=False):
        yield from _differing(own, f"with different versions of the code of {norm}")


def _faults(runs: pd.DataFrame) -> Iterator[str]:
    """Say which runs replaced training samples, or went on in another environment."""
    if "changed" not in runs:
        return  # numbers collected by an earlier version
    if len(hit := runs[runs["num_replaced"].fillna(0) > 0]):
        yield (
            f"{len(hit)} of {len(runs)} runs could not read up to {hit['num_unreadable'].max()} "
            f"training samples and took others {hit['num_replaced'].sum()} times "
            "(data.on_corrupt=skip)"
        )
    if len(hit := runs[runs["changed"].notna()]):
        changes = ", ".join(sorted(set(hit["changed"])))
        yield f"{len(hit)} of {len(runs)} runs were continued in another environment: {changes}"


def _given(init: pd.Series[str]) -> pd.Series[str]:
    """Name weights of other runs alike: they differ by norm and seed, as they should."""
    return init.where(~init.str.startswith("run:").fillna(False), "other runs")


def _differing(values: pd.Series[str], what: str) -> Iterator[str]:
    counts = values.fillna("unknown").value_counts(sort=False).sort_index()
    if len(counts) > 1:
        named = ", ".join(f"{name} ({count})" for name, count in counts.items())
        yield f"runs were made {what}: {named}"
