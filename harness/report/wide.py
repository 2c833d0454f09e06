"""Tables as CSV: a line a row x column, whose only strings are their labels."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from harness.report.build import COSTS, BuiltCell, BuiltTable

LABELS = ("row", "column")
_OF_METRIC = ("", "_sd", "_n", "_se", "_difference", "_low", "_high", "_p", "_published", "_delta")
"""Endings of a metric's columns; ``_p`` is corrected for the table's comparisons (Holm)."""


def wide(table: BuiltTable) -> pd.DataFrame:
    """Return one row a place in the table.

    Returns:
        ``row`` and ``column`` (string); for each metric its mean and what ``_OF_METRIC`` names,
        in the metric's unit (float64, NaN where there is none; ``_n`` int64); then the costs and
        the ratio of each to the reference's (float64).
    """
    lines: dict[tuple[str, str], dict[str, float]] = {}
    names = [metric + ending for metric in table.definition.metrics for ending in _OF_METRIC]
    names += [name + ending for ending in ("", "_ratio") for name in COSTS]
    for cell in table.cells:
        line = lines.setdefault((cell.row, cell.column), dict.fromkeys(names, math.nan))
        values = zip(_OF_METRIC, _numbers(cell), strict=True)
        line.update((cell.metric + ending, number) for ending, number in values)
        # Any metric's runs tell the cost: they are the same but for one that lacks a number.
        line.update(cell.cost)
        line.update((f"{name}_ratio", number) for name, number in cell.relative.items())
    labels = pd.DataFrame(list(lines), columns=list(LABELS))
    frame = pd.concat([labels, pd.DataFrame(list(lines.values()), columns=names)], axis=1)
    return frame.astype({name: _kind(name) for name in (*LABELS, *names)})


def read_wide(path: Path) -> pd.DataFrame:
    """Read a table's CSV file back with the types it was written with."""
    names = pd.read_csv(path, nrows=0).columns
    numbers = {name: [""] for name in names if name not in LABELS}
    types = {name: _kind(name) for name in names}
    # A label may be any word, "None" and "NA" too.
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=numbers)


def _kind(name: str) -> str:
    if name in LABELS:
        return "string"
    return "int64" if name.endswith("_n") else "float64"


def _numbers(cell: BuiltCell) -> tuple[float, ...]:
    """Return a cell's numbers in the order of ``_OF_METRIC``."""
    found, gap, theirs = cell.summary, cell.difference, cell.published
    mean = math.nan if found is None else found.mean
    published = math.nan if theirs is None else theirs.value
    measured = (mean, _or_nan(found.sd if found else None), found.n if found else 0)
    compared = (gap.mean, gap.low, gap.high, gap.p_holm) if gap else (math.nan,) * 4
    judged = theirs is not None and theirs.comparable != "no"
    delta = mean - published if judged else math.nan
    return (
        *measured,
        _or_nan(cell.standard_error),
        *map(_or_nan, compared),
        published,
        delta,
    )


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number
