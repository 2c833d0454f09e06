"""DeepLabv3 put together from torchvision's own parts, with batch norm at every norm site.

Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587.
``head=published`` is the network of the weight-standardisation authors (chenxi116/
DeepLabv3.pytorch, ``deeplab.py``), which differs from torchvision's: its ASPP is followed by the
1x1 conv at once, without a 3x3 conv and a dropout, and logits are upsampled with aligned corners.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, resnet101
from torchvision.models.segmentation.deeplabv3 import ASPP

from tasks.segmentation.info import SegmentationModel

BARE = {"published": ("classifier.1",), "torchvision": ("classifier.4",)}
"""The layer that no norm follows, by head: the 1x1 conv to the classes."""
BACKBONE = "backbone"


class DeepLabV3(nn.Module):
    """Backbone, classifier and interpolation; parameter names are torchvision's.

    Args:
        backbone: maps images to ``{"out": features}``.
        classifier: maps features to logits.
        align_corners: of the bilinear interpolation of the logits.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module, *, align_corners: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.align_corners = align_corners

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of every pixel.

        Args:
            images: (B, 3, H, W).

        Returns:
            (B, num_classes, H, W).
        """
        logits = self.classifier(self.backbone(images)["out"])
        return F.interpolate(
            logits, size=images.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )


def build_deeplab(model: SegmentationModel, num_classes: int) -> DeepLabV3:
    """Build the model with batch norm, initialised by the recipe of its head.

    Args:
        model: the model section of a spec.
        num_classes: number of classes, the background included.
    """
    if model.name == "deeplabv3_r101":
        backbone, channels = _resnet101(), 2048
    else:
        backbone, channels = _narrow_resnet(model.width), 4 * model.width
    published = model.head == "published"
    head = (_published_head if published else _torchvision_head)(model, channels, num_classes)
    for part, momentum in (
        (backbone, model.backbone_bn_momentum),
        (head, model.head_bn_momentum),
    ):
        for module in part.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
    return DeepLabV3(backbone, head, align_corners=published)


def _resnet101() -> nn.Module:
    """Build ResNet-101 of output stride 16, strides in the 3x3 convs.

    Of layer4 the first block has dilation 1, the others 2: multi-grid (1, 1, 1). torchvision
    draws its convs from normal(0, sqrt(2 / (k^2 C_out))), as the authors do.
    """
    resnet = resnet101(weights=None, replace_stride_with_dilation=[False, False, True])
    backbone: nn.Module = IntermediateLayerGetter(resnet, {"layer4": "out"})
    return backbone


def _narrow_resnet(width: int) -> nn.Module:
    """Build three one-block stages of ``width``, 2 ``width`` and 4 ``width`` channels, stride 4."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
        layer1=nn.Sequential(_basic_block(width, width)),
        layer2=nn.Sequential(_basic_block(width, 2 * width, stride=2)),
        layer3=nn.Sequential(_basic_block(2 * width, 4 * width, dilation=2)),
    )
    resnet = nn.Sequential(layers)
    _init_convs(resnet)
    backbone: nn.Module = IntermediateLayerGetter(resnet, {"layer3": "out"})
    return backbone


def _basic_block(channels: int, out: int, *, stride: int = 1, dilation: int = 1) -> BasicBlock:
    shortcut = None
    if channels != out:
        conv = nn.Conv2d(channels, out, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))
    block = BasicBlock(channels, out, stride, shortcut)
    for conv in (block.conv1, block.conv2):  # torchvision's block takes no dilation
        conv.dilation = conv.padding = (dilation, dilation)
    return block


def _published_head(model: SegmentationModel, channels: int, num_classes: int) -> nn.Module:
    """Build the authors' head: ASPP without dropout, and the 1x1 conv.

    The 1x1 conv keeps torch's initialisation, as in the authors' GN+WS run: their loop over WS
    convs does not meet it. In their BN run it was drawn like the others.
    """
    aspp = ASPP(channels, model.rates, model.aspp_channels)
    aspp.project = aspp.project[:3]  # conv, norm, ReLU
    _init_convs(aspp)
    return nn.Sequential(aspp, nn.Conv2d(model.aspp_channels, num_classes, 1))


def _torchvision_head(model: SegmentationModel, channels: int, num_classes: int) -> nn.Module:
    """Build torchvision's ``DeepLabHead``, which has no argument for its channels."""
    width = model.aspp_channels
    return nn.Sequential(
        ASPP(channels, model.rates, width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, num_classes, 1),
    )


def _init_convs(part: nn.Module) -> None:
    """Draw every conv from normal(0, sqrt(2 / (k^2 C_out)))."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
