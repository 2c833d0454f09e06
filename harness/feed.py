"""The data of a step: which samples, in which micro-batches, on which rank, as arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from harness.errors import UsageError
from harness.rng import epoch_order, numpy_rng
from harness.stop import ignore_signals
from harness.task import GroupedTrainData

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.schema import Spec
    from harness.task import Task, TrainData


@dataclass
class Chunk:
    """The samples of one forward pass on one device: a micro-batch, or several at once."""

    samples: list[int]
    batch: Any


def steps_per_epoch(num_samples: int, size: int, tail: str) -> int:
    """Return how many optimiser steps an epoch has, with its incomplete last batch or without.

    Raises:
        UsageError: if ``tail="drop"`` leaves none.
    """
    if tail == "keep":
        return -(-num_samples // size)
    if num_samples < size:
        raise UsageError(
            f"batch.tail=drop leaves no step: the data have {num_samples} training samples, fewer "
            f"than batch.size={size}; use batch.tail=keep or a smaller batch.size"
        )
    return num_samples // size


@lru_cache(maxsize=2)
def grouped_order(seed: int, epoch: int, groups: bytes, micro: int) -> NDArray[np.int64]:
    """Return the order of the samples in an epoch, such that micro-batches hold one group each.

    The epoch's permutation is kept within each group, and among micro-batches by their first
    samples (as maskrcnn-benchmark's ``GroupedBatchSampler``). What fills no micro-batch, fewer than
    ``micro`` samples of each group, comes last and mixed: every sample is seen once an epoch.
    """
    order = epoch_order(seed, epoch, len(groups))
    members = np.frombuffer(groups, dtype=np.uint8)[order]
    whole, rest = [], []
    for group in np.unique(members):
        places = np.flatnonzero(members == group)
        end = len(places) // micro * micro
        whole.append(places[:end].reshape(-1, micro))
        rest.append(places[end:])
    blocks = np.concatenate(whole)
    blocks = blocks[np.argsort(blocks[:, 0])]
    arranged: NDArray[np.int64] = order[
        np.concatenate([blocks.ravel(), np.sort(np.concatenate(rest))])
    ]
    return arranged


def step_samples(
    num_samples: int,
    size: int,
    seed: int,
    step: int,
    tail: str = "keep",
    *,
    groups: bytes | None = None,
    micro: int = 1,
) -> tuple[int, list[int]]:
    """Return the epoch of a step and its samples over all devices.

    Every epoch is a fresh permutation; its incomplete last batch is kept, or dropped (``tail``).
    With ``groups`` (one byte a sample) micro-batches of ``micro`` hold one group each.
    """
    epoch, position = divmod(step, steps_per_epoch(num_samples, size, tail))
    if groups is None:
        order = epoch_order(seed, epoch, num_samples)
    else:
        order = grouped_order(seed, epoch, groups, micro)
    return epoch, [int(i) for i in order[position * size : (position + 1) * size]]


def split_step(
    samples: list[int], micro: int, rank: int, world: int, chunk: int | None = None
) -> list[list[int]]:
    """Split a step's samples into the forwards of one rank, in order.

    Every rank gets whole micro-batches; ``chunk`` images of them are executed at once.
    """
    num_micro = -(-len(samples) // micro)
    share = -(-num_micro // world) * micro
    own = samples[rank * share : (rank + 1) * share]
    size = chunk or micro
    return [own[i : i + size] for i in range(0, len(own), size)]


class Steps(Dataset[list[Chunk]]):
    """Map-style over *steps*: item ``step`` is the list of this rank's forwards."""

    def __init__(
        self, task: Task, data: TrainData, spec: Spec, *, chunk: int, rank: int, world: int
    ) -> None:
        """Keep what the arithmetic needs; nothing is read yet.

        Raises:
            UsageError: if the data have not a single step.
        """
        steps_per_epoch(len(data), spec.batch.size, spec.batch.tail)
        self.task, self.data, self.spec = task, data, spec
        self.chunk, self.rank, self.world = chunk, rank, world
        self.groups = data.groups if isinstance(data, GroupedTrainData) else None

    def __len__(self) -> int:
        """Return the number of optimiser steps of the run."""
        return self.spec.steps

    def __getitem__(self, step: int) -> list[Chunk]:
        """Read, augment and collate the forwards of ``step``."""
        seed, batch = self.spec.seed, self.spec.batch
        epoch, samples = step_samples(
            len(self.data),
            batch.size,
            seed,
            step,
            batch.tail,
            groups=self.groups,
            micro=batch.micro,
        )
        return [
            Chunk(
                chunk,
                self.task.collate(
                    [self.data.sample(i, numpy_rng("augment", seed, epoch, i)) for i in chunk]
                ),
            )
            for chunk in split_step(samples, batch.micro, self.rank, self.world, self.chunk)
        ]


def feed(steps: Steps, start: int) -> Iterator[list[Chunk]]:
    """Iterate over the steps from ``start`` on, prepared ahead by ``exec.workers`` processes."""
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, len(steps)),
        num_workers=steps.spec.exec.workers,
        worker_init_fn=ignore_signals,
        collate_fn=_as_is,
    )
    return iter(loader)


def _as_is(window: list[Chunk]) -> list[Chunk]:
    return window
