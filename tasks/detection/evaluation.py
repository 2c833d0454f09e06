"""The official COCO metrics of a model, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from harness.feed import EvaluationSamples, ahead
from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.detection import coco, maskrcnn_benchmark
from tasks.detection.d2 import Instances, instances_to_coco_json
from tasks.detection.dataset import CocoImages, Sample

_KINDS = {"bbox": "box", "segm": "mask"}
_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six of COCOeval.stats


def ground_truth(annotations: coco.Annotations) -> COCO:
    """Return pycocotools' index of annotations that are already in memory."""
    return _indexed(annotations.content["annotations"], annotations.content)


def predict(
    model: nn.Module,
    images: CocoImages,
    category_ids: Sequence[int],
    progress: Progress,
    share: Share = ALONE,
    *,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Iterate over the model's detections in COCO's result format, image by image.

    Args:
        model: in evaluation mode.
        images: what to look at.
        category_ids: the data's id of each of the model's classes.
        progress: told of every image.
        share: which of the images.
        workers: processes that read the images ahead; 0 = none.
    """
    own = share.of(len(images))
    for index, sample in zip(own, ahead(EvaluationSamples(images), own, workers), strict=True):
        yield from detections(model, sample, category_ids, pixels=images.pixels)
        progress("evaluate", index + 1, len(images))


def detections(
    model: nn.Module, sample: Sample, category_ids: Sequence[int], *, pixels: bool
) -> Iterator[dict[str, Any]]:
    """Iterate over the model's detections in one image, as ``evaluation_sample`` gives it."""
    with torch.no_grad():
        instances = _detect(model, sample, pixels=pixels).to("cpu")
    for result in instances_to_coco_json(instances, sample["image_id"]):
        yield result | {"category_id": category_ids[result["category_id"]]}


def in_order(
    parts: Sequence[Sequence[dict[str, Any]]], image_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Join the results of all processes in the order of the images, as one would find them."""
    place = {image: number for number, image in enumerate(image_ids)}
    found = [result for part in parts for result in part]
    return sorted(found, key=lambda result: place[result["image_id"]])


def _detect(model: nn.Module, sample: Sample, *, pixels: bool) -> Instances:
    """Return the detections of an image in its own size, ``pred_masks`` (N, H, W)."""
    if not pixels:
        return model([sample])[0]["instances"]
    found = model.inference([sample], do_postprocess=False)[0]  # type: ignore[operator]
    return maskrcnn_benchmark.to_image(found, sample["height"], sample["width"])


def score(truth: COCO, results: Sequence[dict[str, Any]], *, masks: bool = True) -> list[Metric]:
    """Measure box and mask AP of results in COCO's format.

    Args:
        truth: from ``ground_truth``.
        results: dicts of ``image_id``, ``category_id``, ``bbox``, ``segmentation`` (run lengths)
            and ``score``; none at all scores 0, of an image the best 100 count.
        masks: whether to measure masks; without, ``segmentation`` may be absent.

    Returns:
        AP, AP50, AP75 and AP of small, medium and large objects, in %; those for which the ground
        truth has no object are left out, because they are not defined.
    """
    metrics = []
    for kind, prefix in _KINDS.items():
        if kind == "segm" and not masks:
            continue
        detections = _indexed(_as_annotations(results, kind), truth.dataset)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, detections, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        for name, value in zip(_STATS, evaluation.stats, strict=False):
            if value >= 0:  # pycocotools' -1 says: no such object in the ground truth
                metrics.append(
                    Metric(
                        name=f"{prefix}_{name}",
                        value=100 * float(value),
                        unit="%",
                        n_eval=len(evaluation.params.imgIds),
                        split=coco.VAL,
                        protocol=f"pycocotools {kind}, single scale, 100 detections",
                    )
                )
    return metrics


def _indexed(annotations: list[Any], content: dict[str, Any]) -> COCO:
    index = COCO()
    index.dataset = content | {"annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def _as_annotations(results: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Do what ``COCO.loadRes`` does, which refuses an empty list."""
    from pycocotools import mask as coco_mask

    annotations = []
    for number, result in enumerate(results, start=1):
        if kind == "segm":
            area = float(coco_mask.area(result["segmentation"]))
        else:
            area = result["bbox"][2] * result["bbox"][3]
        annotations.append(result | {"id": number, "area": area, "iscrowd": 0})
    return annotations
