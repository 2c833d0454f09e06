"""Data order and micro-batches as arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory

from harness import feed
from harness.errors import UsageError
from harness.feed import (
    Chunk,
    EvaluationSamples,
    ahead,
    grouped_order,
    split_step,
    step_samples,
    steps_per_epoch,
)
from harness.rng import Reseeded, derive, epoch_order, numpy_rng


def test_an_epoch_visits_every_sample_once_and_keeps_the_tail():
    steps = [step_samples(20, 8, seed=0, step=s) for s in range(3)]
    assert [len(samples) for _, samples in steps] == [8, 8, 4]
    assert sorted(i for _, samples in steps for i in samples) == list(range(20))
    assert step_samples(20, 8, 0, 3)[0] == 1


def test_a_dropped_tail_ends_the_epoch_early():
    steps = [step_samples(20, 8, seed=0, step=s, tail="drop") for s in range(4)]
    assert [epoch for epoch, _ in steps] == [0, 0, 1, 1]
    assert [len(samples) for _, samples in steps] == [8, 8, 8, 8]
    assert steps[0] == step_samples(20, 8, seed=0, step=0)  # the order is the same
    assert len({i for _, samples in steps[:2] for i in samples}) == 16


@pytest.mark.parametrize(
    ("num", "size", "tail", "steps"),
    [
        (1_281_167, 256, "drop", 5_004),  # ImageNet, ResNet-50
        (1_281_167, 128, "drop", 10_009),  # ImageNet, the deeper ones
        (10_582, 16, "keep", 662),  # VOC train_aug
        (16, 16, "drop", 1),
        (15, 16, "keep", 1),
    ],
)
def test_steps_per_epoch_of_the_recipes(num, size, tail, steps):
    assert steps_per_epoch(num, size, tail) == steps


def test_a_dropped_tail_that_is_all_there_is_is_refused():
    with pytest.raises(UsageError, match=r"15 training samples, fewer than batch\.size=16"):
        steps_per_epoch(15, 16, "drop")


def test_epochs_and_seeds_differ():
    assert list(epoch_order(0, 0, 50)) != list(epoch_order(0, 1, 50))
    assert list(epoch_order(0, 0, 50)) != list(epoch_order(1, 0, 50))


@given(num=st.integers(1, 40), micro=st.integers(1, 9), world=st.integers(1, 5))
def test_split_keeps_every_sample_in_order_over_the_ranks(num, micro, world):
    samples = list(range(num))
    shares = [split_step(samples, micro, rank, world) for rank in range(world)]
    chunks = [chunk for share in shares for chunk in share]
    assert [i for chunk in chunks for i in chunk] == samples
    assert all(len(chunk) == micro for chunk in chunks[:-1])


@given(
    groups=st.binary(min_size=1, max_size=60).map(lambda b: bytes(x % 3 for x in b)),
    micro=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_grouped_micro_batches_hold_one_group_and_lose_nothing(groups, micro, epoch):
    order = grouped_order(7, epoch, groups, micro).tolist()
    assert sorted(order) == list(range(len(groups)))
    plain = epoch_order(7, epoch, len(groups)).tolist()
    whole = sum(groups.count(g) // micro for g in set(groups)) * micro
    blocks = [order[i : i + micro] for i in range(0, whole, micro)]
    assert all(len({groups[i] for i in block}) == 1 for block in blocks)
    # As near to the plain order as may be: within a group, and among blocks by their first.
    for group in set(groups):
        own = [i for block in blocks for i in block if groups[i] == group]
        assert own == [i for i in plain if groups[i] == group][: len(own)]
    firsts = [plain.index(block[0]) for block in blocks]
    assert firsts == sorted(firsts)
    assert [plain.index(i) for i in order[whole:]] == sorted(plain.index(i) for i in order[whole:])


def test_groups_change_the_order_of_nothing_else():
    groups = bytes(i % 2 for i in range(50))
    assert grouped_order(0, 0, groups, 1).tolist() == epoch_order(0, 0, 50).tolist()
    assert grouped_order(0, 0, bytes(50), 4).tolist() == epoch_order(0, 0, 50).tolist()
    steps = [step_samples(50, 8, 3, step, groups=groups, micro=2) for step in range(7)]
    assert [epoch for epoch, _ in steps] == [0] * 7
    assert [i for _, samples in steps for i in samples] == grouped_order(3, 0, groups, 2).tolist()
    micros = [m for _, samples in steps[:-1] for m in split_step(samples, 2, 0, 1)]
    assert all(groups[a] == groups[b] for a, b in micros)


def test_streams_are_frozen():
    """Golden values: the data order and the augmentation of every published run depend on them."""
    assert derive("order", 0, 0) == 8588683713679869937
    assert epoch_order(0, 0, 8).tolist() == [4, 5, 1, 2, 3, 0, 7, 6]
    assert numpy_rng("augment", 0, 0, 3).rand() == 0.6630302725729846


def test_a_reseeded_generator_has_the_streams_of_new_ones():
    again = Reseeded()
    for key in (("augment", 0, 0, 3), ("augment", 0, 0, 4), ("augment", 0, 0, 3)):
        one, other = again(*key), numpy_rng(*key)
        for rng in (one, other):
            rng.normal()  # leaves half a pair of normals behind
        assert one.normal() == other.normal()
        assert one.randint(0, 1000, 5).tolist() == other.randint(0, 1000, 5).tolist()
        one.normal()  # the other half must not reach the next key


class Numbers:
    """Three tensors, as a data set and as what an evaluation sees."""

    def __len__(self) -> int:
        return 3

    def evaluation_sample(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.full((2,), index)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_samples_come_in_order(workers: int):
    found = list(ahead(EvaluationSamples(Numbers()), range(3), workers, prefetch=1))
    assert [index for index, _ in found] == [0, 1, 2]
    assert [value.tolist() for _, value in found] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_a_gpu(device: str, pinned: bool, monkeypatch: pytest.MonkeyPatch):
    made: list[dict[str, object]] = []

    def loader(items: object, **options: object) -> list[object]:
        made.append(options)
        return []

    monkeypatch.setattr(feed, "DataLoader", loader)
    list(ahead(EvaluationSamples(Numbers()), range(3), 2, prefetch=5, device=torch.device(device)))
    assert (made[0]["pin_memory"], made[0]["prefetch_factor"]) == (pinned, 5)


def test_the_loader_finds_the_tensors_of_a_chunk(monkeypatch: pytest.MonkeyPatch):
    """What torch's loader does to pin, less the GPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, device=None: self + 1)
    (chunk,) = pin_memory([Chunk([4], (torch.zeros(2), {"x": torch.zeros(1)}), ("why",))])
    assert isinstance(chunk, Chunk)
    assert (chunk.samples, chunk.unreadable) == ([4], ("why",))
    assert chunk.batch[0].tolist() == [1, 1]
    assert chunk.batch[1]["x"].tolist() == [1]
