"""`--launcher ray`: each run an actor of a Ray cluster, which outlives whoever asked for it.

An actor waits until the cluster has room for it, starts ``harness.jobrun``, and ends with it. When
it is killed, the run saves and stops; when it dies otherwise, say with its node, Ray starts it
again, and the run goes on from its checkpoint. Nothing of ours is imported on Ray's side.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from harness.errors import EnvironmentProblem, UsageError
from harness.launchers import JobState, check_gpus, cores, whole_number
from harness.plan import PlannedRun
from harness.stop import LAUNCHED

OPTIONS: dict[str, str] = {
    "cpus_per_run": "cores of each run; default exec.threads x devices",
    "gpus_per_run": "GPUs of each run; default none",
}
_NAMESPACE = "normbench"


class Ray:
    """``harness.launchers.Launcher`` of the cluster of ``RAY_ADDRESS``, or of this machine."""

    options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(self, results: Path, options: Mapping[str, str]) -> None:
        """Read the options.

        Raises:
            UsageError: if one is not a number.
        """
        self.folder = results.resolve() / "jobs"
        self.numbers = {key: whole_number(key, text) for key, text in options.items()}

    def submit(
        self, cells: Sequence[PlannedRun], roots: Mapping[str, Path], jobs: int | None
    ) -> dict[str, str]:
        """Ask for an actor for each run; those that find no room wait."""
        if jobs is not None:
            raise UsageError(
                "--jobs: a Ray cluster makes as many runs as it has room for: give cpus_per_run "
                "or gpus_per_run instead"
            )
        gpus = self.numbers.get("gpus_per_run", 0)
        for cell in cells:
            check_gpus(cell, gpus)
        ray = _connected()
        self.folder.mkdir(parents=True, exist_ok=True)
        actor, sweep = ray.remote(_actor_class()), f"{_NAMESPACE}-{uuid4().hex[:8]}"
        names: dict[str, str] = {}
        for number, cell in enumerate(cells):
            cpus = self.numbers.get("cpus_per_run", cores(cell))
            threads = max(1, cpus // cell.spec.devices)
            run, data = cell.run.path.resolve(), roots[cell.run.id].resolve()
            command = [sys.executable, "-m", "harness.jobrun", str(run), str(data)]
            environment = {LAUNCHED: "1", "OMP_NUM_THREADS": str(threads)}
            name = names[cell.run.id] = f"{sweep}_{number}"
            actor.options(
                name=name, lifetime="detached", num_cpus=cpus, num_gpus=gpus, max_restarts=-1
            ).remote(command, environment, f"{self.folder / name}.out")
        return names

    def poll(self) -> dict[str, JobState]:
        """Return the actors there are; the lock of a run tells that it is running."""
        try:
            ray = _connected()
        except EnvironmentProblem:
            return {}
        return dict.fromkeys(ray.util.list_named_actors(), "queued")

    def cancel(self, jobs: Collection[str]) -> None:
        """Kill the actors, whose runs then save; one that is not there has ended."""
        ray = _connected()
        for job in jobs:
            with suppress(ValueError):
                ray.kill(ray.get_actor(job))


def _connected() -> Any:
    """Return the library, connected.

    Raises:
        EnvironmentProblem: if it is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError:
        raise EnvironmentProblem(
            "--launcher ray needs the package ray here, of the cluster's version: install "
            "ray==VERSION beside normbench"
        ) from None
    if not ray.is_initialized():
        try:
            ray.init("auto", namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as error:  # the latter: other versions there
            reason = " ".join(str(error).split())[:200]
            raise EnvironmentProblem(
                f"no Ray cluster ({reason}): `ray start` on this machine, or set RAY_ADDRESS"
            ) from None
    return ray


def _actor_class() -> type:
    """Return what runs on Ray's side: a local class, which is sent there whole."""

    class Job:
        def __init__(self, command: list[str], environment: dict[str, str], log: str) -> None:
            with open(log, "ab") as output:  # noqa: PTH123  # nothing but the builtins goes along
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # its end tells the run that this process is gone
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environment,
                    start_new_session=True,
                )
            threading.Thread(target=self._leave, daemon=True).start()

        def _leave(self) -> None:
            import ray

            self.process.wait()
            ray.kill(ray.get_runtime_context().current_actor)

    return Job
