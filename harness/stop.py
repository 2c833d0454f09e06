"""Being asked to stop: signals and a vanished launcher, answered at the next step boundary."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
LAUNCHED = "NORMBENCH_LAUNCHED"
"""Set for workers whose standard input is a pipe that their launcher holds open while it lives."""


class StopRequest:
    """Remembers that somebody asked this process to stop; installs its handlers when made."""

    def __init__(self) -> None:
        """Take over SIGTERM, SIGINT, SIGUSR1 and SIGUSR2; note who launched this process."""
        self.signal: int | None = None
        self._parent = os.getppid()
        self._piped = LAUNCHED in os.environ
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number

    def __bool__(self) -> bool:
        """Tell whether to stop: a signal came, or the launching process is gone or wants it."""
        return self.signal is not None or os.getppid() != self._parent or self._let_go()

    def _let_go(self) -> bool:
        # The end of the pipe. Unlike the parent's id it is seen through torchrun, and also when
        # the launcher died while this process was still importing.
        return self._piped and bool(select.select([0], [], [], 0)[0])

    def error(self, saved: str) -> Interrupted:
        """Return the error that ends the run, with 130 for Ctrl-C and 75 otherwise."""
        why = signal.Signals(self.signal).name if self.signal else "the launcher let go"
        error = Interrupted(f"stopped ({why}); {saved}: the same command resumes")
        if self.signal == signal.SIGINT:
            error.exit_code = 130
        return error


def ignore_signals(_worker: int = 0) -> None:
    """Make a data-loading process leave stopping to the process that owns the run."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """Delay signals while processes are forked, which keep them blocked.

    Otherwise a signal to the whole group could kill a data worker before it ignores signals.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the program with status 75 on SIGTERM, SIGUSR1 or SIGUSR2, by an exception.

    For what is not a run (planning, generating and unpacking data, reports), so that it cleans up
    after itself; a run's launcher has handlers of its own. Ctrl-C is ``KeyboardInterrupt`` already.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        os.write(2, f"stopped ({signal.Signals(number).name}); the same command goes on\n".encode())
        sys.exit(Interrupted.exit_code)

    before = {
        number: signal.signal(number, leave)
        for number in SIGNALS
        if signal.getsignal(number) == signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
