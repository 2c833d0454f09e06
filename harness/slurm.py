"""`--launcher slurm`: runs as a job array, stopped and requeued at will, through submitit.

Slurm signals a job before its limit, and when it is preempted; the worker saves and exits, submitit
puts the job back into the queue, and what is left is made from the checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import EnvironmentProblem, NormbenchError, UsageError
from harness.launch import POLL_S, Rendezvous, Running
from harness.launchers import JobState, check_gpus, cores, whole_number
from harness.plan import PlannedRun
from harness.record import RunDir
from harness.spec import load_spec

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

OPTIONS: dict[str, str] = {
    "partition": "where to run",
    "time": "limit of a sitting: minutes, HH:MM:SS or D-HH:MM:SS; a run may take several",
    "gpus_per_run": "GPUs of each run, over its nodes; default none",
    "cpus_per_run": "cores of each run on a node; default exec.threads x devices",
    "mem_gb": "memory of each run on a node",
    "nodes": "nodes of each run, over which its devices are divided; default 1",
    "account": "whom to charge",
    "qos": "quality of service",
    "constraint": "features that nodes must have",
    "signal_s": "seconds before the limit at which a run is told to save; default 90",
}
_NUMBERS = ("gpus_per_run", "cpus_per_run", "mem_gb", "nodes", "signal_s")
_MOST_SITTINGS = 1000
_MOST_IN_ARRAY = 1000
"""Slurm's MaxArraySize is 1001 unless a site changed it."""
_SAVING_S = 600.0
"""How long a job waits for its worker to save; Slurm's own limit usually comes first."""


class Slurm:
    """``harness.launchers.Launcher`` of Slurm."""

    options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(self, results: Path, options: Mapping[str, str]) -> None:
        """Read the options.

        Raises:
            UsageError: if one is not a number that must be.
        """
        self.folder = results.resolve() / "jobs"
        self.words = dict(options)
        self.numbers = {key: whole_number(key, options[key]) for key in _NUMBERS if key in options}
        self.minutes = minutes(options.get("time", "60"))

    def submit(
        self, cells: Sequence[PlannedRun], roots: Mapping[str, Path], jobs: int | None
    ) -> dict[str, str]:
        """Submit an array for the runs that need the same, or several of a thousand each."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if shutil.which("sbatch") is None:
            raise EnvironmentProblem("--launcher slurm needs sbatch, which is not on this machine")
        names: dict[str, str] = {}
        kinds: dict[tuple[int, int], list[PlannedRun]] = {}
        for cell in cells:
            kinds.setdefault((cores(cell), cell.spec.devices), []).append(cell)
        for group in kinds.values():
            executor = submitit.AutoExecutor(
                self.folder / "%j", cluster="slurm", slurm_max_num_timeout=_MOST_SITTINGS
            )
            executor.update_parameters(**self.parameters(group[0], jobs or len(group)))
            for start in range(0, len(group), _MOST_IN_ARRAY):
                part = group[start : start + _MOST_IN_ARRAY]
                try:
                    made = executor.submit_array([_task(cell, roots) for cell in part])
                except (FailedJobError, FailedSubmissionError) as error:
                    reason = str(error).strip().splitlines()[-1:] or ["no reason given"]
                    raise UsageError(f"sbatch refused the jobs: {reason[0]}") from None
                names |= {cell.run.id: job.job_id for cell, job in zip(part, made, strict=True)}
        return names

    def parameters(self, cell: PlannedRun, jobs: int) -> dict[str, Any]:
        """Return what submitit asks Slurm for.

        Raises:
            UsageError: if the devices of a run cannot be divided over its nodes, or need more GPUs.
        """
        nodes = self.numbers.get("nodes", 1)
        if cell.spec.devices % nodes:
            raise UsageError(f"devices={cell.spec.devices} cannot be divided over nodes={nodes}")
        passed = ("partition", "account", "qos", "constraint")
        asked: dict[str, Any] = {f"slurm_{k}": self.words[k] for k in passed if k in self.words}
        gpus = self.numbers.get("gpus_per_run", 0)
        check_gpus(cell, gpus)
        if gpus:
            asked["gpus_per_node"] = -(-gpus // nodes)
        if memory := self.numbers.get("mem_gb"):
            asked["mem_gb"] = memory
        return asked | {
            "name": "normbench",
            "timeout_min": self.minutes,
            "nodes": nodes,
            "tasks_per_node": 1,
            "cpus_per_task": self.numbers.get("cpus_per_run", -(-cores(cell) // nodes)),
            "stderr_to_stdout": True,
            "slurm_array_parallelism": jobs,
            "slurm_signal_delay_s": self.numbers.get("signal_s", 90),
            "slurm_additional_parameters": {"requeue": True},
        }

    def poll(self) -> dict[str, JobState]:
        """Return this user's jobs that Slurm has not ended, by one ``squeue``."""
        if shutil.which("squeue") is None:
            return {}
        listed = subprocess.run(
            ["squeue", "--noheader", "--array", "--user", getuser(), "--format", "%i|%T"],
            capture_output=True,
            text=True,
            check=False,
        )
        if listed.returncode:
            raise EnvironmentProblem(f"squeue: {listed.stderr.strip()}")
        pairs = [line.split("|") for line in listed.stdout.split()]
        return {job: "running" if state == "RUNNING" else "queued" for job, state in pairs}

    def cancel(self, jobs: Collection[str]) -> None:
        """Tell Slurm to end jobs: they get SIGTERM, and KillWait seconds to save."""
        names = sorted(job for job in jobs if re.fullmatch(r"\d+(_\d+)?", job))
        if names:
            subprocess.run(["scancel", *names], check=False)


