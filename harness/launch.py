"""Starting a run in its own process and reading what came of it from the run directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import Timeout

from harness.journal import JournalReader
from harness.paths import identity, write_atomic
from harness.placement import usable_cores
from harness.plan import PlannedRun
from harness.progress import Display, clock
from harness.record import PROBED_S, RunDir
from harness.schema import Spec
from harness.spec import dump_spec
from harness.stop import LAUNCHED, SIGNALS

POLL_S = 0.2
_GRACE_S = 60.0
"""How long a worker may take to stop beyond three times its slowest step and checkpoint."""
_DEAF = ("/bin/sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh")
"""Schedulers send these signals to every process of a job; torchrun would die of them, and leave
its workers to themselves while they save."""
_TWICE_S = 0.5
"""One Ctrl-C may come twice at once: from the terminal, and from a parent that passes it on."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: 0 with a record, else the exit status and the reason in one line."""

    exit_code: int
    message: str = ""
    elsewhere: bool = False
    """Whether nothing was done because another process is running it."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the nodes that share a run meet; each of them starts the same command."""

    nodes: int
    endpoint: str
    """``HOST:PORT`` of the first of them."""
    id: str
    """What tells this meeting from others at that place."""


def command(
    run: RunDir, spec: Spec, data_root: Path, rendezvous: Rendezvous | None = None
) -> list[str]:
    """Return the command line of a run's worker, or of the share of one node in it."""
    worker = ["-m", "harness.worker", str(run.path), str(data_root)]
    if spec.devices == 1:
        return [sys.executable, *worker]
    there = ["--standalone"]
    if rendezvous:
        there = [f"--nnodes={rendezvous.nodes}", "--rdzv-backend=c10d"]
        there += [f"--rdzv-endpoint={rendezvous.endpoint}", f"--rdzv-id={rendezvous.id}"]
    share = spec.devices // (rendezvous.nodes if rendezvous else 1)
    torchrun = ["-m", "torch.distributed.run", *there, f"--nproc-per-node={share}"]
    return [*_DEAF, sys.executable, *torchrun, *worker]


