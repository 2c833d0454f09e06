"""Starting a run in its own process and reading what came of it from the run directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from harness.journal import JournalReader
from harness.paths import write_atomic
from harness.plan import PlannedRun
from harness.progress import Display
from harness.record import RunDir
from harness.schema import Spec
from harness.spec import dump_spec

POLL_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a run ended: 0 with a record, else the exit status and the reason in one line."""

    exit_code: int
    message: str = ""


def command(run: RunDir, spec: Spec, data_root: Path) -> list[str]:
    """Return the command line of a run's worker."""
    worker = ["-m", "harness.worker", str(run.path), str(data_root)]
    if spec.devices == 1:
        return [sys.executable, *worker]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={spec.devices}"]
    return [sys.executable, *torchrun, *worker]


class Running:
    """A run's worker, started in a session of its own, so that signals come from us alone."""

    def __init__(self, cell: PlannedRun, data_root: Path, threads: int | None = None) -> None:
        """Start the worker.

        Args:
            cell: what to run.
            data_root: its data, prepared.
            threads: CPU threads where the spec does not say; None leaves it to the libraries.
        """
        self.cell, self.began = cell, time.monotonic()
        run = cell.run
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomic(run.spec, dump_spec(cell.spec))
        self._reader = JournalReader(run)
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with run.log.open("ab") as log:
            self.process = subprocess.Popen(
                command(run, cell.spec, data_root),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Return whether the worker is gone."""
        return self.process.poll() is not None

    def news(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that the worker wrote since the last call."""
        return self._reader.news()

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def outcome(self, received: int | None) -> Outcome:
        """Read how the run ended; ``received`` is the signal that was passed on, if any."""
        return _outcome(self.cell.run, self.process.returncode, received)


class Forward:
    """Passes requests to stop on to the workers; a second Ctrl-C ends them at once."""

    def __init__(
        self, running: Callable[[], Iterable[Running]], say: Callable[[str], None]
    ) -> None:
        """Watch for signals inside the ``with`` block.

        Args:
            running: the workers of the moment.
            say: shows a line to the user.
        """
        self._running, self._say = running, say
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Forward:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        again = self.received is not None and number == signal.SIGINT
        for one in self._running():
            if one.ended:
                continue
            if again:
                os.killpg(one.process.pid, signal.SIGKILL)
            else:
                one.process.send_signal(number)
        if number == signal.SIGINT and not again:
            self._say("finishing this step and saving ... (Ctrl-C again leaves at once)")
        self.received = number


def launch(cell: PlannedRun, data_root: Path, show: Display) -> Outcome:
    """Run one cell to its end in a subprocess, showing its progress."""
    one = Running(cell, data_root)
    with Forward(lambda: (one,), show.say) as forward:
        while not one.ended:
            for row in one.news():
                show.row(row)
            time.sleep(POLL_S)
    for row in one.news():
        show.row(row)
    return one.outcome(forward.received)


def _outcome(run: RunDir, returncode: int, received: int | None) -> Outcome:
    if run.record.is_file():
        return Outcome(0)
    if failure := run.read_failure():
        return Outcome(failure.exit_code, failure.message)
    if returncode in (75, 130):  # the worker stopped by itself and said where
        return Outcome(returncode, _last_line(run.log))
    kept = "its last checkpoint is kept" if run.checkpoint.is_file() else "nothing was saved yet"
    if received is not None:
        code = 130 if received == signal.SIGINT else 75
        return Outcome(code, f"stopped; {kept}: the same command resumes")
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return Outcome(1, f"the worker was killed ({name}); {kept}: the same command resumes")
    last = _last_line(run.log)
    return Outcome(returncode or 1, f"the worker ended without a record: {last} (see {run.log})")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
