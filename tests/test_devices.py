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
from harness.errors import DataError, Diverged, Interrupted
from harness.evaluation import evaluate as measure
from harness.feed import Steps
from harness.identity import run_id
from harness.journal import Journal
from harness.loop import Trainer
from harness.record import RunDir, read_record
from harness.registry import task_class, task_info
from harness.share import ALONE, Share
from harness.spec import build, dump_spec, parse_words
from tests.ranks import in_ranks

CPU = torch.device("cpu")
STEPS = 5
SEED = os.getpid() % 1000
Words = tuple[str, ...]

TASKS: dict[str, Words] = {
    "toy": ("batch.size=8", "data.num_train=21"),
    "classification": ("batch.size=8", "data.num_train=20", "data.num_val=20"),
    "segmentation": ("batch.size=8", "data.num_train=20", "model.width=8"),
    # BN's variance of two clouds multiplies what the order of a sum rounds by up to
    # 1/sqrt(eps) = 316 in each layer of the head; small steps keep it from growing step by step.
    "pointcloud": ("batch.size=8", "data.num_train=20", "optim.lr=1e-3"),
    "detection": ("batch.size=4", "data.num_train=10", "data.num_val=3"),
}


def words_of(task: str, *words: str) -> Words:
    preset = () if task == "toy" else ("preset=smoke",)
    steps = (f"steps={STEPS}", "precision=fp64", "exec.device=cpu", "schedule.warmup_steps=0")
    return (*preset, *steps, f"seed={SEED}", *TASKS[task], *words)


