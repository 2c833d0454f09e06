import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as d2_transforms
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image
from pycocotools import mask as coco_mask

from harness.errors import DataError
from harness.rng import numpy_rng
from tasks.detection import coco
from tasks.detection.dataset import CocoImages, resized
from tasks.detection.info import DetectionData

# pycocotools 2.0.11 under NumPy 2: `decode` warns, and its result is right.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def images_of(root: Path, split: str = coco.TRAIN, **options: Any) -> CocoImages:
    annotations = coco.read_annotations(coco.annotation_file(root, split))
    return CocoImages(root, split, annotations, DetectionData(**options))


def edit(root: Path, change: Any, split: str = coco.TRAIN) -> None:
    path = coco.annotation_file(root, split)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def one_image(root: Path, pixels: Image.Image, name: str = "one.jpg", **save: Any) -> Path:
    """Write a COCO folder with a single image and one square object."""
    for split in (coco.TRAIN, coco.VAL):
        (root / split).mkdir(parents=True)
        pixels.save(root / split / name, **save)
    (root / "annotations").mkdir()
    width, height = pixels.size
    content = {
        "images": [{"id": 7, "file_name": name, "width": width, "height": height}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 5,
                "iscrowd": 0,
                "area": 36.0,
                "bbox": [2, 3, 6, 6],
                "segmentation": [[2, 3, 8, 3, 8, 9, 2, 9]],
            }
        ],
        "categories": [{"id": 5, "name": "square"}],
    }
    for split in (coco.TRAIN, coco.VAL):
        coco.annotation_file(root, split).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1066)),  # 1066.67 is truncated
        ((640, 480), (800, 1333), (1066, 800)),
        ((640, 427), (800, 1333), (1199, 800)),
        ((333, 500), (800, 1333), (800, 1201)),
        ((200, 640), (800, 1333), (417, 1334)),  # the limit rounds the shorter side first
        ((96, 96), (96, 160), (96, 96)),
        ((100, 10000), (96, 160), (2, 200)),
    ],
)
def test_size_after_resizing(
    size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized(*size, *limits) == expected


def test_samples_equal_detectron2s_loader_and_mapper(smoke_root: Path) -> None:
    """The oracle: detectron2's own functions on the same files, at their own size."""
    records = load_coco_json(
        str(coco.annotation_file(smoke_root, coco.TRAIN)),
        str(smoke_root / coco.TRAIN),
        "coco_normbench_test",
    )
    records = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
    ours = images_of(smoke_root, min_size=64, flip=0.0)
    assert len(ours) == len(records)
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format="polygon",
    )
    for index, record in enumerate(records):
        theirs = mapper(record)
        sample = ours.sample(index, numpy_rng("x", index))
        assert sample["image_id"] == theirs["image_id"]
        assert torch.equal(sample["image"], theirs["image"])
        found, expected = sample["instances"], theirs["instances"]
        assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)
        assert torch.equal(found.gt_classes, expected.gt_classes)
        for a, b in zip(found.gt_masks.polygons, expected.gt_masks.polygons, strict=True):
            assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))


def test_mirroring_follows_the_generator_and_moves_everything(tmp_path: Path) -> None:
    pixels = Image.fromarray(np.random.RandomState(0).randint(0, 255, (20, 30, 3), dtype=np.uint8))
    root = one_image(tmp_path, pixels, "one.png")
    plain = images_of(root, min_size=20, flip=0.0).sample(0, numpy_rng(0))
    mirrored = images_of(root, min_size=20, flip=1.0).sample(0, numpy_rng(0))
    assert torch.equal(mirrored["image"], plain["image"].flip(2))
    assert mirrored["instances"].gt_boxes.tensor.tolist() == [[22, 3, 28, 9]]
    polygon = mirrored["instances"].gt_masks.polygons[0][0].reshape(-1, 2)
    assert (polygon.min(0).tolist(), polygon.max(0).tolist()) == ([22, 3], [28, 9])
    half = images_of(root, min_size=20, flip=0.5)
    both = {
        bool(torch.equal(half.sample(0, numpy_rng(i))["image"], plain["image"])) for i in range(9)
    }
    assert both == {True, False}
    again = [half.sample(0, numpy_rng(3))["image"] for _ in range(2)]
    assert torch.equal(*again)


