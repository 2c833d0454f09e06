"""Published numbers as data: read, checked, and set against a run only as far as both allow."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import UsageError
from harness.identity import flat
from harness.norm.catalogue import NORMS, WS_VARIANTS, parse_norm
from harness.paths import published_csv
from harness.record import Record
from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build

if TYPE_CHECKING:
    import pandas as pd

Comparable = Literal["yes", "partly", "no"]

_TYPES: dict[str, str] = {
    "value": "float64",
    "reading_error": "float64",
    "epochs": "float64",
    "batch_size": "Int64",
    "images_per_gpu": "Int64",
    "verified": "bool",
}
_KEY = (
    *("task", "dataset", "model", "norm", "ws", "metric", "epochs", "drops"),
    *("batch_size", "images_per_gpu", "init", "source", "protocol"),
)
_MATCH_TYPES = {
    "run_id": "string",
    "metric": "string",
    "published": "float64",
    "published_shown": "string",
    "published_source": "string",
    "verified": "boolean",
    "comparable": "string",
    "why": "string",
    "delta": "float64",
}
_RANK = {"yes": 0, "partly": 1, "no": 2}
_JUDGED = ("norm", "batch", "init")
"""Sections whose differences from the preset are judged one by one."""
_FREE = ("preset", "seed", "devices", "exec")
_TOLERATED = ("precision", "bn_eval")
"""Keys whose differences leave the experiment what it is, but not its numbers."""


class Published(BaseModel):
    """One published number: a row of ``results/published.csv``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(min_length=1)
    """One of ours, or an honest name of another."""
    dataset: str = Field(min_length=1)
    model: str = Field(min_length=1)
    """``model.name`` of our specs."""
    norm: str
    """``<layer>[_ws]``, as everywhere."""
    ws: str | None
    """Name in ``WS_VARIANTS``."""
    metric: str = Field(min_length=1)
    """As in our records; what was published as an error is here the accuracy it stands for."""
    value: Decimal = Field(ge=0, le=100, allow_inf_nan=False)
    """With the digits that were published."""
    unit: Literal["%"]
    reading_error: float | None = Field(ge=0)
    """Where the number was measured in a figure: how exactly."""
    epochs: float | None = Field(gt=0)
    drops: str | None = Field(pattern=r"^\d+(\.\d+)?( \d+(\.\d+)?)*$")
    """Epochs after which the learning rate falls, where it falls in steps that are stated."""
    batch_size: int | None = Field(ge=1)
    """Images of an update, over all devices."""
    images_per_gpu: int | None = Field(ge=1)
    """As the source states it."""
    init: Literal["scratch", "imagenet"] | None
    """Random weights or a classifier's, where it is stated."""
    preset: str | None
    """The recipe of ours that it is set against."""
    comparable: Comparable
    """``yes``: that recipe's protocol; ``partly``: but for what ``note`` names; ``no``: another."""
    verified: bool
    """Read in the repository or figure of those who ran it; otherwise quoted or remembered."""
    source: str = Field(min_length=1)
    protocol: str = Field(min_length=1)
    note: str = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if parse_norm(self.norm)["ws"] is None and self.ws is not None:
            raise ValueError(f"ws: {self.ws!r} with norm {self.norm!r}, which has none")
        if self.norm.endswith("_ws") and self.ws not in WS_VARIANTS:
            raise ValueError(f"ws: {self.ws!r} is none of {', '.join(WS_VARIANTS)}")
        if (self.comparable == "no") != (self.preset is None):
            raise ValueError("preset: give one exactly where comparable is yes or partly")
        if self.comparable == "yes" and not self.verified:
            raise ValueError("comparable: an unverified number is partly comparable at best")
        return self

    @property
    def shown(self) -> str:
        """Return the number as users see it: how exactly it was read, and if it is unverified."""
        text = f"{self.value} +- {self.reading_error:g}" if self.reading_error else f"{self.value}"
        return text if self.verified else f"{text} (unverified)"


