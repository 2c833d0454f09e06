from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model as build_from_config
from torch import nn

from harness.norm.audit import NormAudit
from harness.registry import task_info
from harness.worker import build_model
from tasks.detection.d2 import Conv2d, WSDetectronConv2d
from tasks.detection.info import DetectionModel
from tasks.detection.model import BARE, build_detector
from tasks.detection.task import DetectionTask
from tests.detection.conftest import detection_spec, detection_task

INFO = task_info("detection")


@pytest.fixture(scope="module")
def paper() -> DetectionTask:
    """The published model on data that are at hand; their 4 categories change two layers' width."""
    words = ["preset=paper", "data.embedded=true", "data.num_train=4", "data.num_val=4"]
    return detection_task(detection_spec(*words))


def surgery(task: DetectionTask, *words: str) -> tuple[nn.Module, NormAudit]:
    spec = detection_spec(*words)
    return build_model(task, spec)


@pytest.fixture(scope="module")
def published(paper: DetectionTask) -> tuple[nn.Module, NormAudit]:
    return surgery(paper, "preset=paper")


def test_paper_standardises_exactly_the_69_convs_of_the_fork(
    published: tuple[nn.Module, NormAudit],
) -> None:
    model, audit = published
    standardised = [row.path for row in audit if row.standardised]
    assert len(standardised) == 69
    prefixes = {
        "backbone.bottom_up": 53,
        "backbone.fpn_lateral": 4,
        "backbone.fpn_output": 4,
        "roi_heads.box_head.conv": 4,
        "roi_heads.mask_head.mask_fcn": 4,
    }
    for prefix, count in prefixes.items():
        assert sum(path.startswith(prefix) for path in standardised) == count
    bare = sorted(row.path for row in audit if row.role == "layer" and not row.paired_with)
    assert bare == sorted(
        [
            "proposal_generator.rpn_head.conv",
            "proposal_generator.rpn_head.objectness_logits",
            "proposal_generator.rpn_head.anchor_deltas",
            "roi_heads.box_head.fc1",
            "roi_heads.box_predictor.cls_score",
            "roi_heads.box_predictor.bbox_pred",
            "roi_heads.mask_head.deconv",
            "roi_heads.mask_head.predictor",
        ]
    )
    assert len(BARE) == 5
    assert all(type(model.get_submodule(path)) is WSDetectronConv2d for path in standardised)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_strides_of_the_bottlenecks_are_in_the_3x3_convs(
    published: tuple[nn.Module, NormAudit],
) -> None:
    block = published[0].get_submodule("backbone.bottom_up.res3.0")
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)


def configuration(depth: int, groups: int, *, masks: bool) -> Any:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NUM_GROUPS = groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64 if groups == 1 else 4
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.NORM = "BN"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_MASK_HEAD.NORM = "BN"
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    return cfg


@pytest.mark.parametrize(
    ("preset", "depth", "groups", "masks"),
    [
        ("paper", 50, 1, True),
        ("paper_mask_r101", 101, 1, True),
        ("paper_mask_x50", 50, 32, True),
        ("paper_mask_x101", 101, 32, True),
        ("paper_faster_r50", 50, 1, False),
        ("paper_faster_r101", 101, 1, False),
        ("paper_faster_x50", 50, 32, False),
        ("paper_faster_x101", 101, 32, False),
    ],
)
def test_published_models_have_the_parameters_of_detectron2s_own_build(
    preset: str, depth: int, groups: int, masks: bool
) -> None:
    """The oracle is detectron2's configuration system, which we do not use."""
    section = detection_spec(f"preset={preset}").model
    assert isinstance(section, DetectionModel)
    with torch.device("meta"):
        ours = build_detector(section, 80, "stock")
        theirs = build_from_config(configuration(depth, groups, masks=masks))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert str(ours.backbone) == str(theirs.backbone)


