"""Draws images under the boxes, masks and names that a detector finds in them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from harness.samples import Sample, spread
from tasks.detection import coco, evaluation
from tasks.detection.dataset import CocoImages
from tasks.detection.show import Split, annotated, colours_of, read_rgb

_SIDE = 192  # px
_SCORE = 0.5
"""Detections below it are not drawn; AP counts them all."""


def samples(
    model: nn.Module, images: CocoImages, truth: coco.Annotations, num: int
) -> list[Sample]:
    """Return images under their objects, and under what the model finds with a score above 0.5."""
    names = {c["id"]: c["name"] for c in truth.content["categories"]}
    ids = truth.category_ids
    data = Split(truth.images, dict(truth.by_image), names, colours_of(ids))
    drawn = []
    for index in spread(len(images), num):
        record = images.record(index)
        picture = read_rgb(Path(record["file_name"]))
        objects = truth.by_image.get(record["image_id"], [])
        seen = images.evaluation_sample(index)
        every = evaluation.detections(model, seen, ids, pixels=images.pixels)
        found = [one for one in every if one["score"] >= _SCORE]
        drawn.append(
            Sample(
                name=Path(record["file_name"]).name,
                truth=_counted(len(objects)),
                found=_counted(len(found)),
                right=None,
                truth_picture=annotated(picture, objects, data, _SIDE)[1],
                found_picture=annotated(picture, _sized(found), data, _SIDE)[1],
            )
        )
    return drawn


def _sized(found: list[coco.Json]) -> list[coco.Json]:
    """Give detections the area of their boxes, by which they are ordered."""
    return [one | {"area": one["bbox"][2] * one["bbox"][3]} for one in found]


def _counted(number: int) -> str:
    return f"{number} object{'' if number == 1 else 's'}"
