"""The norms that can stand where a batch norm stood, one factory each.

A factory is called as ``factory(bn, dims=2, groups=32)`` with the batch norm it replaces, the
number of spatial axes there and the wanted number of channel groups. It returns a module with the
same channels and parameter names; surgery then copies gamma, beta, type, device and mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.errors import AuditError

EPS = 1e-5
"""Epsilon of gn, ln and in in every recipe of the paper (and torch's default)."""


def widened(x: Tensor) -> Tensor:
    """Return ``x`` in the type of its statistics: float32 if it is narrower."""
    return x.float() if torch.finfo(x.dtype).bits < 32 else x


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel of ``(B, C, *space)``."""
    dims = (0, *range(2, x.dim()))
    wide = widened(x)
    mean = wide.mean(dim=dims, keepdim=True)
    # The norm of the centred values instead of torch.var_mean, which takes five times as long.
    length = torch.linalg.vector_norm(wide - mean, dim=dims)
    return mean.flatten(), length.square() / (x.numel() // x.shape[1])


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """View ``(C,)`` so that it broadcasts over ``like``, in its type."""
    # Cast, or autocast's float32 parameters would widen every activation.
    return vector.to(like.dtype).view(-1, *(1,) * (like.dim() - 2))


class BatchNorm(Protocol):
    """What a factory may read of the batch norm it replaces."""

    num_features: int
    eps: float
    momentum: float | None
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None


NormFactory = Callable[..., nn.Module]
"""``(bn, *, dims, groups) -> nn.Module``; see the module's docstring."""


class ChannelAffine(nn.Module):
    """``y = gamma * x + beta`` per channel: a norm with its normalisation taken out.

    It keeps the parameters, and so the capacity, of the norm it stands for: a network with it
    differs from one with a norm in the normalisation alone.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, affine: bool = True) -> None:
        """Start as the identity."""
        super().__init__()
        self.num_features = num_features
        self.register_parameter(
            "weight", nn.Parameter(torch.ones(num_features)) if affine else None
        )
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape and type."""
        if self.weight is not None:
            x = x * per_channel(self.weight, x)
        if self.bias is not None:
            x = x + per_channel(self.bias, x)
        return x

    def extra_repr(self) -> str:
        """Return the number of channels."""
        return f"{self.num_features}"


class FrozenBatchNorm(nn.Module):
    """Batch norm with its statistics and affine as constants, for inputs of any dimension.

    Everything is a buffer under batch norm's own names, ``num_batches_tracked`` included, so a
    state dict of the model with batch norm loads key for key, and the other way round. Gradients
    reach the input only, and training mode changes nothing.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = EPS, affine: bool = True) -> None:
        """Start with mean 0, variance 1, gain 1 and shift 0."""
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features) if affine else None)
        self.register_buffer("bias", torch.zeros(num_features) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def extra_repr(self) -> str:
        """Return the number of channels and epsilon."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Weight files older than torch 0.4.1 lack this key, as torch's batch norm allows too.
        state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class InstanceNorm1d(nn.InstanceNorm1d):
    """torch's, but it refuses ``(B, C)``, which torch would read as ``(C, L)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, C, L)`` to the same shape.

        Raises:
            ValueError: for any other number of axes.
        """
        if input.dim() != 3:
            raise ValueError(
                f"instance norm over {tuple(input.shape)} has one value per statistic: it needs "
                "(B, C, L) where batch norm also takes (B, C); choose another norm, e.g. ln"
            )
        return super().forward(input)


def copy_averages(bn: BatchNorm, new: nn.Module) -> None:
    """Copy the running averages of ``bn`` into the buffers of ``new`` that bear their names."""
    own = dict(new.named_buffers(recurse=False))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        old: Tensor | None = getattr(bn, name)
        if old is not None and name in own:
            setattr(new, name, old.detach().clone())  # of its own type: float64 is not rounded


def keep_bn(bn: nn.Module, *, dims: int, groups: int) -> nn.Module:
    """Return ``bn`` itself: batch norm is what the stock model has."""
    return bn


def build_sync_bn(bn: nn.Module, *, dims: int, groups: int) -> nn.Module:
    """Build torch's synchronised batch norm, which on one device is batch norm."""
    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(bn)
    return synchronised


class InterleavedGroupNorm(nn.GroupNorm):
    """Group norm whose channel c is in group ``c mod groups``, as in csrhddlam/dgcnn.

    Over freshly drawn weights it is group norm with the channels in another order.
    """

    interleaved = True

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, C, *space)`` to the same shape."""
        runs = input.unflatten(1, (-1, self.num_groups)).transpose(1, 2).flatten(1, 2)
        y = nn.functional.group_norm(runs, self.num_groups, eps=self.eps)
        y = y.unflatten(1, (self.num_groups, -1)).transpose(1, 2).flatten(1, 2)
        if self.affine:
            y = y * per_channel(self.weight, y) + per_channel(self.bias, y)
        assert isinstance(y, Tensor)
        return y

    def extra_repr(self) -> str:
        """Return torch's description and the order of the groups."""
        return f"{super().extra_repr()}, interleaved"


def build_gn(bn: BatchNorm, *, dims: int, groups: int, interleaved: bool = False) -> nn.Module:
    """Build ``torch.nn.GroupNorm``, or its interleaved twin.

    Args:
        bn: what it replaces.
        dims: number of spatial axes there; any will do.
        groups: channel groups, which must divide the channels.
        interleaved: whether channel c is in group ``c mod groups``, not in runs of channels.
    """
    cls = InterleavedGroupNorm if interleaved else nn.GroupNorm
    return cls(groups, bn.num_features, eps=EPS, affine=bn.weight is not None)


def build_ln(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build layer norm over ``(C, *space)`` with gamma and beta per channel: one group."""
    return nn.GroupNorm(1, bn.num_features, eps=EPS, affine=bn.weight is not None)


def build_in(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build affine instance norm without running averages."""
    classes: dict[int, type[nn.Module]] = {
        1: InstanceNorm1d,
        2: nn.InstanceNorm2d,
        3: nn.InstanceNorm3d,
    }
    return classes[dims](bn.num_features, eps=EPS, affine=bn.weight is not None)


def build_frozen_bn(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build batch norm with the statistics, affine and epsilon of ``bn`` as constants.

    Raises:
        AuditError: if ``bn`` tracks no running averages.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise AuditError("frozen_bn needs running averages, and this batch norm tracks none")
    frozen = FrozenBatchNorm(bn.num_features, bn.eps, affine=bn.weight is not None)
    copy_averages(bn, frozen)
    return frozen


def build_none(bn: BatchNorm, *, dims: int, groups: int) -> nn.Module:
    """Build the per-channel gain and shift alone."""
    return ChannelAffine(bn.num_features, affine=bn.weight is not None)
