"""COCO images as detectron2's model takes them: read, resized, flipped, with masks of any kind.

Records are kept pickled in one array: a million small Python objects would be copied into every
loader process as soon as their reference counts change.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from harness.errors import DataError, first_line
from tasks.detection import coco, maskrcnn_benchmark
from tasks.detection.d2 import BoxMode, Instances, detection_utils, transforms
from tasks.detection.inspection import UNREADABLE

if TYPE_CHECKING:
    from numpy.random import RandomState
    from numpy.typing import NDArray

    from tasks.detection.info import DetectionData

Sample = dict[str, Any]
"""``image`` (3, H, W) uint8 BGR; ``height`` and ``width`` of the file; ``image_id``; in training
also ``instances`` with ``gt_boxes``, ``gt_classes``, maybe ``gt_masks`` in pixels of ``image``."""


class CocoImages:
    """The images of one split; the training samples of ``harness.task.GroupedTrainData``."""

    def __init__(
        self,
        root: Path,
        split: str,
        annotations: coco.Annotations,
        data: DetectionData,
        *,
        masks: bool = True,
        pixels: bool = False,
    ) -> None:
        """Keep what sampling needs of ``annotations``; no image is opened.

        Args:
            root: COCO folder.
            split: ``coco.TRAIN``, of which only images with usable objects are kept, or
                ``coco.VAL``, of which all are kept and none needs objects.
            annotations: of that split.
            data: sizes, flipping and grouping.
            masks: whether masks are learnt.
            pixels: whether boxes end on their last pixel (``model.boxes``).

        Raises:
            DataError: if no training image has a usable object.
        """
        self.data, self.pixels = data, pixels
        classes = {category: i for i, category in enumerate(annotations.category_ids)}
        records = []
        for image in annotations.images:
            record: dict[str, Any] = {
                "image_id": image["id"],
                "file_name": str(root / split / image["file_name"]),
                "height": image["height"],
                "width": image["width"],
            }
            if split == coco.TRAIN:
                size = image["height"], image["width"]
                found = annotations.by_image.get(image["id"], [])
                objects = coco.training_objects(found, masks=masks)
                if pixels:
                    objects = [
                        item
                        for item in objects
                        if maskrcnn_benchmark.is_more_than_a_pixel(item["bbox"], *size)
                    ]
                if not objects:
                    continue
                record["annotations"] = [_object(o, classes, size, masks=masks) for o in objects]
            records.append(record)
        if not records:
            raise DataError(f"{annotations.path}: no image has an object to train on")
        self._records = _Packed(records)
        self.groups = (
            # As maskrcnn-benchmark's `_quantize`: height over width below 1, or not.
            bytes(record["height"] >= record["width"] for record in records)
            if data.group_by_aspect
            else None
        )

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> dict[str, Any]:
        """Return what is known of an image without reading it: its id, file and size."""
        found: dict[str, Any] = self._records[index]
        return found

    def sample(self, index: int, rng: RandomState) -> Sample:
        """Return training sample ``index``, mirrored if ``rng`` says so.

        Raises:
            DataError: if its image is missing, broken, or of another size than annotated.
        """
        return self._load(index, flip=bool(rng.random_sample() < self.data.flip))

    def evaluation_sample(self, index: int) -> Sample:
        """Return sample ``index`` resized, not mirrored."""
        return self._load(index, flip=False)

    def _load(self, index: int, *, flip: bool) -> Sample:
        record = self._records[index]
        pixels = read_bgr(record)
        height, width = pixels.shape[:2]
        to = resized(height, width, self.data.min_size, self.data.max_size)
        steps = [transforms.ResizeTransform(height, width, *to)] if to != (height, width) else []
        if flip:
            steps.append(transforms.HFlipTransform(to[1]))
        change = transforms.TransformList(steps)
        pixels = change.apply_image(pixels)
        sample: Sample = {
            "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "height": record["height"],
            "width": record["width"],
            "image_id": record["image_id"],
        }
        if "annotations" in record:
            instances = _instances(record["annotations"], change, to)
            if self.pixels:
                scale = to[1] / width, to[0] / height
                maskrcnn_benchmark.scale_pixels(instances, scale, flipped=flip)
            sample["instances"] = detection_utils.filter_empty_instances(instances)
        return sample


class _Packed:
    """A list of picklable records in two arrays."""

    def __init__(self, records: Sequence[Any]) -> None:
        pickled = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([len(item) for item in pickled])
        self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].data)


def _object(
    annotation: coco.Json, classes: dict[int, int], size: tuple[int, int], *, masks: bool
) -> coco.Json:
    """Turn an annotation into detectron2's: contiguous class, compressed run lengths."""
    converted: coco.Json = {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": classes[annotation["category_id"]],
    }
    if not masks:
        return converted
    region = annotation["segmentation"]
    if isinstance(region, dict):
        if isinstance(region["counts"], list):
            region = coco_mask.frPyObjects(region, *size)
    else:
        region = [np.asarray(polygon) for polygon in region if coco.valid_polygon(polygon)]
    return converted | {"segmentation": region}


def _instances(objects: list[coco.Json], change: Any, size: tuple[int, int]) -> Instances:
    """Move the objects with their image."""
    # One run length among the objects makes bitmaps of all: Instances hold one kind of mask.
    any_rle = any(isinstance(item.get("segmentation"), dict) for item in objects)
    moved = [detection_utils.transform_instance_annotations(o, change, size) for o in objects]
    return detection_utils.annotations_to_instances(
        moved, size, mask_format="bitmask" if any_rle else "polygon"
    )


def read_bgr(record: dict[str, Any]) -> NDArray[np.uint8]:
    """Read an image of any colour mode as BGR, turned as its EXIF tag says.

    Returns:
        (H, W, 3) pixels.

    Raises:
        DataError: if the file is missing, broken, or of another size than annotated.
    """
    name = record["file_name"]
    try:
        pixels: NDArray[np.uint8] = detection_utils.read_image(name, format="BGR")
    except FileNotFoundError:
        raise DataError(f"image {name} is missing, but the annotations list it") from None
    except UNREADABLE as error:
        reason = first_line(error)
        raise DataError(
            f"image {name} cannot be read ({reason}): replace the file; "
            "`normbench data check detection` looks for more"
        ) from None
    if pixels.shape[:2] != (record["height"], record["width"]):
        raise DataError(
            f"image {name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, "
            f"annotated as {record['width']} x {record['height']}"
        )
    return pixels


def resized(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Return the size with the shorter side at ``min_size``, unless the longer exceeds its limit.

    As maskrcnn-benchmark's ``Resize``: the shorter side is rounded, the longer one truncated.

    Args:
        height: of the image, px.
        width: of the image, px.
        min_size: wanted shorter side, px.
        max_size: largest longer side, px.

    Returns:
        Height and width, px, at least 1.
    """
    short, long = sorted((height, width))
    side = min_size
    if long * min_size > max_size * short:
        side = max(1, round(max_size * short / long))
    other = side * long // short
    return (side, other) if height <= width else (other, side)
