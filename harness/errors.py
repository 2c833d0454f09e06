"""The errors a user can cause or meet, each with the exit status it ends the program with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NormbenchError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = 1


class UsageError(NormbenchError):
    """A wrong key, value, command or an impossible combination of them."""

    exit_code = 2


class DataError(NormbenchError):
    """Data that are missing, incomplete or not what they claim to be."""

    exit_code = 3


class EnvironmentProblem(NormbenchError):
    """A package, device or resource that this machine lacks."""

    exit_code = 4


class AuditError(NormbenchError):
    """The model after surgery is not what the switch promises."""

    exit_code = 5


class Diverged(NormbenchError):
    """A loss or gradient that is not finite."""

    exit_code = 6


class Interrupted(NormbenchError):
    """A run that was asked to stop and saved a checkpoint to resume from."""

    exit_code = 75


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the nearest of ``options``, or '' where none is near."""
    near = difflib.get_close_matches(word, list(options), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