def _environment(spec: Spec, threads: int | None, gpus: Sequence[str] | None) -> dict[str, str]:
    environment = os.environ | {"PYTHONUNBUFFERED": "1", LAUNCHED: "1"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(max(1, threads // spec.devices))
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


class Running:
    """A run's worker, started in a session of its own, so that signals come from us alone.

    Its standard input is a pipe that nothing is written to: it ends when this process does, however
    that happens, and the worker then saves and stops.
    """

    def __init__(
        self,
        cell: PlannedRun,
        data_root: Path,
        threads: int | None = None,
        *,
        gpus: Sequence[str] | None = None,
        rendezvous: Rendezvous | None = None,
    ) -> None:
        """Start the worker.

        Args:
            cell: what to run.
            data_root: its data, prepared.
            threads: CPU threads of all its processes together, where the spec does not say; None
                leaves it to the libraries.
            gpus: the only GPUs it may see; None: those that this process sees.
            rendezvous: where it meets the other nodes; None: it has none.
        """
        self.cell, self.began = cell, time.monotonic()
        run = cell.run
        run.path.mkdir(parents=True, exist_ok=True)
        # Whoever makes the run has written its spec.
        with suppress(Timeout), run.lock().acquire(timeout=PROBED_S):
            write_atomic(run.spec, dump_spec(cell.spec))
        self._reader = JournalReader(run)
        self._old_failure = identity(run.failure)
        self._asked: float | None = None
        self._over = self._overdue = False
        self._step_s = self._save_s = 0.0
        self._stopped: dict[str, Any] = {}
        with run.log.open("ab") as log:
            self.process = subprocess.Popen(
                command(run, cell.spec, data_root, rendezvous),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(cell.spec, threads, gpus),
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Return whether the worker is gone; of what it started, nothing is left then."""
        if not self._over and self.process.poll() is not None:
            self._over = True
            self._let_go()
            self._kill_group(self.process.pid)  # data workers of a killed owner
        return self._over

    @property
    def patience(self) -> float:
        """Return the seconds that the worker has for stopping, from what it took so far."""
        return _GRACE_S + 3 * (self._step_s + self._save_s)

    def news(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that the worker wrote since the last call."""
        for row in self._reader.news():
            match row["event"]:
                case "train":
                    step_s = self.cell.spec.batch.size / max(row["images_per_s"], 1e-9)
                    self._step_s = max(self._step_s, step_s)
                case "saved":
                    self._save_s = max(self._save_s, row["seconds"])
                case "stopped":
                    self._stopped = row
            yield row

    def stop(self, number: int) -> None:
        """Ask the worker to save and stop; to be repeated until it has, since patience ends.

        Args:
            number: the signal that asks for it.
        """
        if self._asked is None:
            self._asked = time.monotonic()
            if self.cell.spec.devices == 1:
                self.process.send_signal(number)
            else:  # torchrun would kill its workers 30 s after a signal, be a step ever so long
                self._let_go()
        elif time.monotonic() - self._asked > self.patience:
            self._overdue = True
            self.kill()

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""
        for rank in _children(self.process.pid):  # torchrun gives each a session of its own
            self._kill_group(rank)
        self._kill_group(self.process.pid)
        self.process.wait()
        self._let_go()

    def _let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    @staticmethod
    def _kill_group(leader: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the latter: macOS, of a zombie
            os.killpg(leader, signal.SIGKILL)

    def outcome(self, received: int | None) -> Outcome:
        """Read how the run ended; ``received`` is the signal that was passed on, if any."""
        run, returncode = self.cell.run, self.process.returncode
        if run.record.is_file():
            return Outcome(0)
        if identity(run.failure) != self._old_failure and (failure := run.read_failure()):
            return Outcome(failure.exit_code, failure.message)
        if run.state() == "running":
            return Outcome(1, f"{run.id} is running in another process", elsewhere=True)
        code = 130 if received == signal.SIGINT else 75
        if self._stopped:  # by itself, and it said where; torchrun turns its exit status into 1
            own: int = self._stopped["exit_code"]
            return Outcome(own if received is None else code, self._stopped["text"])
        saved = any(run.path.glob("checkpoint*.pt"))
        kept = "its last checkpoint is kept" if saved else "nothing was saved yet"
        if received is not None:
            late = f" (killed after {clock(self.patience)})" if self._overdue else ""
            return Outcome(code, f"stopped{late}; {kept}: the same command resumes")
        if returncode < 0:
            name = signal.Signals(-returncode).name
            return Outcome(1, f"the worker was killed ({name}); {kept}: the same command resumes")
        last = _last_line(run.log)
        return Outcome(
            returncode or 1, f"the worker ended without a record: {last} (see {run.log})"
        )


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
        self._interrupted: float | None = None
        self._at_once = self._said = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Forward:
        """Take the signals over."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # Only notes: what is interrupted may be a print, or the start of a worker.
        self.received = number
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is None:
                self._interrupted = now
            elif now - self._interrupted > _TWICE_S:
                self._at_once = True

    def pass_on(self) -> None:
        """Tell the workers what was received; to be called in the loop that watches them."""
        if self.received is None:
            return
        busy = [one for one in self._running() if not one.ended]
        for one in busy:
            if self._at_once:
                one.kill()
            else:
                one.stop(self.received)
        if busy and not self._said:
            self._said = True
            name, bound = signal.Signals(self.received).name, max(one.patience for one in busy)
            self._say(
                f"{name}: finishing this step and saving, within {clock(bound)} "
                "(Ctrl-C again leaves at once)"
            )


def launch(cell: PlannedRun, data_root: Path, show: Display) -> Outcome:
    """Run one cell to its end in a subprocess, showing its progress."""
    running: list[Running] = []
    with Forward(lambda: running, show.say) as forward:
        # torchrun would give each of several processes one thread, unless a job script says.
        told = cell.spec.exec.threads or "OMP_NUM_THREADS" in os.environ
        shared = cell.spec.devices > 1 and not told
        one = Running(cell, data_root, usable_cores() if shared else None)
        running.append(one)
        while not one.ended:
            for row in one.news():
                show.row(row)
            forward.pass_on()
            time.sleep(POLL_S)
    for row in one.news():
        show.row(row)
    return one.outcome(forward.received)


def _children(pid: int) -> list[int]:
    """Return the processes that a process started, where the system tells (Linux)."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:  # somebody removed the run's folder
        lines = []
    return lines[-1] if lines else "no output"
