"""How far every run is, read from its files alone: anybody may look, and nothing is disturbed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.documents import read_yaml
from harness.errors import visible
from harness.foreign import is_plain
from harness.record import RunDir, State

if TYPE_CHECKING:
    from harness.launchers import JobState

_TAIL = 20_000
"""Bytes of a journal's end that are read: many rows, whatever the journal's length."""
_LARGEST = 2**30


@dataclass(frozen=True)
class RunStatus:
    """One run directory."""

    id: str
    state: State | JobState
    stage: str = ""
    """``training``, or what else it does now."""
    done: int = 0
    total: int = 0
    """Steps, or what the stage counts; 0 where unknown."""
    loss: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    """Seconds left of the training, counted from now; None where it is later than it said."""
    silent_s: float | None = None
    """Seconds since it last wrote a row, of a running run."""
    message: str = ""
    """Why it failed."""

    @property
    def step(self) -> str:
        """Return ``done/total`` and what is counted if not steps; - where it is unknown."""
        what = "" if self.stage in ("", "training", "starting") else f"{self.stage} "
        return f"{what}{self.done}/{self.total}" if self.total else "-"


def statuses(results: Path) -> Iterator[RunStatus]:
    """Yield the status of every run directory that has a spec, by name."""
    for path in sorted((results / "runs").glob("*/spec.yaml")):
        yield status(RunDir(results, path.parent.name))


def status(run: RunDir) -> RunStatus:
    """Read how far one run is; what its files do not tell stays unknown."""
    state = run.state()
    failure = run.read_failure() if state == "failed" else None
    message = visible(" ".join(failure.message.split())) if failure else ""
    steps = _steps(run.spec)
    last: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for row in _tail(run.metrics):
        if row["event"] == "train":
            last = rates = row
        elif row["event"] == "stage" and state == "running":
            last = row
    silent = _age(run.metrics) if state == "running" else None
    at = RunStatus(visible(run.id), state, total=steps, silent_s=silent, message=message)
    try:
        training = last.get("event") == "train"
        eta = float(rates["eta_s"]) - (silent or 0.0) if training else None
        return RunStatus(
            id=at.id,
            state=state,
            stage="training" if training else visible(str(last.get("stage", "starting"))[:40]),
            done=int(last.get("step" if training else "done", 0)),
            total=steps if training or not last else int(last["total"]),
            loss=float(rates["loss"]) if rates else None,
            images_per_s=float(rates["images_per_s"]) if rates else None,
            eta_s=None if eta is None or eta < 0 else eta,
            silent_s=silent,
            message=message,
        )
    except (LookupError, TypeError, ValueError, OverflowError):
        return at


def _steps(spec: Path) -> int:
    if not is_plain(spec):
        return 0
    try:
        return int(read_yaml(spec)["steps"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return 0


def _tail(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the last rows of a journal; torn and foreign lines are passed over."""
    if not is_plain(journal, _LARGEST):
        return
    try:
        with journal.open("rb") as file:
            file.seek(max(0, journal.stat().st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and "event" in row:
            yield row


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None
