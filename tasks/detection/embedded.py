"""Detection data that need no download: pictures of flat shapes, written in COCO's own format.

The learning problem: find every disc, triangle, star and ring of a picture, name it and give its
visible region. A class *is* an outline. Its colour helps (a class hue, mixed with 0.2 of a random
colour), so that a small network learns it in minutes, but the textures tell nothing: stripes,
checks, dots and blotches of any angle and period fall on objects of every class and on the
background alike. Objects differ in size, aspect and rotation, are lit from one side, and later
ones hide parts of earlier ones.

Each picture is then exposed differently: a contrast between 0.3 and 1, a colour cast, a brightness
offset and sensor noise. One picture's mean and variance are therefore a poor guess for the next
one's, which is what statistics over few pictures (BatchNorm in micro-batch training) suffer from.

On disk it is COCO 2017 (Lin et al. 2014, arXiv:1405.0312), with what real files contain too:
category ids with gaps, polygons of the visible region only (several where an object is cut in
two), crowds as run lengths (`iscrowd=1`), and images without any object::

    root/train2017/000000000001.png ...    root/val2017/000001000001.png ...
    root/annotations/instances_{train,val}2017.json

Picture `index` of a split is drawn from `RandomState([seed, split, index])`, whose stream NumPy
keeps stable (NEP 19), and so depends neither on the other pictures nor on their number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from harness.embedded import check_seed, generate_once
from harness.errors import UsageError

VERSION = 1
"""Of the generator: raised whenever the same arguments give other pixels or annotations."""

MIN_SIZE = 64
"""Pixels a side; in smaller pictures the smallest shapes would be specks."""

# Pictures 3, 28, 53, ... have a crowd and 5, 30, 55, ... no object: any split of 6 has both.
_PERIOD = 25
_KINDS: dict[int, Literal["crowd", "empty"]] = {3: "crowd", 5: "empty"}
_SPLITS = ("train2017", "val2017")
_FIRST_ID = {"train2017": 1, "val2017": 1_000_001}
_LICENCE = {"id": 1, "name": "MIT License", "url": "https://opensource.org/license/mit"}


def fingerprint(seed: int, size: int, num_train: int, num_val: int) -> str:
    """Name what `generate` writes for these arguments; fit for a folder name.

    Args:
        seed: data seed.
        size: side of the square pictures, pixels.
        num_train: number of training pictures.
        num_val: number of validation pictures.

    Raises:
        UsageError: an argument is out of range.
    """
    check_seed(seed)
    if size < MIN_SIZE:
        raise UsageError(
            f"embedded detection pictures need a size of {MIN_SIZE} or more, not {size}"
        )
    if not (0 < num_train < _FIRST_ID["val2017"] and num_val > 0):
        raise UsageError(
            f"embedded detection data need 1 to 1000000 training and 1 or more validation pictures,"
            f" not {num_train} and {num_val}"
        )
    return f"embedded-detection-v{VERSION}-s{seed}-{size}px-{num_train}-{num_val}"


def generate(
    root: Path,
    *,
    seed: int,
    size: int = 96,
    num_train: int = 800,
    num_val: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `root`, unless it is there already, and return `root`.

    Args:
        root: folder to create; its parents are created too.
        seed: data seed.
        size: side of the square pictures, pixels.
        num_train: number of training pictures.
        num_val: number of validation pictures.
        progress: called with (pictures done, pictures in all) after each picture.

    Raises:
        DataError: `root` holds something else, or cannot be written.
        UsageError: an argument is out of range.
    """
    version = fingerprint(seed, size, num_train, num_val)
    counts = dict(zip(_SPLITS, (num_train, num_val), strict=True))

    def write(folder: Path) -> None:
        done = 0
        (folder / "annotations").mkdir()
        for split, count in counts.items():
            for _ in _write_split(folder, split, count, seed=seed, size=size, version=version):
                done += 1
                if progress is not None:
                    progress(done, num_train + num_val)

    return generate_once(root, version, write)


def _write_split(
    root: Path, split: str, count: int, *, seed: int, size: int, version: str
) -> Iterator[None]:
    """Write one split, yielding after each picture; its json comes last."""
    # Not at the top: `plan` imports this module for the fingerprint only and must stay fast.
    from numpy.random import RandomState
    from PIL import Image

    from tasks.detection import scenes

    (root / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = RandomState([seed, _SPLITS.index(split), index])
        pixels, instances = scenes.draw(rng, size, _KINDS.get(index % _PERIOD, "ordinary"))
        image_id = _FIRST_ID[split] + index
        file_name = f"{image_id:012d}.png"
        # PNG decodes to the same pixels everywhere; level 1 because noise hardly compresses.
        Image.fromarray(pixels).save(root / split / file_name, compress_level=1)
        images.append(
            {"id": image_id, "file_name": file_name, "width": size, "height": size, "license": 1}
        )
        for number, instance in enumerate(instances):
            annotation = {"id": image_id * 10 + number, "image_id": image_id}
            annotations.append(annotation | scenes.describe(instance))
        yield
    content = {
        "info": {"description": "normbench embedded detection data", "version": version},
        "licenses": [_LICENCE],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": c.id, "name": c.name, "supercategory": c.supercategory}
            for c in scenes.CATEGORIES
        ],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
