"""Where a task's data lie: in a given folder, or generated once into the cache, atomically."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from harness.documents import quoted
from harness.errors import DataError, UsageError, first_line
from harness.paths import PARTIAL
from harness.schema import DataSection

_MARK = "generator.txt"
"""Names what the folder holds; written last."""
_LOCK = ".lock"


def given_root(data: DataSection, needs: str) -> Path | None:
    """Return the folder of real data, or None where the data are generated.

    Args:
        data: the spec's section.
        needs: what a preset without embedded data needs, for the error.

    Raises:
        DataError: if the preset needs real data and none are given, or no folder can be called so.
    """
    if data.root is not None:
        return _folder(data.root)
    if data.embedded:
        return None
    if folder := os.environ.get("NORMBENCH_DATA"):
        return _folder(folder)
    raise DataError(f"this preset needs {needs}: give data=DIR or set NORMBENCH_DATA")


def _folder(name: str) -> Path:
    try:
        folder = Path(name).expanduser()
        folder.exists()
    # Too long, or with a null character; or the home of nobody.
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"data={quoted(name)} cannot be a folder: {first_line(error)}") from None
    return folder


def check_seed(seed: int) -> None:
    """Check that ``numpy.random.RandomState`` takes the seed.

    Raises:
        UsageError: if it does not.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"data.seed={seed} must lie between 0 and 2**32 - 1")


def generate_once(root: Path, version: str, write: Callable[[Path], None]) -> Path:
    """Write a generated data set to ``root``, unless it is there already.

    Args:
        root: folder to create; its parents are created too.
        version: what the data set is, generator version and arguments included.
        write: writes the data set into the folder that it is given.

    Returns:
        ``root``.

    Raises:
        DataError: if ``root`` holds something else, or cannot be written.
    """

    def write_and_mark(folder: Path) -> None:
        write(folder)
        (folder / _MARK).write_text(version + "\n", encoding="utf-8")

    try:
        make_folder(root, write_and_mark, lambda: _holds(root, version))
    except OSError as error:
        raise DataError(f"cannot write the embedded data to {root}: {error}") from error
    return root


def make_folder(root: Path, write: Callable[[Path], None], is_made: Callable[[], bool]) -> None:
    """Write a folder, unless it is there, that takes its name ``root`` when whole.

    A killed process therefore leaves no ``root``, but a hidden folder beside it, which the next
    call removes: its lock is free. Of two processes at once the slower discards its own.

    Args:
        root: folder to create; its parents are created too.
        write: writes all of it into the folder that it is given.
        is_made: tells whether ``root`` is what ``write`` would write.

    Raises:
        OSError: if it cannot be written.
    """
    _sweep(root)
    if is_made():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}{PARTIAL}")
    lock = partial.with_suffix(_LOCK)
    with FileLock(lock):  # before there is a folder: whatever has no living owner is left over
        try:
            partial.mkdir()
            write(partial)
            try:
                partial.rename(root)
            except OSError:
                if not is_made():  # else another process was faster: its files equal ours
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    """Remove what processes left that were killed while they wrote ``root``."""
    for lock in root.parent.glob(f".{glob.escape(root.name)}.*{_LOCK}"):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(PARTIAL), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _holds(root: Path, version: str) -> bool:
    """Tell whether ``root`` is this data set (true) or does not exist or is empty (false)."""
    try:
        found = (root / _MARK).read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        found = "something else"
    if found != version:
        raise DataError(f"{root} holds {found}, not {version}: remove it or name another folder")
    return True
