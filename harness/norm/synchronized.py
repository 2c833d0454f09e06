"""Batch norm whose statistics are those of the forwards of all processes: ``batch.stat=sync``.

torch's SyncBatchNorm takes tensors of GPUs alone and has no way to leave out a process that has no
images left; this one works on any device and in any float type.

A process without images at the end of an epoch runs a *stand-in*, so that everybody meets at every
layer; nothing of it counts (``standing_in``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.norm.layers import per_channel, widened
from harness.norm.virtual import fold_averages

_stands_in: ContextVar[bool] = ContextVar("stands_in", default=False)
_apart: ContextVar[bool] = ContextVar("apart", default=False)


@contextmanager
def standing_in() -> Iterator[None]:
    """Leave what is forwarded inside the block out of every shared statistic.

    The forward uses the statistics of the others all the same. Its loss must be multiplied by 0.
    """
    with _held(_stands_in, True):
        yield


@contextmanager
def apart() -> Iterator[None]:
    """Let every process have statistics of its own inside the block: nobody is waited for."""
    with _held(_apart, True):
        yield


@contextmanager
def _held(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps) * gamma + beta`` over the values of all processes.

    One exchange forward and one backward, of 2 C + 1 and 2 C numbers: each process's moments are
    joined by Chan, Golub and LeVeque's formula (1979), which cancels nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map ``(B, C, *space)`` to the same shape, and give mean, biased variance and count."""
        wide, channels = widened(x), x.shape[1]
        dims = (0, *range(2, x.dim()))
        own = wide.new_zeros(2 * channels + 1)
        if counts and x.numel():
            centre = wide.mean(dims)
            spread = (wide - per_channel(centre, wide)).square().sum(dims)
            own = torch.cat([centre, spread, own.new_tensor([x.numel() // channels])])
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)
        each = torch.stack(everyone)  # (world, 2 C + 1)
        centres, spreads, sizes = each.split([channels, channels, 1], dim=1)
        total = sizes.sum()
        mean = (sizes * centres).sum(0) / total
        var = (spreads + sizes * (centres - mean).square()).sum(0) / total
        rstd = (var + eps).rsqrt()
        normalised = (wide - per_channel(mean, wide)) * per_channel(rstd, wide)
        y = normalised if gamma is None else normalised * per_channel(gamma, wide)
        y = y if beta is None else y + per_channel(beta, wide)
        ctx.save_for_backward(normalised, rstd, total, gamma)
        ctx.counts, ctx.dtype, ctx.affine = counts, x.dtype, (gamma is not None, beta is not None)
        ctx.mark_non_differentiable(mean, var, total)
        return y.to(x.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of this process's input, gamma and beta."""
        normalised, rstd, total, gamma = ctx.saved_tensors
        grad = grads[0].to(normalised.dtype)
        dims = (0, *range(2, grad.dim()))
        both = torch.cat([grad.sum(dims), (grad * normalised).sum(dims)])
        own_beta, own_gamma = both.clone().chunk(2)
        dist.all_reduce(both)
        if ctx.counts:
            first, second = (per_channel(part / total, grad) for part in both.chunk(2))
            grad = grad - first - normalised * second
        grad = grad * per_channel(rstd if gamma is None else rstd * gamma, grad)
        has_gamma, has_beta = ctx.affine
        to_gamma, to_beta = own_gamma if has_gamma else None, own_beta if has_beta else None
        return grad.to(ctx.dtype), to_gamma, to_beta, None, None


class _Synchronized(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the forwards of all processes; every process must forward equally often."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, *space)``, of which the number of values may differ by process.

        Raises:
            ValueError: in training, if the processes have one value per channel together.
        """
        if not self.training or _apart.get() or not dist.is_initialized():
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        y, mean, var, total = _Normalise.apply(
            input, self.weight, self.bias, self.eps, not _stands_in.get()
        )
        values = int(total)
        if values == 1:
            raise ValueError("batch norm over all processes sees one value per channel")
        if values and self.track_running_stats:
            unbiased = var * (values / (values - 1))
            own = self.running_mean.dtype  # type: ignore[union-attr]
            fold_averages(self, mean[None].to(own), unbiased[None].to(own))
        assert isinstance(y, Tensor)
        return y


class SynchronizedBatchNorm1d(_Synchronized, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` over the forwards of all processes."""


class SynchronizedBatchNorm2d(_Synchronized, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` over the forwards of all processes."""


class SynchronizedBatchNorm3d(_Synchronized, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` over the forwards of all processes."""


_SYNCHRONIZED: dict[type[nn.Module], type[_Synchronized]] = {
    nn.BatchNorm1d: SynchronizedBatchNorm1d,
    nn.BatchNorm2d: SynchronizedBatchNorm2d,
    nn.BatchNorm3d: SynchronizedBatchNorm3d,
}


def synchronize(model: nn.Module) -> None:
    """Retype every batch norm of ``model`` in place to its synchronised twin.

    Raises:
        TypeError: for a subclass of batch norm that has none.
    """
    for path, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if type(module) not in _SYNCHRONIZED:
            raise TypeError(f"{path}: {type(module).__name__} cannot see the other processes")
        module.__class__ = _SYNCHRONIZED[type(module)]
