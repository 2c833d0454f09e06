"""Batch-channel normalisation, with the batch's statistics or with estimates of them.

Qiao, Wang, Liu, Shen and Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization" (2019), arXiv 1911.09738; joe-siyuan-qiao/Batch-Channel-Normalization.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.norm.layers import EPS, BatchNorm, ChannelAffine, batch_moments, copy_averages


class EstimatedBatchStatistics(nn.Module):
    """Subtracts an estimated mean and divides by an estimated deviation, per channel.

    In training, ``mean`` and then ``var`` first move towards those of the batch at rate r, the
    variance being taken around the mean before the move. Training and evaluation both normalise
    with the estimates, which are constants for the gradient.

    The authors leave r to be set from outside, starting from 0, and publish no value; here it is
    the momentum of the batch norm that is replaced (torch's default: 0.1).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = EPS, rate: float = 0.1) -> None:
        """Start with mean 0 and variance 1."""
        super().__init__()
        self.num_features, self.eps, self.rate = num_features, eps, rate
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self._moved(x.detach())
        return nn.functional.batch_norm(x, mean, var, training=False, eps=self.eps)

    @torch.no_grad()
    def _moved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Move the estimates; return copies, since another forward may come before the backward."""
        own = self.running_mean.dtype
        centre, biased = batch_moments(x)
        around = biased + (centre - self.running_mean).square()  # mean of (x - old mean)^2
        mean = self.running_mean.lerp(centre.to(own), self.rate)
        var = self.running_var.lerp(around.to(own), self.rate)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return mean, var

    def extra_repr(self) -> str:
        """Return the number of channels, epsilon and rate."""
        return f"{self.num_features}, eps={self.eps}, rate={self.rate}"


class ChannelNorm(nn.Module):
    """Group norm whose gain and shift are one number per *group* of channels."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, num_groups: int, affine: bool = True) -> None:
        """Start with gain 1 and shift 0."""
        super().__init__()
        self.num_features, self.num_groups = num_features, num_groups
        ones, zeros = torch.ones(num_groups), torch.zeros(num_groups)
        self.register_parameter("weight", nn.Parameter(ones) if affine else None)
        self.register_parameter("bias", nn.Parameter(zeros) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape."""
        width = self.num_features // self.num_groups
        gain = None if self.weight is None else self.weight.repeat_interleave(width)
        shift = None if self.bias is None else self.bias.repeat_interleave(width)
        return nn.functional.group_norm(x, self.num_groups, gain, shift, EPS)

    def extra_repr(self) -> str:
        """Return the number of groups and channels."""
        return f"{self.num_groups}, {self.num_features}"


class BatchChannelNorm(ChannelAffine):
    """Normalisation over the batch, gain and shift per channel, then ``ChannelNorm``.

    ``batch`` is a torch batch norm without affine or ``EstimatedBatchStatistics``. The gain and
    shift of batch norm keep their names here, outside of it.
    """

    def __init__(self, batch: nn.Module, num_features: int, num_groups: int, affine: bool) -> None:
        """Start with gain 1 and shift 0 of both kinds."""
        super().__init__(num_features, affine)
        self.num_groups = num_groups
        self.batch = batch
        self.channel = ChannelNorm(num_features, num_groups, affine)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape."""
        normalised: Tensor = self.channel(super().forward(self.batch(x)))
        return normalised


def build_bcn(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build the large-batch form with the epsilon, momentum and running averages of ``bn``."""
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    batch = kinds[dims](bn.num_features, bn.eps, bn.momentum, affine=False)
    copy_averages(bn, batch)
    return BatchChannelNorm(batch, bn.num_features, groups, affine=bn.weight is not None)


def build_est_bcn(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build the micro-batch form with the epsilon, momentum and running averages of ``bn``."""
    rate = 0.1 if bn.momentum is None else bn.momentum
    batch = EstimatedBatchStatistics(bn.num_features, bn.eps, rate)
    copy_averages(bn, batch)
    return BatchChannelNorm(batch, bn.num_features, groups, affine=bn.weight is not None)
