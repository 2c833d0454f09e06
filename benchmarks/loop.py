"""What the harness's loop costs beside one written by hand, and how long its command line takes.

    python -m benchmarks.loop [step] [train] [save] [start] [--rounds 30]

`step` is one optimiser step on data that are there, `train` ten of them with everything around but
the checkpoint: fetching, collating, progress. `save` is a checkpoint, with its checksums, beside
`torch.save`; a run writes one a minute, and reads the one before. Both loops have the same network,
pictures, optimiser and clipping, and as many forwards. The one by hand reads its loss and its norm
once a step, as one does who cares. `by hand again` is a second copy: what it differs by is noise.
`start` is `normbench --help` by the clock, in a process of its own.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks import paired
from benchmarks.classifier import Pictures, trainer_of
from benchmarks.paired import Bench
from harness import checkpoint
from harness.checkpoint import Progress
from harness.errors import Interrupted
from harness.feed import Chunk
from harness.loop import Trainer, train
from harness.optim import build_optimizer
from harness.record import RunDir
from harness.schema import Spec

GOAL = 1.02
START_GOAL_S = 0.3
CLIP = 1.0
NETWORKS = {
    "mini, 16 forwards of 1": ("batch.size=16", "batch.micro=1", "exec.chunk=micro"),
    "mini, 1 forward of 16": ("batch.size=16", "batch.micro=1", "exec.chunk=16"),
    "ResNet-50, 64 px, 4 forwards of 1": (
        "model.name=resnet50",
        "data.size=64",
        "norm.groups=32",
        "batch.size=4",
        "batch.micro=1",
        "exec.chunk=micro",
    ),
}
"""Network and window: the words that make them."""
QUICK = {"mini, 2 forwards of 1": ("batch.size=2", "batch.micro=1", "exec.chunk=micro")}
STEPS = 10


def words_of(network: tuple[str, ...]) -> list[str]:
    settings = (f"optim.clip_norm={CLIP}", f"steps={STEPS}", "schedule.warmup_steps=0")
    return ["norm=gn", *settings, *network]


Windows = list[tuple[Tensor, Tensor]]


class ByHand:
    """A loop as one writes it for one experiment."""

    def __init__(self, model: nn.Module, spec: Spec, device: torch.device) -> None:
        self.model, self.device = model, device
        self.optimizer = build_optimizer(model, spec.optim)
        self.steps = spec.steps
        self.mean = torch.tensor(spec.data.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(spec.data.std, device=device).view(1, 3, 1, 1)

    def step(self, window: Windows, number: int) -> float:
        total = sum(len(labels) for _, labels in window)
        running = torch.zeros((), device=self.device)
        for pixels, labels in window:
            pixels, labels = pixels.to(self.device), labels.to(self.device)
            images = pixels.float().div_(255).sub_(self.mean).div_(self.std)
            loss = F.cross_entropy(self.model(images), labels, reduction="sum") / total
            loss.backward()
            running += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        read, size = torch.stack([running, norm]).tolist()
        if not math.isfinite(read + size):
            raise FloatingPointError(f"step {number}: loss {read}, norm {size}")
        factor = (1 + math.cos(math.pi * number / self.steps)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return read

    def train(self, pictures: Pictures, micro: int, forwards: int) -> None:
        batches = self._batches(pictures, micro)
        for number in range(self.steps):
            self.step([next(batches) for _ in range(forwards)], number)

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, path)

    def _batches(self, pictures: Pictures, micro: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from DataLoader(pictures, batch_size=micro, shuffle=True, drop_last=True)


def pair(network: tuple[str, ...], device: torch.device) -> tuple[Trainer, list[Chunk], ByHand]:
    """Return the trainer, its first window, and the loop by hand on a network of its own."""
    words = words_of(network)
    trainer, steps = trainer_of(words, device)
    other, _ = trainer_of(words, device)
    return trainer, steps[0], ByHand(other.model, other.spec, device)


def step(bench: Bench) -> None:
    """Compare optimiser steps."""
    for name, network in (QUICK if bench.quick else NETWORKS).items():
        trainer, window, by_hand = pair(network, bench.device)
        again = pair(network, bench.device)[2]
        batches = [chunk.batch for chunk in window]
        cases = {
            "by hand": partial(by_hand.step, batches, 0),
            "by hand again": partial(again.step, batches, 0),
            "ours": partial(trainer.step, window, 0),
        }
        bench.compare("step", name, cases, warm_up=3, goals={"ours": GOAL})


class Never:
    """A stop request that nobody makes."""

    def __bool__(self) -> bool:
        return False

    def error(self, saved: str) -> Interrupted:
        return Interrupted(saved)


def ours(trainer: Trainer, run: RunDir) -> None:
    """Train from the first step to the last, without the checkpoint at the end."""
    trainer.progress = Progress(threads=1, chunk=trainer.progress.chunk)
    with mock.patch.object(checkpoint, "save"):
        train(trainer, run, Never(), lambda row: None, lambda: None)


def whole(bench: Bench) -> None:
    """Compare whole loops."""
    for name, network in (QUICK if bench.quick else NETWORKS).items():
        if not bench.wants("train", f"{name}, {STEPS} steps"):
            continue
        trainer, window, by_hand = pair(network, bench.device)
        pictures = trainer.task.train_data()
        micro, forwards = len(window[0].samples), len(window)
        cases: dict[str, Callable[[], object]] = {
            "by hand": partial(by_hand.train, pictures, micro, forwards),
            "ours": partial(ours, trainer, RunDir(Path(), "unused")),
        }
        rounds = -(-bench.rounds // 5)
        goals = {"ours": GOAL}
        bench.compare("train", f"{name}, {STEPS} steps", cases, rounds=rounds, goals=goals)


def save(bench: Bench) -> None:
    """Compare checkpoints of the largest network."""
    network = list((QUICK if bench.quick else NETWORKS).values())[-1]
    trainer, window, by_hand = pair(network, bench.device)
    trainer.step(window, 0)  # the optimiser has its averages from the first step on
    by_hand.step([chunk.batch for chunk in window], 0)
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "checkpoint.pt", Path(folder) / "by_hand.pt"
        written = None

        def ours() -> None:
            nonlocal written
            written = checkpoint.save(one, "id", trainer.progress, trainer.state(), written)

        cases = {
            "torch.save": partial(by_hand.save, other),
            "ours": ours,
        }
        size = f"{sum(p.numel() for p in by_hand.model.parameters()):,} weights, AdamW"
        bench.compare("save", size, cases, rounds=-(-bench.rounds // 5))


def start(bench: Bench) -> None:
    """Time ``normbench --help``, beside an interpreter that does nothing."""
    if bench.device.type != "cpu":
        bench.without("the command line does not use a GPU: without `start`")
        return
    script = shutil.which("normbench", path=str(Path(sys.executable).parent))
    command = [script] if script else [sys.executable, "-m", "harness"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "normbench --help": [*command, "--help"],
    }
    if not bench.wants("start", "by the clock"):
        return
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(bench.rounds + 1):
        for name, words in commands.items():
            began = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            if turn:
                times[name].append(time.perf_counter() - began)
    goals = {"normbench --help": START_GOAL_S}
    bench.record("start", "by the clock", "s", times, goals=goals, alone=True)


PARTS = {"step": step, "train": whole, "save": save, "start": start}
ROUNDS = 30

if __name__ == "__main__":
    paired.main("loop", __doc__, PARTS, rounds=ROUNDS)
