"""What a model's name stands for, without torch: depth, kind of block, groups, and heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ModelName = Literal[
    "mask_rcnn_mini",
    "mask_rcnn_r50_fpn",
    "mask_rcnn_r101_fpn",
    "mask_rcnn_x50_32x4d_fpn",
    "mask_rcnn_x101_32x4d_fpn",
    "faster_rcnn_r50_fpn",
    "faster_rcnn_r101_fpn",
    "faster_rcnn_x50_32x4d_fpn",
    "faster_rcnn_x101_32x4d_fpn",
]


@dataclass(frozen=True)
class Architecture:
    """The backbone, and whether a mask head follows."""

    num_blocks: tuple[int, int, int, int]
    """Blocks of res2 to res5."""
    expansion: int
    """Output channels over stage width: 4 in bottlenecks, 1 in basic blocks."""
    groups: int
    """Groups of the 3x3 convs: 32 in ResNeXt."""
    masks: bool

    def inner_channels(self, width: int) -> int:
        """Return the channels of a block's 3x3 convs.

        In ResNeXt-32x4d they are twice the stage's width: 32 groups of 4 where ResNet has 64 (Xie
        et al. 2017, arXiv 1611.05431, table 1).
        """
        return 2 * width if self.groups > 1 else width


_BACKBONES = {  # He et al. 2016, arXiv 1512.03385, table 1; the mini network's is ResNet-18's
    "mini": ((2, 2, 2, 2), 1, 1),
    "r50": ((3, 4, 6, 3), 4, 1),
    "r101": ((3, 4, 23, 3), 4, 1),
    "x50": ((3, 4, 6, 3), 4, 32),
    "x101": ((3, 4, 23, 3), 4, 32),
}


CLASSIFIERS = {
    "r50": "resnet50",
    "r101": "resnet101",
    "x50": "resnext50_32x4d",
    "x101": "resnext101_32x4d",
}
"""The classification networks (``tasks.classification``) that the backbones are."""


def architecture(name: str) -> Architecture:
    """Return what ``name`` (a ``ModelName``) stands for."""
    meta, _, backbone = name.split("_", 2)
    return Architecture(*_BACKBONES[backbone.partition("_")[0]], masks=meta == "mask")
