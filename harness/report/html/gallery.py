"""Sample predictions of each task: the same samples under every norm, side by side."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.record import Record, RunDir
from harness.samples import Sample, read_samples

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_NORMS = 8
"""Rows of a task's gallery; with six pictures a row this bounds the page's size."""
_QUALITY = 80


@dataclass(frozen=True)
class Tile:
    """One sample under one norm, or its truth."""

    picture: str
    """A data URL, or '' where the answer is words only."""
    words: str
    right: bool | None
    alt: str


@dataclass(frozen=True)
class Row:
    """One run's answers."""

    label: str
    run_id: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Gallery:
    """One task's samples."""

    task: str
    truth: Row | None
    """None where no run left samples."""
    rows: tuple[Row, ...]
    num_runs: int
    """Finished runs of the task."""


def galleries(records: Sequence[Record], results: Path) -> Iterator[Gallery]:
    """Yield a gallery for each task that was run."""
    for task in dict.fromkeys(record.spec["task"] for record in records):
        own = [record for record in records if record.spec["task"] == task]
        yield _gallery(str(task), own, results)


def _gallery(task: str, records: Sequence[Record], results: Path) -> Gallery:
    """Choose one run a norm: the smallest micro-batch, the lowest seed, common data."""
    found = [
        (record, samples)
        for record in sorted(records, key=_preferred)
        if (samples := read_samples(RunDir(results, record.run_id).samples))
    ]
    if not found:
        return Gallery(task, None, (), len(records))
    # The data that most norms were run on; of equals those with more runs.
    norms = Counter(data for data, _ in {(one.fingerprint, _norm(one)) for one, _ in found})
    runs = Counter(one.fingerprint for one, _ in found)
    data = max(sorted(norms), key=lambda name: (norms[name], runs[name]))
    rows: dict[str, tuple[Record, list[Sample]]] = {}
    for record, samples in found:
        if record.fingerprint == data:
            rows.setdefault(_norm(record), (record, samples))
    first = next(iter(rows.values()))
    names = [sample.name for sample in first[1]]
    same = {k: v for k, v in rows.items() if [sample.name for sample in v[1]] == names}
    shown = sorted(same.items())[:_MOST_NORMS]
    return Gallery(
        task,
        Row("truth", "", tuple(_truth(sample) for sample in first[1])),
        tuple(
            Row(_label(name, record), record.run_id, tuple(map(_found, samples)))
            for name, (record, samples) in shown
        ),
        len(records),
    )


def _preferred(record: Record) -> tuple[int, int, int, str]:
    """Order runs: the smallest micro-batch shows most, where the norm sees it."""
    seen = record.stat_batch or 0
    return (0 if record.is_result else 1, seen, record.spec["seed"], record.run_id)


def _norm(record: Record) -> str:
    norm = record.spec["norm"]
    return f"{norm['layer']}{'_ws' if norm['ws'] else ''}"


def _label(name: str, record: Record) -> str:
    sees = f", {record.stat_batch} at a time" if record.stat_batch else ""
    return f"{name}{sees}"


def _truth(sample: Sample) -> Tile:
    return Tile(_url(sample.truth_picture), sample.truth, None, f"{sample.name}: {sample.truth}")


def _found(sample: Sample) -> Tile:
    picture = _url(sample.found_picture) if sample.found_picture else ""
    return Tile(picture, sample.found, sample.right, f"{sample.name}, predicted: {sample.found}")


def _url(picture: Image) -> str:
    """Return a picture written anew, so that nothing else in its file gets into the page."""
    with io.BytesIO() as file:
        picture.save(file, format="webp", quality=_QUALITY, method=4)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
