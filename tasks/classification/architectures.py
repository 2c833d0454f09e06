"""The ResNets that the recipes name, as numbers, so that planning need not build them."""

from __future__ import annotations

from dataclasses import dataclass

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


RESNETS: dict[str, ResNetShape] = {
    "resnet_mini": ResNetShape((2, 2, 2), width=16, bottleneck=False, small_stem=True),
    "resnet50": ResNetShape((3, 4, 6, 3)),
    "resnet101": ResNetShape((3, 4, 23, 3)),
    "resnext50_32x4d": ResNetShape((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x4d": ResNetShape((3, 4, 23, 3), groups=32, width_per_group=4),
}


def norm_facts(name: str, size: int) -> NormFacts:
    """Describe the norm sites of a network on square pictures.

    Args:
        name: of the network. Of one that is not in ``RESNETS`` nothing is known, so that nothing is
            refused before it is built: no widths, and enough values for any norm.
        size: side of the pictures, px.
    """
    shape = RESNETS.get(name)
    if shape is None:
        return NormFacts((), 2, "its last norm")
    side = -(-size // shape.stride)
    return NormFacts(shape.norm_widths, side**2, f"layer{len(shape.layers)}")
