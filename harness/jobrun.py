"""One run in the foreground of a job script: ``python -m harness.jobrun RUN_DIR DATA_ROOT``.

Signals are passed on to the worker. The exit status is the run's: 75 if it was stopped and saved.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from harness.launch import launch
from harness.plan import PlannedRun
from harness.progress import display
from harness.record import RunDir
from harness.spec import load_spec
from harness.stop import LAUNCHED

_LEAVING_S = 60.0
"""How long an earlier job of the run, whose end is why this one was started, may take to save."""


def main(path: Path, data_root: Path) -> int:
    """Make the run, or what is left of it; return its exit status."""
    if LAUNCHED in os.environ:
        threading.Thread(target=_stop_when_let_go, daemon=True).start()
    run = RunDir(path.parent.parent, path.name)
    deadline = time.monotonic() + _LEAVING_S
    while run.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    if run.record.is_file():
        return 0
    spec = load_spec(run.spec)
    console = Console(width=160)
    with display(spec.steps, console) as show:
        outcome = launch(PlannedRun(spec, run, run.state()), data_root, show)
    if outcome.message:
        console.print(outcome.message, markup=False, highlight=False, soft_wrap=True)
    return outcome.exit_code


def _stop_when_let_go() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
