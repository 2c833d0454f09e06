"""ModelNet40's metrics: overall and mean-class accuracy over every shape of the test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.pointcloud.augment import about_y
from tasks.pointcloud.clouds import Clouds
from tasks.pointcloud.modelnet import TEST

_BATCH = 32
"""Clouds of a forward pass."""


def predict(
    model: nn.Module,
    clouds: Clouds,
    votes: int,
    device: torch.device,
    progress: Progress,
    share: Share = ALONE,
) -> dict[int, NDArray[np.int64]]:
    """Return the predicted labels of each batch of a share of the clouds, by its first cloud.

    Args:
        model: in evaluation mode.
        clouds: what to look at, the incomplete last batch included.
        votes: views of each cloud, turned about y by ``2 pi v / votes``, whose logits are summed.
        device: where the model is.
        progress: told of every batch.
        share: which of the batches.
    """
    dtype = next(model.parameters()).dtype
    found: dict[int, NDArray[np.int64]] = {}
    starts = range(0, len(clouds), _BATCH)
    for start in (starts[number] for number in share.of(len(starts))):
        points = clouds.points[start : start + _BATCH]
        with torch.no_grad():
            logits: list[Tensor] = [
                model(torch.from_numpy(_turned(points, vote / votes)).to(device, dtype))
                for vote in range(votes)
            ]
        found[start] = torch.stack(logits).sum(0).argmax(1).cpu().numpy()
        progress("evaluate", min(start + _BATCH, len(clouds)), len(clouds))
    return found


def in_order(parts: Sequence[Mapping[int, NDArray[np.int64]]]) -> NDArray[np.int64]:
    """Return the predicted label of every cloud, (M,), from the shares of all processes."""
    found = {start: labels for part in parts for start, labels in part.items()}
    return np.concatenate([found[start] for start in sorted(found)])


def _turned(points: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Turn clouds about y by a share of the circle; not at all by 0."""
    return points if share == 0 else (points @ about_y(2 * math.pi * share)).astype(np.float32)


def score(found: NDArray[np.int64], clouds: Clouds, votes: int) -> list[Metric]:
    """Measure overall and mean-class accuracy, in %.

    A class without a test shape has no accuracy: the mean is over those that have one.

    Args:
        found: predicted labels, (M,).
        clouds: the test split, with the true labels.
        votes: as the labels were found.
    """
    right = found == clouds.labels
    overall = float(right.mean())
    present = np.unique(clouds.labels)
    by_class = [float(right[clouds.labels == label].mean()) for label in present]
    views = "1 view" if votes == 1 else f"{votes} views turned about y, logits summed"
    how = f"{clouds.points.shape[1]} points, {views}, every test shape, after the last step"
    classes = f"mean over {_classes(len(present), len(clouds.classes))}"
    return [
        Metric(
            "overall_acc",
            100 * overall,
            "%",
            len(clouds),
            TEST,
            how,
            se=100 * math.sqrt(overall * (1 - overall) / len(clouds)),
        ),
        Metric(
            "mean_class_acc",
            100 * float(np.mean(by_class)),
            "%",
            len(clouds),
            TEST,
            f"{how}; {classes}",
        ),
    ]


def _classes(present: int, num: int) -> str:
    if present == num:
        return f"all {num} classes"
    return f"the {present} of {num} classes that have test shapes"
