"""The eight published configurations: models, schedules, and that every one of them starts."""

import json
import math
from pathlib import Path

import pytest
import torch

from harness.distributed import Ranks
from harness.feed import Steps, step_samples, steps_per_epoch
from harness.loop import Trainer
from harness.registry import task_info
from harness.schedule import lr_factor
from harness.spec import presets
from harness.worker import build_model
from tasks.detection import coco
from tasks.detection.architectures import architecture
from tasks.detection.info import DetectionModel
from tasks.detection.task import DetectionTask
from tests.detection.conftest import detection_spec, detection_task

NUM_TRAIN = 117_266  # images of train2017 with usable objects

# Of the fork's configs/gn_baselines/e2e_{faster,mask}_rcnn_{R,X}_{50,101}_FPN_Xconv1fc_{1x,2x}_gn:
# IMS_PER_BATCH, BASE_LR, STEPS, MAX_ITER, images on each of 4 GPUs; and the convs standardised.
MASK_50 = (8, 0.01, (300_000, 340_000), 360_000, 2, 69)
MASK_101 = (4, 0.005, (600_000, 680_000), 720_000, 1, 120)
FASTER_50 = (8, 0.01, (120_000, 160_000), 180_000, 2, 65)
FASTER_101 = (4, 0.005, (240_000, 320_000), 360_000, 1, 116)
PUBLISHED = {
    "paper": ("mask_rcnn_r50_fpn", *MASK_50),
    "paper_mask_r101": ("mask_rcnn_r101_fpn", *MASK_101),
    "paper_mask_x50": ("mask_rcnn_x50_32x4d_fpn", *MASK_50),
    "paper_mask_x101": ("mask_rcnn_x101_32x4d_fpn", *MASK_101),
    "paper_faster_r50": ("faster_rcnn_r50_fpn", *FASTER_50),
    "paper_faster_r101": ("faster_rcnn_r101_fpn", *FASTER_101),
    "paper_faster_x50": ("faster_rcnn_x50_32x4d_fpn", *FASTER_50),
    "paper_faster_x101": ("faster_rcnn_x101_32x4d_fpn", *FASTER_101),
}
every = pytest.mark.parametrize("preset", PUBLISHED)


def test_every_configuration_of_the_tables_is_a_preset() -> None:
    assert {p for p in presets("detection") if p.startswith("paper")} == PUBLISHED.keys()


@every
def test_the_schedule_follows_the_table_step_by_step(preset: str) -> None:
    name, size, lr, drops, steps, per_gpu, _ = PUBLISHED[preset]
    spec = detection_spec(f"preset={preset}")
    assert (spec.model.name, spec.batch.size, spec.batch.micro) == (name, size, per_gpu)
    assert (spec.optim.lr, spec.steps, spec.norm.name) == (lr, steps, "gn_ws")

    def rate(step: int) -> float:  # WarmupMultiStepLR in closed form
        warm = 1 if step >= 500 else 1 / 3 + (1 - 1 / 3) * step / 500
        return lr * warm * 0.1 ** sum(step >= drop for drop in drops)

    checked = {0, 1, 250, 499, 500, 501, steps - 1, *range(0, steps, 9_973)}
    checked |= {drop + d for drop in drops for d in (-1, 0, 1)}
    for step in sorted(checked):
        ours = spec.optim.lr * lr_factor(spec.schedule, step, spec.steps)
        assert ours == pytest.approx(rate(step), rel=1e-12), step


@every
def test_the_epochs_are_12_or_20_23_24(preset: str) -> None:
    spec = detection_spec(f"preset={preset}")
    epochs = [n * spec.batch.size / NUM_TRAIN for n in (*spec.schedule.drops, spec.steps)]
    expected = [8.2, 10.9, 12.3] if "faster" in preset else [20.5, 23.2, 24.6]
    assert epochs == pytest.approx(expected, abs=0.05)
    per_epoch = steps_per_epoch(NUM_TRAIN, spec.batch.size, spec.batch.tail)
    assert per_epoch == {8: 14_659, 4: 29_317}[spec.batch.size]


@every
def test_only_model_batch_and_schedule_differ_from_paper(preset: str) -> None:
    first, other = (
        detection_spec(f"preset={name}").model_dump(mode="json") for name in ("paper", preset)
    )
    for section, key in (
        ("model", "name"),
        ("batch", "size"),
        ("batch", "micro"),
        ("optim", "lr"),
        ("schedule", "drops"),
    ):
        del first[section][key], other[section][key]
    for key in ("preset", "steps"):
        del first[key], other[key]
    assert other == first


