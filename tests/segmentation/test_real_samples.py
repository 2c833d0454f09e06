"""The whole task on real VOC images in both layouts: two steps of training, then evaluation."""

from pathlib import Path

import pytest
import torch

from harness.distributed import Ranks
from harness.feed import Steps, feed
from harness.loop import Trainer
from harness.registry import task_info
from harness.rng import numpy_rng
from harness.spec import build
from harness.worker import build_model
from tasks.segmentation.task import SegmentationTask
from tests.segmentation.conftest import segmentation_spec, segmentation_task

LAYOUTS = {"train": 60, "train_aug": 80}


def words_for(samples: Path, train_set: str) -> list[str]:
    return ["preset=smoke", f"data={samples}", f"data.train_set={train_set}", "data.crop=129"]


@pytest.mark.parametrize(("train_set", "norm"), [("train", "bn"), ("train_aug", "gn_ws")])
def test_two_steps_and_an_evaluation(voc_samples: Path, train_set: str, norm: str) -> None:
    spec = segmentation_spec(*words_for(voc_samples, train_set), f"norm={norm}", "steps=2")
    task = segmentation_task(spec)
    assert (task.num_classes, len(task.train_data())) == (21, LAYOUTS[train_set])
    model, _ = build_model(task, spec)
    cpu = torch.device("cpu")
    trainer = Trainer(task, model.train(), spec, Ranks(cpu), cpu, chunk=2)
    steps = Steps(task, task.train_data(), spec, chunk=2, rank=0, world=1)
    for step, window in enumerate(feed(steps, 0)):
        assert 0 < trainer.step(window, step)["loss_ce"] < 10
    metrics = {m.name: m for m in task.evaluate(model, cpu, lambda *_: None)}
    assert metrics["mIoU"].n_eval == 40
    assert 0 <= metrics["mIoU"].value < 30
    assert "all 21 classes" in metrics["mIoU"].protocol


def test_every_pair_can_be_read(voc_samples: Path) -> None:
    task = segmentation_task(segmentation_spec(*words_for(voc_samples, "train_aug")))
    data = task.train_data()
    seen = set()
    for index in range(len(data)):
        image, mask = data.sample(index, numpy_rng(index))
        assert image.shape[1:] == mask.shape == (129, 129)
        seen.update(mask.unique().tolist())
    assert 255 in seen
    assert len(seen) > 15


def test_both_layouts_hold_the_same_val(voc_samples: Path) -> None:
    found = []
    for train_set in LAYOUTS:
        spec = segmentation_spec(*words_for(voc_samples, train_set))
        images = SegmentationTask(spec, task_info("segmentation").data_root(spec))._val_images
        found.append([images.evaluation_sample(i)[1] for i in range(0, len(images), 8)])
    assert all((a == b).all() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("train_set", LAYOUTS)
def test_the_check_finds_the_samples_sound(voc_samples: Path, train_set: str) -> None:
    spec = segmentation_spec(f"data={voc_samples}", f"data.train_set={train_set}")
    report = task_info("segmentation").check(spec, lambda *_: None)
    assert list(report.problems) == []
    assert report.facts["train_aug"] == "80 pairs (VOC 2012: 10,582)"
    assert report.facts["val"] == "40 pairs (VOC 2012: 1,449)"


def test_the_published_protocol_needs_the_official_counts(voc_samples: Path) -> None:
    spec = build("segmentation", [("preset", "paper"), ("data", str(voc_samples))])
    report = task_info("segmentation").check(spec, lambda *_: None)
    assert any("lists 80 pairs, VOC 2012 has 10,582" in problem for problem in report.problems)
