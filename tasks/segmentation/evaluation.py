"""The VOC metrics of a model: one confusion matrix over all pixels of the evaluation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from harness.feed import EvaluationSamples, ahead
from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.segmentation.dataset import VocImages
from tasks.segmentation.voc import IGNORE, palette

Counts = NDArray[np.int64]
"""(num_classes, num_classes): pixels by true class (row) and predicted class (column)."""


def confusion(truth: NDArray[np.uint8], found: NDArray[np.uint8], num_classes: int) -> Counts:
    """Count the pixels of each pair of true and predicted class; 255 in ``truth`` is left out.

    Args:
        truth: (H, W).
        found: (H, W), each below ``num_classes``.
        num_classes: size of the matrix.
    """
    valid = truth != IGNORE
    pairs = truth[valid].astype(np.int64) * num_classes + found[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def predict(
    model: nn.Module,
    images: VocImages,
    device: torch.device,
    progress: Progress,
    out: Path | None,
    share: Share = ALONE,
    *,
    workers: int = 0,
) -> Counts:
    """Return the confusion matrix of a model over a share of ``images``, one at a time.

    Args:
        model: in evaluation mode.
        images: what to look at.
        device: where the model is.
        progress: told of every image.
        out: folder for the predicted masks, created; None keeps none.
        share: which of the images.
        workers: processes that read the images ahead; 0 = none.
    """
    counts = np.zeros((images.num_classes, images.num_classes), dtype=np.int64)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    own = share.of(len(images))
    samples = ahead(EvaluationSamples(images), own, workers, device=device)
    for index, (image, truth) in zip(own, samples, strict=True):
        found = label_pixels(model, image, truth, device)
        counts += confusion(truth, found, images.num_classes)
        if out is not None:
            save_mask(found, out / f"{images.pairs[index].name}.png")
        progress("evaluate", index + 1, len(images))
    return counts


def label_pixels(
    model: nn.Module, image: Tensor, truth: NDArray[np.uint8], device: torch.device
) -> NDArray[np.uint8]:
    """Return the class that a model gives each pixel of an image, (H, W) as the true ones."""
    with torch.no_grad():
        dtype = next(model.parameters()).dtype
        logits = model(image[None].to(device, dtype, non_blocking=True))
    height, width = truth.shape
    found: NDArray[np.uint8] = logits[0, :, :height, :width].argmax(0).to(torch.uint8).cpu().numpy()
    return found


def score(counts: Counts, num_images: int) -> list[Metric]:
    """Measure mIoU and pixel accuracy, in %.

    IoU is I / (U + 1e-10) for every class, as in the authors' ``main.py``, so that a class that
    is neither in the truth nor in a prediction counts 0. All 21 occur in VOC's val.

    Args:
        counts: confusion matrix.
        num_images: that it was counted over.
    """
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    iou = right / (union + 1e-10)
    accuracy = right.sum() / max(1, counts.sum())
    how = "whole images, single scale, no flip, 255 left out"
    values = {
        "mIoU": (float(iou.mean()), f"{how}; mean over all {len(counts)} classes, absent ones 0"),
        "pixel_acc": (float(accuracy), how),
    }
    return [
        Metric(name, 100 * value, "%", num_images, "val", protocol)
        for name, (value, protocol) in values.items()
    ]


def save_mask(mask: NDArray[np.uint8], path: Path) -> None:
    """Write a mask, (H, W), as a PNG with VOC's palette."""
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    image.putpalette(palette())
    image.save(path)
