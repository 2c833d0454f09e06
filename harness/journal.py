"""``metrics.jsonl``: what a run says while it works, and how others follow it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.errors import Interrupted
from harness.paths import write_atomic
from harness.record import RunDir


class Journal:
    """The writing side: one JSON object a line; on ranks that do not write, a no-op."""

    def __init__(self, path: Path, step: int, enabled: bool) -> None:
        """Open the journal of a sitting, keeping earlier training rows up to ``step``."""
        self._file = None
        self._last_stage = 0.0
        self._follow: Callable[[dict[str, Any]], None] = _nobody
        if enabled:
            write_atomic(path, "".join(_training_rows(path, step)))
            self._file = path.open("a", encoding="utf-8")
            self({"event": "start", "step": step})

    def __enter__(self) -> Journal:
        """Return the journal, which is open already."""
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Close the file; a run that was asked to stop says so in its last row."""
        if isinstance(error, Interrupted):
            self({"event": "stopped", "exit_code": error.exit_code, "text": str(error)})
        if self._file:
            self._file.close()

    def __call__(self, row: dict[str, Any]) -> None:
        """Append one row."""
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._follow(row)

    def follow(self, told: Callable[[dict[str, Any]], None]) -> None:
        """Have every further row told to ``told``, once it is written."""
        self._follow = told

    def remark(self, text: str) -> None:
        """Append a sentence for people."""
        self({"event": "remark", "text": text})

    def stage(self, name: str, done: int, total: int) -> None:
        """Say how far a stage is, at most five times a second."""
        now = time.monotonic()
        if done in (0, total) or now - self._last_stage > 0.2:
            self._last_stage = now
            self({"event": "stage", "stage": name, "done": done, "total": total})


def _nobody(_: dict[str, Any]) -> None:
    pass


def _training_rows(path: Path, step: int) -> Iterator[str]:
    """Keep what is known and whole of an earlier sitting, be it of another version."""
    if not path.is_file():
        return
    # A checkpoint is made before the evaluation of its step, which will come again.
    last = {"train": step, "evaluation": step - 1}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            keep = row["event"] in last and 0 <= row["step"] <= last[row["event"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if keep:
            yield line + "\n"


class JournalReader:
    """Follows ``metrics.jsonl`` of a run while its worker writes it."""

    def __init__(self, run: RunDir) -> None:
        """Remember the journal of an earlier sitting, which is not news."""
        self.path = run.metrics
        self._stale = self._inode()
        self._offset = 0
        self._started = False

    def _inode(self) -> int | None:
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def news(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that were completed since the last call."""
        inode = self._inode()
        if inode is None or inode == self._stale:
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                row = json.loads(line)
                if row["event"] == "start":
                    self._started = True
                elif self._started:
                    yield row
