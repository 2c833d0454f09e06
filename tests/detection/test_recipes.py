"""docs/recipes.md, row by row: what it says of a key is configured, and of behaviour is so."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from PIL import Image
from torch import nn

from harness.feed import step_samples, steps_per_epoch
from harness.plan import impossible
from harness.rng import drawing
from harness.schedule import lr_factor
from harness.worker import build_model
from tasks.detection import coco, evaluation
from tasks.detection.d2 import EventStorage
from tasks.detection.dataset import CocoImages, read_bgr, resized
from tasks.detection.info import DetectionModel
from tasks.detection.losses import sample_labels
from tasks.detection.task import DetectionTask
from tests.detection import test_maskrcnn_benchmark as legacy
from tests.detection.conftest import detection_spec
from tests.detection.test_dataset import one_image
from tests.detection.test_paper import NUM_TRAIN, PUBLISHED

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def tables() -> list[list[list[str]]]:
    """Return the tables of the page's section, each a list of rows of cells."""
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith("Detection\n")]
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    rows = [[line.strip("|\n").split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in table[2:]] for table in rows]


ROWS = {row[0]: row for row in tables()[1]}
KEYS = {item: re.findall(r"`([a-z_.]+)=([^`]+)`", row[3]) for item, row in ROWS.items()}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    task = DetectionTask(detection_spec("preset=paper"), None)
    return build_model(task, detection_spec("preset=paper"))[0]


def test_the_presets_are_those_of_the_first_table() -> None:
    found = {}
    for names, size, micro, lr, drops, steps, epochs, layers in tables()[0]:
        for name in names.replace("`", "").split(", "):
            found[name] = (
                int(size),
                float(lr),
                tuple(int(d.removesuffix("k")) * 1000 for d in drops.split(", ")),
                int(steps.removesuffix("k")) * 1000,
                int(micro),
                int(layers),
            )
            assert float(epochs) == round(found[name][3] * int(size) / NUM_TRAIN, 1)
    assert found == {name: row[1:] for name, row in PUBLISHED.items()}


@pytest.mark.parametrize("item", [item for item, keys in KEYS.items() if keys])
def test_keys_are_configured_as_the_row_says(item: str) -> None:
    resolved = detection_spec("preset=paper")
    for key, text in KEYS[item]:
        value: Any = resolved
        for name in key.split("."):
            value = getattr(value, name)
        expected = yaml.safe_load(text)
        assert value == (tuple(expected) if isinstance(expected, list) else expected), key


def rounding(model: nn.Module) -> None:
    assert resized(427, 640, 800, 1333) == (800, 1199)  # 1199.06
    assert resized(333, 500, 800, 1333) == (800, 1201)  # 1201.2
    assert resized(480, 640, 800, 1333) == (800, 1066)  # 1066.67, detectron2 says 1067


def norm_sites(model: nn.Module) -> None:
    task = DetectionTask(detection_spec("preset=paper"), None)
    for norm, standardised in (("gn_ws", 69), ("gn", 0)):
        _, audit = build_model(task, detection_spec("preset=paper", f"norm={norm}"))
        assert (audit.num_norm_sites, audit.num_standardised) == (69, standardised)


def conv_and_norm(model: nn.Module) -> None:
    sites = [name for name, m in model.named_modules() if isinstance(m, nn.GroupNorm)]
    assert all(name.endswith(".norm") for name in sites)
    assert all(isinstance(model.get_submodule(name[:-5]), nn.Conv2d) for name in sites)


def bottlenecks(model: nn.Module) -> None:
    for stage in ("res3", "res4", "res5"):
        block = model.get_submodule(f"backbone.bottom_up.{stage}.0")
        assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def frozen_batch_norm(model: nn.Module) -> None:
    task = DetectionTask(detection_spec("preset=paper"), None)
    frozen, _ = build_model(task, detection_spec("preset=paper", "norm=bn"))
    eps = {m.eps for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)}
    assert eps == {1e-5}


def first_step(model: nn.Module) -> None:
    spec = detection_spec("preset=paper")
    rates = {s: lr_factor(spec.schedule, s, spec.steps) for s in (0, 1, 299_999, 300_000)}
    # Theirs is the rate of step + 1.
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[1] - rates[0] == pytest.approx(2 / 3 / 500)
    assert rates[1] - rates[0] == pytest.approx(0.0013, abs=5e-5)
    assert rates[299_999] == 1
    assert rates[300_000] == pytest.approx(0.1)


