"""Accuracies against counts made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.task import Metric
from tasks.classification import evaluation
from tasks.classification.evaluation import count_hits, metrics
from tasks.classification.imagefolder import list_split
from tasks.classification.images import FolderImages
from tasks.classification.info import ClassificationData
from tests.classification.conftest import classification_spec, classification_task

CPU = torch.device("cpu")


def test_hits_counted_by_hand() -> None:
    logits = torch.tensor(
        [
            [0.1, 0.9, 0.0, 0.2, 0.3, 0.4, 0.5],  # best: 1; not among the best five: 2, 0
            [0.1, 0.9, 0.0, 0.2, 0.3, 0.4, 0.5],
            [0.1, 0.9, 0.0, 0.2, 0.3, 0.4, 0.5],
            [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # best: 0; not among the best five: 5, 6
            [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        ]
    )
    assert count_hits(logits, torch.tensor([1, 3, 2, 0, 5])) == {1: 2, 5: 3}


def test_a_constant_output_is_right_once_in_as_many_classes() -> None:
    """Ties are no hits: a collapsed network must not score 100 %."""
    logits = torch.zeros(8, 8)
    assert count_hits(logits, torch.arange(8)) == {1: 1, 5: 5}


def test_few_classes_have_no_top5_and_the_protocol_says_so() -> None:
    hits = count_hits(torch.eye(5), torch.arange(5))
    assert hits == {1: 5}
    (metric,) = metrics(hits, 5, ClassificationData())
    assert metric.name == "top1_acc"
    assert "no top5_acc" in metric.protocol
    assert "no top5_acc" not in metrics({1: 1, 5: 2}, 6, ClassificationData())[0].protocol


def test_the_error_is_that_of_a_share() -> None:
    metric = metrics({1: 30, 5: 90}, 120, ClassificationData(size=224, resize=256))[0]
    assert metric == Metric(
        name="top1_acc",
        value=25.0,
        unit="%",
        n_eval=120,
        split="val",
        protocol="shorter side 256 px, one centre crop of 224 px",
        se=pytest.approx(100 * math.sqrt(0.25 * 0.75 / 120)),
    )


class ByBrightness(nn.Module):
    """Answers from the pixels alone, so that the oracle below can, too."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.sizes.append(len(images))
        level = images.mean((1, 2, 3))[:, None]
        return -(level - torch.linspace(-1, 1, 12, dtype=images.dtype)).abs()


@pytest.mark.parametrize("batch", [1, 7, 24, 50])
def test_the_whole_split_against_a_count_by_hand(
    smoke_root: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", batch)
    data = ClassificationData()
    images = FolderImages(list_split(smoke_root, "val"), data)
    model = ByBrightness()
    told: list[tuple[str, int, int]] = []
    found = evaluation.evaluate(model, images, CPU, lambda *at: told.append(at))
    assert sum(model.sizes) == len(images) == 24
    assert told[-1] == ("evaluate", 24, 24)
    right, among_five = 0, 0
    for index in range(24):
        pixels, label = images.evaluation_sample(index)
        level = 0.0
        for channel in range(3):
            mean = float(pixels[channel].double().mean()) / 255
            level += (mean - data.mean[channel]) / data.std[channel] / 3
        near = sorted(range(12), key=lambda c: abs(level - (2 * c / 11 - 1)))
        right += near[0] == label
        among_five += label in near[:5]
    assert {m.name: m.value for m in found} == {
        "top1_acc": pytest.approx(100 * right / 24),
        "top5_acc": pytest.approx(100 * among_five / 24),
    }


def test_loader_processes_change_nothing(smoke_root: Path) -> None:
    images = FolderImages(list_split(smoke_root, "val"), ClassificationData())
    alone = evaluation.evaluate(ByBrightness(), images, CPU, lambda *_: None)
    helped = evaluation.evaluate(ByBrightness(), images, CPU, lambda *_: None, workers=2)
    assert alone == helped


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_either_precision_is_evaluated(precision: torch.dtype) -> None:
    task = classification_task(classification_spec("preset=smoke"))
    torch.manual_seed(0)
    model = task.build_model().to(precision)
    found = task.evaluate(model, CPU, lambda *_: None)
    assert [metric.name for metric in found] == ["top1_acc", "top5_acc"]
