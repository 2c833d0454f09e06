"""The working half of segmentation: DeepLabv3 in the harness's one loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.samples import Sample as Sampled
from harness.schema import Spec
from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.segmentation import evaluation, samples, scenes, voc
from tasks.segmentation.dataset import Sample, VocImages
from tasks.segmentation.info import SegmentationData, SegmentationModel
from tasks.segmentation.model import BACKBONE, BARE, DeepLabV3, build_deeplab

Batch = tuple[Tensor, Tensor]
"""Images, (B, 3, H, W) float32, and masks, (B, H, W) uint8."""


class SegmentationTask:
    """``harness.task.Task`` of segmentation.

    Args:
        spec: what to run; its sections are segmentation's.
        root: VOC 2012 folder; None only builds the model, with the official number of classes.

    Raises:
        DataError: if a list is unreadable, or names files that are absent.
    """

    ws_classes: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    backbone = BACKBONE
    out: Path | None = None

    def __init__(self, spec: Spec, root: Path | None) -> None:
        assert isinstance(spec.model, SegmentationModel)
        assert isinstance(spec.data, SegmentationData)
        self.model, self.data, self.workers = spec.model, spec.data, spec.exec.workers
        self.bare = BARE[self.model.head]
        if root is None:
            embedded = self.data.embedded and self.data.root is None
            self.num_classes = len(scenes.CLASSES if embedded else voc.CLASSES)
            return
        voc.check_layout(root, self.data.train_set)
        self.classes = voc.class_names(root)
        self.num_classes = len(self.classes)
        # Both splits at once: what is wrong with the second should not show after days of training.
        lists = voc.list_files(root, self.data.train_set)
        pairs = {name: voc.read_split(root, path) for name, path in lists.items()}
        self._train_images = self._images(pairs[self.data.train_set])
        self._val_images = self._images(pairs["val"])

    def _images(self, pairs: list[voc.Pair]) -> VocImages:
        return VocImages(pairs, self.data, self.num_classes)

    def build_model(self) -> DeepLabV3:
        """Build DeepLabv3 with batch norm at every site and one output per class."""
        return build_deeplab(self.model, self.num_classes)

    def finish_model(self, model: nn.Module) -> None:
        """Freeze nothing: the published run trains all of it."""

    def train_data(self) -> VocImages:
        """Return the training images."""
        return self._train_images

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack crops of one size."""
        images, masks = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(masks)

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Move images and masks."""
        images, masks = batch
        return images.to(device, non_blocking=True), masks.to(device, non_blocking=True)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of pixels with a class."""
        return {"loss_ce": float((batch[1] != voc.IGNORE).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """Return the summed cross-entropy of the pixels with a class, and their number."""
        images, masks = batch
        logits = model(images.to(next(model.parameters()).dtype))
        total = F.cross_entropy(logits, masks.long(), ignore_index=voc.IGNORE, reduction="sum")
        return {"loss_ce": (total, float((masks != voc.IGNORE).sum()))}

    def evaluate(
        self, model: nn.Module, device: torch.device, progress: Progress, share: Share = ALONE
    ) -> list[Metric]:
        """Measure mIoU on ``val``; keep the predicted masks if asked to."""
        model.eval()
        folder = self.out / "predictions" if self.out and self.data.save_predictions else None
        images, workers = self._val_images, self.workers
        counts = evaluation.predict(model, images, device, progress, folder, share, workers=workers)
        every = np.stack(share.gather(counts)).sum(0)
        return evaluation.score(every, len(images))

    def samples(self, model: nn.Module, device: torch.device, num: int) -> list[Sampled]:
        """Draw images of ``val`` under the classes that the model sees in them."""
        return samples.samples(model, self._val_images, self.classes, device, num)
