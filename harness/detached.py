"""`--launcher local`: a process that makes the runs of this machine after the shell has closed."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from rich.console import Console

from harness.board import Lines
from harness.launchers import JobState
from harness.plan import PlannedRun
from harness.pool import default_jobs, run_all
from harness.record import RunDir
from harness.spec import load_spec

_MODULE = "harness.detached"


class Local:
    """One process for all runs of a submission; cancelling one of them cancels it.

    A job is called ``HOST:PID``: from another machine it looks ended, and the lock of a run tells
    that it is running.
    """

    options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, results: Path, options: Mapping[str, str]) -> None:
        """Remember the folder; there are no options."""
        self.folder = results / "jobs"
        self.results = results

    def submit(
        self, cells: Sequence[PlannedRun], roots: Mapping[str, Path], jobs: int | None
    ) -> dict[str, str]:
        """Start the process; its output goes to ``jobs/local-*.log`` in the results folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"local-{uuid4().hex}.log"
        told = {cell.run.id: str(roots[cell.run.id].resolve()) for cell in cells}
        log.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")
        count = jobs or default_jobs(cells)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(log.with_suffix(".json")), str(count)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return dict.fromkeys(told, f"{platform.node()}:{process.pid}")

    def poll(self) -> dict[str, JobState]:
        """Return the processes of ours that live."""
        return {f"{platform.node()}:{pid}": "queued" for pid in _pids()}

    def cancel(self, jobs: Collection[str]) -> None:
        """Tell the processes to stop; they pass it on to their workers, which save."""
        for pid in _pids():
            if f"{platform.node()}:{pid}" in jobs:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)


def _pids() -> list[int]:
    """Return our processes, by what they were started as: a pid alone may be another's by now."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=False
    )
    found = []
    for line in listed.stdout.splitlines():
        pid, state, *arguments = line.split()
        if _MODULE in arguments[:3] and not state.startswith("Z"):
            found.append(int(pid))
    return found


def main(list_file: Path, jobs: int) -> int:
    """Make the runs of a list; return 0, or 75 if stopped, or 1 if one failed."""
    roots = {run: Path(root) for run, root in json.loads(list_file.read_text()).items()}
    results = list_file.parent.parent
    runs = [RunDir(results, run) for run in roots]
    cells = [PlannedRun(load_spec(run.spec), run, run.state()) for run in runs]
    sitting = run_all(cells, roots, jobs, Lines(len(cells), jobs, Console(width=160)))
    return sitting.stopped or (1 if sitting.failed else 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
