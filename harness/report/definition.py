"""``configs/tables.yaml``: each table's rows, columns and seeds, which define the runs it needs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.documents import quoted, read_yaml
from harness.errors import UsageError, did_you_mean
from harness.identity import cell_id
from harness.paths import configs_dir
from harness.plan import PlannedRun, plan_one
from harness.pretrain import can_pretrain
from harness.registry import task_names
from harness.spec import build, parse_words, sweep
from harness.weights.source import PRETRAIN

SETS = ("mini", "rates", "pretrain", "lite", "paper")
"""What the tables are grouped by, and the preset that each starts from."""

_FREE = re.compile(r"(data|data\.root|init|init\.(?:source|norm|colours)|devices|exec\..+)")
"""Keys that say where and on what a table's runs are made, and not what they are."""

Words = tuple[tuple[str, str], ...]
"""``key=value`` words as pairs."""


@dataclass(frozen=True)
class Entry:
    """One row or column of a table: what it is called, and the keys that make it."""

    label: str
    words: Words


def _entries(axis: Any) -> tuple[Entry, ...]:
    """Read ``{key: [values]}`` (all combinations) or a list of ``{label:, key: value}``.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(axis, Mapping):
        names = list(map(_text, axis))
        if not all(isinstance(values, list) for values in axis.values()):
            raise ValueError("give a list of values for each key")
        combined = itertools.product(*axis.values())
        return tuple(
            Entry(
                ", ".join(_text(value) for value in values),
                tuple((name, _text(value)) for name, value in zip(names, values, strict=True)),
            )
            for values in combined
        )
    entries = []
    for item in axis:
        if not isinstance(item, Mapping):
            raise ValueError(f"{quoted(item)} is no row or column: give {{label: ..., key: value}}")
        words = tuple((_text(key), _text(value)) for key, value in item.items() if key != "label")
        label = item.get("label") or ", ".join(f"{key}={value}" for key, value in words)
        entries.append(Entry(str(label), words))
    return tuple(entries)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, width=10**6).split("\n")[0]


class TableDefinition(BaseModel):
    """One table as ``tables.yaml`` holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Of its files, too."""
    set: str
    task: str
    title: str
    caption: str = ""
    metrics: tuple[str, ...] = Field(min_length=1)
    seeds: str = "0"
    base: Words = ()
    rows: tuple[Entry, ...] = Field(min_length=1)
    rows_are: str = ""
    columns: tuple[Entry, ...] = (Entry("", ()),)
    columns_are: str = ""
    reference: str
    """Label of the row or column that the others are compared with."""

    @field_validator("rows", "columns", mode="before")
    @classmethod
    def _read_axis(cls, value: Any) -> Any:
        return _entries(value) if isinstance(value, Mapping | list) else value

    @field_validator("base", mode="before")
    @classmethod
    def _read_words(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return tuple((_text(key), _text(inner)) for key, inner in value.items())

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        return str(value)

    @property
    def reference_is_row(self) -> bool:
        """Return whether the reference is a row (else a column)."""
        return any(row.label == self.reference for row in self.rows)

    @property
    def over_micro(self) -> bool:
        """Return whether the columns are micro-batches, to be drawn as a curve."""
        return len(self.columns) > 1 and all(
            [key for key, _ in column.words] == ["batch.micro"] for column in self.columns
        )

    def all_seeds(self) -> list[int]:
        """Return the model seeds of every cell, each once.

        Raises:
            UsageError: if they are no numbers.
        """
        try:
            seeds = [int(pairs[0][1]) for pairs in sweep([f"seed={self.seeds}"])]
        except ValueError:
            raise UsageError(f"seeds: {quoted(self.seeds)} is not like 0..2 or 0,1,2") from None
        return list(dict.fromkeys(seeds))

    def reference_of(self, row: str, column: str) -> tuple[str, str]:
        """Return the row and column that a cell is compared with."""
        return (self.reference, column) if self.reference_is_row else (row, self.reference)


@dataclass(frozen=True)
class Cell:
    """One run that a table needs."""

    table: str
    row: str
    column: str
    seed: int
    planned: PlannedRun
    id: str
    """What the run is, seed aside (``harness.identity.cell_id``)."""


def tables_file() -> Path:
    """Return ``configs/tables.yaml``."""
    return configs_dir() / "tables.yaml"


@cache
def definitions(path: Path) -> dict[str, TableDefinition]:
    """Read a file of tables.

    Raises:
        UsageError: in one line a problem, with the table and key.
    """
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise UsageError(f"{path}: not a readable file of tables ({error})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a file of tables ({', '.join(SETS)} as its keys)")
    found: dict[str, TableDefinition] = {}
    problems: list[str] = []
    for group, tables in content.items():
        if group not in SETS:
            problems.append(f"{path}: {quoted(group)} is not one of {', '.join(SETS)}")
            continue
        if not isinstance(tables, dict):
            problems.append(f"{path}: {group} is not a mapping of names to tables")
            continue
        for name, table in tables.items():
            try:
                found[name] = _checked(TableDefinition(name=name, set=group, **table))
            except (UsageError, TypeError, ValueError) as error:  # pydantic's is a ValueError
                problems.append(f"{path}: {name}: {_first(error)}")
    if problems or not found:
        raise UsageError("\n".join(problems) or f"{path}: defines no table")
    return found


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    item = error.errors(include_url=False)[0]
    where = ".".join(map(str, item["loc"]))
    known = did_you_mean(where, TableDefinition.model_fields)
    return f"{where}: {item['msg']}{known if item['type'] == 'extra_forbidden' else ''}"


def _checked(table: TableDefinition) -> TableDefinition:
    if table.task not in task_names():
        raise ValueError(f"unknown task {table.task!r}.{did_you_mean(table.task, task_names())}")
    table.all_seeds()
    labels = [entry.label for entry in (*table.rows, *table.columns)]
    for entries in (table.rows, table.columns):
        names = [entry.label for entry in entries]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two rows or columns are called {twice[0]!r}")
    if table.reference not in labels:
        near = did_you_mean(table.reference, labels)
        raise ValueError(f"reference {table.reference!r} is no row or column.{near}")
    return table


def choose(
    names: Sequence[str], words: Sequence[str], *, every: bool, path: Path | None = None
) -> tuple[list[TableDefinition], Words]:
    """Choose tables by name, or every table of a set (``preset=``, the first unless said: mini).

    Returns:
        The tables, restricted to the seeds asked for, and the words for their runs.

    Raises:
        UsageError: if a table is unknown, or a word would change what a table defines.
    """
    known = definitions(path or tables_file())
    pairs = dict(parse_words(words))
    group, seeds = pairs.pop("preset", None), pairs.pop("seed", None)
    if bool(names) == every:
        raise UsageError(f"name tables ({', '.join(known)}), or give --all")
    sets = [name for name in SETS if any(table.set == name for table in known.values())]
    if group and group not in sets:
        near = did_you_mean(group, sets)
        raise UsageError(f"preset={group}: no set of tables; there are {', '.join(sets)}.{near}")
    for name in names:
        if name not in known:
            raise UsageError(f"unknown table {name!r}.{did_you_mean(name, known)}")
        if group and known[name].set != group:
            raise UsageError(f"preset={group}: table {name} is of preset={known[name].set}")
    for key in pairs:
        if not _FREE.fullmatch(key):
            raise UsageError(
                f"{key}= would change what the tables define; here go preset, seed, data, init, "
                f"devices and exec.* (normbench run takes every key)"
            )
    group = group or sets[0]
    chosen = [t for t in known.values() if t.name in names or (every and t.set == group)]
    if seeds is not None:
        chosen = [table.model_copy(update={"seeds": seeds}) for table in chosen]
    return chosen, tuple(pairs.items())


def cells(table: TableDefinition, words: Words, results: Path) -> Iterator[Cell]:
    """Plan every run of a table, row by row.

    Raises:
        UsageError: if the definition is wrong, naming the table.
    """
    start: Words = (("preset", table.set), *table.base)
    if not _takes_pretraining(table):
        words = tuple(pair for pair in words if pair != _PRETRAINED)
    for row, column, seed in itertools.product(table.rows, table.columns, table.all_seeds()):
        pairs = [*start, *row.words, *column.words, *words, ("seed", str(seed))]
        try:
            planned = plan_one(build(table.task, pairs), results)
        except UsageError as error:
            place = ", ".join(filter(None, (row.label, column.label)))
            raise UsageError(f"table {table.name} ({place}): {error}") from None
        yield Cell(table.name, row.label, column.label, seed, planned, cell_id(planned.spec))


_PRETRAINED = ("init", PRETRAIN)


def _takes_pretraining(table: TableDefinition) -> bool:
    """Tell whether ``init=pretrain`` concerns a table: not where it names weights itself."""
    axes = [table.base, *(entry.words for entry in (*table.rows, *table.columns))]
    named = any(key in ("init", "init.source") for words in axes for key, _ in words)
    return can_pretrain(table.task) and not named
