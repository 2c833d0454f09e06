"""The whole task on real ImageNet pictures: two steps of training, evaluation, the data check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.chunk import resolve_chunk
from harness.distributed import Ranks
from harness.feed import Steps, feed
from harness.loop import Trainer
from harness.registry import task_info
from harness.worker import build_model
from tasks.classification.show import show
from tests.classification.conftest import classification_spec, classification_task

INFO = task_info("classification")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "words",
    [
        ("preset=mini", "data.size=64", "norm=bn", "batch.micro=1"),
        ("preset=paper", "norm=gn_ws", "batch.size=4", "batch.micro=2", "data.size=64"),
    ],
)
def test_two_steps_and_an_evaluation(imagenet_samples: Path, words: tuple[str, ...]) -> None:
    spec = classification_spec(*words, f"data={imagenet_samples}", "steps=2")
    task = classification_task(spec)
    assert task.num_classes == 10
    model, audit = build_model(task, spec)
    assert audit.num_standardised == (audit.num_norm_sites if spec.norm.ws else 0)
    chunk = resolve_chunk(spec, INFO)
    trainer = Trainer(task, model.train(), spec, Ranks(CPU), CPU, chunk=chunk)
    steps = Steps(task, task.train_data(), spec, chunk=chunk, rank=0, world=1)
    for step, window in enumerate(feed(steps, 0)):
        parts = trainer.step(window, step)
        assert np.isfinite(parts["loss_ce"])
    metrics = {m.name: m for m in task.evaluate(model, CPU, lambda *_: None)}
    assert metrics["top1_acc"].n_eval == 40
    assert metrics["top5_acc"].value >= metrics["top1_acc"].value


def test_every_picture_can_be_read_the_greyscale_one_too(imagenet_samples: Path) -> None:
    task = classification_task(classification_spec("preset=paper", f"data={imagenet_samples}"))
    data = task.train_data()
    grey = 0
    for index in range(len(data)):
        pixels, _ = data.sample(index, np.random.RandomState(index))
        assert pixels.shape == (3, 224, 224)
        grey += bool((pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all())
    assert grey >= 1


def test_the_check_finds_the_samples_sound(imagenet_samples: Path, tmp_path: Path) -> None:
    spec = classification_spec(f"data={imagenet_samples}")
    report = INFO.check(spec, lambda *_: None)
    assert list(report.problems) == []
    assert report.facts["val pictures"].startswith("40 ")
    assert INFO.dataset(spec) == "imagenet"
    show(imagenet_samples, "val", tmp_path / "out.png")
    paper = classification_spec("preset=paper", f"data={imagenet_samples}")
    problems = INFO.check(paper, lambda *_: None).problems
    assert any("holds 10 classes" in problem for problem in problems)
