"""The working half of point-cloud classification: DGCNN in the harness's one loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.samples import Sample as Sampled
from harness.schema import Spec
from harness.share import ALONE, Share
from harness.task import Metric, Progress
from tasks.pointcloud import clouds, embedded, evaluation, modelnet, samples
from tasks.pointcloud.augment import augment
from tasks.pointcloud.clouds import Clouds
from tasks.pointcloud.info import PointcloudData, PointcloudLoss, PointcloudModel
from tasks.pointcloud.model import BARE, DGCNN, start_as_published

Sample = tuple[NDArray[np.float32], int]
"""Points (N, 3) and label."""
Batch = tuple[Tensor, Tensor]
"""Clouds (B, N, 3) float32 and labels (B,) int64."""


class TrainClouds:
    """``harness.task.TrainData``: clouds in memory, changed at random by a recipe."""

    def __init__(self, held: Clouds, recipe: str) -> None:
        self.clouds, self.recipe = held, recipe

    def __len__(self) -> int:
        return len(self.clouds)

    def sample(self, index: int, rng: RandomState) -> Sample:
        """Return cloud ``index``, augmented by draws from ``rng`` alone."""
        points = augment(self.recipe, self.clouds.points[index], rng)
        return points, int(self.clouds.labels[index])


class PointcloudTask:
    """``harness.task.Task`` of point-cloud classification.

    Args:
        spec: what to run; its sections are point clouds'.
        root: folder of HDF5 files; None only builds the model, with the official number of classes.

    Raises:
        DataError: if a file is missing or wrong, or clouds have fewer points than neighbours.
    """

    bare = BARE
    ws_classes: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    backbone = "edge"
    out: Path | None = None

    def __init__(self, spec: Spec, root: Path | None) -> None:
        assert isinstance(spec.model, PointcloudModel)
        assert isinstance(spec.data, PointcloudData)
        assert isinstance(spec.loss, PointcloudLoss)
        self.model, self.data, self.options = spec.model, spec.data, spec.loss
        self.fused = spec.exec.fused
        if root is None:
            own = self.data.embedded and self.data.root is None
            self.num_classes = embedded.NUM_CLASSES if own else modelnet.MODELNET40_CLASSES
            return
        # Both splits at once: what is wrong with the second should not show after the training.
        self._train = clouds.read(root, modelnet.TRAIN, self.data.points)
        self._test = clouds.read(root, modelnet.TEST, self.data.points)
        self.num_classes = len(self._train.classes)

    def build_model(self) -> DGCNN:
        """Build DGCNN with batch norm at every site and one output per class."""
        options = self.model
        model = DGCNN(
            options.name,
            k=options.k,
            edge=options.edge,
            embedding=options.embedding,
            head=options.head,
            dropout=options.dropout,
            num_classes=self.num_classes,
            fused=self.fused,
        )
        start_as_published(model, bn_eps=options.bn_eps, bn_momentum=options.bn_momentum)
        return model

    def finish_model(self, model: nn.Module) -> None:
        """Freeze nothing."""

    def train_data(self) -> TrainClouds:
        """Return the training clouds."""
        return TrainClouds(self._train, self.data.augment)

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack clouds, all of the same number of points."""
        points, labels = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(points)), torch.tensor(labels)

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Move clouds and labels."""
        points, labels = batch
        return points.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Return the number of clouds."""
        return {"loss_ce": float(len(batch[1]))}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """Return the cross-entropy with smoothed labels, summed over the clouds."""
        points, labels = batch
        logits = model(points.to(next(model.parameters()).dtype))
        total = nn.functional.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=self._smoothing()
        )
        return {"loss_ce": (total, float(len(labels)))}

    def _smoothing(self) -> float:
        """Return torch's ``label_smoothing``, which gives a share to the true class too."""
        share, num = self.options.smoothing, self.num_classes
        return share * num / (num - 1) if self.options.smooth_over == "others" else share

    def evaluate(
        self, model: nn.Module, device: torch.device, progress: Progress, share: Share = ALONE
    ) -> list[Metric]:
        """Measure both accuracies over every test cloud."""
        model.eval()
        own = evaluation.predict(model, self._test, self.data.votes, device, progress, share)
        found = evaluation.in_order(share.gather(own))
        return evaluation.score(found, self._test, self.data.votes)

    def samples(self, model: nn.Module, device: torch.device, num: int) -> list[Sampled]:
        """Draw test clouds with the classes that the model gives them."""
        return samples.samples(model, self._test, self.data.votes, device, num)