def trained(task: str, words: Words, root: Path, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Take the steps of one process of a run, as its worker does, and evaluate.

    Returns:
        The model's state, the loss of each step, and the metrics.
    """
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
    share = Share(ranks) if ranks.world > 1 else ALONE
    with torch.no_grad():
        metrics = working.evaluate(model.eval(), CPU, lambda *_: None, share)
    values = [[metric.value, metric.n_eval] for metric in metrics]
    state["metrics"] = torch.tensor(values, dtype=torch.float64)
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
        tolerance = 1e-6 if value.dtype == torch.float32 else most
        torch.testing.assert_close(value, b[name], rtol=tolerance, atol=tolerance, msg=name)


SPLITS = {
    "gn_ws": [(1, 8), (1, 1), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2)],
    "gn": [(1, 8), (2, 2), (4, 1)],
    "ln_ws": [(1, 8), (2, 1), (4, 2)],
}
"""World and micro-batch; the rest of 8 images is accumulation."""


def test_the_toy_in_every_split_and_with_every_statistic(toy, tmp_path):
    literal = "exec.chunk=micro"
    cases = [
        (world, (f"norm={norm}", f"batch.micro={micro}", literal))
        for norm, splits in SPLITS.items()
        for world, micro in splits
    ]
    bn = {
        "micro": [(w, ("norm=bn_ws", "batch.micro=2")) for w in (1, 2, 4)],
        "ghost": [(w, ("norm=bn_ws", "batch.micro=4", "batch.stat=ghost:2")) for w in (1, 2)],
        "one": [(w, ("norm=bn", "batch.micro=1", literal)) for w in (1, 4)],
        "alone 4": [(1, ("norm=bn_ws", "batch.micro=4"))],
        "alone 8": [(1, ("norm=bn_ws", "batch.micro=8"))],
        "sync 4": [(w, ("norm=bn_ws", f"batch.micro={4 // w}", "batch.stat=sync")) for w in (2, 4)],
        "sync 8": [(w, ("norm=bn_ws", f"batch.micro={8 // w}", "batch.stat=sync")) for w in (2, 4)],
    }
    found = compute("toy", [*cases, *(case for group in bn.values() for case in group)], tmp_path)
    for norm in SPLITS:
        own = [state for (_, words), state in found.items() if words[0] == f"norm={norm}"]
        whole, *others = own
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


@pytest.mark.parametrize("task", ["classification", "segmentation", "pointcloud"])
def test_a_task_does_not_depend_on_its_devices(task, tmp_path):
    """Over other splits too, since the images of these batches do not influence each other."""
    cases: dict[str, list[tuple[int, Words]]] = {
        "gn_ws": [
            (1, ("norm=gn_ws", "batch.micro=8")),
            (2, ("norm=gn_ws", "batch.micro=2")),
            (4, ("norm=gn_ws", "batch.micro=2")),
        ],
        "gn": [(1, ("norm=gn", "batch.micro=2")), (2, ("norm=gn", "batch.micro=4"))],
        "ln_ws": [(1, ("norm=ln_ws", "batch.micro=8")), (4, ("norm=ln_ws", "batch.micro=1"))],
        "sync": [
            (1, ("norm=bn_ws", "batch.micro=4")),
            (2, ("norm=bn_ws", "batch.micro=2", "batch.stat=sync")),
        ],
        "micro": [(w, ("norm=bn_ws", "batch.micro=2")) for w in (1, 2)],
        "ghost": [(2, ("norm=bn_ws", "batch.micro=4", "batch.stat=ghost:2"))],
    }
    found = compute(task, [case for group in cases.values() for case in group], tmp_path)
    states = {name: [found[case] for case in group] for name, group in cases.items()}
    of_two = 1e-8 if task == "pointcloud" else 1e-10  # the amplification said above
    for name, group in states.items():
        for other in group[1:]:
            assert_equal(group[0], other, of_two if name == "micro" else 1e-10)
    assert_equal(states["micro"][0], states["ghost"][0], of_two)
    assert difference(states["micro"][0], states["sync"][0]) > 1e-4


def test_detection_does_not_depend_on_its_devices(tmp_path):
    """The same forwards elsewhere are the same numbers; other forwards are so within a residual.

    docs/detection.md has that of a gradient with loss.normalizer=image; five steps carry it on.
    """
    image = "loss.normalizer=image"
    same = [
        [(w, ("norm=gn_ws", "batch.micro=1")) for w in (1, 2, 4)],
        [(w, ("norm=gn", "batch.micro=2")) for w in (1, 2)],
        [(w, ("norm=ln_ws", "batch.micro=1")) for w in (1, 4)],
        [(w, ("norm=bn_ws", "batch.micro=2")) for w in (1, 2)],
    ]
    other = [
        [(1, ("norm=gn_ws", "batch.micro=4", image)), (4, ("norm=gn_ws", "batch.micro=1", image))],
        [
            (1, ("norm=bn_ws", "batch.micro=2", image)),
            (2, ("norm=bn_ws", "batch.micro=1", "batch.stat=sync", image)),
        ],
    ]
    found = compute("detection", [case for group in (*same, *other) for case in group], tmp_path)
    for state in found.values():
        state["losses"] = state["losses"].float()  # detectron2 computes some of them in float32
    for group in same:
        for case in group[1:]:
            assert_equal(found[group[0]], found[case], 1e-10)
    for first, second in other:
        assert difference(found[first], found[second]) < 1e-6


class Once:
    """A stop request that comes after ``after`` steps; None never."""

    def __init__(self, after: int | None) -> None:
        self.after, self.looks = after, 0

    def __bool__(self) -> bool:
        self.looks += 1
        return self.after is not None and self.looks >= self.after

    def error(self, saved: str) -> Interrupted:
        return Interrupted(saved)


def sitting(folder: Path, world: int, words: Words, after: int | None, number: int) -> RunDir:
    """Make a part of a toy run in ``world`` processes, from where the one before it stopped."""
    spec = build("toy", parse_words([*words, f"devices={world}", "exec.device=cpu"]))
    run = RunDir(folder, run_id(spec))
    run.path.mkdir(parents=True, exist_ok=True)
    run.spec.write_text(dump_spec(spec))

    def work() -> bool:
        try:
            worker.run_spec(spec, run, folder, Once(after))
        except Interrupted:
            return True
        return False

    stopped = [work()] if world == 1 else in_ranks(world, work, folder / f"sitting{number}")
    assert stopped == [after is not None] * world
    return run


@pytest.mark.parametrize(
    ("norm", "alone", "shared"),
    [
        ("gn_ws", ("batch.micro=8",), {2: ("batch.micro=2",), 4: ("batch.micro=1",)}),
        ("bn_ws", ("batch.micro=2",), {2: ("batch.micro=2",), 4: ("batch.micro=2",)}),
        (
            "bn",
            ("batch.micro=4",),
            {2: ("batch.micro=2", "batch.stat=sync"), 4: ("batch.micro=1", "batch.stat=sync")},
        ),
    ],
)
def test_a_run_goes_on_with_another_number_of_devices(toy, tmp_path, norm, alone, shared):
    words = (f"norm={norm}", "data.num_train=21", "steps=6", f"seed={SEED}")
    whole = sitting(tmp_path / "whole", 1, (*words, *alone), None, 0)
    parts = tmp_path / "parts"
    runs = [
        sitting(parts, 2, (*words, *shared[2]), 2, 1),
        sitting(parts, 4, (*words, *shared[4]), 1, 2),
        sitting(parts, 1, (*words, *alone), 1, 3),
        sitting(parts, 2, (*words, *shared[2]), None, 4),
    ]
    assert {run.id for run in runs} == {whole.id}
    a, b = (torch.load(run.checkpoint, weights_only=True)["model"] for run in (whole, runs[-1]))
    assert_equal(a, b, 1e-10)
    first, second = read_record(whole.record), read_record(runs[-1].record)
    assert first.metrics == second.metrics
    assert (first.num_resumed, second.num_resumed) == (0, 3)


def test_all_ranks_hear_of_one_that_cannot_go_on(toy, tmp_path):
    """A library that refuses a number on one rank, and an image that one rank cannot read."""
    spec = build("toy", parse_words(["devices=2", "batch.micro=2", "exec.device=cpu"]))

    def work() -> list[str]:
        ranks = Ranks(CPU)
        working = task_class(task_info("toy"))(spec, tmp_path)
        model, _ = worker.build_model(working, spec)
        trainer = Trainer(working, model.double().train(), spec, ranks, CPU, chunk=4)
        data = working.train_data()
        steps = Steps(working, data, spec, chunk=4, rank=ranks.rank, world=2)
        heard = []
        if ranks.rank == 1:
            loss, calls = working.loss, iter([True])

            def refuse(model: Any, batch: Any) -> Any:
                if next(calls, False):
                    raise FloatingPointError
                return loss(model, batch)

            working.loss = refuse
        try:
            trainer.step(steps[0], 0)
        except Diverged as error:
            heard.append(str(error))
        trainer.optimizer.zero_grad()
        trainer.step(steps[0], 0)
        if ranks.rank == 1:

            def evaluate(*_: Any) -> Any:
                raise DataError("7.png is broken")

            working.evaluate = evaluate
        try:
            measure(trainer, Journal(RunDir(tmp_path, "x").metrics, 0, False), Once(None))
        except DataError as error:
            heard.append(str(error))
        ranks.close()
        return heard

    for first, second in in_ranks(2, work, tmp_path / "ranks"):
        assert "at step 0 is not finite" in first
        assert second == "7.png is broken"


def test_a_gpu_is_chosen_before_its_group_is_joined(monkeypatch):
    """NCCL's collectives of objects go through the current GPU; here it is only asked for."""
    calls: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend, **told: calls.append((backend, told["device_id"])),
    )
    second = torch.device("cuda", 1)
    Ranks(second)
    Ranks(CPU)
    assert calls == [second, ("nccl", second), ("gloo", None)]
