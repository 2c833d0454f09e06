"""What each norm does to the edges of a graph, told by sums over each cloud and channel.

A norm fits if it maps a value y of cloud b and channel c to ``gamma (y - mean) / deviation + beta``
with constants of (b, c) that depend on means and variances alone. It then never needs the edges
themselves: ``mean`` and ``var`` of a *cell*, the values that share a statistic, follow from those
of its (b, c), all of the same number of edges (Chan, Golub and LeVeque 1979).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.norm.layers import ChannelAffine, FrozenBatchNorm, InterleavedGroupNorm
from harness.norm.virtual import VirtualBatchNorm2d, fold_averages


class Moments(NamedTuple):
    """Constants of a norm, or how to find them."""

    eps: float
    average: Callable[[Tensor], Tensor] | None
    """Maps (B, O) to the mean over the cell of each entry, (B, O); None: constants."""
    mean: Tensor | None = None
    """The constants, (O,); None: 0 and 1."""
    var: Tensor | None = None


def moments(norm: nn.Module, clouds: int) -> Moments | None:
    """Return how ``norm`` treats the edges of a batch, None if it does not fit.

    Args:
        norm: one of the norms of images, as it is now: training or evaluating.
        clouds: B.
    """
    return _FORMS[type(norm)](norm, clouds) if type(norm) in _FORMS else None


def observe(norm: nn.Module, mean: Tensor, var: Tensor, edges: int) -> None:
    """Update running averages as a forward of ``norm`` would.

    Args:
        norm: any that ``moments`` accepts.
        mean: of the cell of each (b, c), (B, O) float64.
        var: biased, of the cell of each (b, c), (B, O) float64.
        edges: of a cloud.
    """
    if not (isinstance(norm, nn.BatchNorm2d) and norm.training and norm.track_running_stats):
        return
    micro = _micro(norm, len(mean))
    firsts = range(0, len(mean), micro)
    num = torch.tensor([edges * min(micro, len(mean) - b) for b in firsts]).to(mean).unsqueeze(1)
    dtype = mean.dtype if norm.running_mean is None else norm.running_mean.dtype
    variances = var[::micro] * num / (num - 1)
    fold_averages(norm, mean[::micro].to(dtype), variances.to(dtype))


def _batch_norm(norm: nn.BatchNorm2d, clouds: int) -> Moments:
    if not norm.training and norm.running_mean is not None:
        return Moments(norm.eps, None, norm.running_mean, norm.running_var)
    micro = _micro(norm, clouds) if norm.training else clouds

    def average(values: Tensor) -> Tensor:
        cells = values.split(micro)
        return torch.cat([cell.mean(0, keepdim=True).expand_as(cell) for cell in cells])

    return Moments(norm.eps, average)


def _micro(norm: nn.BatchNorm2d, clouds: int) -> int:
    return norm.micro if isinstance(norm, VirtualBatchNorm2d) else clouds


def _group_norm(norm: nn.GroupNorm, clouds: int) -> Moments:
    shape, dim = (norm.num_groups, -1), 2
    if isinstance(norm, InterleavedGroupNorm):
        shape, dim = (-1, norm.num_groups), 1

    def average(values: Tensor) -> Tensor:
        cells = values.unflatten(1, shape)
        means: Tensor = cells.mean(dim, keepdim=True)
        return means.expand_as(cells).flatten(1)

    return Moments(norm.eps, average)


def _instance_norm(norm: nn.InstanceNorm2d, clouds: int) -> Moments | None:
    return None if norm.track_running_stats else Moments(norm.eps, lambda values: values)


def _frozen_batch_norm(norm: FrozenBatchNorm, clouds: int) -> Moments:
    return Moments(norm.eps, None, norm.running_mean, norm.running_var)


def _affine(norm: ChannelAffine, clouds: int) -> Moments:
    return Moments(0.0, None)


_FORMS: dict[type[nn.Module], Callable[..., Moments | None]] = {
    nn.BatchNorm2d: _batch_norm,
    VirtualBatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
    InterleavedGroupNorm: _group_norm,
    nn.InstanceNorm2d: _instance_norm,
    FrozenBatchNorm: _frozen_batch_norm,
    ChannelAffine: _affine,
}
"""By exact class: what a subclass does is not known."""
