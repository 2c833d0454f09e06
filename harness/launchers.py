"""Handing runs over to what makes them later: a scheduler, or a process that is left behind.

Three verbs are all that a launcher knows, so that a site can bring its own in an entry point. What
came of a run is read from its folder, however it was started.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from harness.errors import UsageError, did_you_mean
from harness.foreign import is_plain
from harness.paths import write_atomic
from harness.plan import PlannedRun
from harness.record import RunDir
from harness.registry import load
from harness.schema import Spec
from harness.spec import dump_spec

ENTRY_POINT_GROUP = "normbench.launchers"
"""Entry-point group in which another package names its class."""

LAUNCHERS: dict[str, str] = {
    "local": "harness.detached:Local",
    "ray": "harness.ray:Ray",
    "slurm": "harness.slurm:Slurm",
}

JobState = Literal["queued", "running"]


class Launcher(Protocol):
    """Starts runs somewhere; constructed as ``Launcher(results, options)``."""

    options: Mapping[str, str]
    """Names of the ``key=value`` words it takes, each with a description."""

    def __init__(self, results: Path, options: Mapping[str, str]) -> None:
        """Read the options.

        Raises:
            UsageError: if the value of one is wrong.
            EnvironmentProblem: if what it hands runs to is not there.
        """
        ...

    def submit(
        self, cells: Sequence[PlannedRun], roots: Mapping[str, Path], jobs: int | None
    ) -> dict[str, str]:
        """Hand runs over and return at once.

        Args:
            cells: what to run; their folders and specs are written.
            roots: folder of the data, by run id.
            jobs: how many may run at a time; None: as many as there is room for.

        Returns:
            The name of the job that makes a run, by run id.
        """
        ...

    def poll(self) -> dict[str, JobState]:
        """Return every job that is waiting or running; one that is not there has ended."""
        ...

    def cancel(self, jobs: Collection[str]) -> None:
        """Ask jobs to save and stop; those that have ended are passed over."""
        ...


@dataclass(frozen=True)
class Job:
    """Who was asked to make a run; kept as ``job.json`` in its folder."""

    launcher: str
    job: str


def launcher_class(name: str) -> type[Launcher]:
    """Import a launcher.

    Raises:
        UsageError: if there is none of that name.
    """
    known = LAUNCHERS | {p.name: p.value for p in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in known:
        near = did_you_mean(name, known)
        raise UsageError(f"unknown launcher {name!r}.{near} Launchers: {', '.join(known)}")
    return cast("type[Launcher]", load(known[name]))


def split_options(name: str, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split words into the options of a launcher and the rest.

    Raises:
        UsageError: if a word is neither an option nor a key of runs.
    """
    known = launcher_class(name).options
    options: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in known:
            options[key] = value
        elif equals and key.partition(".")[0] not in Spec.model_fields:
            raise UsageError(
                f"{key}= is no option of {name}.{did_you_mean(key, known)} "
                f"Options: {', '.join(known) or 'none'}"
            )
        else:
            rest.append(word)
    return options, rest


def whole_number(key: str, text: str) -> int:
    """Read the value of an option.

    Raises:
        UsageError: if it is not a whole number, or zero of what is needed.
    """
    if not text.isdecimal() or (not int(text) and key != "gpus_per_run"):
        raise UsageError(f"{key}={text}: a whole number is wanted")
    return int(text)


def cores(cell: PlannedRun) -> int:
    """Return how many cores a run needs if nothing else is said."""
    return (cell.spec.exec.threads or 1) * cell.spec.devices


def check_gpus(cell: PlannedRun, gpus: int) -> None:
    """Refuse what would wait in a queue only to find too few GPUs.

    Raises:
        UsageError: if a run that is given GPUs has more devices.
    """
    devices = cell.spec.devices
    if 0 < gpus < devices and cell.spec.exec.device != "cpu":
        raise UsageError(
            f"gpus_per_run={gpus} for devices={devices}: give gpus_per_run={devices}, one for each"
        )


def read_job(run: RunDir) -> Job | None:
    """Return the job that a run was last given to, if any."""
    try:
        if not is_plain(run.job):
            return None
        content: dict[str, Any] = json.loads(run.job.read_text(encoding="utf-8"))
        return Job(str(content["launcher"]), str(content["job"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write_runs(cells: Sequence[PlannedRun]) -> None:
    """Create the folders of runs with their specs, which is all that a job needs to know."""
    for cell in cells:
        cell.run.path.mkdir(parents=True, exist_ok=True)
        write_atomic(cell.run.spec, dump_spec(cell.spec))


def submit(
    name: str,
    launcher: Launcher,
    cells: Sequence[PlannedRun],
    roots: Mapping[str, Path],
    jobs: int | None,
) -> dict[str, str]:
    """Hand runs over and note in their folders to whom; return the jobs by run id."""
    write_runs(cells)
    names = launcher.submit(cells, roots, jobs)
    for cell in cells:
        content = json.dumps(asdict(Job(name, names[cell.run.id])))
        write_atomic(cell.run.job, content)
    return names


def run_dirs(results: Path) -> Iterator[RunDir]:
    """Iterate over the folders of runs, by name."""
    for path in sorted((results / "runs").glob("*/spec.yaml")):
        yield RunDir(results, path.parent.name)


class LiveJobs:
    """The jobs that are waiting or running now, asked of each launcher once."""

    def __init__(self, results: Path) -> None:
        """Ask nobody yet."""
        self.results = results
        self._states: dict[str, dict[str, JobState]] = {}

    def state(self, run: RunDir) -> JobState | None:
        """Return the state of a run's job, None if it has none or that is over."""
        job = read_job(run)
        return self._of(job.launcher).get(job.job) if job else None

    def _of(self, launcher: str) -> dict[str, JobState]:
        if launcher not in self._states:
            try:
                self._states[launcher] = launcher_class(launcher)(self.results, {}).poll()
            except UsageError:  # one that this machine does not have
                self._states[launcher] = {}
        return self._states[launcher]
