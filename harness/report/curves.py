"""Learning curves from the journals of a table's runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.foreign import is_plain

_POINTS = 100
"""Steps that a loss is drawn at."""
_LARGEST = 2**30
"""Bytes of a journal; a day of training takes some million."""
_SMOOTHED = 0.03
"""Width of the Gaussian that losses are smoothed with: its standard deviation over all steps."""

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """What a run said of itself."""

    loss: Points
    """(n, 2): step, training loss of that step's batch."""
    evaluations: dict[str, Points]
    """By metric (n, 2): step, value; two or more only where it was evaluated on the way."""


@dataclass(frozen=True)
class Band:
    """A quantity over the steps (n,), for several runs at once."""

    steps: Points
    mean: Points
    low: Points
    """Lowest of the runs."""
    high: Points


def read_curve(journal: Path) -> Curve:
    """Read ``metrics.jsonl``; torn lines are passed over, and a missing file is an empty curve."""
    losses: dict[int, float] = {}
    evaluations: dict[str, dict[int, float]] = {}
    for row in _rows(journal):
        with suppress(LookupError, TypeError, ValueError, AttributeError, OverflowError):
            step = int(row["step"])
            if row["event"] == "train":
                losses[step] = float(row["loss"])
            else:
                for name, value in row["metrics"].items():
                    evaluations.setdefault(name, {})[step] = float(value)
    return Curve(_points(losses), {name: _points(found) for name, found in evaluations.items()})


def _rows(journal: Path) -> Iterator[dict[str, Any]]:
    if not is_plain(journal, _LARGEST):
        return
    try:
        text = journal.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        # Most lines say how far a stage is; reading only what is needed keeps reports fast.
        if line.startswith(('{"event": "train"', '{"event": "evaluation"')):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                continue


def _points(values: dict[int, float]) -> Points:
    found = np.array(sorted(values.items()), dtype=np.float64).reshape(-1, 2)
    return found[np.isfinite(found).all(axis=1)]


def loss_band(curves: Sequence[Curve]) -> Band | None:
    """Return the smoothed training losses of several runs, over the steps that all of them have.

    Runs log at steps of their own (every few seconds), so that each is brought to common steps by
    a Gaussian mean over its neighbours (Nadaraya 1964, On estimating regression).
    """
    losses = [curve.loss for curve in curves if len(curve.loss) > 1]
    if not losses:
        return None
    first = max(loss[0, 0] for loss in losses)
    last = min(loss[-1, 0] for loss in losses)
    if last <= first:
        return None
    steps = np.linspace(first, last, _POINTS)
    return _band(steps, [_smooth(loss, steps, _SMOOTHED * last) for loss in losses])


def _smooth(loss: Points, steps: Points, width: float) -> Points:
    # No narrower than the gaps between its points, or the mean would jump from one to the next.
    width = max(width, float(np.diff(loss[:, 0]).max()) / 2)
    distance = (steps[:, None] - loss[None, :, 0]) / width
    weights = np.exp(-(distance**2) / 2)
    return np.asarray((weights @ loss[:, 1]) / weights.sum(axis=1), dtype=np.float64)


def evaluation_band(curves: Sequence[Curve], metric: str) -> Band | None:
    """Return a metric of several runs at the steps that all were evaluated at; None below two."""
    found = [dict(curve.evaluations[metric]) for curve in curves if metric in curve.evaluations]
    common = sorted(set.intersection(*map(set, found))) if found else []
    if len(common) < 2:
        return None
    return _band(np.array(common), [np.array([run[step] for step in common]) for run in found])


def _band(steps: Points, values: Sequence[Points]) -> Band:
    stacked = np.stack(values)
    return Band(steps, stacked.mean(axis=0), stacked.min(axis=0), stacked.max(axis=0))