@every
def test_it_starts(preset: str) -> None:
    """The model at full size takes one step on one small image, with few regions."""
    small = ["data.embedded=true", "data.num_train=2", "data.num_val=2", "data.size=64"]
    small += ["data.min_size=64", "model.box.num_rois=8", "model.rpn.post_nms_train=16"]
    words = ["init=scratch", "model.freeze_at=0", "batch.size=1", "batch.micro=1", *small]
    spec = detection_spec(f"preset={preset}", *words)
    assert task_info("detection").refuse(spec) is None
    task = detection_task(spec)
    model, audit = build_model(task, spec)
    sites = PUBLISHED[preset][-1]
    assert audit.num_standardised == audit.num_norm_sites == sites
    assert audit.num_bare == (8 if task.masks else 6)
    trainer = Trainer(task, model.train(), spec, Ranks(CPU), CPU, chunk=1)
    steps = Steps(task, task.train_data(), spec, chunk=1, rank=0, world=1)
    parts = trainer.step(steps[0], 0)
    assert parts.keys() == task.counts([]).keys()
    assert ("loss_mask" in parts) == task.masks
    assert all(math.isfinite(value) for value in parts.values())
    assert 0 < sum(parts.values()) < 10


CPU = torch.device("cpu")


@pytest.mark.parametrize("backbone", ["r50", "r101", "x50_32x4d", "x101_32x4d"])
def test_names_say_what_they_are(backbone: str) -> None:
    faster, mask = (architecture(f"{meta}_rcnn_{backbone}_fpn") for meta in ("faster", "mask"))
    assert (faster.masks, mask.masks) == (False, True)
    assert sum(faster.num_blocks) == (16 if "50" in backbone else 33)
    assert faster.groups == (32 if backbone.startswith("x") else 1)
    assert faster.inner_channels(64) == (128 if backbone.startswith("x") else 64)


def without_masks(root: Path) -> Path:
    for split in (coco.TRAIN, coco.VAL):
        path = coco.annotation_file(root, split)
        content = json.loads(path.read_text())
        for item in content["annotations"]:
            del item["segmentation"]
        path.write_text(json.dumps(content))
    return root


def test_faster_rcnn_learns_and_is_measured_without_masks(coco_copy: Path) -> None:
    words = ["model.name=faster_rcnn_r50_fpn", f"data={without_masks(coco_copy)}", "steps=2"]
    spec = detection_spec("preset=smoke", *words)
    task = detection_task(spec)
    model, audit = build_model(task, spec)
    assert not any("mask" in row.path for row in audit)
    trainer = Trainer(task, model.train(), spec, Ranks(CPU), CPU, chunk=1)
    steps = Steps(task, task.train_data(), spec, chunk=1, rank=0, world=1)
    for step in range(2):
        parts = trainer.step(steps[step], step)
        assert set(parts) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert not steps[0][0].batch[0]["instances"].has("gt_masks")
    names = [metric.name for metric in task.evaluate(model, CPU, lambda *_: None)]
    assert "box_AP" in names
    assert not [name for name in names if "mask" in name]


def test_wide_and_tall_images_do_not_meet_in_a_micro_batch(coco_samples: Path) -> None:
    spec = detection_spec("preset=paper", f"data={coco_samples}")
    assert isinstance(spec.model, DetectionModel)
    task = DetectionTask(spec, task_info("detection").prepare(spec, lambda *_: None))
    data = task.train_data()
    assert data.groups is not None
    shapes = [data.evaluation_sample(i)["image"].shape[1:] for i in range(len(data))]
    assert list(data.groups) == [int(height >= width) for height, width in shapes]
    assert 0 < sum(data.groups) < len(data)
    mixed = 0
    for step in range(steps_per_epoch(len(data), 8, "keep")):
        _, samples = step_samples(len(data), 8, 0, step, groups=data.groups, micro=2)
        pairs = [samples[i : i + 2] for i in range(0, len(samples), 2)]
        mixed += sum(len({data.groups[i] for i in pair}) > 1 for pair in pairs)
    assert mixed <= 1  # what is left over at the end of an epoch
    steps = Steps(task, data, spec, chunk=2, rank=0, world=1)
    assert steps.groups == data.groups
