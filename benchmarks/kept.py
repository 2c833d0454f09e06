"""The numbers of benchmarks as rows, and the CSV file that keeps them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from harness.paths import write_atomic

Group = tuple[str, str, str, str, int]
"""Benchmark, part, size, device and threads."""


@dataclass(frozen=True)
class Row:
    """One case of one comparison, as a line of the CSV file."""

    benchmark: str
    part: str
    case: str
    size: str
    unit: str
    median: float
    q25: float
    q75: float
    reference: str
    """The case that ``ratio`` is against; empty where nothing is compared."""
    ratio: float | None
    """Median of the paired ratios to the reference: smaller is better."""
    ratio_q25: float | None
    ratio_q75: float | None
    goal: float | None
    """What ``ratio``, or ``median`` where nothing is compared, should be at most."""
    rounds: int
    threads: int
    device: str
    torch: str
    numba: str
    date: str

    @property
    def group(self) -> Group:
        """Return what is measured, and replaced, as a whole."""
        return self.benchmark, self.part, self.size, self.device, self.threads

    @property
    def reached(self) -> bool:
        """Tell whether the goal, if there is one, is reached."""
        value = self.median if self.ratio is None else self.ratio
        return self.goal is None or value <= self.goal


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV, numbers with six digits."""
    names = [field.name for field in fields(Row)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        found = (getattr(row, name) for name in names)
        writer.writerow([f"{one:.6g}" if isinstance(one, float) else one for one in found])
    write_atomic(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Read what ``write_rows`` wrote.

    Raises:
        ValueError: if the file's columns are others.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = [field.name for field in fields(Row)]
        if reader.fieldnames != names:
            raise ValueError(f"{path} has other columns than {','.join(names)}: remove it")
        return [Row(**{name: _parse(name, one[name]) for name in names}) for one in reader]


def _parse(name: str, text: str) -> object:
    kind = next(field.type for field in fields(Row) if field.name == name)
    if kind == "str":
        return text
    if kind == "int":
        return int(text)
    return float(text) if text else None


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return all rows, those of a comparison that was measured again in the place of the old."""
    again = {row.group for row in new}
    places = {row.group: place for place, row in reversed([*enumerate((*old, *new))])}
    rows = [*(row for row in old if row.group not in again), *new]
    return sorted(rows, key=lambda row: (row.device, row.threads, places[row.group]))
