"""Norms that never look beyond the sample: filter response, EvoNorm-S0, DyT, norms of positions.

All keep batch norm's gamma and beta, so that a network with one of them differs from its twins in
the normalisation alone. Statistics are computed in float32 for narrower types.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.norm.layers import EPS, BatchNorm, ChannelAffine, per_channel, widened

FRN_EPS = 1e-6
"""Singh and Krishnan 2020, section 3.1; timm's layer has 1e-5."""
EVONORM_EPS = 1e-5
"""Liu et al. 2020, appendix A; timm's layer has the same."""
DYT_ALPHA = 0.5
"""Initial alpha of Zhu et al. 2025, section 5, for everything but language models."""


class FilterResponseNorm(ChannelAffine):
    """``y = gamma * x / sqrt(mean(x^2) + eps) + beta``, the mean over a channel's space.

    Singh and Krishnan, "Filter Response Normalization Layer" (2020), arXiv 1911.09737. Theirs goes
    with an activation of its own, ``max(y, tau)``, in the place of ReLU. A norm that is swapped for
    another leaves the activation that follows as it is, so this is the paper's FRN with ReLU (or
    what the model has there), without tau.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape and type.

        Raises:
            ValueError: if a channel has one value, of which only the sign would be left.
        """
        if x.dim() < 3 or x[0, 0].numel() < 2:
            raise ValueError(
                f"filter response norm over {tuple(x.shape)} has one value per statistic, of which "
                "only the sign would be left; choose another norm, e.g. ln"
            )
        squares = widened(x).square().mean(dim=tuple(range(2, x.dim())), keepdim=True)
        return super().forward(x * (squares + FRN_EPS).rsqrt().to(x.dtype))


class EvoNormS0(ChannelAffine):
    """``y = gamma * x * sigmoid(v * x) / sqrt(var + eps) + beta``, var per sample and group.

    Liu, Brock, Simonyan and Le, "Evolving Normalization-Activation Layers" (2020), arXiv
    2004.02967, table 3, S0. Theirs stands for a norm *and* the activation after it. A norm that is
    swapped for another leaves that activation as it is: here a ReLU may follow.
    """

    def __init__(self, num_features: int, num_groups: int = 32, affine: bool = True) -> None:
        """Start with v at 1."""
        super().__init__(num_features, affine)
        self.num_groups = num_groups
        self.v = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape and type."""
        groups = widened(x).unflatten(1, (self.num_groups, -1)).flatten(2)  # (B, G, C / G * space)
        inverse = (groups.var(dim=2, correction=0) + EVONORM_EPS).rsqrt()  # (B, G)
        inverse = inverse.repeat_interleave(self.num_features // self.num_groups, dim=1)
        inverse = inverse.view(*inverse.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
        return super().forward(x * (x * per_channel(self.v, x)).sigmoid() * inverse)

    def extra_repr(self) -> str:
        """Return the number of channels and of their groups."""
        return f"{self.num_features}, groups={self.num_groups}"


class DynamicTanh(ChannelAffine):
    """``y = gamma * tanh(alpha * x) + beta`` with one alpha: no statistics at all.

    Zhu, Chen, He, LeCun and Liu, "Transformers without Normalization" (2025), arXiv 2503.10622.
    """

    def __init__(self, num_features: int, affine: bool = True) -> None:
        """Start with alpha at 0.5."""
        super().__init__(num_features, affine)
        self.alpha = nn.Parameter(torch.full((1,), DYT_ALPHA))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape and type."""
        return super().forward(torch.tanh(self.alpha.to(x.dtype) * x))


class PositionLayerNorm(ChannelAffine):
    """Layer norm over the channels of each position, as in ConvNeXt.

    Liu et al., "A ConvNet for the 2020s" (2022), arXiv 2201.03545; ``LayerNorm2d`` in torchvision
    and timm, there with eps 1e-6. The statistics are those of positional normalisation (Li et al.
    2019, arXiv 1907.04312).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape."""
        last = x.movedim(1, -1)
        normalised = nn.functional.layer_norm(last, (self.num_features,), eps=EPS)
        return super().forward(normalised.movedim(-1, 1))


class PositionRMSNorm(ChannelAffine):
    """``y = gamma * x / sqrt(mean(x^2) + eps) + beta``, the mean over the channels of a position.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), arXiv 1910.07467. Theirs has
    no beta; here batch norm's stays.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape and type."""
        squares = widened(x).square().mean(dim=1, keepdim=True)
        return super().forward(x * (squares + EPS).rsqrt().to(x.dtype))


def build_frn(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build filter response norm, without the activation that its paper adds."""
    return FilterResponseNorm(bn.num_features, affine=bn.weight is not None)


def build_evonorm_s0(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build EvoNorm-S0; ``groups`` must divide the channels."""
    return EvoNormS0(bn.num_features, groups, affine=bn.weight is not None)


def build_dyt(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build dynamic tanh."""
    return DynamicTanh(bn.num_features, affine=bn.weight is not None)


def build_ln_pos(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build layer norm over the channels of each position."""
    return PositionLayerNorm(bn.num_features, affine=bn.weight is not None)


def build_rms(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build root-mean-square norm over the channels of each position."""
    return PositionRMSNorm(bn.num_features, affine=bn.weight is not None)
