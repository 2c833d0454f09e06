"""The networks: the published one by its counts, torchvision's by its own, surgery by a trace."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.resnet import resnet101
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, _deeplabv3_resnet

from harness.registry import task_info
from harness.rng import numpy_rng
from harness.worker import build_model
from tasks.segmentation.info import SegmentationModel
from tasks.segmentation.model import DeepLabV3, build_deeplab
from tasks.segmentation.task import SegmentationTask
from tests.norm.oracle import traced_pairs
from tests.segmentation.conftest import segmentation_spec, segmentation_task

INFO = task_info("segmentation")
PRESETS = ["paper", "torchvision", "mini", "smoke"]
NUM_NORMED = {"paper": 110, "torchvision": 111, "mini": 16, "smoke": 16}


def stock(*words: str, classes: int = 21) -> DeepLabV3:
    """Build a model before surgery, without weights in memory."""
    spec = segmentation_spec(*words)
    assert isinstance(spec.model, SegmentationModel)
    with torch.device("meta"):
        return build_deeplab(spec.model, classes)


@pytest.fixture(scope="module")
def torchvisions() -> nn.Module:
    with torch.device("meta"):
        resnet = resnet101(weights=None, replace_stride_with_dilation=[False, False, True])
        model: nn.Module = _deeplabv3_resnet(resnet, 21, None)
    return model


@pytest.mark.parametrize("preset", PRESETS)
def test_audit_equals_the_traced_oracle(preset: str) -> None:
    spec = segmentation_spec(f"preset={preset}", "norm=bn_ws")
    with torch.device("meta"):
        _, audit = build_model(SegmentationTask(spec, None), spec)
        pairs, orphans = traced_pairs(stock(f"preset={preset}"), torch.zeros(1, 3, 65, 65))
    assert not orphans
    assert len(pairs) == NUM_NORMED[preset]
    layers = [row for row in audit if row.role == "layer"]
    assert {(row.path, row.paired_with) for row in layers if row.standardised} == pairs
    bare = [row.path for row in layers if not row.paired_with]
    assert bare == ["classifier.1" if preset == "paper" else "classifier.4"]


def test_published_network_in_numbers() -> None:
    model = stock("preset=paper")
    convs = {path for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert sum(path.startswith("backbone.") for path in convs) == 104
    assert sum(path.startswith("classifier.0.") for path in convs) == 6
    assert not any(isinstance(m, nn.Dropout) for m in model.modules())
    assert model.align_corners
    # As many tensors as the authors load from their ImageNet file: 104 convs, 208 of the norms.
    backbone = [name for name, _ in model.named_parameters() if name.startswith("backbone.")]
    assert len(backbone) == 312
    biased = [path for path in convs if model.get_submodule(path).bias is not None]
    assert biased == ["classifier.1"]


def test_multi_grid_and_strides() -> None:
    backbone = stock("preset=paper").backbone
    dilations = [block.conv2.dilation[0] for block in backbone["layer4"]]
    assert dilations == [1, 2, 2]
    strides = {name: backbone[name][0].conv2.stride[0] for name in ("layer2", "layer3", "layer4")}
    assert strides == {"layer2": 2, "layer3": 2, "layer4": 1}
    assert all(block.conv1.stride == (1, 1) for block in backbone["layer3"])
    branches = stock("preset=paper").classifier[0].convs
    assert [branches[i][0].dilation[0] for i in range(4)] == [1, 6, 12, 18]


@pytest.mark.parametrize(("preset", "size", "cells"), [("paper", 65, 5), ("mini", 64, 16)])
def test_output_stride_and_resolution(preset: str, size: int, cells: int) -> None:
    model = stock(f"preset={preset}").eval()
    images = torch.zeros(2, 3, size, size, device="meta")
    assert model.backbone(images)["out"].shape[-2:] == (cells, cells)
    assert model(images).shape == (2, 21, size, size)


def test_torchvision_variant_is_torchvisions(torchvisions: nn.Module) -> None:
    momenta = ["model.backbone_bn_momentum=0.1", "model.head_bn_momentum=0.1"]
    ours = stock("preset=torchvision", *momenta)
    assert str(ours.backbone) == str(torchvisions.backbone)
    expected = DeepLabHead(2048, 21, (6, 12, 18))
    assert str(ours.classifier).partition("\n")[2] == str(expected).partition("\n")[2]
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, torchvisions)]
    assert shapes[0] == shapes[1]


def test_same_weights_give_torchvisions_logits(torchvisions: nn.Module) -> None:
    torch.manual_seed(0)
    spec = segmentation_spec("preset=torchvision", "model.rates=[12,24,36]")
    assert isinstance(spec.model, SegmentationModel)
    ours = build_deeplab(spec.model, 21).eval()
    theirs = torchvisions.to_empty(device="cpu").eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images)["out"])


def test_bn_momentum_is_the_recipes() -> None:
    model = stock("preset=paper")
    for part, momentum, count in ((model.backbone, 0.05, 104), (model.classifier, 0.0003, 6)):
        found = [m.momentum for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
        assert found == [momentum] * count


def test_initial_weights_are_the_recipes() -> None:
    spec = segmentation_spec("preset=paper")
    assert isinstance(spec.model, SegmentationModel)
    torch.manual_seed(0)
    model = build_deeplab(spec.model, 21)
    for path in (
        "backbone.conv1",
        "backbone.layer4.1.conv2",
        "classifier.0.convs.2.0",
        "classifier.0.convs.4.1",
        "classifier.0.project.0",
    ):
        conv = model.get_submodule(path)
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        weight = conv.weight.detach()
        assert float(weight.std()) == pytest.approx(expected, rel=0.03), path
        assert abs(float(weight.mean())) < 0.03 * expected
        assert float(weight.abs().max()) > 3 * expected, "normal, not uniform"
    last = model.get_submodule("classifier.1").weight.detach()
    assert float(last.abs().max()) <= 1 / math.sqrt(256), "torch's own"


@pytest.mark.parametrize("preset", PRESETS)
def test_planned_widths_are_those_of_the_built_model(preset: str) -> None:
    word = f"preset={preset}"
    built = {m.num_features for m in stock(word).modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(INFO.norm_facts(segmentation_spec(word)).widths) == built


def test_planned_smallest_site_is_the_one_a_forward_meets() -> None:
    model, seen = stock().eval(), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda m, inputs, path=path: seen.update({path: inputs[0][0, 0].numel()})
            )
    model(torch.zeros(3, 3, 64, 64, device="meta"))
    facts = INFO.norm_facts(segmentation_spec())
    assert min(seen.values()) == facts.min_values == 1
    assert [path for path, values in seen.items() if values == 1] == ["classifier.0.convs.4.2"]


def test_mini_is_the_narrow_network_it_says_it_is() -> None:
    assert sum(p.numel() for p in stock(classes=6).parameters()) == 254_806


RUNNABLE = ["bn", "bn_ws", "gn", "gn_ws", "ln", "frozen_bn", "none_ws"]


@pytest.mark.parametrize("norm", RUNNABLE)
def test_every_norm_keeps_the_parameter_names_and_gives_finite_losses(norm: str) -> None:
    spec = segmentation_spec("preset=smoke", f"norm={norm}")
    task = segmentation_task(spec)
    names = set(dict(task.build_model().named_parameters()))
    model, audit = build_model(task, spec)
    changed = names ^ set(dict(model.named_parameters()))
    assert not changed or norm.startswith("frozen_bn")
    assert audit.num_standardised == (16 if norm.endswith("_ws") else 0)
    batch = task.collate([task.train_data().sample(i, numpy_rng(i)) for i in range(2)])
    losses = task.loss(model.train(), batch)
    assert losses.keys() == task.counts(batch).keys()
    total, count = losses["loss_ce"]
    assert count == task.counts(batch)["loss_ce"]
    assert bool(torch.isfinite(total))
