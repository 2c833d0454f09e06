"""Where a task's data lie: in a given folder, or generated once into the cache, atomically."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from harness.errors import DataError, UsageError
from harness.schema import DataSection

_MARK = "generator.txt"
"""Names what the folder holds; written last."""


def given_root(data: DataSection, needs: str) -> Path | None:
    """Return the folder of real data, or None where the data are generated.

    Args:
        data: the spec's section.
        needs: what a preset without embedded data needs, for the error.

    Raises:
        DataError: if the preset needs real data and none are given.
    """
    if data.root is not None:
        return Path(data.root).expanduser()
    if data.embedded:
        return None
    if folder := os.environ.get("NORMBENCH_DATA"):
        return Path(folder).expanduser()
    raise DataError(f"this preset needs {needs}: give data=DIR or set NORMBENCH_DATA")


def check_seed(seed: int) -> None:
    """Check that ``numpy.random.RandomState`` takes the seed.

    Raises:
        UsageError: if it does not.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"data.seed={seed} must lie between 0 and 2**32 - 1")


def generate_once(root: Path, version: str, write: Callable[[Path], None]) -> Path:
    """Write a generated data set to ``root``, unless it is there already.

    It is written to a sibling folder that takes the name ``root`` when whole. A killed generation
    therefore leaves no ``root``, and of two at once the slower discards its own.

    Args:
        root: folder to create; its parents are created too.
        version: what the data set is, generator version and arguments included.
        write: writes the data set into the folder that it is given.

    Returns:
        ``root``.

    Raises:
        DataError: if ``root`` holds something else, or cannot be written.
    """
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    try:
        if _holds(root, version):
            return root
        partial.mkdir(parents=True)
        write(partial)
        (partial / _MARK).write_text(version + "\n", encoding="utf-8")
        try:
            partial.rename(root)
        except OSError:
            if not _holds(root, version):  # else another process was faster: its files equal ours
                raise
    except OSError as error:
        raise DataError(f"cannot write the embedded data to {root}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


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
