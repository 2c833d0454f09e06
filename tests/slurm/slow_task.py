"""The working half of the slow task; apart, since planning must not import torch."""

from __future__ import annotations

from typing import Any

from tasks.classification.images import FolderImages
from tasks.classification.task import ClassificationTask
from tests.slurm.slow import be_slow


class _Slow:
    """Training pictures of which the norm `bn` gets one in half a second."""

    def __init__(self, images: FolderImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: Any) -> Any:
        be_slow()
        return self.images.sample(index, rng)


class SlowTask(ClassificationTask):
    def train_data(self) -> Any:
        own = super().train_data()
        return _Slow(own) if self.spec.norm.layer == "bn" else own
