"""Children that die by SIGKILL at a random line of Python, or at a random time.

The product has no hooks for this. One process imports what a child needs and forks one child an
attempt, so that an attempt costs milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TRACED = (str(ROOT / "harness"), str(ROOT / "tasks"), str(ROOT / "tests" / "toy"))
SERIALIZATION = str(Path(torch.__file__).parent / "serialization.py")


@dataclass
class Attempt:
    """How a child ended."""

    status: int
    """Exit status, or minus the signal."""
    seconds: float
    lines: int = 0
    place: str = ""


@dataclass
class Tally:
    """What was done to one thing, and what was found."""

    kills: int = 0
    chains: int = 0
    """Sequences of kills that end with an attempt that is left alone."""
    resumed: int = 0
    survived: int = 0
    """Attempts that ended before their time came."""
    places: Counter = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)

    def add(self, one: Attempt) -> None:
        if one.status == -signal.SIGKILL:
            self.kills += 1
            self.places[one.place] += 1
        else:
            self.survived += 1


def trace(at: int, report: Callable[[int, str], None] | None = None) -> None:
    """Kill this process at its ``at``-th traced line; report the lines so far if it gets that far.

    Every line of the harness, the tasks and torch's serialisation counts. Processes that it forks
    are not traced.
    """
    owner, lines = os.getpid(), 0

    def local(frame, event, _argument):
        nonlocal lines
        if event == "line" and os.getpid() == owner:
            lines += 1
            if lines == at:
                if report:
                    where = Path(frame.f_code.co_filename).name
                    report(lines, f"{where}:{frame.f_code.co_name}")
                os.kill(owner, signal.SIGKILL)
        return local

    def enter(frame, _event, _argument):
        name = frame.f_code.co_filename
        # persistent_id alone would be most of the lines: it is called for every object.
        saves = name == SERIALIZATION and frame.f_code.co_name != "persistent_id"
        return local if saves or name.startswith(TRACED) else None

    sys.settrace(enter)
    trace.count = lambda: lines  # type: ignore[attr-defined]


def fork(
    work: Callable[[], int | None],
    *,
    at: int = 0,
    after: float | None = None,
    traced: bool = False,
) -> Attempt:
    """Do ``work`` in a child, which is killed at a line or after a time, with all it started."""
    tell, told = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(tell)
        status = 70
        try:
            if traced:
                trace(at, lambda n, place: os.write(told, f"{n} {place}".encode()) and None)
            status = work() or 0
            sys.settrace(None)
            if traced:
                os.write(told, f"{trace.count()} end".encode())  # type: ignore[attr-defined]
        finally:
            os._exit(status)
    os.close(told)
    if after is not None:
        while (
            time.monotonic() - began < after
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with suppress(ProcessLookupError):  # as the launcher does: the data workers of a killed owner
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(tell) as pipe:
        lines, _, place = pipe.read().partition(" ")
    code = os.waitstatus_to_exitcode(status)
    return Attempt(code, time.monotonic() - began, int(lines or 0), place)
