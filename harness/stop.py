"""Being asked to stop: signals and a vanished launcher, answered at the next step boundary."""

from __future__ import annotations

import os
import signal
from types import FrameType

from harness.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers that somebody asked this process to stop; installs its handlers when made."""

    def __init__(self) -> None:
        """Take over SIGTERM, SIGINT, SIGUSR1 and SIGUSR2; note who launched this process."""
        self.signal: int | None = None
        self._launcher = os.getppid()
        for number in _SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number

    def __bool__(self) -> bool:
        """Tell whether to stop: a signal came, or the launching process is gone."""
        return self.signal is not None or os.getppid() != self._launcher

    def error(self, saved: str) -> Interrupted:
        """Return the error that ends the run, with 130 for Ctrl-C and 75 otherwise."""
        why = signal.Signals(self.signal).name if self.signal else "the launcher is gone"
        error = Interrupted(f"stopped ({why}); {saved}: the same command resumes")
        if self.signal == signal.SIGINT:
            error.exit_code = 130
        return error


def ignore_signals(_worker: int = 0) -> None:
    """Make a data-loading process leave stopping to the process that owns the run."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
