"""The classification task on pictures that are decoded already, for what measures the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.chunk import resolve_chunk
from harness.distributed import Ranks
from harness.feed import Steps
from harness.loop import Trainer
from harness.registry import task_info
from harness.spec import build, parse_words
from harness.worker import build_model
from tasks.classification.embedded import NUM_CLASSES
from tasks.classification.task import ClassificationTask


class Pictures(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Random bytes in memory, (3, size, size) each; ``harness.task.TrainData``, too."""

    def __init__(self, num: int, size: int) -> None:
        draws = torch.Generator().manual_seed(0)
        shape = (num, 3, size, size)
        self.pixels = torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8)
        self.labels = torch.randint(0, NUM_CLASSES, (num,), generator=draws)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.labels[index]

    def sample(self, index: int, rng: Any) -> tuple[Tensor, int]:
        return self.pixels[index], int(self.labels[index])


class Decoded(ClassificationTask):
    """The task with such pictures as training data."""

    root: Path | None = None

    def train_data(self) -> Pictures:  # type: ignore[override]
        return Pictures(self.spec.data.num_train, self.data.size)


def trainer_of(words: list[str], device: torch.device) -> tuple[Trainer, Steps]:
    """Return the trainer and the steps of a classification spec, as a worker has them."""
    spec = build("classification", parse_words([*words, "data.num_train=64"]))
    info = task_info(spec.task)
    task = Decoded(spec, None)
    model, _ = build_model(task, spec)
    chunk = resolve_chunk(spec, info)
    model = model.to(device).train()
    trainer = Trainer(task, model, spec, Ranks(device), device, chunk=chunk)
    return trainer, Steps(task, task.train_data(), spec, chunk=chunk, rank=0, world=1)
