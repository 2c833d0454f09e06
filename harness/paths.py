"""Where things live: recipes, results and generated data, in a checkout as in a wheel."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from harness.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent
PARTIAL = ".partial"
"""Ends the name, ``.NAME...``, that a file or folder has until it is whole."""


def configs_dir() -> Path:
    """Return the folder of recipes: the wheel's own copy, else the checkout's ``configs/``."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def published_csv() -> Path:
    """Return the published numbers: the wheel's own copy, else the checkout's."""
    packaged = _PACKAGE / "results" / "published.csv"
    return packaged if packaged.is_file() else _PACKAGE.parent / "results" / "published.csv"


def reference_csv() -> Path:
    """Return ``results/reference/metrics.csv``, our own measured numbers, from the same places."""
    return published_csv().parent / "reference" / "metrics.csv"


def cache_dir() -> Path:
    """Return the folder for generated data (``NORMBENCH_CACHE``, else the XDG cache folder)."""
    if chosen := os.environ.get("NORMBENCH_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "normbench"


def default_results_dir() -> Path:
    """Return ``NORMBENCH_RESULTS``, else the checkout's ``results/``, else ``./results``."""
    if chosen := os.environ.get("NORMBENCH_RESULTS"):
        return Path(chosen).expanduser()
    checkout = _PACKAGE.parent
    in_checkout = (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir()
    return (checkout if in_checkout else Path.cwd()) / "results"


def require_folder(results: Path) -> Path:
    """Return ``results``, which may not be there yet, unless something else is in its place.

    Raises:
        UsageError: if it, or ``runs`` in it, is a file, or has a name that the system refuses.
    """
    for folder in (results, results / "runs"):
        try:
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unusable(folder, "read", error) from None
    return results


def require_writable(folder: Path) -> None:
    """Create ``folder`` and write into it once, so that hours of work never end unsaved.

    Raises:
        UsageError: if the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, "written", error) from None


def _unusable(folder: Path, what: str, error: OSError) -> UsageError:
    return UsageError(
        f"results folder {folder} cannot be {what} ({error.strerror}): "
        "choose another with --results DIR"
    )


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that a reader sees the old or the new one, never a part.

    Args:
        path: the file, in a folder that exists.
        content: all of it; text becomes UTF-8, line ends as they are.

    Raises:
        OSError: naming the file; the old one stays.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # not the name it had for a moment
            del error.filename2
        raise


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``, as far as the system lets us.

    Only for whoever holds the lock without which nobody writes there.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        with suppress(OSError):
            path.unlink()


def identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from any that was written there later; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
