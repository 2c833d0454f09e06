"""Weight standardisation: the one function, and torch's convolutions and Linear built on it.

Qiao, Wang, Liu, Shen and Yuille, "Weight Standardization" (2019), arXiv 1903.10520. The definitions
in use differ; ``harness.norm.catalogue.WS_VARIANTS`` names them.

In the comments, n is the fan-in: the number of weights that make one output value, which is
``C_in / groups * prod(kernel_size)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from harness.norm.catalogue import WSVariant, ws_variant


def standardize_weight(
    weight: Tensor, variant: str | WSVariant = "authors", *, out_dim: int = 0, groups: int = 1
) -> Tensor:
    """Standardise each output filter of ``weight`` to mean 0 and deviation 1.

    Statistics are computed in float32 for narrower types (in float64 for float64), whatever the
    autocast, and the result is rounded once to the type of ``weight``; its memory format is kept.
    A filter with one weight, or with equal weights, has no deviation to divide by: its result is
    exactly 0, with a finite gradient (up to 1 / eps: more than float16 may hold).

    Args:
        weight: ``(C_out, C_in / groups, *kernel)``, ``(C_out, C_in)``, or, with ``out_dim=1``, a
            transposed convolution's ``(C_in, C_out / groups, *kernel)``.
        variant: name in ``WS_VARIANTS``, or a definition of your own.
        out_dim: the axis that numbers the output filters.
        groups: groups of a transposed convolution, whose filters are numbered by both axes; an
            ordinary grouped convolution needs nothing, its first axis numbers them all.

    Returns:
        The standardised weight, of the shape, type and memory format of ``weight``.

    Raises:
        UsageError: if ``variant`` is not the name of one.
        ValueError: if ``groups`` is given without ``out_dim=1``.
    """
    definition = ws_variant(variant) if isinstance(variant, str) else variant
    out_dim %= weight.dim()
    if groups == 1:
        return _standardize(weight, definition, (out_dim,))
    if out_dim != 1:
        raise ValueError(f"groups={groups} belongs to a transposed convolution: give out_dim=1")
    per_group = torch.unflatten(weight, 0, (groups, -1))  # (G, C_in / G, C_out / G, *kernel)
    return _standardize(per_group, definition, (0, 2)).flatten(0, 1)


def _standardize(weight: Tensor, variant: WSVariant, filter_dims: tuple[int, ...]) -> Tensor:
    """Standardise ``weight`` over every axis but ``filter_dims``."""
    inner = tuple(dim for dim in range(weight.dim()) if dim not in filter_dims)
    with _without_autocast(weight.device.type):
        wide = weight.float() if torch.finfo(weight.dtype).bits < 32 else weight
        # Subtracting a constant first changes neither result nor gradient, but makes filters of
        # equal weights exactly 0: their rounded mean would leave a residue of which the division
        # by a deviation near 0 makes noise.
        one = tuple(slice(0, 1) if dim in inner else slice(None) for dim in range(weight.dim()))
        centred = wide - wide.detach()[one]
        centred -= centred.mean(dim=inner, keepdim=True)
        # The norm of the centred filter instead of torch.std or var_mean, which are slow on CPU.
        # Its gradient at 0 is defined as 0.
        length = torch.linalg.vector_norm(centred, dim=inner, keepdim=True)
        n = weight.numel() // length.numel()
        # With n = 1 the length is 0, and the unbiased variance's 0 / 0 counts as 0.
        sigma = length / math.sqrt(max(n - variant.unbiased, 1))
        if variant.eps_inside_root:
            denominator = (sigma.square() + variant.eps).sqrt()
        else:
            denominator = sigma + variant.eps
        if variant.scaled:
            denominator = denominator * math.sqrt(n)
        standardized: Tensor = centred * denominator.reciprocal()
        return standardized.to(weight.dtype)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class WeightStandardized(nn.Module):
    """What the layers below share: torch's constructor plus ``ws``, and the standardised weight.

    The raw weight stays the parameter, under torch's name. An instance of torch's own class may be
    turned into its twin in place: set ``__class__``, then ``ws``.
    """

    ws: str = "authors"
    weight: Tensor
    shared: Tensor | None = None
    """The standardised weight of a window of forwards (``harness.norm.window``)."""

    def __init__(self, *args: Any, ws: str = "authors", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws = ws_variant(ws).name

    def standardized_weight(self) -> Tensor:
        """Standardise ``weight``, keeping its shape."""
        return standardize_weight(self.weight, self.ws)

    def forward_weight(self) -> Tensor:
        """Return the weight that the forward pass uses, of the shape of ``weight``."""
        return self.standardized_weight() if self.shared is None else self.shared

    def extra_repr(self) -> str:
        """Return torch's description of the layer and the variant."""
        return f"{super().extra_repr()}, ws={self.ws}"


class _WeightStandardizedConv(WeightStandardized, nn.modules.conv._ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, C_in, *space)`` to ``(B, C_out, *space)``."""
        return self._conv_forward(input, self.forward_weight(), self.bias)


class WSConv1d(_WeightStandardizedConv, nn.Conv1d):
    """``torch.nn.Conv1d`` with standardised weights; ``ws`` names the variant."""


class WSConv2d(_WeightStandardizedConv, nn.Conv2d):
    """``torch.nn.Conv2d`` with standardised weights; ``ws`` names the variant."""


class WSConv3d(_WeightStandardizedConv, nn.Conv3d):
    """``torch.nn.Conv3d`` with standardised weights; ``ws`` names the variant."""


class _WeightStandardizedConvTranspose(WeightStandardized, nn.modules.conv._ConvTransposeNd):
    """A transposed convolution's weight is ``(C_in, C_out / groups, *kernel)``."""

    _transposed_convolution: Callable[..., Tensor]

    def standardized_weight(self) -> Tensor:
        """Standardise ``weight``, keeping its shape."""
        return standardize_weight(self.weight, self.ws, out_dim=1, groups=self.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map ``(B, C_in, *space)`` to ``(B, C_out, *space)``."""
        padding = [int(pad) for pad in self.padding]
        output_padding = self._output_padding(
            input,
            output_size,
            list(self.stride),
            padding,
            list(self.kernel_size),
            len(self.kernel_size),
            list(self.dilation),
        )
        return self._transposed_convolution(
            input,
            self.forward_weight(),
            self.bias,
            self.stride,
            padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class WSConvTranspose1d(_WeightStandardizedConvTranspose, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with standardised weights; ``ws`` names the variant."""

    _transposed_convolution = staticmethod(nn.functional.conv_transpose1d)


class WSConvTranspose2d(_WeightStandardizedConvTranspose, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` with standardised weights; ``ws`` names the variant."""

    _transposed_convolution = staticmethod(nn.functional.conv_transpose2d)


class WSConvTranspose3d(_WeightStandardizedConvTranspose, nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` with standardised weights; ``ws`` names the variant."""

    _transposed_convolution = staticmethod(nn.functional.conv_transpose3d)


class WSLinear(WeightStandardized, nn.Linear):
    """``torch.nn.Linear`` with standardised weights; ``ws`` names the variant."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., C_in)`` to ``(..., C_out)``."""
        return nn.functional.linear(input, self.forward_weight(), self.bias)


WS_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: WSConv1d,
    nn.Conv2d: WSConv2d,
    nn.Conv3d: WSConv3d,
    nn.ConvTranspose1d: WSConvTranspose1d,
    nn.ConvTranspose2d: WSConvTranspose2d,
    nn.ConvTranspose3d: WSConvTranspose3d,
    nn.Linear: WSLinear,
}
"""torch's own layers and their weight-standardised twins."""