def _task(cell: PlannedRun, roots: Mapping[str, Path]) -> SlurmRun:
    folder = cell.run.path.resolve()
    return SlurmRun(folder.parent.parent, cell.run.id, roots[cell.run.id].resolve())


def minutes(text: str) -> int:
    """Read a time limit as Slurm writes it, in minutes, rounded up.

    Raises:
        UsageError: if it is none.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found or (text.isdecimal() and not int(text)):
        raise UsageError(f"time={text}: give minutes, HH:MM:SS or D-HH:MM:SS")
    days, *clock = found.groups()
    parts = [int(part) for part in clock if part is not None]
    if days is not None or len(parts) == 3:
        hours, mins, seconds = (*parts, 0, 0)[:3]
        total = ((int(days or 0) * 24 + hours) * 60 + mins) * 60 + seconds
    else:
        total = parts[0] * 60 + (parts[1] if len(parts) > 1 else 0)
    return max(1, -(-total // 60))


@dataclass
class SlurmRun:
    """One run inside a job: what submitit calls, and calls again after a requeue."""

    results: Path
    run_id: str
    root: Path

    def __call__(self) -> str:
        """Make the run, or what is left of it; return how it ended.

        Raises:
            NormbenchError: if it failed, so that Slurm says so too.
        """
        run = RunDir(self.results, self.run_id)
        if run.record.is_file():
            return "done"
        cell = PlannedRun(load_spec(run.spec), run, run.state())
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) or None
        one = Running(cell, self.root, cores, rendezvous=_rendezvous())
        self._one = one
        while not one.ended:
            time.sleep(POLL_S)
        outcome = one.outcome(None)
        if outcome.exit_code == 75:
            # Slurm tells the worker and this process at once; if only the worker was told, then
            # the job was cancelled.
            time.sleep(10 * POLL_S)
        elif outcome.exit_code:
            raise NormbenchError(outcome.message)
        return outcome.message or "done"

    def checkpoint(self) -> DelayedSubmission:
        """Wait until the worker has saved; called by submitit when the job must leave."""
        from submitit.helpers import DelayedSubmission

        one: Running | None = self.__dict__.get("_one")
        began = time.monotonic()
        while one and not one.ended and time.monotonic() - began < _SAVING_S:
            one.stop(signal.SIGUSR2)
            time.sleep(POLL_S)
        return DelayedSubmission(SlurmRun(self.results, self.run_id, self.root))


def _rendezvous() -> Rendezvous | None:
    """Return where the nodes of this job meet; None for a job of one node."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.num_nodes == 1:
        return None
    number = int(re.sub(r"\D", "", job.raw_job_id))
    return Rendezvous(job.num_nodes, f"{job.hostnames[0]}:{20000 + number % 20000}", job.job_id)
