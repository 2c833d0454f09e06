"""Draws images under the colours of the classes that a model sees in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from harness.samples import Sample, spread
from tasks.segmentation.dataset import VocImages, read_pair
from tasks.segmentation.evaluation import confusion, label_pixels
from tasks.segmentation.show import overlaid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SIDE = 160  # px


def samples(
    model: nn.Module,
    images: VocImages,
    classes: Sequence[str],
    device: torch.device,
    num: int,
) -> list[Sample]:
    """Return images under their masks, and under the model's, with the share of right pixels."""
    drawn = []
    for index in spread(len(images), num):
        pair = images.pairs[index]
        picture, _ = read_pair(pair, images.num_classes)
        image, truth = images.evaluation_sample(index)
        found = label_pixels(model, image, truth, device)
        counts = confusion(truth, found, images.num_classes)
        right = 100 * np.diag(counts).sum() / max(1, counts.sum())
        drawn.append(
            Sample(
                name=pair.name,
                truth=_named(truth, classes),
                found=f"{right:.0f} % of the pixels",
                right=None,
                truth_picture=overlaid(picture, truth, _SIDE)[1],
                found_picture=overlaid(picture, found, _SIDE)[1],
            )
        )
    return drawn


def _named(labels: NDArray[np.uint8], classes: Sequence[str]) -> str:
    present = [classes[k] for k in np.unique(labels).tolist() if 0 < k < len(classes)]
    return ", ".join(present) or "nothing"
