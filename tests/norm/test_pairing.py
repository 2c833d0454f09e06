"""Structural pairing against tensors traced through a forward pass, path by path."""

import pytest
import torch
import torchvision
from torch import nn

from harness.errors import EnvironmentProblem
from harness.norm.catalogue import NormChoice
from harness.norm.pairing import fan_in, pair
from harness.norm.surgery import apply_norm
from tests.norm.nets import NETS, SharedNorm, Small
from tests.norm.oracle import traced_pairs

GN_WS = NormChoice("gn", ws="authors")


def check(model: nn.Module, *inputs: object) -> int:
    """Compare with the trace; return the number of pairs."""
    expected, orphans = traced_pairs(model, *inputs)
    pairing = pair(model)
    found = {(layer.path, site) for layer in pairing.layers.values() for site in layer.feeds}
    assert found == expected
    assert {path for path, site in pairing.sites.items() if not site.fed_by} == orphans
    assert {(path, site) for site, s in pairing.sites.items() for path in s.fed_by} == expected
    return len(expected)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("resnet50", 53),
        ("resnet101", 104),
        ("resnext50_32x4d", 53),
        ("densenet121", 59),
        ("mobilenet_v3_small", 34),
        ("efficientnet_b0", 49),
        ("regnet_y_400mf", 53),
        ("shufflenet_v2_x0_5", 56),
        ("inception_v3", 94),
        ("convnext_tiny", 0),
    ],
)
def test_torchvision_classifiers(name: str, pairs: int):
    more = {"init_weights": False, "aux_logits": False} if name == "inception_v3" else {}
    model = getattr(torchvision.models, name)(**more)
    side = 96 if name == "inception_v3" else 32
    assert check(model, torch.randn(1, 3, side, side)) == pairs


def test_deeplabv3_with_the_stock_head():
    build = torchvision.models.segmentation.deeplabv3_resnet101
    model = build(weights=None, weights_backbone=None)
    assert check(model, torch.randn(1, 3, 32, 32)) == 111
    assert apply_norm(model, GN_WS, bare=["classifier.4"]).num_standardised == 111


def test_deep_stems_and_factorised_convolutions():
    model = torchvision.models.video.r2plus1d_18()
    assert check(model, torch.randn(1, 3, 4, 32, 32)) == 37
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3))
    assert check(nn.Sequential(stem, nn.BatchNorm2d(8)), torch.randn(1, 3, 8, 8)) == 2


@pytest.mark.parametrize("name", NETS)
def test_toy_nets(name: str):
    build, shape = NETS[name]
    assert check(build(), torch.randn(shape)) == 2


def test_norms_registered_twice_are_found_once():
    model = SharedNorm()
    assert check(model, torch.randn(2, 3, 5, 4)) == 2
    assert list(pair(model).sites) == ["bn1", "bn2"]
    assert pair(Small()).layers["branch.0"].feeds == ["branch.1"]


def test_norms_before_their_convolution_and_after_an_activation_are_orphans():
    assert check(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), torch.randn(1, 3, 2, 2)) == 0
    relu_first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
    assert check(relu_first, torch.randn(1, 3, 2, 2)) == 0


def test_the_oracle_is_not_fooled_by_registration_order():
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.norm_a = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.a, self.norm_b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm_a(self.a(x)) + self.norm_b(self.b(x))

    pairs, _ = traced_pairs(Crossed(), torch.randn(1, 3, 2, 2))
    assert pairs == {("a", "norm_a"), ("b", "norm_b")}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(8, 4, 3, groups=4), 18),
        (nn.Linear(7, 2), 7),
        (nn.ConvTranspose2d(8, 4, 3, groups=2), 36),
        (nn.Conv1d(1, 5, 1), 1),
    ],
)
def test_fan_in(layer: nn.Module, expected: int):
    assert fan_in(layer) == expected


MASK_RCNN_BARE = (
    "proposal_generator.rpn_head.*",
    "roi_heads.box_head.fc*",
    "roi_heads.box_predictor.*",
    "roi_heads.mask_head.deconv",
    "roi_heads.mask_head.predictor",
)


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_mask_rcnn():
    try:
        from tasks.detection.d2 import Conv2d, WSDetectronConv2d
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 4
    heads = cfg.MODEL.ROI_HEADS
    heads.NAME, heads.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
    box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    box.NAME, box.NUM_CONV, box.NUM_FC, box.FC_DIM = "FastRCNNConvFCHead", 4, 1, 64
    mask.NAME, mask.NUM_CONV = "MaskRCNNConvUpsampleHead", 4
    box.NORM = mask.NORM = "BN"
    box.POOLER_RESOLUTION, mask.POOLER_RESOLUTION = 7, 14
    model = build_model(cfg)
    image = {"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}
    assert check(model, [image]) == 69
    names = {name for name, _ in model.named_parameters()}
    audit = apply_norm(model, GN_WS, bare=MASK_RCNN_BARE, ws_classes={Conv2d: WSDetectronConv2d})
    assert audit.num_norm_sites == audit.num_standardised == 69
    assert audit.num_bare == 8
    assert {name for name, _ in model.named_parameters()} == names
    assert model.eval()([image])
