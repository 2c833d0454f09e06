"""How many images one forward executes, as against how many a statistic sees (`batch.micro`).

The first is a matter of speed and memory, the second of science. Under a batch-independent norm a
forward may execute any number of images. Batch norm over micro-batches of m may execute several of
them at once, if each is normalised by its own statistics and the running averages are folded in
order: the numbers are those of the literal loop, at the price of one large batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.norm.catalogue import NORMS

if TYPE_CHECKING:
    from harness.schema import Spec
    from harness.task import TaskInfo

_LARGEST = 32
"""Images that `exec.chunk=auto` executes at once at most; beyond, a CPU core gains nothing."""


def resolve_chunk(spec: Spec, info: TaskInfo) -> int:
    """Return the images of one forward, from the spec alone, hence the same on every machine.

    Raises:
        UsageError: if `exec.chunk` asks for more than the task or the norm allows.
    """
    micro, asked = spec.batch.micro, spec.exec.chunk
    independent = NORMS[spec.norm.layer].batch_independent
    why = ""
    if not info.separable(spec):
        why = f"the images of this {info.name} batch influence each other"
    elif not independent and not info.sees_samples:
        why = f"{spec.norm.layer} sees regions of {info.name}, and not only images"
    elif not independent and not NORMS[spec.norm.layer].uses_batch_norm:
        why = f"{spec.norm.layer} sees the whole forward"
    elif not independent and spec.batch.stat == "sync" and spec.devices > 1:
        why = "batch.stat=sync sees the forwards of all devices"
    if asked == "micro" or (asked == "auto" and why):
        return micro
    if why and asked != micro:
        raise UsageError(f"exec.chunk={asked}: {why}; use exec.chunk=micro")
    share = spec.batch.size // spec.devices
    if asked == "auto":
        return max(micro, min(share, _LARGEST) // micro * micro)
    if not independent and int(asked) % micro:
        raise UsageError(f"exec.chunk={asked} must be a multiple of batch.micro={micro}")
    return int(asked)
