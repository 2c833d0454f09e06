"""What a tracker is, and why none can stop a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, cast

from harness.record import RunDir
from harness.registry import load
from harness.schema import Spec
from harness.trackers.registry import tracker_names


class Tracker(Protocol):
    """Keeps the step curves of one run; made without arguments, in the run's own process."""

    def start(self, spec: Spec, run: RunDir, step: int) -> None:
        """Begin, or go on after ``step`` steps of an earlier sitting."""
        ...

    def row(self, row: Mapping[str, Any]) -> None:
        """Take a row of the journal, of any event (``docs/report.md`` lists them)."""
        ...

    def close(self, *, finished: bool) -> None:
        """End; ``finished`` tells whether the run has its record."""
        ...


class Trackers:
    """The trackers of a run, each left out from its first failure on."""

    def __init__(
        self, names: Sequence[str], spec: Spec, run: RunDir, step: int, say: Callable[[str], None]
    ) -> None:
        """Start them.

        Args:
            names: of trackers, in the order they are told.
            spec: of the run.
            run: its directory.
            step: steps of earlier sittings.
            say: told which failed, and how.
        """
        self._say = say
        self._live: dict[str, Tracker] = {}
        known = tracker_names()
        for name in names:
            self._guarded(name, partial(self._start, name, known[name], spec, run, step))

    def _start(self, name: str, reference: str, spec: Spec, run: RunDir, step: int) -> None:
        tracker = cast("Callable[[], Tracker]", load(reference))()
        self._live[name] = tracker
        tracker.start(spec, run, step)

    def __enter__(self) -> Trackers:
        """Return the trackers, which have started."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        """Close them."""
        for name, tracker in tuple(self._live.items()):
            self._guarded(name, partial(tracker.close, finished=kind is None))

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Tell all trackers a row."""
        for name, tracker in tuple(self._live.items()):
            self._guarded(name, partial(tracker.row, row))

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # libraries end programs over a missing login
            self._live.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            missing = isinstance(error, ImportError) and name in ("wandb", "mlflow")
            advice = f"; install it with: uv sync --extra {name}" if missing else ""
            self._say(f"tracker {name} is left out, the run goes on ({reason}){advice}")
