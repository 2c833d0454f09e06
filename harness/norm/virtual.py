"""Batch norm with the statistics of many small batches at the price of one large one.

See ``harness.chunk`` for when a forward executes several micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        if not tail:
            return self._normalise(input, self.micro)
        if tail == len(input):
            return self._normalise(input, tail)
        whole = self._normalise(input[:-tail], self.micro)
        return torch.cat([whole, self._normalise(input[-tail:], tail)])

    def _normalise(self, input: Tensor, micro: int) -> Tensor:
        num, channels = len(input) // micro, input.shape[1]
        if micro * input[0, 0].numel() == 1:
            raise ValueError(
                f"batch norm over micro-batches of {micro} sees one value per channel of an input "
                f"of shape {tuple(input.shape)}"
            )
        # A micro-batch whose samples are joined along space is one sample; its batch statistics are
        # then those of group norm with a group per channel, a faster kernel than batch norm's.
        dtype = input.dtype if self.running_mean is None else self.running_mean.dtype
        joined = input.reshape(num, micro, channels, -1).transpose(1, 2)
        joined = joined.reshape(num, channels, -1).to(dtype)
        size = joined.shape[2]
        normalised, means, rstds = torch.native_group_norm(
            joined, self.weight, self.bias, num, channels, size, channels, self.eps
        )
        if self.track_running_stats:
            variances = (rstds.detach() ** -2 - self.eps) * (size / (size - 1))
            fold_averages(self, means.detach().view(num, channels), variances.view(num, channels))
        parts = normalised.reshape(num, channels, micro, -1).transpose(1, 2)
        return parts.reshape(input.shape).to(input.dtype)


@torch.no_grad()
def fold_averages(norm: nn.modules.batchnorm._BatchNorm, means: Tensor, variances: Tensor) -> None:
    """Update the running averages of ``norm`` as one update a micro-batch, in order, would.

    Args:
        norm: a batch norm with running averages.
        means: of each micro-batch, (M, C), of the type of the averages.
        variances: unbiased, of each micro-batch, (M, C).
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    num = len(means)
    if norm.momentum is None:  # torch's cumulative average: update t has momentum 1 / t
        seen = float(norm.num_batches_tracked)
        kept, weights = seen / (seen + num), means.new_full((num,), 1 / (seen + num))
    else:
        kept = (1 - norm.momentum) ** num
        # Update j of num still counts (1 - momentum) ** (num - 1 - j) at the end.
        added = [norm.momentum * (1 - norm.momentum) ** (num - 1 - j) for j in range(num)]
        weights = torch.tensor(added, dtype=means.dtype, device=means.device)
    norm.running_mean.addmv_(means.t(), weights, beta=kept)
    norm.running_var.addmv_(variances.t(), weights, beta=kept)
    norm.num_batches_tracked += num


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
