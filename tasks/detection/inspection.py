"""What ``normbench data check`` does for COCO: counts everything, misses nothing, opens a few."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image, ImageOps

from harness.errors import DataError, first_line
from harness.task import DataReport, Progress
from tasks.detection import coco

UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, truncated, no pictures, or absurdly large."""
_OPENED = 200  # images of each split
# cocodataset.org; of the training images 117,266 are usable, as detectron2 logs them.
_OFFICIAL = {coco.TRAIN: 118_287, coco.VAL: 5_000}


def inspect(root: Path, progress: Progress, *, official: bool = False) -> DataReport:
    """Check a COCO folder.

    Args:
        root: the folder.
        progress: told of the images opened.
        official: whether the counts must be COCO 2017's.

    Returns:
        Counts of each split, and every problem found in words.

    Raises:
        DataError: if the folder or an annotation file is not of the format at all.
    """
    coco.check_layout(root)
    facts: dict[str, str] = {}
    problems: list[str] = []
    categories = {}
    for split in (coco.TRAIN, coco.VAL):
        annotations = coco.read_annotations(coco.annotation_file(root, split))
        categories[split] = annotations.category_ids
        facts |= _count(split, annotations)
        problems += _find_images(root / split, annotations, progress)
        if official and len(annotations.images) != _OFFICIAL[split]:
            problems.append(
                f"{annotations.path} lists {len(annotations.images):,} images, COCO 2017 has "
                f"{_OFFICIAL[split]:,}: unpack annotations_trainval2017.zip (cocodataset.org) again"
            )
    try:
        coco.check_evaluated(annotations)
    except DataError as error:
        problems.append(str(error))
    if categories[coco.TRAIN] != categories[coco.VAL]:
        problems.append("the two annotation files list different categories")
    return DataReport(root, facts, problems)


def _count(split: str, annotations: coco.Annotations) -> dict[str, str]:
    num_images = len(annotations.images)
    usable = sum(
        bool(coco.training_objects(annotations.by_image.get(image["id"], [])))
        for image in annotations.images
    )
    objects = annotations.content["annotations"]
    crowds = sum(bool(item.get("iscrowd", 0)) for item in objects)
    official = _OFFICIAL[split]
    return {
        f"{split} images": f"{num_images:,} (COCO 2017: {official:,})",
        f"{split} images with usable objects": f"{usable:,}",
        f"{split} objects": f"{len(objects) - crowds:,}",
        f"{split} crowds": f"{crowds:,}",
        f"{split} categories": f"{len(annotations.category_ids):,}",
    }


def _find_images(folder: Path, annotations: coco.Annotations, progress: Progress) -> list[str]:
    images = annotations.images
    absent = list(coco.missing_images(folder, images))
    problems = []
    if absent:
        problems.append(
            f"{len(absent):,} of {len(images):,} images of {annotations.path} are not in "
            f"{folder} (first: {absent[0]})"
        )
    missing = set(absent)
    chosen = coco.spread([i for i in images if i["file_name"] not in missing], _OPENED)
    for number, image in enumerate(chosen, start=1):
        try:
            open_image(folder / image["file_name"], image["width"], image["height"])
        except DataError as error:
            problems.append(str(error))
        progress(f"open {folder.name}", number, len(chosen))
    return problems


def open_image(path: Path, width: int, height: int) -> None:
    """Decode an image and compare its size.

    Raises:
        DataError: if it is no whole image, or of another size than annotated.
    """
    try:
        with Image.open(path) as image:
            image.load()
            size = ImageOps.exif_transpose(image).size
    except UNREADABLE as error:
        raise DataError(f"image {path} cannot be read ({first_line(error)})") from None
    if size != (width, height):
        raise DataError(
            f"image {path} has {size[0]} x {size[1]} pixels, annotated as {width} x {height}"
        )
