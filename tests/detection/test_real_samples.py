"""The whole task on real COCO images: two steps of training, evaluation, and the data check."""

from pathlib import Path

import pytest
import torch

from harness.distributed import Ranks
from harness.feed import Steps, feed
from harness.loop import Trainer
from harness.registry import task_info
from harness.spec import build
from harness.worker import build_model
from tests.detection.conftest import detection_spec, detection_task

# pycocotools 2.0.11 under NumPy 2: `decode` warns, and its result is right.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("micro", [1, 2])
def test_two_steps_and_an_evaluation(coco_samples: Path, micro: int) -> None:
    words = [f"data={coco_samples}", "steps=2", "batch.size=4", f"batch.micro={micro}"]
    sizes = ["data.min_size=96", "data.max_size=160", "schedule.warmup_steps=0"]
    spec = detection_spec("preset=smoke", *words, *sizes)
    task = detection_task(spec)
    assert len(task.category_ids) == 80
    model, audit = build_model(task, spec)
    assert audit.num_standardised == audit.num_norm_sites
    cpu = torch.device("cpu")
    trainer = Trainer(task, model, spec, Ranks(cpu), cpu, chunk=micro)
    steps = Steps(task, task.train_data(), spec, chunk=micro, rank=0, world=1)
    model.train()
    for step, window in enumerate(feed(steps, 0)):
        parts = trainer.step(window, step)
        assert parts.keys() == task.counts([]).keys()
    metrics = {m.name: m for m in task.evaluate(model, cpu, lambda *_: None)}
    assert metrics["mask_AP"].n_eval == 40
    assert 0 <= metrics["box_AP"].value < 50


def test_every_training_image_can_be_read(coco_samples: Path) -> None:
    import numpy as np

    task = detection_task(detection_spec("preset=smoke", f"data={coco_samples}"))
    data = task.train_data()
    for index in range(len(data)):
        sample = data.sample(index, np.random.RandomState(index))
        assert len(sample["instances"]) > 0


def test_the_check_finds_the_samples_sound(coco_samples: Path) -> None:
    report = task_info("detection").check(detection_spec(f"data={coco_samples}"), lambda *_: None)
    assert list(report.problems) == []
    assert report.facts["val2017 images"].startswith("40 ")


def test_the_published_protocol_needs_the_official_counts(coco_samples: Path) -> None:
    spec = build("detection", [("preset", "paper"), ("data", str(coco_samples))])
    report = task_info("detection").check(spec, lambda *_: None)
    assert any("lists 60 images, COCO 2017 has 118,287" in problem for problem in report.problems)