@pytest.mark.parametrize(
    "preset", ["paper", "paper_mask_x101", "paper_faster_r101", "mini", "smoke"]
)
def test_planned_widths_are_those_of_the_built_model(preset: str) -> None:
    spec = detection_spec(f"preset={preset}")
    assert isinstance(spec.model, DetectionModel)
    with torch.device("meta"):
        model = build_detector(spec.model, 3, "stock")
    built = {m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(INFO.norm_facts(spec).widths) == built


@pytest.mark.parametrize("preset", ["mini", "smoke"])
def test_planned_smallest_site_is_the_one_a_forward_meets(preset: str) -> None:
    spec = detection_spec(f"preset={preset}", "data.num_train=8", "data.num_val=4")
    task = detection_task(spec)
    model = task.build_model()
    seen: dict[str, int] = {}

    def watch(path: str) -> object:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            (x,) = inputs
            # A region is the least that a head sees of an image.
            images = 1 if path.startswith("backbone") else len(x)
            seen[path] = x.numel() // (x.shape[1] * images)

        return hook

    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(watch(path))
    model.train()
    task.loss(model, [task.train_data()._load(0, flip=False)])
    facts = INFO.norm_facts(spec)
    assert min(seen.values()) == facts.min_values
    assert any(
        path.startswith(facts.smallest_site)
        for path, values in seen.items()
        if values == facts.min_values
    )


def test_mini_is_the_narrow_network_it_says_it_is() -> None:
    spec = detection_spec("norm=bn", "data.num_train=8", "data.num_val=4")
    model, audit = build_model(detection_task(spec), spec)
    assert audit.num_norm_sites == 32
    assert audit.num_standardised == 0
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert 2.0 < millions < 2.2


@pytest.mark.parametrize("layer", ["bn", "frozen_bn", "gn", "in", "ln", "none"])
@pytest.mark.parametrize("suffix", ["", "_ws"])
def test_every_norm_keeps_the_parameter_names_and_gives_finite_losses(
    layer: str, suffix: str
) -> None:
    words = ["preset=smoke", f"norm={layer}{suffix}"]
    spec = detection_spec(*words)
    task = detection_task(spec)
    stock = dict(task.build_model().named_parameters())
    model, audit = build_model(task, spec)
    renamed = set(stock) ^ set(dict(model.named_parameters()))
    assert all(layer == "frozen_bn" and ".norm." in name for name in renamed)
    assert audit.num_standardised == (audit.num_norm_sites if suffix else 0)
    model.train()
    batch = [task.train_data()._load(i, flip=False) for i in range(2)]
    losses = task.loss(model, batch)
    assert losses.keys() == task.counts(batch).keys()
    assert all(bool(torch.isfinite(total)) for total, _ in losses.values())


def test_freezing_stops_the_first_stages_only_and_keeps_their_bn_still() -> None:
    spec = detection_spec("preset=smoke", "norm=bn", "model.freeze_at=2")
    task = detection_task(spec)
    model, _ = build_model(task, spec)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    backbone = model.get_submodule("backbone.bottom_up")
    assert frozen == {
        f"backbone.bottom_up.{name}"
        for name, _ in backbone.named_parameters()
        if name.startswith(("stem", "res2"))
    }
    still = {name for name, m in backbone.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    assert still
    assert {name.split(".")[0] for name in still} == {"stem", "res2"}
    moving = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert moving


def test_freezing_group_norm_freezes_its_affine_and_keeps_standardising() -> None:
    spec = detection_spec("preset=smoke", "norm=gn_ws", "model.freeze_at=2")
    task = detection_task(spec)
    model, audit = build_model(task, spec)
    stem = model.get_submodule("backbone.bottom_up.stem.conv1")
    assert type(stem) is WSDetectronConv2d
    assert not any(p.requires_grad for p in stem.parameters())
    row = next(row for row in audit if row.path == "backbone.bottom_up.stem.conv1")
    assert row.standardised
    assert not row.trainable


def test_the_switch_reaches_only_detectron2s_convs() -> None:
    assert DetectionTask.ws_classes == {Conv2d: WSDetectronConv2d}
