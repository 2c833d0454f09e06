"""One run in the foreground of a job script: ``python -m harness.jobrun RUN_DIR DATA_ROOT``.

Signals are passed on to the worker. The exit status is the run's: 75 if it was stopped and saved.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from harness.launch import launch
from harness.plan import PlannedRun
from harness.progress import display
from harness.record import RunDir
from harness.spec import load_spec


def main(path: Path, data_root: Path) -> int:
    """Make the run, or what is left of it; return its exit status."""
    run = RunDir(path.parent.parent, path.name)
    if run.record.is_file():
        return 0
    spec = load_spec(run.spec)
    console = Console(width=160)
    with display(spec.steps, console) as show:
        outcome = launch(PlannedRun(spec, run, run.state()), data_root, show)
    if outcome.message:
        console.print(outcome.message, markup=False, highlight=False, soft_wrap=True)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
