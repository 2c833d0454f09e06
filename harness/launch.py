"""Starting a run in its own process and reading what came of it from the run directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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

_POLL_S = 0.2


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


class _Forward:
    """Passes a request to stop on to the worker; a second Ctrl-C ends it at once."""

    def __init__(self, process: subprocess.Popen[bytes], show: Display) -> None:
        self.process, self.show = process, show
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Forward:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os.killpg(self.process.pid, signal.SIGKILL)
        elif self.process.poll() is None:
            self.process.send_signal(number)
            if number == signal.SIGINT:
                self.show.say("finishing this step and saving ... (Ctrl-C again leaves at once)")
        self.received = number


def launch(cell: PlannedRun, data_root: Path, show: Display) -> Outcome:
    """Run one cell to its end in a subprocess, showing its progress."""
    run = cell.run
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomic(run.spec, dump_spec(cell.spec))
    reader = JournalReader(run)
    # Numerical libraries must not start a thread pool each beside torch's own.
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            command(run, cell.spec, data_root),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        with _Forward(process, show) as forward:
            while process.poll() is None:
                for row in reader.news():
                    show.row(row)
                time.sleep(_POLL_S)
    for row in reader.news():
        show.row(row)
    return _outcome(run, process.returncode, forward.received)


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