def anchor_centres(model: nn.Module) -> None:
    generator = model.get_submodule("proposal_generator.anchor_generator")
    for stride, anchors in zip(
        (4, 8, 16, 32, 64), generator([torch.zeros(1, 1, 1, 1)] * 5), strict=True
    ):
        assert bool((anchors.get_centers() == stride / 2).all())


def best_anchor(model: nn.Module) -> None:
    matcher = model.get_submodule("proposal_generator").anchor_matcher
    _, labels = matcher(torch.tensor([[0.1, 0.2, 0.0]]))
    assert labels.tolist() == [0, 1, 0]


def rpn_normaliser(model: nn.Module) -> None:
    rpn = model.get_submodule("proposal_generator")
    maps = [torch.zeros(1, 1, 800 // s, 800 // s) for s in (4, 8, 16, 32, 64)]
    target = Instances((800, 800))
    for boxes in ([[100.0, 100, 300, 250]], [[0.0, 0, 800, 800]], [[5.0, 5, 7, 7]]):
        target.gt_boxes = Boxes(torch.tensor(boxes))
        labels, _ = rpn.label_and_sample_anchors(rpn.anchor_generator(maps), [target])
        assert int((labels[0] >= 0).sum()) == 256 == rpn.batch_size_per_image


def loss_weights(model: nn.Module) -> None:
    assert set(model.get_submodule("proposal_generator").loss_weight.values()) == {1.0}
    assert set(model.get_submodule("roi_heads.box_predictor").loss_weight.values()) == {1.0}
    assert model.get_submodule("roi_heads.mask_head").loss_weight == 1.0


def true_boxes(model: nn.Module) -> None:
    heads = model.get_submodule("roi_heads")
    target = Instances((100, 100))
    target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 50, 60]]))
    target.gt_classes = torch.tensor([3])
    proposals = Instances((100, 100))
    proposals.proposal_boxes = Boxes(torch.zeros(0, 4))
    proposals.objectness_logits = torch.zeros(0)
    with EventStorage():
        (found,) = heads.label_and_sample_proposals([proposals], [target])
    assert found.proposal_boxes.tensor.tolist() == [[10, 10, 50, 60]]
    assert found.gt_classes.tolist() == [3]


def coding(model: nn.Module) -> None:
    legacy.TestBoxes().test_overlaps()
    legacy.TestBoxes().test_coding_and_decoding()


def growth(model: nn.Module) -> None:
    for name in ("proposal_generator", "roi_heads.box_predictor"):
        clamp = model.get_submodule(name).box2box_transform.scale_clamp
        assert clamp == pytest.approx(math.log(1000 / 16))


def outside(model: nn.Module) -> None:
    assert model.get_submodule("proposal_generator").min_box_size == 0
    boxes = Boxes(torch.tensor([[-9.0, -9, -2, 5], [3, 3, 4, 4]]))
    boxes.clip((10, 10))
    assert boxes.nonempty(threshold=0).tolist() == [False, True]


def background(model: nn.Module) -> None:
    assert model.get_submodule("roi_heads").num_classes == 80
    assert model.get_submodule("roi_heads.box_predictor.cls_score").out_features == 81


def background_outputs(model: nn.Module) -> None:
    assert model.get_submodule("roi_heads.box_predictor.bbox_pred").out_features == 4 * 80
    assert model.get_submodule("roi_heads.mask_head.predictor").out_channels == 80


def rank_100(model: nn.Module) -> None:
    boxes = torch.tensor([[20.0 * i, 0, 20 * i + 10, 10] for i in range(150)])
    scores = torch.full((150, 2), 0.5)
    (found,), _ = fast_rcnn_inference([boxes], [scores], [(100, 4000)], 0.05, 0.5, 100)
    assert len(found) == 100


def padding(model: nn.Module) -> None:
    images = [
        {"image": torch.full((3, *size), 7, dtype=torch.uint8)} for size in [(50, 70), (60, 40)]
    ]
    batch: ImageList = model.preprocess_image(images)  # type: ignore[operator]
    assert batch.tensor.shape == (2, 3, 64, 96)
    assert batch.image_sizes == [(50, 70), (60, 40)]
    assert not bool(batch.tensor[0, :, 50:].any())
    assert not bool(batch.tensor[1, :, :, 40:].any())


