"""Draws clouds with the class that a model gives them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from harness.samples import Sample, spread
from tasks.pointcloud import evaluation
from tasks.pointcloud.clouds import Clouds
from tasks.pointcloud.show import tile


def samples(
    model: nn.Module, held: Clouds, votes: int, device: torch.device, num: int
) -> list[Sample]:
    """Return clouds, their class, and the model's, found as in the evaluation."""
    chosen = np.array(spread(len(held), num))
    some = Clouds(held.points[chosen], held.labels[chosen], held.classes)
    found = evaluation.in_order([evaluation.predict(model, some, votes, device, lambda *_: None)])
    return [
        Sample(
            name=f"cloud {index}",
            truth=held.classes[label],
            found=held.classes[said],
            right=bool(said == label),
            truth_picture=tile(points),
        )
        for index, points, label, said in zip(
            chosen.tolist(), some.points, some.labels, found, strict=True
        )
    ]
