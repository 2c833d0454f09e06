"""COCO's format on disk without heavy libraries: where things lie, what is usable, what is wrong.

The layout is that of the official archives (Lin et al. 2014, arXiv 1405.0312)::

    root/train2017/*.jpg   root/val2017/*.jpg   root/annotations/instances_{train,val}2017.json
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.documents import quoted
from harness.errors import DataError, first_line
from harness.paths import cache_dir, write_atomic

TRAIN, VAL = "train2017", "val2017"
EXPECTED = (
    "a COCO folder holds train2017/ val2017/ annotations/instances_train2017.json "
    "annotations/instances_val2017.json"
)
_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_SPOT_CHECKS = 16


_WIDEST = 2**16
"""Pixels: pycocotools draws outlines of any length, and crashes where memory ends."""


def _is_int(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _are_coordinates(values: list[Any]) -> bool:
    """Tell whether all are numbers of pixels; there are some 40 million in COCO's files."""
    return not values or (
        set(map(type, values)) <= {int, float}
        and min(values) >= -_WIDEST
        and max(values) <= _WIDEST
        and not math.isnan(sum(values))
    )


_INTEGER = partial(_is_int, least=-(2**63), most=2**63 - 1), "an integer"
_SIZE = partial(_is_int, least=1, most=_WIDEST), f"1 to {_WIDEST:,} pixels"
_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("id", "image_id", "category_id"), _INTEGER),
    **dict.fromkeys(("width", "height"), _SIZE),
    "file_name": (
        lambda v: isinstance(v, str) and bool(v.strip(".")) and "\0" not in v,
        "a file's name",
    ),
    "bbox": (
        lambda v: isinstance(v, list) and len(v) == 4 and _are_coordinates(v),
        "four numbers of pixels",
    ),
    "area": (lambda v: type(v) in (int, float) and 0 <= v <= _WIDEST**2, "a number of pixels"),
    "iscrowd": (lambda v: type(v) is int and v in (0, 1), "0 or 1"),
}
"""What training and evaluation rely on, wherever it stands; else they would fail in hour nine."""

Json = dict[str, Any]


def annotation_file(root: Path, split: str) -> Path:
    """Return where the annotations of ``split`` lie."""
    return root / "annotations" / f"instances_{split}.json"


def check_layout(root: Path) -> None:
    """Check quickly that ``root`` has the folders and files of the layout.

    Raises:
        DataError: naming the first thing that is missing.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {problem}: {EXPECTED}")
    if not any(root.iterdir()):
        raise DataError(f"data folder {root} is empty: {EXPECTED}")
    if not (root / "annotations").is_dir():
        raise DataError(f"{root} has no folder annotations/: {EXPECTED}")
    for split in (TRAIN, VAL):
        path = annotation_file(root, split)
        if not path.is_file():
            raise DataError(f"annotation file {path} is missing: {EXPECTED}")
        images = root / split
        if not images.is_dir() or not any(images.iterdir()):
            problem = "is empty" if images.is_dir() else "is missing"
            raise DataError(f"image folder {images} {problem}: {EXPECTED}")


@dataclass(frozen=True)
class Annotations:
    """One ``instances_*.json``, checked; ``info`` and ``licenses`` may be absent."""

    path: Path
    content: Json
    """The file's content, at least ``images``, ``annotations`` and ``categories``."""
    by_image: Mapping[int, list[Json]]
    """Annotations by image id."""

    @property
    def images(self) -> list[Json]:
        """Return the images, sorted by id, so that their order is one of the data."""
        return sorted(self.content["images"], key=lambda image: image["id"])

    @property
    def category_ids(self) -> list[int]:
        """Return the category ids in ascending order; the index in it is the model's class."""
        return sorted(category["id"] for category in self.content["categories"])


