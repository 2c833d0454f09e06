"""The light half of detection: its sections, its data and its limits, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from harness import archives
from harness.embedded import given_root
from harness.errors import DataError, UsageError
from harness.paths import cache_dir
from harness.schema import DataSection, Later, LossSection, ModelSection, Section, Spec
from harness.task import DataReport, NormFacts, Pictures, Progress, Triple
from tasks.detection import coco, embedded, prepare
from tasks.detection.architectures import CLASSIFIERS, ModelName, architecture

LEVELS = 5  # p2 .. p6
_STRIDE = 32  # of res5 and p5, the coarsest maps with a norm


class RPNSection(Later):
    """The region proposal network, one anchor size a pyramid level."""

    anchor_sizes: tuple[int, int, int, int, int] = Field(description="anchor sides of p2..p6, px")
    anchor_ratios: tuple[float, ...] = Field(description="height / width of the anchors")
    anchors: Literal["exact", "rounded"] = Field(
        "exact", description="rounded: sides rounded at the scale of the stride, as in Detectron"
    )
    anchor_margin: int = Field(
        ge=-1, description="px an anchor may stand out of the image in training; -1 = any"
    )
    num_anchors: int = Field(ge=2, description="anchors sampled per image for the loss")
    positive_share: float = Field(gt=0, lt=1, description="largest share of objects in them")
    iou: tuple[float, float] = Field(description="IoU below which background, above which object")
    beta: float = Field(ge=0, description="where the box loss turns from L2 to L1; 0 = L1")
    nms_iou: float = Field(gt=0, le=1, description="IoU above which a proposal is a duplicate")
    pre_nms_train: int = Field(ge=1, description="proposals per level before NMS, training")
    pre_nms_test: int = Field(ge=1, description="the same, evaluation")
    post_nms_train: int = Field(ge=1, description="proposals after NMS, training")
    post_nms_test: int = Field(ge=1, description="proposals per image after NMS, evaluation")
    proposals_per: Literal["image", "batch"] = Field(
        "image", description="what post_nms_train counts: an image's, or a micro-batch's together"
    )
    later = frozenset({"anchors", "proposals_per"})


class BoxSection(Section):
    """The box head: convs with norm, one hidden linear layer, two predictors."""

    num_convs: int = Field(ge=0, description="3x3 convs with norm")
    channels: int = Field(ge=1, description="of the convs")
    hidden: int = Field(ge=1, description="units of the linear layer")
    pool: int = Field(ge=1, description="side of the pooled region, cells")
    num_rois: int = Field(ge=1, description="regions sampled per image for the loss")
    positive_share: float = Field(gt=0, lt=1, description="largest share of objects in them")
    iou: float = Field(gt=0, lt=1, description="IoU from which a region is an object")
    weights: tuple[float, float, float, float] = Field(description="scales of dx, dy, dw, dh")
    beta: float = Field(ge=0, description="where the box loss turns from L2 to L1; 0 = L1")


class MaskSection(Section):
    """The mask head: convs with norm, a deconv that doubles the side, a predictor.

    Faster R-CNN has none, and does not read this.
    """

    num_convs: int = Field(ge=0, description="3x3 convs with norm")
    channels: int = Field(ge=1, description="of the convs and the deconv")
    pool: int = Field(ge=1, description="side of the pooled region, cells")


class TestSection(Section):
    """What counts as a detection in evaluation."""

    min_score: float = Field(ge=0, lt=1, description="smallest score of a detection")
    nms_iou: float = Field(gt=0, le=1, description="IoU above which two are one, per class")
    max_detections: int = Field(ge=1, description="detections kept per image")


class DetectionModel(Later, ModelSection):
    """Mask or Faster R-CNN on a ResNet with a feature pyramid; batch norm before surgery."""

    name: ModelName = Field(
        description="mini: narrow ResNet-18 with basic blocks; r: ResNet; x: ResNeXt"
    )
    freeze_at: int = Field(ge=0, le=5, description="stages frozen: 1 the stem, 2 also res2, ...")
    width: int = Field(ge=1, description="channels of the stem; 64 in the ResNets as published")
    fpn_channels: int = Field(ge=1, description="channels of the pyramid")
    pixel_mean: tuple[float, float, float] = Field(description="subtracted, BGR, of 0..255")
    pixel_std: tuple[float, float, float] = Field(description="divided by, BGR")
    roi_align: Literal["ROIAlign", "ROIAlignV2"] = Field(description="V2: shifted by half a pixel")
    sampling_ratio: int = Field(ge=0, description="samples per pooled cell and axis; 0 = adaptive")
    roi_canonical: float = Field(gt=0, description="side of the region that is pooled from p4, px")
    boxes: Literal["edges", "pixels"] = Field(
        "edges",
        description="where a box ends: on an edge between pixels (detectron2), or on its last "
        "pixel, one further in (maskrcnn-benchmark)",
    )
    weight_init: Literal["detectron2", "maskrcnn_benchmark"] = Field(
        "detectron2", description="distributions of random initial weights"
    )
    later = frozenset({"boxes", "weight_init"})
    rpn: RPNSection
    box: BoxSection
    mask: MaskSection
    test: TestSection


class DetectionData(Later, DataSection):
    """COCO instances: a real folder, or pictures of shapes generated in the same format."""

    size: int = Field(96, ge=1, description="embedded data: side of the pictures, px")
    num_train: int = Field(800, ge=1, description="embedded data: training pictures")
    num_val: int = Field(100, ge=1, description="embedded data: evaluation pictures")
    min_size: int = Field(96, ge=1, description="shorter side after resizing, px")
    max_size: int = Field(160, ge=1, description="largest longer side after resizing, px")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored image")
    group_by_aspect: bool = Field(
        False, description="no micro-batch holds wide and tall images, which padding would fill up"
    )
    later = frozenset({"group_by_aspect"})


class DetectionLoss(LossSection):
    """How the losses of the images of one forward are averaged."""

    normalizer: Literal["stock", "image"] = Field(
        "stock",
        description="stock: over all regions of a forward, as published; image: within each image, "
        "then over images, so that micro-batches of equal-sized images change nothing",
    )


class DetectionInfo:
    """``harness.task.TaskInfo`` of detection."""

    name = "detection"
    title = "instance segmentation on COCO with Mask and Faster R-CNN (detectron2)"
    downloads = prepare.DOWNLOADS
    implementation = "tasks.detection.task:DetectionTask"
    numerics = 2  # 2: losses of mini averaged by image, several images a forward
    sees_samples = False
    model = DetectionModel
    data = DetectionData
    loss = DetectionLoss

    def norm_facts(self, spec: Spec) -> NormFacts:
        """Describe the norm sites: backbone, pyramid, box and mask head."""
        model, data = _sections(spec)
        shape = architecture(model.name)
        stages = [model.width * 2**i for i in range(4)]
        widths = {model.width, model.fpn_channels}
        widths |= {n for w in stages for n in (shape.inner_channels(w), w * shape.expansion)}
        sites = {"backbone.bottom_up.res5": math.ceil(data.min_size / _STRIDE) ** 2}
        heads = {"box_head": model.box} | ({"mask_head": model.mask} if shape.masks else {})
        for name, head in heads.items():
            if head.num_convs:
                widths.add(head.channels)
                sites[f"roi_heads.{name}"] = head.pool**2  # of a single region
        smallest = min(sites, key=lambda name: sites[name])
        return NormFacts(tuple(sorted(widths)), sites[smallest], smallest)

    def separable(self, spec: Spec) -> bool:
        """Tell whether images have one size, no losses or proposals in common, and no order."""
        model, data = _sections(spec)
        assert isinstance(spec.loss, DetectionLoss)
        return (
            data.root is None
            and not data.group_by_aspect
            and spec.loss.normalizer == "image"
            and model.rpn.proposals_per == "image"
        )

    def num_train(self, spec: Spec) -> int | None:
        """Return None: which images have objects to train on shows only in the annotations."""
        return None

    def refuse(self, spec: Spec) -> str | None:
        """Refuse to freeze stages that nobody has trained, and weights that nobody named."""
        model, data = _sections(spec)
        published = "" if data.embedded else " (the published run starts from ImageNet weights)"
        if model.freeze_at > 0 and spec.init.source in (None, "scratch"):
            return (
                f"model.freeze_at={model.freeze_at} would freeze random weights{published}: give "
                "init=FILE, or train all of it with init=scratch model.freeze_at=0"
            )
        if not data.embedded and spec.init.source is None:
            return f"no initial weights are named{published}: give init=FILE or init=scratch"
        groups = architecture(model.name).groups
        if (inner := architecture(model.name).inner_channels(model.width)) % groups:
            return (
                f"model.width={model.width} gives the 3x3 convs of {model.name} {inner} channels, "
                f"which {groups} groups do not divide: use a multiple of {groups // 2}"
            )
        if model.rpn.iou[0] > model.rpn.iou[1]:
            given = list(model.rpn.iou)
            return f"model.rpn.iou={given} must not descend: give [background, object]"
        return None

    def dataset(self, spec: Spec) -> str:
        """Return the name of the data set, as reports print it."""
        _, data = _sections(spec)
        return "COCO shapes" if _given_root(data) is None else "COCO"

    def data_root(self, spec: Spec) -> Path:
        """Return the folder given, ``coco/`` within it, or where the embedded data are kept."""
        _, data = _sections(spec)
        if (given := _given_root(data)) is not None:
            inner = given / "coco"
            return inner if inner.is_dir() else given
        return cache_dir() / "detection" / self._embedded_name(data)

    def fingerprint(self, spec: Spec) -> str:
        """Return the embedded data's generator and arguments, or a hash of the annotations."""
        _, data = _sections(spec)
        if _given_root(data) is None:
            return self._embedded_name(data)
        return coco.fingerprint(self.data_root(spec))

    def prepare(self, spec: Spec, progress: Progress) -> Path:
        """Generate the embedded data if they are absent; check the layout of real data."""
        _, data = _sections(spec)
        root = self.data_root(spec)
        if _given_root(data) is not None:
            coco.check_layout(root)
            return root
        return embedded.generate(
            root,
            seed=data.seed,
            size=data.size,
            num_train=data.num_train,
            num_val=data.num_val,
            progress=lambda done, total: progress("generate", done, total),
        )

    def unpack(self, spec: Spec, sources: Sequence[Path], progress: Progress) -> None:
        """Fill a COCO folder."""
        archives.unpack(sources, self.data_root(spec), prepare.LAYOUT, progress)

    def download(self, spec: Spec, folder: Path) -> None:
        """Refuse: no library here downloads COCO."""
        raise DataError(f"no library here downloads COCO: fetch {self.downloads}")

    def check(self, spec: Spec, progress: Progress) -> DataReport:
        """Read both annotation files, look for every image and open a sample of them."""
        from tasks.detection.inspection import inspect

        real = not _sections(spec)[1].embedded
        return inspect(self.prepare(spec, progress), progress, official=real)

    def show(self, spec: Spec, out: Path) -> None:
        """Draw training images with their boxes and masks."""
        from tasks.detection.show import show

        show(self.prepare(spec, lambda *_: None), coco.TRAIN, out)

    def pictures(self, spec: Spec) -> Pictures:
        """Return the recipe's mean and deviation; detectron2's networks see BGR."""
        model, _ = _sections(spec)
        return Pictures("bgr", _of_rgb(model.pixel_mean), _of_rgb(model.pixel_std))

    def show_pictures(self, spec: Spec, mean: Triple, std: Triple) -> Spec:
        """Return ``spec`` with another mean and deviation."""
        pixels = {"pixel_mean": _of_bgr(mean), "pixel_std": _of_bgr(std)}
        return spec.model_copy(update={"model": spec.model.model_copy(update=pixels)})

    def pretraining(self, spec: Spec) -> Sequence[tuple[str, str]]:
        """Return the recipe of the backbone, or of the narrow one on as large a batch."""
        model, _ = _sections(spec)
        backbone = model.name.split("_")[2]
        if backbone == "mini" and spec.preset in ("mini", "smoke"):
            pictures = self.pictures(spec)
            return [
                ("preset", spec.preset),
                ("model.name", "resnet_mini_detection"),
                ("model.width", str(model.width)),
                ("batch.micro", "16" if spec.preset == "mini" else "4"),
                ("data.size", "64"),  # the last of its stages are 32 times smaller
                ("data.mean", str(list(pictures.mean or ()))),
                ("data.std", str(list(pictures.std or ()))),
            ]
        if spec.preset == "lite" and backbone in CLASSIFIERS:
            # Its micro-batch is the case that is studied; weights are made on whole batches.
            words = [("preset", "lite"), ("model.name", CLASSIFIERS[backbone])]
            return [*words, ("batch.micro", "256")]
        if spec.preset.startswith("paper") and backbone in CLASSIFIERS:
            return [("preset", "paper" if backbone == "r50" else f"paper_{backbone}")]
        raise UsageError(
            f"init=pretrain: no recipe of classification has the backbone of {model.name} with "
            f"preset={spec.preset}; give init=run:ID or init=FILE"
        )

    @staticmethod
    def _embedded_name(data: DetectionData) -> str:
        return embedded.fingerprint(data.seed, data.size, data.num_train, data.num_val)


def _of_rgb(bgr: Triple) -> Triple:
    blue, green, red = bgr
    return red / 255, green / 255, blue / 255


def _of_bgr(rgb: Triple) -> Triple:
    red, green, blue = rgb
    return 255 * blue, 255 * green, 255 * red


def _sections(spec: Spec) -> tuple[DetectionModel, DetectionData]:
    assert isinstance(spec.model, DetectionModel)
    assert isinstance(spec.data, DetectionData)
    return spec.model, spec.data


def _given_root(data: DetectionData) -> Path | None:
    return given_root(data, f"COCO 2017 ({coco.EXPECTED})")


INFO = DetectionInfo()