def test_resizing_is_detectron2s_bilinear(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 255, (20, 30, 3), dtype=np.uint8)
    root = one_image(tmp_path, Image.fromarray(pixels), "one.png")
    sample = images_of(root, min_size=40, flip=0.0).evaluation_sample(0)
    expected = d2_transforms.ResizeTransform(20, 30, 40, 60).apply_image(pixels[:, :, ::-1])
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), expected)
    assert (sample["height"], sample["width"]) == (20, 30)


def test_run_lengths_of_both_kinds_make_bitmaps(tmp_path: Path) -> None:
    root = one_image(tmp_path, Image.new("RGB", (30, 20)), "one.png")
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[3:9, 2:8] = 1
    packed = coco_mask.encode(mask)
    packed["counts"] = packed["counts"].decode()
    plain = {"size": [20, 30], "counts": [43, 6, 14, 6, 14, 6, 14, 6, 14, 6, 14, 6, 451]}

    def two_more(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        content["annotations"] += [
            first | {"id": 2, "segmentation": packed},
            first | {"id": 3, "segmentation": plain},
        ]

    edit(root, two_more)
    instances = images_of(root, min_size=20, flip=0.0).sample(0, numpy_rng(0))["instances"]
    assert isinstance(instances.gt_masks, BitMasks)
    for found in instances.gt_masks.tensor:
        assert np.array_equal(found.numpy(), mask.astype(bool))
    flipped = images_of(root, min_size=20, flip=1.0).sample(0, numpy_rng(0))["instances"]
    assert np.array_equal(flipped.gt_masks.tensor[1].numpy(), mask[:, ::-1].astype(bool))


def test_polygons_stay_polygons(smoke_root: Path) -> None:
    instances = images_of(smoke_root, min_size=64).sample(0, numpy_rng(0))["instances"]
    assert isinstance(instances.gt_masks, PolygonMasks)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_every_colour_mode_is_read_as_three_channels(mode: str, tmp_path: Path) -> None:
    name = "one.png" if mode in ("RGBA", "P") else "one.jpg"
    root = one_image(tmp_path, Image.new("RGB", (30, 20), (200, 100, 50)).convert(mode), name)
    image = images_of(root, min_size=20, flip=0.0).sample(0, numpy_rng(0))["image"]
    assert image.shape == (3, 20, 30)
    assert image.dtype == torch.uint8


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[274] = 6  # to be turned by 90 degrees
    stored = Image.new("RGB", (20, 30))
    root = one_image(tmp_path, stored, "one.jpg", exif=tag)
    swap = {"width": 30, "height": 20}
    edit(root, lambda content: content["images"][0].update(swap))
    sample = images_of(root, min_size=20, flip=0.0).sample(0, numpy_rng(0))
    assert sample["image"].shape == (3, 20, 30)


def test_what_training_skips_and_evaluation_keeps(smoke_root: Path) -> None:
    annotations = coco.read_annotations(coco.annotation_file(smoke_root, coco.TRAIN))
    empty = [i for i in annotations.images if not annotations.by_image.get(i["id"])]
    crowds = [a for a in annotations.content["annotations"] if a["iscrowd"]]
    assert empty
    assert crowds
    train = images_of(smoke_root, min_size=64)
    used = {train.sample(i, numpy_rng(i))["image_id"] for i in range(len(train))}
    assert used.isdisjoint(i["id"] for i in empty)
    num_objects = sum(len(train.sample(i, numpy_rng(i))["instances"]) for i in range(len(train)))
    assert num_objects == len(annotations.content["annotations"]) - len(crowds)
    val = coco.read_annotations(coco.annotation_file(smoke_root, coco.VAL))
    everything = CocoImages(smoke_root, coco.VAL, val, DetectionData(min_size=64))
    assert len(everything) == len(val.images)
    assert "instances" not in everything.evaluation_sample(0)


def test_training_rule_on_odd_objects() -> None:
    good = {"bbox": [0, 0, 5, 5], "segmentation": [[0, 0, 5, 0, 5, 5]]}
    thin = {"bbox": [0, 0, 1, 50], "segmentation": [[0, 0, 1, 0, 1, 50]]}
    crowd = good | {"iscrowd": 1, "segmentation": {"size": [9, 9], "counts": [81]}}
    bare = {"bbox": [0, 0, 5, 5]}
    line = good | {"segmentation": [[0, 0, 5, 5]]}
    assert coco.training_objects([good, thin, crowd, bare, line]) == [good, thin]
    for objects in ([], [thin], [crowd], [bare], [line], [thin, crowd]):
        assert coco.training_objects(objects) == []


def test_json_without_info_and_with_unlisted_images_is_enough(coco_copy: Path) -> None:
    for split in (coco.TRAIN, coco.VAL):
        edit(coco_copy, lambda c: [c.pop("info", None), c.pop("licenses", None)], split)
        Image.new("RGB", (9, 9)).save(coco_copy / split / "unlisted.jpg")
    images = images_of(coco_copy, min_size=64)
    names = {images._records[i]["file_name"] for i in range(len(images))}
    assert not any("unlisted" in name for name in names)


def test_data_and_samples_can_be_sent_to_loader_processes(smoke_root: Path) -> None:
    images = pickle.loads(pickle.dumps(images_of(smoke_root, min_size=64)))
    sample = images.sample(0, numpy_rng(0))
    copied = pickle.loads(pickle.dumps(sample))
    assert torch.equal(copied["image"], sample["image"])
    assert len(copied["instances"]) == len(sample["instances"])


class TestBrokenImages:
    """Named at the moment they are met, in one line, with exit status 3."""

    def complaint(self, root: Path, split: str = coco.TRAIN) -> str:
        images = images_of(root, split, min_size=64)
        with pytest.raises(DataError) as caught:
            images.evaluation_sample(0)
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def first(self, root: Path, split: str = coco.TRAIN) -> Path:
        return Path(images_of(root, split, min_size=64)._records[0]["file_name"])

    @pytest.mark.parametrize("split", [coco.TRAIN, coco.VAL])
    @pytest.mark.parametrize("keep", [0, 20, 300])
    def test_truncated(self, split: str, keep: int, coco_copy: Path) -> None:
        path = self.first(coco_copy, split)
        path.write_bytes(path.read_bytes()[:keep])
        assert path.name in self.complaint(coco_copy, split)

    def test_truncated_jpeg(self, tmp_path: Path) -> None:
        noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8)
        root = one_image(tmp_path, Image.fromarray(noise))
        path = self.first(root)
        path.write_bytes(path.read_bytes()[:-500])
        assert "truncated" in self.complaint(root)

    def test_not_an_image(self, coco_copy: Path) -> None:
        path = self.first(coco_copy)
        path.write_text("<html>404</html>")
        assert "cannot be read" in self.complaint(coco_copy)

    def test_missing(self, coco_copy: Path) -> None:
        self.first(coco_copy).unlink()
        assert "is missing" in self.complaint(coco_copy)

    def test_of_another_size(self, coco_copy: Path) -> None:
        path = self.first(coco_copy)
        other = io.BytesIO()
        Image.new("RGB", (10, 20)).save(other, "png")
        path.write_bytes(other.getvalue())
        assert "10 x 20 pixels, annotated as 64 x 64" in self.complaint(coco_copy)


def test_no_usable_object_at_all_is_an_error(coco_copy: Path) -> None:
    edit(coco_copy, lambda content: content.update(annotations=[]))
    with pytest.raises(DataError, match="no image has an object"):
        images_of(coco_copy)