def read(path: Path | None = None) -> tuple[Published, ...]:
    """Read the published numbers, in the order of the file.

    Args:
        path: another file in the same format; by default ours.

    Raises:
        UsageError: naming the line and column that is wrong, or two lines that are one number.
    """
    path = path or published_csv()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: published numbers cannot be read ({error})") from None
    reader = csv.DictReader(text.splitlines(), strict=True)
    expected, found = list(Published.model_fields), list(reader.fieldnames or ())
    if expected != found:
        raise UsageError(f"{path}: the columns must be {','.join(expected)}")
    rows: list[Published] = []
    lines: dict[tuple[object, ...], int] = {}
    for line, cells in enumerate(reader, start=2):
        if None in cells or None in cells.values():
            raise UsageError(f"{path}: line {line} must have {len(expected)} cells")
        rows.append(row := _row(path, line, cells))
        first = lines.setdefault(tuple(getattr(row, name) for name in _KEY), line)
        if first != line:
            raise UsageError(f"{path}: lines {first} and {line} are the same number: drop one")
    return tuple(rows)


def _row(path: Path, line: int, cells: Mapping[str, str]) -> Published:
    try:
        return Published.model_validate({name: text or None for name, text in cells.items()})
    except UsageError as error:  # from the norm's grammar
        raise UsageError(f"{path}: line {line}, column norm: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        column, message = ".".join(map(str, first["loc"])), first["msg"]
        if not column:  # from _consistent, whose messages begin with the column
            column, _, message = message.removeprefix("Value error, ").partition(": ")
        raise UsageError(f"{path}: line {line}, column {column}: {message}") from None


def load(path: Path | None = None) -> pd.DataFrame:
    """Return the published numbers as a typed frame, one row a number, in the file's order.

    Raises:
        UsageError: as ``read``.
    """
    import pandas as pd

    rows = [row.model_dump() for row in read(path)]
    types = {name: _TYPES.get(name, "string") for name in Published.model_fields}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def match(records: Sequence[Record], path: Path | None = None) -> pd.DataFrame:
    """Set every measured number against the published one of the same cell, where there is one.

    A cell is task, data set, preset, model, norm and metric. Of several published numbers the most
    comparable counts, then a verified one, then the first of the file. A run is as comparable as
    the row says, less what the run itself changed: another variant of weight standardisation,
    another precision or, where samples meet in a forward, another micro-batch make it ``partly``;
    other images of a batch statistic, or any other difference from the preset, make it ``no``.

    Args:
        records: finished runs; those that are no results have no counterpart.
        path: as ``read``.

    Returns:
        One row a matched number: ``run_id`` and ``metric`` to join on, ``published`` in the
        metric's unit, ``published_shown`` with what a reader must know, ``published_source``,
        ``verified``, ``comparable``, ``why``, and ``delta`` = measured - published, which is
        missing where ``comparable`` is ``no``.

    Raises:
        UsageError: as ``read``.
    """
    import pandas as pd

    published: dict[str, list[Published]] = {}
    for row in read(path):
        published.setdefault(f"{row.task} {row.preset}", []).append(row)
    rows = [
        row
        for record in records
        if record.is_result
        for row in _matches(record, published.get(_recipe(record), []))
    ]
    return pd.DataFrame(rows, columns=list(_MATCH_TYPES)).astype(_MATCH_TYPES)


def _recipe(record: Record) -> str:
    return f"{record.spec['task']} {record.spec['preset']}"


def _matches(record: Record, published: Sequence[Published]) -> Iterator[dict[str, Any]]:
    spec = record.spec
    norm = f"{spec['norm']['layer']}_ws" if spec["norm"]["ws"] else spec["norm"]["layer"]
    cell = (spec["task"], record.dataset, spec["preset"], spec["model"]["name"], norm)
    rows = [
        row for row in published if (row.task, row.dataset, row.preset, row.model, row.norm) == cell
    ]
    for metric in record.metrics if rows else ():
        judged = [
            (*_judge(record, row), row)
            for row in rows
            if (row.metric, row.unit) == (metric.name, metric.unit)
        ]
        if not judged:
            continue
        comparable, why, row = min(judged, key=lambda one: (_RANK[one[0]], not one[2].verified))
        yield {
            "run_id": record.run_id,
            "metric": metric.name,
            "published": float(row.value),
            "published_shown": row.shown,
            "published_source": row.source,
            "verified": row.verified,
            "comparable": comparable,
            "why": why,
            "delta": None if comparable == "no" else metric.value - float(row.value),
        }


def _judge(record: Record, row: Published) -> tuple[Comparable, str]:
    """Return how far a run may be compared with a row of its cell, and why."""
    differences = list(_differences(record, row))
    verdicts: list[Comparable] = [row.comparable, *(verdict for verdict, _ in differences)]
    worst = max(verdicts, key=lambda verdict: _RANK[verdict])
    return worst, "; ".join([*(reason for _, reason in differences), row.note])


def _differences(record: Record, row: Published) -> Iterator[tuple[Comparable, str]]:
    """Iterate over what the run changed of its preset, each with what is then left."""
    given = record.spec
    preset, recipe, before = _preset(given["task"], given["preset"])
    yield from _norm_differences(given["norm"], recipe["norm"], row)
    yield from _batch_differences(record, preset, row)
    from_scratch = record.science["init"] == "scratch"
    if row.init is not None and from_scratch != (row.init == "scratch"):
        yield "no", f"init={'scratch' if from_scratch else 'FILE'}, published from {row.init}"
    if given.get("init", {}).get("allow_mismatch"):
        yield "no", "init.allow_mismatch: initial weights of another norm or network"
    if record.init is not None and record.init.pictures:
        yield "partly", "pictures are shown as the initial weights expect, not as published"
    ours = {key for key in given if key not in (*_JUDGED, *_FREE)}
    free = {f"data.{key}" for key in preset.data.not_science}
    for key, value in flat({key: given[key] for key in ours}):
        if key in before and value != before[key] and key not in free:
            verdict: Comparable = "partly" if key in _TOLERATED else "no"
            yield verdict, f"{key}={value} instead of {before[key]}"


@cache
def _preset(task: str, name: str) -> tuple[Spec, Mapping[str, Any], Mapping[str, Any]]:
    """Return a recipe, its plain data, and these by dotted key: the same for thousands of runs."""
    spec = build(task, [("preset", name)])
    content = spec.model_dump(mode="json")
    return spec, content, dict(flat(content))


def _norm_differences(
    norm: Mapping[str, Any], recipe: Mapping[str, Any], row: Published
) -> Iterator[tuple[Comparable, str]]:
    if norm["ws"] != row.ws:
        yield "partly", f"norm.ws={norm['ws']}, published {row.ws}"
    keys = ["groups", "interleaved"] if NORMS[norm["layer"]].uses_groups else []
    for key in [*keys, "scope"] if norm["ws"] else keys:
        if norm.get(key, recipe[key]) != recipe[key]:
            yield "no", f"norm.{key}={norm[key]} instead of {recipe[key]}"


def _batch_differences(
    record: Record, preset: Spec, row: Published
) -> Iterator[tuple[Comparable, str]]:
    batch, recipe = record.spec["batch"], preset.batch.model_dump()
    for key in ("size", "tail"):
        if batch.get(key, recipe[key]) != recipe[key]:
            yield "no", f"batch.{key}={batch[key]} instead of {recipe[key]}"
    if record.stat_batch is not None:
        if record.stat_batch != (images := row.images_per_gpu or recipe["micro"]):
            yield "no", f"a batch statistic saw {record.stat_batch} images instead of {images}"
    elif batch["micro"] != recipe["micro"] and not task_info(preset.task).separable(preset):
        yield "partly", f"batch.micro={batch['micro']} instead of {recipe['micro']}"
