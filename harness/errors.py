"""The errors a user can cause or meet, each with the exit status it ends the program with."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from typing import Any

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, starts an escape sequence, or changes the direction of writing."""


def visible(text: str) -> str:
    r"""Return ``text`` with what a terminal would obey instead of show written as ``\\x1b``."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class NormbenchError(Exception):
    """Base of all errors that are shown as one line each, without a traceback.

    What they quote may come from anybody: as text, they hold nothing that a terminal obeys.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(visible, super().__str__().split("\n")))


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
    """A loss, gradient or weight that is not finite.

    Args:
        message: for people.
        step: at which it was found.
        details: what else is known, for ``crash.json``.
    """

    exit_code = 6

    def __init__(
        self, message: str, step: int | None = None, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.step, self.details = step, details or {}


class Interrupted(NormbenchError):
    """A run that was asked to stop and saved a checkpoint to resume from."""

    exit_code = 75


_OF_THE_MACHINE = {
    errno.ENOSPC: "no space is left on the disk: free some",
    errno.EDQUOT: "the disk quota is used up: free some",
    errno.EFBIG: "the file is larger than the system allows (ulimit -f)",
    errno.EROFS: "the disk is read-only: choose another with --results DIR",
    errno.EIO: "the disk fails to read or write (input/output error)",
    errno.EACCES: "permission denied: choose another folder with --results DIR",
    errno.EPERM: "the system does not permit it: choose another folder with --results DIR",
    errno.EMFILE: "too many files are open: raise ulimit -n, or lower --jobs",
    errno.ENFILE: "too many files are open on this machine: end other programs",
    errno.ESTALE: "the network disk lost it (stale file handle): mount it again",
    errno.ENAMETOOLONG: "the name is too long for this disk: choose a shorter one",
    errno.ENOTDIR: "a part of this path is a file: choose another",
    errno.EISDIR: "a folder is in the place of this file: move it away",
}


def of_the_machine(error: OSError) -> EnvironmentProblem | None:
    """Put a disk that is full, read-only, failing or closed into words; None for other errors.

    What was written before is whole: every file is written aside and then renamed.
    """
    if error.errno not in _OF_THE_MACHINE:
        return None
    where, what = error.filename or "a file", _OF_THE_MACHINE[error.errno]
    return EnvironmentProblem(f"{where}: {what}, then give the same command")


def first_line(error: BaseException) -> str:
    """Return what a library says of an error, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the nearest of ``options``, or '' where none is near."""
    near = difflib.get_close_matches(word, list(options), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
