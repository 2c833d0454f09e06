"""Draws pictures with the class that a model gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.samples import Sample, spread
from tasks.classification.images import FolderImages, normalise, read_rgb
from tasks.classification.model import logits_of
from tasks.classification.show import tile

if TYPE_CHECKING:
    from collections.abc import Sequence


def samples(
    model: nn.Module,
    images: FolderImages,
    classes: Sequence[str],
    device: torch.device,
    num: int,
) -> list[Sample]:
    """Return pictures, their class, and the model's with its probability."""
    chosen = spread(len(images), num)
    pixels, labels = zip(*(images.evaluation_sample(index) for index in chosen), strict=True)
    dtype = next(model.parameters()).dtype
    batch = torch.stack(pixels).to(device)
    with torch.no_grad():
        logits = logits_of(model, normalise(batch, images.data.mean, images.data.std, dtype))
    shares = logits.float().softmax(1).cpu()
    return [
        Sample(
            name=images.path(index).relative_to(images.folder).as_posix(),
            truth=classes[label],
            found=f"{classes[best]} ({100 * share:.0f}\N{NO-BREAK SPACE}%)",
            right=best == label,
            truth_picture=tile(read_rgb(images.path(index))),
        )
        for index, label, share, best in zip(
            chosen, labels, shares.max(1).values.tolist(), shares.argmax(1).tolist(), strict=True
        )
    ]
