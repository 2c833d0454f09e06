"""A small separable task with everything that makes the loop hard: ragged counts and dropout.

Dense labelling of 6 x 6 noise images into three classes, a share of the labels ignored, a
different share in every image; two normed convs, a dropout between them, a bare head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from harness.schema import DataSection, LossSection, ModelSection
from harness.share import ALONE
from harness.task import DataReport, Metric, NormFacts

IGNORE = 255


class ToyModel(ModelSection):
    name: Literal["toy"] = "toy"
    width: int = 8
    dropout: float = 0.3


class ToyData(DataSection):
    num_train: int = 20


class ToyInfo:
    name = "toy"
    title = "toy"
    downloads = "noise"
    implementation = "tests.toy:Toy"
    numerics = 1
    sees_samples = True
    model = ToyModel
    data = ToyData
    loss = LossSection

    def norm_facts(self, spec) -> NormFacts:
        return NormFacts((spec.model.width,), 36, "conv2")

    def separable(self, spec) -> bool:
        return True

    def num_train(self, spec) -> int | None:
        return spec.data.num_train

    def refuse(self, spec) -> str | None:
        return None

    def dataset(self, spec) -> str:
        return "noise"

    def data_root(self, spec) -> Path:
        return Path("nowhere")

    def fingerprint(self, spec) -> str:
        return f"toy-{spec.data.seed}"

    def prepare(self, spec, progress) -> Path:
        return Path("nowhere")

    def unpack(self, spec, sources, progress) -> None:
        raise NotImplementedError

    def download(self, spec, folder) -> None:
        raise NotImplementedError

    def check(self, spec, progress) -> DataReport:
        return DataReport(Path("nowhere"))

    def show(self, spec, out) -> None:
        raise NotImplementedError


INFO = ToyInfo()


class ToyTrain:
    def __init__(self, seed: int, num: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.images = torch.randn(num, 3, 6, 6, generator=draws, dtype=torch.float64)
        labels = torch.randint(0, 3, (num, 6, 6), generator=draws)
        share = torch.rand(num, 1, 1, generator=draws)
        ignored = torch.rand(num, 6, 6, generator=draws) < share
        self.labels = labels.masked_fill(ignored, IGNORE)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.images[index], self.labels[index]
        return (image.flip(-1), label.flip(-1)) if rng.rand() < 0.5 else (image, label)


class Toy:
    bare = ("head",)
    ws_classes: ClassVar[dict[type, type]] = {}
    backbone = ""
    out = None

    def __init__(self, spec, root: Path) -> None:
        self.spec = spec

    def build_model(self) -> nn.Module:
        width = self.spec.model.width
        model = nn.Sequential()
        model.add_module("conv1", nn.Conv2d(3, width, 3, padding=1, bias=False))
        model.add_module("norm1", nn.BatchNorm2d(width))
        model.add_module("relu1", nn.ReLU())
        model.add_module("drop", nn.Dropout(self.spec.model.dropout))
        model.add_module("conv2", nn.Conv2d(width, width, 3, padding=1, bias=False))
        model.add_module("norm2", nn.BatchNorm2d(width))
        model.add_module("relu2", nn.ReLU())
        model.add_module("head", nn.Conv2d(width, 3, 1))
        return model

    def finish_model(self, model: nn.Module) -> None:
        pass

    def train_data(self) -> ToyTrain:
        return ToyTrain(self.spec.data.seed, self.spec.data.num_train)

    def collate(self, samples: list[Any]) -> Any:
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(labels)

    def to_device(self, batch: Any, device: torch.device) -> Any:
        return tuple(tensor.to(device) for tensor in batch)

    def counts(self, batch: Any) -> dict[str, float]:
        return {"loss_ce": float((batch[1] != IGNORE).sum())}

    def loss(self, model: nn.Module, batch: Any) -> dict[str, tuple[torch.Tensor, float]]:
        images, labels = batch
        logits = model(images.to(next(model.parameters()).dtype))
        total = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return {"loss_ce": (total, float((labels != IGNORE).sum()))}

    def evaluate(self, model, device, progress, share=ALONE) -> list[Metric]:
        data = self.train_data()
        own = list(share.of(len(data)))
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            found = model(data.images[own].to(dtype)).argmax(1)
        labels = data.labels[own]
        valid = labels != IGNORE
        counts = share.gather((int((found == labels)[valid].sum()), int(valid.sum())))
        right, total = (sum(column) for column in zip(*counts, strict=True))
        value = 100 * right / total
        progress("evaluating", len(data), len(data))
        return [Metric("pixel_acc", value, "%", len(data), "train", "valid pixels")]
