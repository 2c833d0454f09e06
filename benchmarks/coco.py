"""What our way to the COCO metrics costs beside pycocotools alone, on the same detections.

    python -m benchmarks.coco [--rounds 9]

Boxes and masks of made-up scenes: rectangles of 20 classes, each found a little aside, and as many
false ones. `pycocotools` is what detectron2's evaluator calls: an index of the truth, `loadRes`,
`evaluate`, `accumulate` and `summarize` for boxes and for masks. Both give the same twelve numbers,
which is checked first. The model and the encoding of its masks are no part of it.
"""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import paired
from benchmarks.paired import Bench

SIDE, CLASSES, OBJECTS = 320, 20, 7
SIZES = (100, 400)
GOAL = 1.02

Json = dict[str, Any]


def scenes(num: int) -> tuple[Json, list[Json]]:
    """Return made-up annotations of ``num`` images and detections, both in COCO's formats."""
    from pycocotools import mask as coco_mask

    draws = np.random.RandomState(0)
    annotations, results = [], []
    for image in range(1, num + 1):
        for _ in range(OBJECTS):
            x, y = draws.uniform(0, SIDE - 100, 2)
            width, height = draws.uniform(8, 90, 2)
            category = int(draws.randint(1, CLASSES + 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "segmentation": [_corners(x, y, width, height)],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
            aside = draws.uniform(-5, 5, 2)
            for dx, dy in (aside, draws.uniform(0, 100, 2)):
                box = [x + dx, y + dy, width, height]
                region = coco_mask.frPyObjects([_corners(*box)], SIDE, SIDE)[0]
                results.append(
                    {
                        "image_id": image,
                        "category_id": category,
                        "bbox": box,
                        "segmentation": region,
                        "score": float(draws.uniform()),
                    }
                )
    images = [{"id": i, "file_name": "", "width": SIDE, "height": SIDE} for i in range(1, num + 1)]
    categories = [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _corners(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def alone(content: Json, results: list[Json]) -> list[float]:
    """Score with pycocotools as it is; the first six numbers of boxes and of masks, in %."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        for kind in ("bbox", "segm"):
            # loadRes writes into what it gets, and takes a result with a box for a box.
            left_out = "segmentation" if kind == "bbox" else "bbox"
            own = [{k: v for k, v in one.items() if k != left_out} for one in results]
            evaluation = COCOeval(truth, truth.loadRes(own), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers += [100 * float(value) for value in evaluation.stats[:6] if value >= 0]
    return numbers


def ours(content: Json, results: list[Json]) -> list[float]:
    """Score as a run does."""
    from tasks.detection import coco, evaluation

    truth = evaluation.ground_truth(coco.Annotations(Path(), content, {}))
    return [metric.value for metric in evaluation.score(truth, results)]


def score(bench: Bench) -> None:
    """Compare the two on 100 and on 400 images."""
    if not (bench.has("pycocotools", "this part") and bench.has("detectron2", "this part")):
        return
    for num in (5,) if bench.quick else SIZES:
        if not bench.wants("score", f"{num} images"):
            continue
        content, results = scenes(num)
        assert alone(content, results) == ours(content, results)
        cases = {"pycocotools": partial(alone, content, results)}
        cases["pycocotools again"] = cases["pycocotools"]
        cases["ours"] = partial(ours, content, results)
        bench.compare("score", f"{num} images", cases, goals={"ours": GOAL})


PARTS = {"score": score}
ROUNDS = 9

if __name__ == "__main__":
    paired.main("coco", __doc__, PARTS, rounds=ROUNDS)
