"""Batch renormalisation: batch norm that is led from the batch's statistics to the running ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.norm.layers import EPS, BatchNorm, batch_moments, copy_averages

CLOSED_UNTIL, R_OPEN_AT, D_OPEN_AT = 5_000, 40_000, 25_000
"""Forwards before r and d may leave 1 and 0, and at which their bounds are widest (section 4)."""
R_MAX, D_MAX = 3.0, 5.0
"""The widest bounds (section 4)."""


class BatchRenorm(nn.Module):
    """``y = gamma * ((x - mean_B) / sigma_B * r + d) + beta`` per channel.

    Ioffe, "Batch Renormalization" (2017), arXiv 1702.03275. ``r = sigma_B / sigma`` and
    ``d = (mean_B - mean) / sigma`` lead from the batch's statistics to the running averages; they
    are constants for the gradient, and clipped to ``[1 / r_max, r_max]`` and ``[-d_max, d_max]``.
    Evaluation uses the running averages, as batch norm's.

    The bounds follow the paper's schedule, counted in forwards of this module in training: 1 and 0
    (plain batch norm) for 5,000, then linearly to ``r_max = 3`` at 40,000 and ``d_max = 5`` at
    25,000. While they are closed, this is torch's batch norm, running averages included. Buffers
    carry batch norm's names. The running average of the deviation is kept as a variance.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, eps: float = EPS, momentum: float | None = 0.1, affine: bool = True
    ) -> None:
        """Start as batch norm does."""
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        ones, zeros = torch.ones(num_features), torch.zeros(num_features)
        self.register_parameter("weight", nn.Parameter(ones) if affine else None)
        self.register_parameter("bias", nn.Parameter(zeros) if affine else None)
        self.register_buffer("running_mean", zeros.clone())
        self.register_buffer("running_var", ones.clone())
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape.

        Raises:
            ValueError: in training, if a channel has one value.
        """
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        r, d = self._corrections(x.detach())
        gain = r if self.weight is None else self.weight * r
        shift = d if self.weight is None else self.weight * d
        if self.bias is not None:
            shift = shift + self.bias
        return nn.functional.batch_norm(x, None, None, gain, shift, training=True, eps=self.eps)

    @torch.no_grad()
    def _corrections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and d, each ``(C,)``, and then update the running averages."""
        mean, var = batch_moments(x)
        sigma = (self.running_var + self.eps).sqrt()
        r_max, d_max = self.bounds()
        ratio = (var + self.eps).sqrt() / sigma
        r = torch.minimum(torch.maximum(ratio, 1 / r_max), r_max)
        d = torch.minimum(torch.maximum((mean - self.running_mean) / sigma, -d_max), d_max)
        self.num_batches_tracked += 1
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        values = x.numel() // x.shape[1]
        unbiased = var * (values / max(values - 1, 1))  # as torch's batch norm keeps it
        self.running_mean += rate * (mean - self.running_mean)
        self.running_var += rate * (unbiased - self.running_var)
        return r.to(self.running_mean.dtype), d.to(self.running_mean.dtype)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return ``r_max`` and ``d_max`` of the next forward, each ``()``."""
        opened = (self.num_batches_tracked - CLOSED_UNTIL).to(self.running_mean.dtype)
        to_r = (opened / (R_OPEN_AT - CLOSED_UNTIL)).clamp(0, 1)
        to_d = (opened / (D_OPEN_AT - CLOSED_UNTIL)).clamp(0, 1)
        return 1 + (R_MAX - 1) * to_r, D_MAX * to_d

    def extra_repr(self) -> str:
        """Return the number of channels, epsilon and momentum."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


def build_brn(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build batch renormalisation with the epsilon, momentum and running averages of ``bn``."""
    new = BatchRenorm(bn.num_features, bn.eps, bn.momentum, affine=bn.weight is not None)
    copy_averages(bn, new)
    return new
