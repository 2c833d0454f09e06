"""The parts that follow maskrcnn-benchmark, against plain arithmetic with its `+ 1`."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, PolygonMasks, pairwise_iou
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from tasks.detection import coco
from tasks.detection import maskrcnn_benchmark as mb
from tasks.detection.d2 import (
    Box2BoxTransform,
    EventStorage,
    ROIPooler,
    ShapeSpec,
    instances_to_coco_json,
    mask_rcnn_loss,
)
from tasks.detection.dataset import CocoImages
from tasks.detection.evaluation import ground_truth, predict, score
from tasks.detection.info import DetectionData, DetectionModel
from tasks.detection.losses import best_of_batch
from tasks.detection.model import build_detector
from tasks.detection.task import DetectionTask
from tests.detection.conftest import detection_spec, detection_task
from tests.detection.test_dataset import one_image

# pycocotools 2.0.11 under NumPy 2: `decode` warns, and its result is right.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LAST = torch.tensor([0.0, 0, 1, 1])
"""From boxes with the further corner to first and last pixel: subtract this."""


def random_boxes(num: int, side: float = 60) -> Tensor:
    corners = torch.rand(num, 2, 2) * side
    corners = corners.sort(dim=1).values
    corners[:, 1] += 2
    return corners.reshape(num, 4)


class TestBoxes:
    """Why the further corner is enough: the same numbers as with `+ 1` on first and last pixels."""

    def test_overlaps(self) -> None:
        a, b = random_boxes(20), random_boxes(30)
        found = pairwise_iou(Boxes(a), Boxes(b))
        p, q = a - LAST, b - LAST
        for i, j in ((0, 0), (3, 17), (19, 29)):
            w, h = (
                max(0, float(min(p[i, k + 2], q[j, k + 2]) - max(p[i, k], q[j, k])) + 1)
                for k in (0, 1)
            )
            areas = [float((x[2] - x[0] + 1) * (x[3] - x[1] + 1)) for x in (p[i], q[j])]
            assert float(found[i, j]) == pytest.approx(w * h / (sum(areas) - w * h), abs=1e-5)

    def test_coding_and_decoding(self) -> None:
        weights = (10.0, 10.0, 5.0, 5.0)
        proposals, targets = random_boxes(10), random_boxes(10)
        transform = Box2BoxTransform(weights=weights)
        deltas = transform.get_deltas(proposals, targets)
        p, t = (proposals - LAST).numpy(), (targets - LAST).numpy()
        sizes, goals = (x[:, 2:] - x[:, :2] + 1 for x in (p, t))
        shift = (t[:, :2] + 0.5 * goals - p[:, :2] - 0.5 * sizes) / sizes
        expected = np.hstack([shift, np.log(goals / sizes)]) * weights
        np.testing.assert_allclose(deltas.numpy(), expected, rtol=1e-3, atol=1e-4)
        decoded = transform.apply_deltas(deltas, proposals) - LAST
        np.testing.assert_allclose(decoded.numpy(), t, rtol=1e-4, atol=1e-3)


class TestAnchors:
    strides, sizes, ratios = (4, 8, 16, 32, 64), (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)

    def anchors(self, height: int, width: int) -> list[Tensor]:
        generator = mb.RoundedAnchorGenerator(
            sizes=[[float(size)] for size in self.sizes],
            aspect_ratios=[list(self.ratios)],
            strides=list(self.strides),
            offset=0.5,
        )
        maps = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in self.strides]
        return [boxes.tensor for boxes in generator(maps)]

    def test_are_detectrons(self) -> None:
        """By hand, as first and last pixel at the first cell: centre (stride - 1) / 2."""
        by_hand = {  # width and height of the base anchor, in pixels of the stride
            4: [(6, 3), (4, 4), (3, 6)],
            8: [(11, 6), (8, 8), (6, 12)],
            16: [(23, 12), (16, 16), (11, 22)],
            32: [(45, 22), (32, 32), (23, 46)],
            64: [(91, 46), (64, 64), (45, 90)],
        }
        for stride, size, found in zip(self.strides, self.sizes, self.anchors(64, 64), strict=True):
            centre = (stride - 1) / 2
            for (w, h), anchor in zip(by_hand[stride], found - LAST, strict=False):
                w, h = w * size / stride, h * size / stride
                expected = [centre - (w - 1) / 2, centre - (h - 1) / 2]
                expected += [centre + (w - 1) / 2, centre + (h - 1) / 2]
                assert anchor.tolist() == expected

    @pytest.mark.parametrize(("height", "width"), [(800, 1088), (797, 1333), (608, 333)])
    def test_those_across_the_border_are_told_as_by_a_straddle_threshold_of_0(
        self, height: int, width: int
    ) -> None:
        spec = detection_spec("preset=paper")
        assert isinstance(spec.model, DetectionModel)
        for anchors in self.anchors(height, width):
            x0, y0, x1, y1 = (anchors - LAST).unbind(1)
            expected = (x0 >= 0) & (y0 >= 0) & (x1 < width) & (y1 < height)
            margin = spec.model.rpn.anchor_margin
            assert torch.equal(Boxes(anchors).inside_box((height, width), margin), expected)


def test_the_best_proposals_are_chosen_over_the_whole_batch() -> None:
    scores = [torch.tensor([9.0, 5.0, 1.0]), torch.tensor([8.0, 7.0, 6.0]), torch.tensor([0.0])]
    images = []
    for values in scores:
        one = Instances((9, 9))
        one.objectness_logits = values
        images.append(one)
    kept = [one.objectness_logits.tolist() for one in best_of_batch(images, 4)]
    assert kept == [[9], [8, 7, 6], []]
    everything = best_of_batch(images, 99)
    assert [len(one) for one in everything] == [3, 3, 1]


@pytest.mark.parametrize(("per", "total"), [("batch", 30), ("image", 60)])
def test_proposals_are_counted_by_batch_in_training_only(per: str, total: int) -> None:
    words = [f"model.rpn.proposals_per={per}", "model.rpn.post_nms_train=30"]
    spec = detection_spec("preset=smoke", *words, "model.rpn.pre_nms_train=100")
    task = detection_task(spec)
    model = task.build_model().train()
    counted: list[int] = []

    def count(module: nn.Module, inputs: object, output: tuple[list[Instances], object]) -> None:
        counted.append(sum(len(one) for one in output[0]))

    model.get_submodule("proposal_generator").register_forward_hook(count)
    batch = [task.train_data()._load(i, flip=False) for i in range(2)]
    task.loss(model, batch)
    with torch.no_grad():
        model.eval()(batch)
    assert counted == [total, 2 * 20]


def test_regions_end_on_their_last_pixel_and_keep_their_level() -> None:
    torch.manual_seed(0)
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    maps = [torch.rand(1, 3, int(256 * s), int(256 * s)) for s in scales]
    pooler = mb.end_on_last_pixel(ROIPooler(7, scales, 2, "ROIAlign"))
    # Just as large as a region of p3 by its width with the last pixel, and smaller without.
    boxes = torch.tensor([[8.0, 8, 120, 120], [8, 8, 119.5, 119.5], [3, 5, 30, 40]])
    found = pooler(maps, [Boxes(boxes)])
    for box, level, region in zip(boxes - LAST, (1, 0, 0), found, strict=True):
        roi = torch.cat([torch.zeros(1), box])[None]
        expected = roi_align(maps[level], roi, (7, 7), scales[level], 2, aligned=False)[0]
        torch.testing.assert_close(region, expected)


@pytest.mark.parametrize("mode", ["stock", "image"])
def test_mask_targets_are_cropped_to_the_last_pixel(mode: str) -> None:
    torch.manual_seed(0)
    shape = ShapeSpec(channels=4, height=7, width=7)
    head = mb.MASK_HEADS[mode](shape, num_classes=2, conv_dims=[4], conv_norm="")
    nn.init.normal_(head.predictor.weight)  # as drawn, all its scores are near a half
    images, shorter = [], []
    for num in (2, 1):
        boxes = random_boxes(num, 20)
        polygons = [[np.array([1.0, 1, 25, 3, 18, 22])]] * num
        for into, corners in ((images, boxes), (shorter, boxes - LAST)):
            one = Instances((30, 30))
            one.proposal_boxes = Boxes(corners)
            one.gt_classes = torch.arange(num)
            one.gt_masks = PolygonMasks(polygons)
            into.append(one)
    features = torch.randn(3, 4, 7, 7)
    with EventStorage():
        found = head.train()(features, images)["loss_mask"]
        logits = head.layers(features)
        if mode == "stock":
            expected = mask_rcnn_loss(logits, shorter)
        else:
            parts = zip(logits.split([2, 1]), shorter, strict=True)
            expected = sum(mask_rcnn_loss(part, [one]) for part, one in parts) / 2
        edges = mask_rcnn_loss(logits, images)
    torch.testing.assert_close(found, expected)
    assert float(abs(edges - found).detach()) > 1e-3


class TestData:
    """An object of 6 x 6 px at (2, 3) in an image of 20 x 10, scaled by 4 and by 2."""

    @pytest.fixture
    def images(self, tmp_path: Path) -> CocoImages:
        root = one_image(tmp_path / "coco", Image.new("RGB", (20, 10)))
        annotations = coco.read_annotations(coco.annotation_file(root, coco.TRAIN))
        data = DetectionData(min_size=40, max_size=200)
        return CocoImages(root, coco.TRAIN, annotations, data, pixels=True)

    @pytest.mark.parametrize("flip", [False, True])
    def test_boxes_and_polygons_scale_by_their_pixels(self, images: CocoImages, flip: bool) -> None:
        found = images._load(0, flip=flip)["instances"]
        first, last = np.array([2, 3]) * 4, np.array([2 + 6 - 1, 3 + 6 - 1]) * 4
        polygon = np.array([2, 3, 8, 3, 8, 9, 2, 9], dtype=float) * 4
        if flip:
            first[0], last[0] = 80 - 1 - last[0], 80 - 1 - first[0]
            polygon[0::2] = 80 - 1 - polygon[0::2]
        assert (found.gt_boxes.tensor - LAST).tolist() == [[*first, *last]]
        # Mirroring may change where a polygon begins, not its points.
        points = {tuple(p) for p in found.gt_masks.polygons[0][0].reshape(-1, 2)}
        assert points == {tuple(p) for p in polygon.reshape(-1, 2)}

    def test_what_is_loaded_comes_back_as_the_same_box(self, images: CocoImages) -> None:
        sample = images.evaluation_sample(0)
        found = Instances(tuple(sample["image"].shape[1:]))
        found.pred_boxes = sample["instances"].gt_boxes
        back = mb.to_image(found, sample["height"], sample["width"])
        assert back.pred_boxes.tensor.tolist() == [[2, 3, 8, 9]]
        assert back.image_size == (10, 20)

    @pytest.mark.parametrize(
        ("bbox", "kept"),
        [
            ([1, 1, 2, 2], True),
            ([1, 1, 1, 5], False),  # its last pixel is its first
            ([1, 1, 1.5, 1.5], True),
            ([19, 1, 5, 5], False),  # only its first column is in the image
            ([18, 1, 5, 5], True),
            ([30, 1, 5, 5], False),
        ],
    )
    def test_single_pixels_are_no_objects(self, bbox: list[float], kept: bool) -> None:
        assert mb.is_more_than_a_pixel(bbox, 10, 20) == kept


def pasted(mask: Tensor, box: list[float], height: int, width: int) -> Tensor:
    """The same in words of maskrcnn-benchmark, pixel by pixel."""
    side = mask.shape[-1]
    x, y = ((box[i] + box[i + 2]) / 2 for i in (0, 1))
    w, h = ((box[i + 2] - box[i]) / 2 * (side + 2) / side for i in (0, 1))
    x0, y0, x1, y1 = (math.trunc(v) for v in (x - w, y - h, x + w, y + h))
    padded = torch.zeros(side + 2, side + 2)
    padded[1:-1, 1:-1] = mask
    size = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
    grown = F.interpolate(padded[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    out = torch.zeros(height, width, dtype=torch.bool)
    for row in range(size[0]):
        for column in range(size[1]):
            if 0 <= y0 + row < height and 0 <= x0 + column < width:
                out[y0 + row, x0 + column] = grown[row, column] > 0.5
    return out


@pytest.mark.parametrize(
    "box",
    [
        [3.0, 4, 17, 12],
        [-6.4, -3, 9.7, 20.2],  # across two borders
        [15.5, 2.5, 40, 30],
        [5, 5, 5, 5],
        [100, 100, 120, 130],  # elsewhere
    ],
)
def test_masks_are_pasted_as_whole_pixels(box: list[float]) -> None:
    torch.manual_seed(0)
    mask = torch.rand(28, 28)
    found = torch.zeros(18, 24, dtype=torch.bool)
    mb.paste(found, mask, torch.tensor(box))
    assert torch.equal(found, pasted(mask, box, 18, 24))


def test_detections_are_pasted_in_the_images_own_size() -> None:
    found = Instances((40, 80))
    found.pred_boxes = Boxes(torch.tensor([[8.0, 12, 30, 34], [8, 12, 9, 13]]))
    found.pred_masks = torch.rand(2, 1, 28, 28)
    found.scores = torch.tensor([0.5, 0.25])
    back = mb.to_image(found, 20, 20)
    scale = torch.tensor([20 / 80, 20 / 40, 20 / 80, 20 / 40])
    for index in range(2):
        box = (found.pred_boxes.tensor[index] - LAST) * scale
        expected = pasted(found.pred_masks[index, 0], box.tolist(), 20, 20)
        assert torch.equal(back.pred_masks[index], expected)
        torch.testing.assert_close(back.pred_boxes.tensor[index], box + LAST)
    assert back.scores.tolist() == [0.5, 0.25]
    empty = mb.to_image(found[:0], 20, 20)
    assert empty.pred_masks.shape == (0, 20, 20)


@pytest.mark.parametrize(("pixels", "mask_ap"), [(False, 94.8), (True, 88.7)])
def test_perfect_detections_score_what_the_page_says(
    coco_samples: Path, pixels: bool, mask_ap: float
) -> None:
    """The targets of 60 real images at 800 px, fed back as detections of 28 x 28 cells."""
    annotations = coco.read_annotations(coco.annotation_file(coco_samples, coco.TRAIN))
    data = DetectionData(min_size=800, max_size=1333)
    images = CocoImages(coco_samples, coco.TRAIN, annotations, data, pixels=pixels)
    results = []
    for index in range(len(images)):
        sample = images.evaluation_sample(index)
        target = sample["instances"]
        found = Instances(target.image_size, scores=torch.ones(len(target)))
        found.pred_boxes, found.pred_classes = target.gt_boxes.clone(), target.gt_classes
        regions = target.gt_boxes.tensor - (LAST if pixels else 0)
        found.pred_masks = target.gt_masks.crop_and_resize(regions, 28).float()[:, None]
        size = sample["height"], sample["width"]
        back = mb.to_image(found, *size) if pixels else detector_postprocess(found, *size)
        for result in instances_to_coco_json(back, sample["image_id"]):
            category = annotations.category_ids[result["category_id"]]
            results.append(result | {"category_id": category})
    metrics = score(ground_truth(annotations), results)
    values = {metric.name: metric.value for metric in metrics}
    assert values["box_AP"] == pytest.approx(100, abs=0.01)
    assert values["mask_AP"] == pytest.approx(mask_ap, abs=0.1)
    assert f"{mask_ap}" in (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_whole_run_in_pixels_gives_results_in_the_files_size(precision: str) -> None:
    spec = detection_spec("preset=smoke", "model.boxes=pixels", f"precision={precision}")
    task = detection_task(spec)
    model = task.build_model().eval()
    model = model.double() if precision == "fp64" else model
    results = list(predict(model, task._val_images, task.category_ids, lambda *_: None))
    assert results
    assert all(result["segmentation"]["size"] == [64, 64] for result in results)


def test_initial_weights_have_the_distributions_of_the_fork() -> None:
    spec = detection_spec("preset=paper", "model.width=32", "model.box.hidden=64")
    assert isinstance(spec.model, DetectionModel)
    torch.manual_seed(0)
    model = build_detector(spec.model, 80, "stock")
    checked = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            continue
        weight = module.weight.detach()
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
        if name.startswith("backbone") or ".fc1" in name:
            expected, bound = math.sqrt(1 / fan_in), math.sqrt(3 / fan_in)
            assert float(weight.abs().max()) <= bound
        elif name.endswith("cls_score") or name.startswith(
            ("proposal_generator", "roi_heads.box_head.conv")
        ):
            expected = 0.01
        elif name.endswith("bbox_pred"):
            expected = 0.001
        elif name.endswith("mask_head.predictor"):
            expected = math.sqrt(2 / 81)
        else:
            assert "mask_head" in name
            expected = math.sqrt(2 / fan_out)
        tolerance = 5 / math.sqrt(weight.numel())
        assert float(weight.std()) == pytest.approx(expected, rel=tolerance), name
        if module.bias is not None:
            assert not bool(module.bias.any()), name
        checked += 1
    assert checked == 69 + 8


def test_mini_presets_use_none_of_it() -> None:
    for preset in ("mini", "smoke"):
        task = DetectionTask(detection_spec(f"preset={preset}"), None)
        assert task.model.boxes == "edges"
        assert task.model.weight_init == "detectron2"
        assert (task.model.rpn.anchors, task.model.rpn.proposals_per) == ("exact", "image")
        assert not task.data.group_by_aspect
