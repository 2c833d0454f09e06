"""The working half of classification: pictures in class folders in the harness's one loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.errors import DataError
from harness.samples import Sample as Sampled
from harness.schema import Spec
from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.classification import evaluation, samples
from tasks.classification.embedded import NUM_CLASSES
from tasks.classification.imagefolder import IMAGENET_CLASSES, TRAIN, VAL, list_split
from tasks.classification.images import FolderImages, Sample, normalise
from tasks.classification.info import ClassificationData, ClassificationModel
from tasks.classification.model import BARE, build_classifier, logits_of

Batch = tuple[Tensor, Tensor]
"""Pictures (B, 3, H, W) uint8 and classes (B,) int64."""


class ClassificationTask:
    """``harness.task.Task`` of classification.

    Args:
        spec: what to run; its sections are classification's.
        root: folder of pictures; None only builds the model, with the official number of classes.

    Raises:
        DataError: if the two splits do not list the same classes.
    """

    ws_classes: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    backbone = ""
    out: Path | None = None

    def __init__(self, spec: Spec, root: Path | None) -> None:
        assert isinstance(spec.data, ClassificationData)
        self.spec, self.data = spec, spec.data
        self.bare: Sequence[str] = BARE
        if root is None:
            self.num_classes = NUM_CLASSES if self.data.embedded else IMAGENET_CLASSES
            return
        train, val = list_split(root, TRAIN), list_split(root, VAL)
        if train.classes != val.classes:
            raise DataError(f"{train.folder} and {val.folder} hold different classes")
        self.classes = train.classes
        self.num_classes = len(train.classes)
        self._train, self._val = (FolderImages(split, self.data) for split in (train, val))

    def build_model(self) -> nn.Module:
        """Build the network with batch norm at every site and one output per class."""
        section = self.spec.model
        assert isinstance(section, ClassificationModel)
        model, self.bare = build_classifier(section.name, self.num_classes, section.width)
        return model

    def finish_model(self, model: nn.Module) -> None:
        """Freeze nothing."""

    def train_data(self) -> FolderImages:
        """Return the training pictures."""
        return self._train

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack the pictures."""
        pixels, labels = zip(*samples, strict=True)
        return torch.stack(pixels), torch.tensor(labels)

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Move pictures, as bytes, and classes."""
        pixels, labels = batch
        return pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of pictures."""
        return {"loss_ce": float(len(batch[1]))}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """Return the cross-entropy, summed over the pictures."""
        pixels, labels = batch
        dtype = next(model.parameters()).dtype
        logits = logits_of(model, normalise(pixels, self.data.mean, self.data.std, dtype))
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"loss_ce": (total, float(len(labels)))}

    def evaluate(
        self, model: nn.Module, device: torch.device, progress: Progress, share: Share = ALONE
    ) -> list[Metric]:
        """Measure top-1 and top-5 accuracy on ``val``."""
        workers = self.spec.exec.workers
        return evaluation.evaluate(model, self._val, device, progress, workers=workers, share=share)

    def samples(self, model: nn.Module, device: torch.device, num: int) -> list[Sampled]:
        """Draw pictures of ``val`` with the classes that the model gives them."""
        return samples.samples(model, self._val, self.classes, device, num)
