"""The ResNets that the recipes name, as numbers, so that planning need not build them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.task import NormFacts


@dataclass(frozen=True)
class ResNetShape:
    """What tells one ResNet from another (He et al. 2015, arXiv 1512.03385, table 1)."""

    layers: tuple[int, ...]
    """Residual blocks of each stage; every stage but the first halves the side."""
    width: int = 64
    """Channels of the stem; stage i has ``width * 2**i``."""
    bottleneck: bool = True
    """Blocks of 1x1, 3x3, 1x1 convolutions that end in four times the channels, or of two 3x3."""
    groups: int = 1
    """Groups of the 3x3 convolution (ResNeXt: Xie et al. 2016, arXiv 1611.05431)."""
    width_per_group: int = 64
    small_stem: bool = False
    """A 3x3 convolution of stride 2, instead of 7x7 of stride 2 and a pooling of stride 2."""

    @property
    def stride(self) -> int:
        """Return how much smaller the side of the last maps is than that of the picture."""
        return (2 if self.small_stem else 4) << (len(self.layers) - 1)

    @property
    def norm_widths(self) -> tuple[int, ...]:
        """Return every channel count at a norm site, ascending."""
        stages = [self.width * 2**i for i in range(len(self.layers))]
        if not self.bottleneck:
            return tuple(sorted({self.width, *stages}))
        inner = {stage * self.width_per_group // 64 * self.groups for stage in stages}
        return tuple(sorted({self.width, *inner, *(4 * stage for stage in stages)}))


MINI = "resnet_mini"
"""How the names of the networks begin whose width may be chosen."""

RESNETS: dict[str, ResNetShape] = {
    "resnet_mini": ResNetShape((2, 2, 2), width=16, bottleneck=False, small_stem=True),
    # The backbones of the mini segmentation and detection networks, so that these can start from
    # weights that were trained to classify.
    "resnet_mini_segmentation": ResNetShape((1, 1, 1), width=16, bottleneck=False, small_stem=True),
    "resnet_mini_detection": ResNetShape((2, 2, 2, 2), width=24, bottleneck=False),
    "resnet50": ResNetShape((3, 4, 6, 3)),
    "resnet101": ResNetShape((3, 4, 23, 3)),
    "resnext50_32x4d": ResNetShape((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x4d": ResNetShape((3, 4, 23, 3), groups=32, width_per_group=4),
}


def shape_of(name: str, width: int | None) -> ResNetShape | None:
    """Return the shape of one of ``RESNETS``, with ``width`` channels in its stem if given."""
    shape = RESNETS.get(name)
    return replace(shape, width=width) if shape and width else shape


def norm_facts(name: str, size: int, width: int | None = None) -> NormFacts:
    """Describe the norm sites of a network on square pictures.

    Args:
        name: of the network. Of one that is not in ``RESNETS`` nothing is known, so that nothing is
            refused before it is built: no widths, and enough values for any norm.
        size: side of the pictures, px.
        width: channels of the stem, where they are not those of ``RESNETS``.
    """
    shape = shape_of(name, width)
    if shape is None:
        return NormFacts((), 2, "its last norm")
    side = -(-size // shape.stride)
    return NormFacts(shape.norm_widths, side**2, f"layer{len(shape.layers)}")