def read_annotations(path: Path) -> Annotations:
    """Read and check one annotation file.

    Raises:
        DataError: in one line, if it is not JSON, or not COCO instances.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
        raise DataError(f"{path} is not JSON ({reason}): expected COCO instances") from None
    _check_structure(path, content)
    by_image: dict[int, list[Json]] = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return Annotations(path, content, by_image)


def _check_structure(path: Path, content: Any) -> None:
    expected = "expected COCO instances, an object with lists images, annotations and categories"
    if not isinstance(content, dict):
        raise DataError(f"{path} is not COCO: it holds a {type(content).__name__}; {expected}")
    for name, keys in _KEYS.items():
        if not isinstance(content.get(name), list):
            raise DataError(f"{path} is not COCO: it has no list {name!r}; {expected}")
        for index, item in enumerate(content[name]):
            if not isinstance(item, dict) or any(key not in item for key in keys):
                raise DataError(
                    f"{path} is not COCO: {name}[{index}] lacks one of {', '.join(keys)}"
                )
            for key, (is_right, words) in _VALUES.items():
                if key in item and not is_right(item[key]):
                    raise DataError(
                        f"{path} is not COCO: {name}[{index}].{key} is {quoted(item[key])}, "
                        f"not {words}"
                    )
    known = {category["id"] for category in content["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for name, identities in (("categories", known), ("images", sizes)):
        if len(identities) < len(content[name]):
            raise DataError(f"{path}: two of its {name} have one id")
    for annotation in content["annotations"]:
        if not _is_region(annotation.get("segmentation"), sizes.get(annotation["image_id"])):
            raise DataError(
                f"{path}: annotation {annotation['id']} has a segmentation that is neither "
                "polygons [[x0, y0, x1, y1, ...], ...] nor run lengths of the image's size"
            )
        if annotation["category_id"] not in known:
            raise DataError(
                f"{path}: annotation {annotation['id']} has category_id "
                f"{annotation['category_id']}, which is not among its categories"
            )
    if not content["images"] or not known:
        empty = "categories" if content["images"] else "images"
        raise DataError(f"{path} lists no {empty}; {expected}")


def _is_region(region: Any, size: tuple[int, int] | None) -> bool:
    """Tell whether pycocotools can take a segmentation: it reads past the end of what it cannot."""
    if region is None:
        return True
    if isinstance(region, dict):
        counts = region.get("counts")
        if size is not None and region.get("size") != list(size):
            return False
        if isinstance(counts, list):
            whole = all(type(count) is int and count >= 0 for count in counts)
            return size is None or (whole and sum(counts) == math.prod(size))
        return isinstance(counts, str) and counts.isascii()
    return isinstance(region, list) and all(
        isinstance(polygon, list) and _are_coordinates(polygon) for polygon in region
    )


def check_evaluated(annotations: Annotations, *, masks: bool = True) -> None:
    """Check that pycocotools can evaluate on annotations, before hours of training.

    Raises:
        DataError: naming the first annotation that lacks something.
    """
    for annotation in annotations.content["annotations"]:
        region = annotation.get("segmentation")
        if masks and isinstance(region, list):
            region = region and all(len(p) >= 4 and len(p) % 2 == 0 for p in region)
        whole = {"area", "iscrowd"} <= annotation.keys() and (region or not masks)
        if not whole:
            raise DataError(
                f"{annotations.path}: annotation {annotation['id']} lacks area, iscrowd or a whole "
                "segmentation, and evaluating needs them"
            )


def training_objects(annotations: Sequence[Json], *, masks: bool = True) -> list[Json]:
    """Return the objects of an image that training uses, or nothing if the image is skipped.

    Crowds are no training objects, and an image of which no object is wider and higher than one
    pixel is skipped (maskrcnn-benchmark, ``data/datasets/coco.py``): of train2017's 118,287 images
    117,266 remain. Where masks are learnt, objects without any polygon of three points or run
    lengths are dropped, as by detectron2's ``load_coco_json``.
    """
    objects = [a for a in annotations if not a.get("iscrowd", 0) and (not masks or has_mask(a))]
    return objects if any(a["bbox"][2] > 1 and a["bbox"][3] > 1 for a in objects) else []


def has_mask(annotation: Json) -> bool:
    """Tell whether an annotation has a region to learn from."""
    region = annotation.get("segmentation")
    if isinstance(region, dict):
        return True
    return any(valid_polygon(polygon) for polygon in region or ())


def valid_polygon(polygon: Sequence[float]) -> bool:
    """Tell whether ``[x0, y0, x1, y1, ...]`` has at least three points."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def spread(items: Sequence[Json], num: int) -> list[Json]:
    """Return up to ``num`` items spread evenly over ``items``, first and last included."""
    if len(items) <= num:
        return list(items)
    return [items[round(i * (len(items) - 1) / (num - 1))] for i in range(num)]


def missing_images(folder: Path, images: Sequence[Json]) -> Iterator[str]:
    """Iterate over the file names of ``images`` that are not in ``folder``."""
    return (image["file_name"] for image in images if not (folder / image["file_name"]).is_file())


def spot_check_images(root: Path, split: str, annotations: Annotations) -> None:
    """Check a few listed images for existence; ``data check`` looks at all.

    Raises:
        DataError: naming the first one that is absent.
    """
    folder = root / split
    for name in missing_images(folder, spread(annotations.images, _SPOT_CHECKS)):
        raise DataError(
            f"image {folder / name} is missing, but {annotations.path} lists it: "
            "`normbench data check detection` names all"
        )


def fingerprint(root: Path) -> str:
    """Return a content identity of the real data at ``root``: of both annotation files.

    The files (450 MB) are hashed once and remembered by path, size and time of change.

    Raises:
        DataError: if the layout is wrong, or a small annotation file is not COCO.
    """
    check_layout(root)
    digests = [_digest(annotation_file(root, split)) for split in (TRAIN, VAL)]
    joined = hashlib.blake2b("".join(digests).encode(), digest_size=8).hexdigest()
    return f"coco-{joined}"


def _digest(path: Path) -> str:
    state = path.stat()
    key = f"{path.resolve()}\x1f{state.st_size}\x1f{state.st_mtime_ns}"
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    remembered = cache_dir() / "fingerprints" / name
    try:
        return remembered.read_text(encoding="utf-8")
    except OSError:
        pass
    if state.st_size < 32 * 2**20:  # seconds for official files, which the run reads anyway
        read_annotations(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(remembered, digest)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return digest
