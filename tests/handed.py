"""Runs that others make: the command line without torch, and a task that is slow at will."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.record import RunDir
from tests.toycli import ROOT, events, wait_until

PATIENCE_S = float(os.environ.get("NORMBENCH_SLURM_PATIENCE", "200"))
TABLES = """\
mini:
  two: &two
    task: slow
    title: Two
    metrics: [top1_acc]
    seeds: 0
    rows: {norm: [bn, gn]}
    reference: gn
  cancelled: {<<: *two, seeds: 1, rows: {norm: [bn]}, reference: bn}
  plain: {<<: *two, seeds: 2, rows: {norm: [gn]}, reference: gn}
"""


class Site:
    """A results folder, the command line on it, and what its processes need."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.results, self.slow = folder, folder / "results", folder / "slow"
        package = folder / "site" / "slow-0.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 0\n")
        entries = "[normbench.tasks]\nslow = tests.slurm.slow:INFO\n"
        (package / "entry_points.txt").write_text(entries)
        path = [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {
            "CI": "true",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "CONFIGS": str(folder / "configs"),
            "SLOW": str(self.slow),
            **environment,
        }
        self.tables = folder / "tables.yaml"
        self.tables.write_text(TABLES)
        self.slow.touch()

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def normbench(self, *words: str) -> str:
        tables = () if words[0] in ("status", "cancel", "retry") else ("--tables", str(self.tables))
        command = (sys.executable, "-m", "tests.slurm.cli", *words, *tables)
        return self.call(*command, "--results", str(self.results))

    def run(self, name: str) -> RunDir:
        (path,) = (self.results / "runs").glob(f"slow-{name}-*")
        return RunDir(self.results, path.name)

    def wait_for_step(self, run: RunDir) -> None:
        wait_until(lambda: run.metrics.is_file() and events(run, "train"), PATIENCE_S)