def end_of_epoch(model: nn.Module) -> None:
    per_epoch = steps_per_epoch(NUM_TRAIN, 8, "keep")
    groups = bytes(i % 3 == 0 for i in range(NUM_TRAIN))
    *_, last = (
        step_samples(NUM_TRAIN, 8, 0, step, groups=groups, micro=2)[1]
        for step in (0, per_epoch - 1)
    )
    assert (per_epoch, len(last)) == (14_659, 2)


def training_images(model: nn.Module) -> None:
    fine = {"bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 9, 0, 9, 9]]}
    thin, crowd = fine | {"bbox": [0, 0, 1, 9]}, fine | {"iscrowd": 1}
    assert coco.training_objects([fine, thin, crowd]) == [fine, thin]
    assert coco.training_objects([thin, crowd]) == []


def draws(model: nn.Module) -> None:
    labels = torch.arange(100) % 2
    drawn = []
    for samples in ([5], [9, 5]):
        with drawing(0, 3, samples):
            drawn.append(sample_labels(labels, 10, 0.5, 0, "roi", len(samples) - 1))
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def one_at_a_time(model: nn.Module) -> None:
    seen: list[int] = []

    class Images:
        pixels = False

        def __len__(self) -> int:
            return 3

        def evaluation_sample(self, index: int) -> dict[str, Any]:
            return {"image_id": index}

    class Counting(nn.Module):
        def forward(self, batch: list[Any]) -> list[dict[str, Instances]]:
            seen.append(len(batch))
            return [{"instances": Instances((4, 4), pred_boxes=Boxes([]), scores=torch.zeros(0))}]

    images: Any = Images()
    assert list(evaluation.predict(Counting(), images, [], lambda *_: None)) == []
    assert seen == [1, 1, 1]


def named_weights(model: nn.Module) -> None:
    for preset in PUBLISHED:
        assert "init=FILE" in (impossible(detection_spec(f"preset={preset}")) or "")
        frozen = impossible(detection_spec(f"preset={preset}", "init=scratch"))
        assert "freeze random weights" in (frozen or "")


BEHAVIOUR: dict[str, Callable[[nn.Module], None]] = {
    "rounding of the size": rounding,
    "norm sites": norm_sites,
    "conv and norm": conv_and_norm,
    "bottlenecks": bottlenecks,
    "frozen batch norm": frozen_batch_norm,
    "first step of the schedule": first_step,
    "anchor centres": anchor_centres,
    "best anchor of an object": best_anchor,
    "RPN normaliser": rpn_normaliser,
    "weights of losses": loss_weights,
    "true boxes as proposals": true_boxes,
    "coding, IoU and NMS": coding,
    "largest growth of a box": growth,
    "boxes outside the image": outside,
    "background": background,
    "outputs of the background": background_outputs,
    "equal scores at rank 100": rank_100,
    "padding": padding,
    "end of an epoch": end_of_epoch,
    "training images": training_images,
    "random draws": draws,
    "evaluation": one_at_a_time,
    "initial weights": named_weights,
}


@pytest.mark.parametrize("item", BEHAVIOUR)
def test_behaviour_is_as_the_row_says(item: str, model: nn.Module) -> None:
    assert item in ROWS
    BEHAVIOUR[item](model)


def test_orientation_in_exif_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    root = one_image(tmp_path / "coco", Image.new("RGB", (20, 10)), exif=exif)
    record = {"file_name": str(root / coco.TRAIN / "one.jpg"), "height": 20, "width": 10}
    assert read_bgr(record).shape == (20, 10, 3)
    annotations = coco.read_annotations(coco.annotation_file(root, coco.TRAIN))
    spec = detection_spec("preset=paper")
    assert isinstance(spec.model, DetectionModel)
    images = CocoImages(root, coco.TRAIN, annotations, spec.data)
    with pytest.raises(Exception, match="annotated as 20 x 10"):
        images.evaluation_sample(0)


def test_no_row_is_without_a_test() -> None:
    elsewhere = {"orientation in EXIF"}
    assert all(KEYS[item] or item in BEHAVIOUR or item in elsewhere for item in ROWS)
    assert elsewhere | BEHAVIOUR.keys() <= ROWS.keys()
    deviating = [item for item, row in ROWS.items() if "**deviates**" in row[3]]
    assert all(ROWS[item][4] for item in deviating)  # each with its reason or effect
    assert all(item in BEHAVIOUR or item in elsewhere for item in deviating)
