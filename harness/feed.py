"""The data of a step: which samples, in which micro-batches, on which rank, as arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from harness.errors import DataError, NormbenchError, UsageError
from harness.rng import Reseeded, epoch_order
from harness.stop import held_back, ignore_signals
from harness.task import GroupedTrainData

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.schema import Spec
    from harness.task import Task, TrainData

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_MOST_UNREADABLE = 10
"""Samples in a row that are replaced; more than a few damaged files would be another data set."""


class Chunk(NamedTuple):
    """The samples of one forward pass on one device: a micro-batch, or several at once.

    A tuple, so that the loader finds the tensors of its batch when it pins memory.
    """

    samples: list[int]
    batch: Any
    unreadable: tuple[str, ...] = ()
    """What was wrong with samples that others took the place of."""
    counts: bool = True
    """False for a stand-in, whose samples are another rank's (``harness.norm.synchronized``)."""


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


def split_together(
    samples: list[int], micro: int, rank: int, world: int
) -> list[tuple[list[int], bool]]:
    """Split a step's samples into forwards that all ranks make together, in order.

    Of the images of the j-th forward, the j-th ``micro * world`` of the step (those of one
    micro-batch of one device), every rank gets ``micro``.

    Returns:
        The samples of each forward of this rank, and whether they count: where too few are left for
        all ranks, one that is another's stands in.
    """
    forwards = []
    for start in range(0, len(samples), micro * world):
        group = samples[start : start + micro * world]
        own = group[rank * micro : (rank + 1) * micro]
        forwards.append((own or group[:1], bool(own)))
    return forwards


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
        self._rng = Reseeded()

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
        if batch.stat == "sync" and self.world > 1:
            forwards = split_together(samples, batch.micro, self.rank, self.world)
        else:
            own = split_step(samples, batch.micro, self.rank, self.world, self.chunk)
            forwards = [(chunk, True) for chunk in own]
        return [self._chunk(epoch, chunk, counts) for chunk, counts in forwards]

    def _chunk(self, epoch: int, samples: list[int], counts: bool) -> Chunk:
        unreadable: list[str] = []
        read = [self._sample(epoch, i, unreadable) for i in samples]
        return Chunk(samples, self.task.collate(read), tuple(unreadable) if counts else (), counts)

    def _sample(self, epoch: int, index: int, unreadable: list[str]) -> Any:
        """Read a sample or, under ``data.on_corrupt=skip``, the next readable one of its group.

        The draws are those of the sample asked for, so that neither the steps, nor the size of a
        batch, nor what is drawn for another sample depends on what can be read.
        """
        before = len(unreadable)
        for candidate in self._candidates(index):
            try:
                rng = self._rng("augment", self.spec.seed, epoch, index)
                return self.data.sample(candidate, rng)
            except DataError as error:
                if self.spec.data.on_corrupt == "error":
                    raise
                unreadable.append(str(error))
        tried = unreadable[before:]
        raise DataError(f"{len(tried)} samples in a row cannot be read: {tried[0]}")

    def _candidates(self, index: int) -> Iterator[int]:
        """Iterate over a sample and the few that may take its place, of the same group."""
        num, groups = len(self.data), self.groups
        others = chain(range(index + 1, num), range(index))
        alike = (i for i in others if groups is None or groups[i] == groups[index])
        yield index
        yield from islice(alike, _MOST_UNREADABLE)


def feed(steps: Steps, start: int, device: torch.device | None = None) -> Iterator[list[Chunk]]:
    """Iterate over the steps from ``start`` on, prepared ahead by ``exec.workers`` processes.

    These live as long as the training: it is one pass over its steps, whatever the epochs.
    """
    numbers, options = range(start, len(steps)), steps.spec.exec
    return ahead(steps, numbers, options.workers, prefetch=options.prefetch, device=device)


class EvaluationSamples(Dataset[T]):
    """Map-style over what a split's ``evaluation_sample`` returns."""

    def __init__(self, split: EvaluationSplit[T]) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> T:
        return self.split.evaluation_sample(index)


class EvaluationSplit(Protocol[T_co]):
    """Samples as an evaluation sees them: resized as the protocol says, not augmented."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def evaluation_sample(self, index: int) -> T_co:
        """Return sample ``index``."""
        ...


def ahead(
    items: Dataset[T],
    numbers: Iterable[int],
    workers: int,
    *,
    prefetch: int = 2,
    device: torch.device | None = None,
) -> Iterator[T]:
    """Iterate over items of a map-style data set, prepared ahead by processes.

    Args:
        items: the data set.
        numbers: which of its items, in order.
        workers: processes that prepare them; 0 = in this one.
        prefetch: items that each process has ready at most.
        device: where items go next. Tensors for a GPU are put into pinned memory, from which they
            are copied while it computes.

    Raises:
        NormbenchError: as an item raises it, in its one line also out of another process.
    """
    loader = DataLoader(
        _Carried(items),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=ignore_signals,
        collate_fn=_as_is,
    )
    with held_back():  # an iterator starts its processes at once
        items_ahead = iter(loader)
    return _delivered(items_ahead)


class _Carried(Dataset["T | NormbenchError"]):
    """Brings errors for users home as values: torch would bury them in a traceback."""

    def __init__(self, items: Dataset[T]) -> None:
        self.items = items

    def __getitem__(self, number: int) -> T | NormbenchError:
        try:
            return self.items[number]
        except NormbenchError as error:
            return error


def _delivered(items: Iterator[T | NormbenchError]) -> Iterator[T]:
    try:
        for item in items:
            if isinstance(item, NormbenchError):
                raise item
            yield item
    finally:
        # Ends the processes now. An error keeps this frame alive, until the interpreter exits and
        # waits for them; torch then ends them by SIGTERM only, which they ignore.
        del items


def _as_is(item: T) -> T:
    return item
