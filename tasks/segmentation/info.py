"""The light half of segmentation: its sections, its data and its limits, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from harness.embedded import given_root
from harness.errors import DataError, UsageError
from harness.paths import cache_dir
from harness.schema import DataSection, LossSection, ModelSection, Spec
from harness.task import DataReport, NormFacts, Pictures, Progress, Triple
from tasks.segmentation import embedded, prepare, voc

_R101_WIDTHS = (64, 128, 256, 512, 1024, 2048)


class SegmentationModel(ModelSection):
    """DeepLabv3: a dilated ResNet and the ASPP head; batch norm at every site before surgery."""

    name: Literal["deeplabv3_mini", "deeplabv3_r101"] = Field(
        description="mini: three narrow stages, output stride 4; r101: ResNet-101, output stride 16"
    )
    head: Literal["published", "torchvision"] = Field(
        description="published: ASPP and a 1x1 conv; torchvision: its DeepLabHead, with a 3x3 conv "
        "and a dropout between them"
    )
    width: int = Field(64, ge=1, description="channels of the stem; 64 in the ResNets as published")
    aspp_channels: int = Field(256, ge=1, description="of the ASPP")
    rates: tuple[int, int, int] = Field(description="dilations of the ASPP's 3x3 convs")
    backbone_bn_momentum: float = Field(
        0.1, gt=0, le=1, description="weight of a batch in bn's running averages, backbone"
    )
    head_bn_momentum: float = Field(0.1, gt=0, le=1, description="the same, head")


class SegmentationData(DataSection):
    """A VOC 2012 folder, or pictures of textured shapes generated in the same format."""

    # Predictions are kept beside the numbers and change none.
    not_science: ClassVar[frozenset[str]] = DataSection.not_science | {"save_predictions"}

    size: int = Field(64, ge=1, description="embedded data: side of the pictures, px")
    num_train: int = Field(1000, ge=1, description="embedded data: training pictures")
    num_val: int = Field(200, ge=1, description="embedded data: evaluation pictures")
    train_set: Literal["train", "trainval", "train_aug"] = Field(
        "train", description="list of training images; train_aug uses the augmented layout"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored image")
    scale: tuple[float, float] = Field(
        (1.0, 1.0), description="smallest and largest factor of the image's size, log-uniform"
    )
    crop: int = Field(
        64, ge=1, description="side of the random training crop; evaluation pads to it too, px"
    )
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="subtracted, RGB of 0..1")
    std: tuple[float, float, float] = Field((0.25, 0.25, 0.25), description="divided by, RGB")
    save_predictions: bool = Field(
        False, description="keep the predicted masks as palette PNGs in the run's folder"
    )


class SegmentationInfo:
    """``harness.task.TaskInfo`` of segmentation."""

    name = "segmentation"
    title = "semantic segmentation on PASCAL VOC with DeepLabv3 (torchvision)"
    downloads = prepare.DOWNLOADS
    implementation = "tasks.segmentation.task:SegmentationTask"
    numerics = 1
    sees_samples = True
    model = SegmentationModel
    data = SegmentationData
    loss = LossSection

    def norm_facts(self, spec: Spec) -> NormFacts:
        """Describe the norm sites; the smallest sees the image as a single value."""
        model, _ = _sections(spec)
        if model.name == "deeplabv3_r101":
            widths = set(_R101_WIDTHS)
        else:
            widths = {model.width * 2**i for i in range(3)}
        return NormFacts(
            tuple(sorted(widths | {model.aspp_channels})), 1, "the ASPP's pooled branch"
        )

    def separable(self, spec: Spec) -> bool:
        """Return True: crops have one size, and the loss is a sum over pixels."""
        return True

    def num_train(self, spec: Spec) -> int | None:
        """Return the number of training images, where the data are at hand."""
        _, data = _sections(spec)
        try:
            given = _given_root(data)
        except DataError:
            return None
        return data.num_train if given is None else voc.count(voc.find(given), data.train_set)

    def refuse(self, spec: Spec) -> str | None:
        """Refuse what contradicts the recipe or the model unless it is asked for in words."""
        model, data = _sections(spec)
        if not data.embedded and spec.init.source is None:
            return (
                "the published run starts from ImageNet weights: give init=FILE, or train from "
                "scratch with init=scratch"
            )
        if model.name == "deeplabv3_r101" and model.width != _R101_WIDTHS[0]:
            return f"model.width={model.width}: ResNet-101 starts with {_R101_WIDTHS[0]} channels"
        if not 0 < data.scale[0] <= data.scale[1]:
            return f"data.scale={list(data.scale)}: give [smallest, largest], both above 0"
        if min(data.std) <= 0:
            return f"data.std={list(data.std)}: must be above 0"
        if min(model.rates) < 1:
            return f"model.rates={list(model.rates)}: must be 1 or more"
        if data.train_set != "train" and data.embedded and data.root is None:
            return f"data.train_set={data.train_set}: the embedded data have only train and val"
        return None

    def dataset(self, spec: Spec) -> str:
        """Return the name of the data set, as reports print it."""
        _, data = _sections(spec)
        if _given_root(data) is None:
            return "VOC textures"
        root = self.data_root(spec)
        if (root / voc.LABELS).is_file():
            return f"{root.name} (VOC format)"
        return "VOC 2012 train_aug" if data.train_set == voc.AUGMENTED else "VOC 2012"

    def data_root(self, spec: Spec) -> Path:
        """Return the VOC 2012 folder given or held by the one given, or the embedded one."""
        _, data = _sections(spec)
        if (given := _given_root(data)) is not None:
            return voc.find(given)
        return cache_dir() / "segmentation" / self._embedded_name(data) / "VOC2012"

    def fingerprint(self, spec: Spec) -> str:
        """Return the embedded data's generator and arguments, or a hash of lists and masks."""
        _, data = _sections(spec)
        if _given_root(data) is None:
            return self._embedded_name(data)
        return voc.fingerprint(self.data_root(spec), data.train_set)

    def prepare(self, spec: Spec, progress: Progress) -> Path:
        """Generate the embedded data if they are absent; check the layout of real data."""
        _, data = _sections(spec)
        root = self.data_root(spec)
        if _given_root(data) is not None:
            voc.check_layout(root, data.train_set)
            return root
        embedded.generate(
            root.parent,
            seed=data.seed,
            size=data.size,
            num_train=data.num_train,
            num_val=data.num_val,
            progress=lambda done, total: progress("generate", done, total),
        )
        return root

    def unpack(self, spec: Spec, sources: Sequence[Path], progress: Progress) -> None:
        """Fill a VOC 2012 folder."""
        prepare.unpack(self.data_root(spec), sources, progress)

    def download(self, spec: Spec, folder: Path) -> None:
        """Fetch VOC 2012 through torchvision, which does not offer the augmented masks."""
        prepare.download(folder)

    def check(self, spec: Spec, progress: Progress) -> DataReport:
        """Read the lists, look for every file and open a sample of them."""
        from tasks.segmentation.inspection import inspect

        _, data = _sections(spec)
        real = not data.embedded
        return inspect(self.data_root(spec), data.train_set, progress, official=real)

    def show(self, spec: Spec, out: Path) -> None:
        """Draw training images beside their masks."""
        from tasks.segmentation.show import show

        _, data = _sections(spec)
        show(self.prepare(spec, lambda *_: None), data.train_set, out)

    def pictures(self, spec: Spec) -> Pictures:
        """Return the recipe's mean and deviation, RGB."""
        _, data = _sections(spec)
        return Pictures("rgb", data.mean, data.std)

    def show_pictures(self, spec: Spec, mean: Triple, std: Triple) -> Spec:
        """Return ``spec`` with another mean and deviation."""
        data = spec.data.model_copy(update={"mean": mean, "std": std})
        return spec.model_copy(update={"data": data})

    def pretraining(self, spec: Spec) -> Sequence[tuple[str, str]]:
        """Return the recipe of ResNet-101, or of the narrow backbone on as large a batch."""
        model, data = _sections(spec)
        if model.name == "deeplabv3_mini" and spec.preset in ("mini", "smoke"):
            return [
                ("preset", spec.preset),
                ("model.name", "resnet_mini_segmentation"),
                ("model.width", str(model.width)),
                ("batch.micro", "16" if spec.preset == "mini" else "4"),
                ("data.mean", str(list(data.mean))),
                ("data.std", str(list(data.std))),
            ]
        if model.name == "deeplabv3_r101" and spec.preset in ("paper", "torchvision"):
            return [("preset", "paper_r101")]
        if model.name == "deeplabv3_r101" and spec.preset == "lite":
            # Its micro-batch is the case that is studied; weights are made on whole batches.
            return [("preset", "lite"), ("model.name", "resnet101"), ("batch.micro", "256")]
        raise UsageError(
            f"init=pretrain: no recipe of classification has the backbone of {model.name} with "
            f"preset={spec.preset}; give init=run:ID or init=FILE"
        )

    @staticmethod
    def _embedded_name(data: SegmentationData) -> str:
        return embedded.fingerprint(data.seed, data.size, data.num_train, data.num_val)


def _sections(spec: Spec) -> tuple[SegmentationModel, SegmentationData]:
    assert isinstance(spec.model, SegmentationModel)
    assert isinstance(spec.data, SegmentationData)
    return spec.model, spec.data


def _given_root(data: SegmentationData) -> Path | None:
    return given_root(data, "PASCAL VOC 2012 with the augmented masks (the VOCdevkit)")


INFO = SegmentationInfo()
