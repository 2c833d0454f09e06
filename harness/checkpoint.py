"""Saving and loading a run between two optimiser steps, so that no kill can corrupt it.

A checkpoint is a file of ``torch.save``, which is a zip archive, with a checksum of all its bytes
in the archive's comment: torch verifies none of its own, and would load flipped bits in silence.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import xxhash

from harness.paths import PARTIAL, identity
from harness.record import previous_checkpoint as previous

FORMAT = 2
"""1: without a checksum; still read. 2: with one."""
_MARK = b"normbench xxh3 "
_COMMENT = len(_MARK) + 2 * xxhash.xxh3_128().digest_size
_CHUNK = 2**20


@dataclass
class Progress:
    """How far a run is, and what its sittings cost so far."""

    step: int = 0
    train_s: float = 0.0
    wait_s: float = 0.0
    eval_s: float = 0.0
    peak_mem_mib: float = 0.0
    num_resumed: int = 0
    threads: int = 0
    """CPU threads of the first sitting; kept, since float sums depend on them."""
    chunk: int = 0
    """Images that one forward executes; kept for the same reason."""
    evaluated: int = 0
    """The step of the newest evaluation on the way."""
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    """The best value of each metric so far, and its step."""
    replaced: dict[str, int] = field(default_factory=dict)
    """Training samples that could not be read, and how often each was replaced by another."""
    torch_version: str = field(default_factory=lambda: str(torch.__version__))


class _Sink:
    """What ``torch.save`` writes to: hashes on the way, and keeps the error that torch hides."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, xxhash.xxh3_128()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.hash.update(data)
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save(
    path: Path,
    run_id: str,
    progress: Progress,
    state: dict[str, Any],
    written: tuple[int, int, int] | None = None,
) -> tuple[int, int, int] | None:
    """Write a checkpoint atomically and keep the good one before it as ``*.previous``.

    Args:
        path: the newest checkpoint's.
        run_id: whose it is.
        progress: how far the run is.
        state: ``model``, ``optimizer`` and ``scaler``.
        written: what the last save of this sitting returned: a file that is still that one needs no
            second look; one of an earlier sitting is read and verified before it is kept.

    Returns:
        The identity of the file.

    Raises:
        OSError: naming the file, if the disk is full or fails; both earlier ones stay.
    """
    content = {"format": FORMAT, "run_id": run_id, "progress": vars(progress), **state}
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            _write(file, content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)
        raise
    # A damaged file must not take the place of the good one before it.
    if (earlier := identity(path)) and (
        earlier == written or intact(path) or not previous(path).exists()
    ):
        path.replace(previous(path))
    temporary.replace(path)
    return identity(path)


def _write(file: IO[bytes], content: dict[str, Any]) -> None:
    sink = _Sink(file)
    try:
        torch.save(content, sink)  # type: ignore[arg-type]  # of IO it uses write and flush
    except (OSError, RuntimeError):
        if sink.error is None:
            raise
        raise sink.error from None
    comment = _MARK + sink.hash.hexdigest().encode()
    file.seek(-2, os.SEEK_END)  # the length of the comment, 0 so far, ends a zip archive
    file.write(len(comment).to_bytes(2, "little") + comment)


def intact(path: Path) -> bool | None:
    """Tell whether a file is as it was written; None where it has no checksum to tell by."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, _COMMENT), os.SEEK_END)
        comment = file.read()
        if not comment.startswith(_MARK):
            return None
        file.seek(0)
        digest, left = xxhash.xxh3_128(), size - _COMMENT - 2
        while left > 0 and (data := file.read(min(left, _CHUNK))):
            digest.update(data)
            left -= len(data)
        length = file.read(2)
    digest.update(b"\0\0")  # as the archive ended before it got its comment
    told = int.from_bytes(length, "little") == len(comment)
    return told and comment == _MARK + digest.hexdigest().encode()


def load(path: Path, run_id: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Load the newest good checkpoint of a run.

    Returns:
        The content (None if there is none) and a sentence for each file passed over.

    Raises:
        OSError: if a file is there but the system fails to read it, now.
    """
    remarks: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        content, problem = _read(candidate, run_id)
        if content is not None:
            return content, remarks
        remarks.append(f"{candidate.name} {problem}: passed over")
    if remarks:
        remarks.append("no good checkpoint is left: starting at step 0")
    return None, remarks


def _read(path: Path, run_id: str) -> tuple[dict[str, Any] | None, str]:
    """Return the content of a good checkpoint, else why it is none."""
    damaged = None, "is truncated or damaged"
    whole = intact(path)
    if whole is False:
        return damaged
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # whatever a few wrong bytes can make of an archive and a pickle
        return damaged
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int) or found < 1:
        return None, "is no checkpoint"
    if found > FORMAT:
        return None, f"was written by a newer version (format {found}, this one reads {FORMAT})"
    if content.get("run_id") != run_id:
        return None, f"belongs to {content.get('run_id')}"
    if found > 1 and whole is None:
        return damaged
    try:
        Progress(**content["progress"])
    except (KeyError, TypeError):
        return damaged
    return (content, "") if {"model", "optimizer", "scaler"} <= content.keys() else damaged
