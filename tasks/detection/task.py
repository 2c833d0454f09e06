"""The working half of detection: detectron2's Mask and Faster R-CNN in the harness's one loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.errors import DataError
from harness.samples import Sample as Sampled
from harness.schema import Spec
from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.detection import coco, evaluation, samples
from tasks.detection.architectures import architecture
from tasks.detection.d2 import Conv2d, EventStorage, WSDetectronConv2d
from tasks.detection.dataset import CocoImages, Sample
from tasks.detection.info import DetectionData, DetectionLoss, DetectionModel
from tasks.detection.model import BACKBONE, BARE, build_detector
from tasks.detection.scenes import CATEGORIES

_LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
_MASK_LOSSES = ("loss_mask",)

_NUM_COCO_CLASSES = 80  # of instances_*2017.json

Batch = list[Sample]


class DetectionTask:
    """``harness.task.Task`` of detection.

    Args:
        spec: what to run; its sections are detection's.
        root: COCO folder; None only builds the model, with the official number of classes.

    Raises:
        DataError: if an annotation file is not COCO, or lists images that are absent.
    """

    bare = BARE
    ws_classes: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {Conv2d: WSDetectronConv2d}
    backbone = BACKBONE
    out: Path | None = None

    def __init__(self, spec: Spec, root: Path | None) -> None:
        assert isinstance(spec.model, DetectionModel)
        assert isinstance(spec.data, DetectionData)
        assert isinstance(spec.loss, DetectionLoss)
        self.model, self.data, self.losses = spec.model, spec.data, spec.loss
        self.workers = spec.exec.workers
        self.masks = architecture(spec.model.name).masks
        if root is None:
            self.num_classes = len(CATEGORIES) if self.data.embedded else _NUM_COCO_CLASSES
            return
        # Both splits at once: what is wrong with the second should not show after days of training.
        train, self._val = (_read(root, split) for split in (coco.TRAIN, coco.VAL))
        coco.check_evaluated(self._val, masks=self.masks)
        self.category_ids = train.category_ids
        if self._val.category_ids != self.category_ids:
            raise DataError(f"{train.path} and {self._val.path} list different categories")
        self.num_classes = len(self.category_ids)
        options = {"masks": self.masks, "pixels": self.model.boxes == "pixels"}
        self._train_images = CocoImages(root, coco.TRAIN, train, self.data, **options)
        self._val_images = CocoImages(root, coco.VAL, self._val, self.data, **options)

    def build_model(self) -> nn.Module:
        """Build the detector with batch norm at every site and one class per category."""
        model: nn.Module = build_detector(self.model, self.num_classes, self.losses.normalizer)
        return model

    def finish_model(self, model: nn.Module) -> None:
        """Freeze the first stages as detectron2 does.

        Neither convs nor affine parameters of a frozen stage are trained, whatever the norm; its
        batch norm, if any, becomes detectron2's FrozenBatchNorm2d, which applies the averages that
        came with the initial weights.
        """
        model.get_submodule(BACKBONE).freeze(self.model.freeze_at)  # type: ignore[operator]

    def train_data(self) -> CocoImages:
        """Return the training images that have an object."""
        return self._train_images

    def collate(self, samples: list[Sample]) -> Batch:
        """Keep the samples apart: the model pads them to a common size."""
        return samples

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Move images and instances."""
        return [
            sample
            | {
                "image": sample["image"].to(device, non_blocking=True),
                "instances": sample["instances"].to(device),
            }
            for sample in batch
        ]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of images for every loss (see ``tasks.detection.losses``)."""
        losses = _LOSSES + _MASK_LOSSES if self.masks else _LOSSES
        return dict.fromkeys(losses, float(len(batch)))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """Return detectron2's losses, each times the images of the batch."""
        with EventStorage():  # detectron2 insists on logging its statistics
            means = model(batch)
        return {name: (mean * len(batch), float(len(batch))) for name, mean in means.items()}

    def evaluate(
        self, model: nn.Module, device: torch.device, progress: Progress, share: Share = ALONE
    ) -> list[Metric]:
        """Measure box and, where there are masks, mask AP on all of ``val2017``."""
        model.eval()
        images, ids = self._val_images, self.category_ids
        found = evaluation.predict(model, images, ids, progress, share, workers=self.workers)
        everyones = share.gather(list(found))
        results = evaluation.in_order(everyones, [one["id"] for one in self._val.images])
        return evaluation.score(evaluation.ground_truth(self._val), results, masks=self.masks)

    def samples(self, model: nn.Module, device: torch.device, num: int) -> list[Sampled]:
        """Draw images of ``val2017`` under what the model finds in them."""
        return samples.samples(model, self._val_images, self._val, num)


def _read(root: Path, split: str) -> coco.Annotations:
    annotations = coco.read_annotations(coco.annotation_file(root, split))
    coco.spot_check_images(root, split, annotations)
    return annotations
