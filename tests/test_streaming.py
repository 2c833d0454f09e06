"""Evaluations hold a sample or two at a time, however many there are."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.feed import ahead

CPU = torch.device("cpu")
NUM = 120


class Split:
    """A split of pictures that do not exist before they are asked for."""

    def __init__(self, make: Callable[[int, Tensor], Any], **attributes: Any) -> None:
        self.make, self.most = make, 0
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        vars(self).update(attributes)

    def __len__(self) -> int:
        return NUM

    def evaluation_sample(self, index: int) -> Any:
        pixels = torch.full((3, 8, 8), index % 3, dtype=torch.uint8)
        self.alive.add(pixels)
        self.most = max(self.most, len(self.alive))
        return self.make(index, pixels)


class Means(nn.Module):
    """Scores of three classes from the mean of a picture, each pixel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight)


def quiet(*_: object) -> None:
    pass


def test_segmentation():
    from tasks.segmentation import evaluation

    mask = np.zeros((8, 8), dtype=np.uint8)
    images = Split(lambda index, pixels: (pixels, mask), num_classes=3, pairs=[None] * NUM)
    counts = evaluation.predict(Means(), images, CPU, quiet, None)
    assert counts.sum() == NUM * 64
    assert images.most <= 2


def test_classification():
    from tasks.classification import evaluation

    data = SimpleNamespace(mean=(0.5,) * 3, std=(0.2,) * 3, resize=8, size=8)
    images = Split(lambda index, pixels: (pixels, index % 3), data=data)
    model = nn.Sequential(Means(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    metrics = evaluation.evaluate(model, images, CPU, quiet)
    assert metrics[0].n_eval == NUM
    assert images.most <= 2 * evaluation.BATCH


class Finds(nn.Module):
    """Finds one thing in every picture."""

    def forward(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from detectron2.structures import Boxes

        from tasks.detection.d2 import Instances

        found = Instances((8, 8))
        found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 4.0, 6.0]]))
        found.scores = torch.tensor([0.5])
        found.pred_classes = torch.tensor([0])
        found.pred_masks = torch.ones(1, 8, 8, dtype=torch.bool)
        return [{"instances": found}]


@pytest.mark.detectron2
def test_detection():
    from tasks.detection import evaluation

    def sample(index: int, pixels: Tensor) -> dict[str, Any]:
        return {"image": pixels, "height": 8, "width": 8, "image_id": index}

    images = Split(sample, pixels=False)
    results = list(evaluation.predict(Finds(), images, [7], quiet))
    assert len(results) == NUM
    assert not any(isinstance(value, Tensor) for one in results for value in one.values())
    assert images.most <= 2


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_scoring_detections_needs_no_more_than_pycocotools():
    """All results must be in memory for it: 100 of an image, some kB each."""
    from benchmarks import coco

    content, results = coco.scenes(8)
    peaks = []
    for score in (coco.alone, coco.ours):
        score(content, results)  # imports
        tracemalloc.start()
        score(content, results)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_the_feed_reads_no_further_than_it_is_asked():
    images = Split(lambda index, pixels: index)
    from harness.feed import EvaluationSamples

    items = ahead(EvaluationSamples(images), range(NUM), 0)
    assert [next(items), next(items)] == [0, 1]
    assert images.most <= 1
