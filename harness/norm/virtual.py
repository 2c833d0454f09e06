"""Batch norm with the statistics of many small batches at the price of one large one.

See ``harness.chunk`` for when a forward executes several micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import UsageError
from harness.norm.layers import BatchNorm, copy_averages


class _Virtual(nn.modules.batchnorm._BatchNorm):
    """Batch norm over consecutive micro-batches of ``micro`` samples of one larger forward."""

    micro: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(N, C, *space)``; a shorter tail is a micro-batch of its own."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if not self.training:
            return super().forward(input)
        tail = len(input) % self.micro
        whole = len(input) - tail
        parts = []
        if whole:
            parts.append(self._normalise(input[:whole], self.micro))
        if tail:
            parts.append(self._normalise(input[whole:], tail))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _normalise(self, input: Tensor, micro: int) -> Tensor:
        num, channels = len(input) // micro, input.shape[1]
        space = input.shape[2:]
        # Micro-batch j's channel c becomes channel j * C + c of a batch of `micro` samples.
        folded = input.reshape(num, micro, channels, *space).transpose(0, 1)
        folded = folded.reshape(micro, num * channels, *space)
        means = torch.zeros(num * channels, dtype=self._stat_dtype(input), device=input.device)
        variances = torch.ones_like(means)
        normalised = F.batch_norm(
            folded,
            means,
            variances,
            None if self.weight is None else self.weight.repeat(num),
            None if self.bias is None else self.bias.repeat(num),
            training=True,
            momentum=1.0,  # `means` and `variances` become those of the micro-batches
            eps=self.eps,
        )
        if self.track_running_stats:
            self._fold(means.view(num, channels), variances.view(num, channels))
        unfolded = normalised.reshape(micro, num, channels, *space).transpose(0, 1)
        return unfolded.reshape(input.shape)

    def _stat_dtype(self, input: Tensor) -> torch.dtype:
        return input.dtype if self.running_mean is None else self.running_mean.dtype

    @torch.no_grad()
    def _fold(self, means: Tensor, variances: Tensor) -> None:
        """Update the running averages as one update a micro-batch, in order, would."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        num = len(means)
        if self.momentum is None:  # torch's cumulative average: update t has momentum 1 / t
            seen = float(self.num_batches_tracked)
            kept, weights = seen / (seen + num), means.new_full((num,), 1 / (seen + num))
        else:
            keep = 1 - self.momentum
            kept = keep**num
            powers = torch.arange(num - 1, -1, -1, dtype=means.dtype, device=means.device)
            weights = self.momentum * keep**powers
        self.running_mean.mul_(kept).add_(weights @ means)
        self.running_var.mul_(kept).add_(weights @ variances)
        self.num_batches_tracked += num


class VirtualBatchNorm1d(_Virtual, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` over micro-batches of a larger forward."""


class VirtualBatchNorm2d(_Virtual, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` over micro-batches of a larger forward."""


class VirtualBatchNorm3d(_Virtual, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` over micro-batches of a larger forward."""


_VIRTUAL: dict[type[nn.Module], type[_Virtual]] = {
    nn.BatchNorm1d: VirtualBatchNorm1d,
    nn.BatchNorm2d: VirtualBatchNorm2d,
    nn.BatchNorm3d: VirtualBatchNorm3d,
}


def virtualise(model: nn.Module, micro: int) -> None:
    """Retype every batch norm of ``model`` in place, so that its statistics see ``micro`` samples.

    Raises:
        TypeError: for a subclass of batch norm that has no virtual twin.
    """
    for path, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if type(module) not in _VIRTUAL:
            raise TypeError(f"{path}: {type(module).__name__} cannot see micro-batches of a chunk")
        module.__class__ = _VIRTUAL[type(module)]
        module.__dict__["micro"] = micro


def build_ghost_bn(
    bn: BatchNorm, *, dims: int, groups: int, stat_batch: int | None = None
) -> nn.Module:
    """Build batch norm whose statistics see ``stat_batch`` samples, as ``bn`` otherwise.

    Raises:
        UsageError: if ``stat_batch`` is not given.
    """
    if stat_batch is None:
        raise UsageError(
            "ghost_bn does not say how many samples a statistic sees: give batch.stat=ghost:K, or "
            'convert(model, "ghost_bn", stat_batch=K)'
        )
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    new = kinds[dims](
        bn.num_features,
        bn.eps,
        bn.momentum,
        affine=bn.weight is not None,
        track_running_stats=bn.running_mean is not None,
    )
    copy_averages(bn, new)
    virtualise(new, stat_batch)
    return new
