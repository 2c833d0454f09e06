"""Top-1 and top-5 accuracy, counted batch by batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from harness.feed import ahead
from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.classification.imagefolder import VAL
from tasks.classification.images import FolderImages, normalise
from tasks.classification.model import logits_of

if TYPE_CHECKING:
    from tasks.classification.info import ClassificationData

BATCH = 50
"""Images of one forward; in evaluation no norm sees the batch."""
_TOPS = (1, 5)


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """The evaluation pictures in order, in batches of ``BATCH``."""

    def __init__(self, images: FolderImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        last = min((number + 1) * BATCH, len(self.images))
        samples = [self.images.evaluation_sample(i) for i in range(number * BATCH, last)]
        pixels, labels = zip(*samples, strict=True)
        return torch.stack(pixels), torch.tensor(labels)


def _batches(
    images: FolderImages, workers: int, share: Share, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    batches = _Batches(images)
    return ahead(batches, share.of(len(batches)), workers, device=device)


def count_hits(logits: Tensor, labels: Tensor) -> dict[int, int]:
    """Count the samples whose class is among the k largest logits.

    Args:
        logits: (B, classes).
        labels: (B,).

    Returns:
        k -> number of hits, for k of 1 and, with more than 5 classes, 5.
    """
    tops = [k for k in _TOPS if k == 1 or logits.shape[1] > k]
    best = logits.topk(tops[-1], dim=1).indices
    right = best == labels[:, None]
    return {k: int(right[:, :k].sum()) for k in tops}


def evaluate(
    model: nn.Module,
    images: FolderImages,
    device: torch.device,
    progress: Progress,
    *,
    workers: int = 0,
    share: Share = ALONE,
) -> list[Metric]:
    """Measure the accuracy of ``model`` over all of ``images``."""
    model.eval()
    dtype = next(model.parameters()).dtype
    hits: Counter[int] = Counter()
    done = 0
    with torch.no_grad():
        for pixels, labels in _batches(images, workers, share, device):
            pixels = pixels.to(device, non_blocking=True)
            batch = normalise(pixels, images.data.mean, images.data.std, dtype)
            hits.update(count_hits(logits_of(model, batch), labels.to(device)))
            done += len(labels) * share.world
            progress("evaluate", min(done, len(images)), len(images))
    every: Counter[int] = Counter()
    for part in share.gather(hits):
        every.update(part)
    return metrics(every, len(images), images.data)


def metrics(hits: Mapping[int, int], num: int, data: ClassificationData) -> list[Metric]:
    """Turn hits among ``num`` samples into accuracies in %, each with its binomial error."""
    protocol = f"shorter side {data.resize or data.size} px, one centre crop of {data.size} px"
    if max(_TOPS) not in hits:
        protocol += "; no top5_acc with so few classes"
    return [
        Metric(
            name=f"top{k}_acc",
            value=100 * (share := number / num),
            unit="%",
            n_eval=num,
            split=VAL,
            protocol=protocol,
            se=100 * math.sqrt(share * (1 - share) / num),
        )
        for k, number in hits.items()
    ]
