"""Files that others wrote are text to judge: neither run, nor believed, nor printed unseen."""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import UNSEEN, visible
from harness.record import Record

_LARGEST = 2**24
"""Bytes of a record; a real one has some thousand."""

_ESCAPE = re.compile(r"\\[bfnrtu]")
"""What JSON writes for the control characters; a backslash before one of these letters too."""


def is_plain(path: Path, largest: int = _LARGEST) -> bool:
    """Tell whether a file can be read at once: no pipe or device, and not of any size."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= largest


def check(record: Record, folder: str) -> None:
    """Check what a record's schema leaves open.

    Args:
        record: as it was read.
        folder: name of the folder that it lies in.

    Raises:
        ValueError: if it belongs elsewhere, holds control characters, or a metric is no number.
    """
    if record.run_id != folder:
        raise ValueError(f"is of {visible(record.run_id[:200])!r}")
    written = record.model_dump_json()
    # There are thousands of records, and hardly one that must be looked at string by string.
    if _ESCAPE.search(written) or UNSEEN.search(written):
        for text in _strings(record.model_dump()):
            if UNSEEN.search(text):
                raise ValueError(f"holds control characters ({visible(text[:80])!r})")
    for metric in record.metrics:
        if not math.isfinite(metric.value):
            raise ValueError(f"its {metric.name} is {metric.value}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
