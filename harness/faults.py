"""What ended a run, in one line with what to do about it: memory, disk, and data processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.chunk import resolve_chunk
from harness.errors import NormbenchError, UsageError, first_line, of_the_machine
from harness.identity import stat_batch
from harness.plan import impossible
from harness.registry import task_info
from harness.wording import counted

if TYPE_CHECKING:
    from harness.schema import Spec

_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", re.IGNORECASE
)
"""In messages of torch's CPU allocator, CUDA, cuDNN and cuBLAS, which are plain RuntimeErrors."""
_LOST_RANK = re.compile(r"Connection (closed|reset) by peer|NCCL.*remote process exited", re.DOTALL)
"""What a collective of gloo, or of NCCL, says once a process that took part is gone."""
_DEAD_LOADER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\)(.*)", re.DOTALL)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory was asked for which there is not."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


@contextmanager
def memory_explained(spec: Spec, chunk: int) -> Iterator[None]:
    """Turn any running out of memory into one line that says what would fit.

    Args:
        spec: of the run.
        chunk: images that one forward executes.

    Raises:
        NormbenchError: exit 1, so that a sweep goes on.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise NormbenchError(
            f"out of memory at batch.micro={spec.batch.micro}, {counted(chunk, 'image')} a forward "
            f"({first_line(error)}): {_what_fits(spec, chunk)}"
        ) from error


def _what_fits(spec: Spec, chunk: int) -> str:
    """Say the next smaller forwards, first those that change no number."""
    info, micro = task_info(spec.task), spec.batch.micro
    share = spec.batch.size // spec.devices
    same = [n for n in range(chunk - 1, 0, -1) if share % n == 0 and _allows(spec, n)]
    choices = [f"exec.chunk={same[0]}, which changes no number"] if same else []
    for smaller in range(micro - 1, 0, -1):
        if share % smaller:
            continue
        words = f"batch.micro={smaller}"
        other = _with_micro(spec, smaller)
        if other is None:
            continue
        if resolve_chunk(other, info) > smaller:
            words += " exec.chunk=micro"
        choices.append(f"{words}, which keeps batch.size={spec.batch.size}{_meaning(spec, other)}")
        break
    return ", or ".join(choices) or "it cannot be split further, use a device with more memory"


def _allows(spec: Spec, chunk: int) -> bool:
    execution = spec.exec.model_copy(update={"chunk": chunk})
    try:
        return resolve_chunk(spec.model_copy(update={"exec": execution}), task_info(spec.task)) > 0
    except UsageError:
        return False


def _with_micro(spec: Spec, micro: int) -> Spec | None:
    """Return the run at another micro-batch, None where it cannot train there."""
    if spec.batch.ghost and micro % spec.batch.ghost:
        return None
    batch = spec.batch.model_copy(update={"micro": micro})
    execution = spec.exec.model_copy(update={"chunk": "auto"})
    other = spec.model_copy(update={"batch": batch, "exec": execution})
    return None if impossible(other) else other


def _meaning(spec: Spec, other: Spec) -> str:
    """Say whether a run at another micro-batch is the same run."""
    if not task_info(spec.task).separable(spec):
        return " (another run: its images influence each other)"
    if stat_batch(other) == stat_batch(spec):
        return " and changes no number"
    return f" (another run: {spec.norm.layer} then sees {stat_batch(other)} images)"


def explain(error: Exception, log: Path) -> NormbenchError:
    """Put whatever ended a run into one line; the traceback is in its log.

    Args:
        error: not one of ours.
        log: of the run.
    """
    if isinstance(error, OSError) and (problem := of_the_machine(error)):
        return problem
    if is_out_of_memory(error):
        return NormbenchError(f"out of memory before the first step ({first_line(error)})")
    # The cause, where there is one, names the signal.
    if found := _DEAD_LOADER.match(str(error.__cause__)) or _DEAD_LOADER.match(str(error)):
        how = " ".join(found[1].split()).rstrip(".")
        return NormbenchError(
            f"a process that loads data died ({how}), often for want of memory: the same command "
            "resumes; lower exec.workers if it happens again"
        )
    if _LOST_RANK.search(str(error)):
        return NormbenchError(
            f"another process of this run ended, and {log} may say why; the same command resumes"
        )
    return NormbenchError(f"{type(error).__name__}: {first_line(error)} (see {log})")
