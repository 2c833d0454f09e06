"""`devices=N` changes no number: 1, 2 and 4 gloo processes, in float64, after five steps.

The data of an epoch are no multiple of the batch, so that its last step leaves processes with less
than the others, or with nothing; dropout and augmentation are on. Seeds differ at every call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import worker
from harness.chunk import resolve_chunk
from harness.distributed import Ranks
from harness.feed import Steps
from harness.identity import run_id
from harness.loop import Trainer
from harness.registry import task_class, task_info
from harness.spec import build, parse_words
from tests.ranks import in_ranks

CPU = torch.device("cpu")
STEPS = 5
SEED = os.getpid() % 1000
Words = tuple[str, ...]

TASKS: dict[str, Words] = {
    "toy": ("batch.size=8", "data.num_train=21"),
    "classification": ("batch.size=8", "data.num_train=20", "data.num_val=20"),
    "segmentation": ("batch.size=8", "data.num_train=20", "model.width=8"),
    "pointcloud": ("batch.size=8", "data.num_train=20"),
    "detection": ("batch.size=4", "data.num_train=10", "data.num_val=1"),
}


def words_of(task: str, *words: str) -> Words:
    preset = () if task == "toy" else ("preset=smoke",)
    steps = (f"steps={STEPS}", "precision=fp64", "exec.device=cpu", "schedule.warmup_steps=0")
    return (*preset, *steps, f"seed={SEED}", *TASKS[task], *words)


def trained(task: str, words: Words, root: Path, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Take the steps of one process of a run, as its worker does; return the model's state."""
    spec = build(task, parse_words(words))
    info = task_info(task)
    working = task_class(info)(spec, root)
    model, _ = worker.build_model(working, spec)
    model = worker._placed(model, spec, CPU).train()
    chunk = resolve_chunk(spec, info)
    trainer = Trainer(working, model, spec, ranks, CPU, chunk=chunk)
    data = working.train_data()
    steps = Steps(working, data, spec, chunk=chunk, rank=ranks.rank, world=ranks.world)
    state: dict[str, Any] = {}
    losses = [trainer.step(steps[step], step) for step in range(STEPS)]
    state |= {name: value.clone() for name, value in model.state_dict().items()}
    state["losses"] = torch.tensor([sum(parts.values()) for parts in losses], dtype=torch.float64)
    return state


Result = dict[tuple[int, Words], dict[str, torch.Tensor]]


def compute(task: str, cases: Iterable[tuple[int, Words]], folder: Path) -> Result:
    """Return the state after the steps of each (number of processes, words), of rank 0.

    All ranks must end in the same state.
    """
    cases = list(dict.fromkeys(cases))
    info = task_info(task)
    root = info.prepare(build(task, parse_words(words_of(task))), lambda *_: None)
    results: Result = {}
    for world in sorted({world for world, _ in cases}):
        own = [words for number, words in cases if number == world]

        def work(world: int = world, own: list[Words] = own) -> list[dict[str, torch.Tensor]]:
            ranks = Ranks(CPU)
            found = [
                trained(task, words_of(task, f"devices={world}", *words), root, ranks)
                for words in own
            ]
            ranks.close()
            return found

        every = [work()] if world == 1 else in_ranks(world, work, folder / str(world))
        for number, words in enumerate(own):
            for other in every[1:]:
                assert_equal(every[0][number], other[number], 0.0)
            results[world, words] = every[0][number]
    return results


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any weight or average, relative to the largest one."""
    assert a.keys() == b.keys()
    top = max(float(value.double().abs().max()) for value in a.values())
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a) / top


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], most: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=most, atol=most, msg=name)


NORMS = ("gn", "gn_ws", "ln_ws")
SPLITS = [(1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2)]
"""World and micro-batch; the rest of 8 images is accumulation."""


def test_the_toy_in_every_split_and_with_every_statistic(toy, tmp_path):
    LITERAL = "exec.chunk=micro"
    cases = [
        (world, (f"norm={norm}", f"batch.micro={micro}", LITERAL))
        for norm in NORMS
        for world, micro in SPLITS
    ]
    bn = {
        "micro": [(w, ("norm=bn_ws", "batch.micro=2")) for w in (1, 2, 4)],
        "ghost": [(w, ("norm=bn_ws", "batch.micro=4", "batch.stat=ghost:2")) for w in (1, 2)],
        "cumulative": [(w, ("norm=bn", "batch.micro=1", LITERAL)) for w in (1, 4)],
        "alone 4": [(1, ("norm=bn_ws", "batch.micro=4"))],
        "alone 8": [(1, ("norm=bn_ws", "batch.micro=8"))],
        "sync 4": [
            (w, ("norm=bn_ws", f"batch.micro={4 // w}", "batch.stat=sync")) for w in (2, 4)
        ],
        "sync 8": [
            (w, ("norm=bn_ws", f"batch.micro={8 // w}", "batch.stat=sync")) for w in (2, 4)
        ],
    }
    found = compute("toy", [*cases, *(case for group in bn.values() for case in group)], tmp_path)
    for norm in NORMS:
        whole, *others = (state for (_, words), state in found.items() if words[0] == f"norm={norm}")
        for other in others:
            assert_equal(whole, other, 1e-10)
    states = {name: [found[case] for case in group] for name, group in bn.items()}
    for group in states.values():
        for other in group[1:]:
            assert_equal(group[0], other, 1e-10)
    for size in (4, 8):
        (alone,) = states[f"alone {size}"]
        assert_equal(alone, states[f"sync {size}"][0], 1e-10)
    # Counters aside: a ghost batch is a micro-batch to every number.
    assert_equal(states["micro"][0], states["ghost"][0], 1e-10)
    a, b, c = (states[name][0] for name in ("micro", "alone 4", "alone 8"))
    assert min(difference(a, b), difference(b, c)) > 1e-4
