"""The classifiers with batch norm at every site, as their libraries build them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from harness.errors import EnvironmentProblem, UsageError, did_you_mean
from harness.norm.pairing import pair
from tasks.classification.architectures import MINI, RESNETS, ResNetShape, shape_of

BARE = ("fc",)
"""The only layer of a ResNet that no norm follows."""


def build_classifier(
    name: str, num_classes: int, width: int | None = None
) -> tuple[nn.Module, Sequence[str]]:
    """Build a classifier with random weights.

    Args:
        name: one of ``RESNETS``, or the name of a classifier of torchvision, else of timm.
        num_classes: width of its output.
        width: channels of the stem of a ``resnet_mini*``; None for those of its name.

    Returns:
        The network, from (B, 3, H, W) to (B, num_classes), and patterns of the layers that no norm
        follows. The recipe gives those of a ResNet; of any other network they are read from it.

    Raises:
        UsageError: if neither library has such a network.
        EnvironmentProblem: if timm might have it, and is not installed.
    """
    shape = shape_of(name, width)
    if shape is not None:
        small = name.startswith(MINI)
        return (SmallResNet if small else _resnet)(shape, num_classes), BARE
    model = _library_model(name, num_classes)
    return model, [path for path, layer in pair(model).layers.items() if not layer.feeds]


def _resnet(shape: ResNetShape, num_classes: int) -> nn.Module:
    """Build torchvision's ResNet or ResNeXt.

    Its initial weights are the authors' already: normal with variance ``2 / (k^2 C_out)``, which is
    what both their Kaiming fan-out (ResNet) and their own formula (ResNeXt) come to; gamma 1, beta
    0, also at the end of a block; torch's own for the classifier.
    """
    model: nn.Module = ResNet(
        Bottleneck if shape.bottleneck else BasicBlock,
        list(shape.layers),
        num_classes=num_classes,
        groups=shape.groups,
        width_per_group=shape.width_per_group,
    )
    return model


class SmallResNet(nn.Module):
    """A narrow ResNet for small pictures, of torchvision's basic blocks and parameter names.

    Args:
        shape: blocks and channels.
        num_classes: width of the output.
    """

    def __init__(self, shape: ResNetShape, num_classes: int) -> None:
        super().__init__()
        channels = shape.width
        side = 3 if shape.small_stem else 7
        self.conv1 = nn.Conv2d(3, channels, side, stride=2, padding=side // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if shape.small_stem else nn.MaxPool2d(3, 2, padding=1)
        stages = []
        for number, blocks in enumerate(shape.layers):
            wide = shape.width * 2**number
            stages.append(_stage(channels, wide, blocks, stride=2 if number else 1))
            channels = wide
        for number, stage in enumerate(stages, 1):
            self.add_module(f"layer{number}", stage)
        self.stages = [f"layer{number}" for number in range(1, len(stages) + 1)]
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision's ResNet
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(channels: int, wide: int, blocks: int, *, stride: int) -> nn.Sequential:
    """Build a stage of basic blocks; a 1x1 convolution leads around the first where they differ."""
    shortcut = None
    if stride > 1 or channels != wide:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide)
        )
    first = BasicBlock(channels, wide, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(wide, wide) for _ in range(blocks - 1)))


def _library_model(name: str, num_classes: int) -> nn.Module:
    known = models.list_models(module=models)
    if name in known:
        return _made(models.get_model(name, weights=None, num_classes=num_classes))
    known = list(dict.fromkeys([*RESNETS, *known]))
    if find_spec("timm") is None:
        wanted = (
            f"model.name={name!r} is no classifier of torchvision.{did_you_mean(name, known)} "
            "If it is one of timm, install the package timm (uv pip install timm)"
        )
        slip = get_close_matches(name, known, cutoff=0.85)
        raise UsageError(wanted) if slip else EnvironmentProblem(wanted)
    timm = import_module("timm")
    if not timm.is_model(name):
        near = did_you_mean(name, [*known, *timm.list_models()])
        raise UsageError(f"model.name={name!r} is no classifier of torchvision or timm.{near}")
    return _made(timm.create_model(name, pretrained=False, num_classes=num_classes))


def _made(model: Any) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (B, num_classes).

    Raises:
        UsageError: if the network returns something else, such as outputs of auxiliary heads.
    """
    logits = model(images)
    if not torch.is_tensor(logits):
        kind = type(logits).__name__
        raise UsageError(f"the network returns {kind}, not logits: choose another model.name")
    return logits
