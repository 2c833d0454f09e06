"""Weight standardisation as layers: torch's convolutions and Linear on standardised weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from harness.norm.catalogue import ws_variant
from harness.norm.standardize import standardize_weight

__all__ = [
    "WS_CLASSES",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvTranspose1d",
    "WSConvTranspose2d",
    "WSConvTranspose3d",
    "WSLinear",
    "WeightStandardized",
    "standardize_weight",
]


class WeightStandardized(nn.Module):
    """What the layers below share: torch's constructor plus ``ws``, and the standardised weight.

    The raw weight stays the parameter, under torch's name. An instance of torch's own class may be
    turned into its twin in place: set ``__class__``, then ``ws``.
    """

    ws: str = "authors"
    fused: bool = True
    """Whether the fast form may stand for the formula (``standardize_weight``)."""
    weight: Tensor
    shared: Tensor | None = None
    """The standardised weight of a window of forwards (``harness.norm.window``)."""

    def __init__(self, *args: Any, ws: str = "authors", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws = ws_variant(ws).name

    def standardized_weight(self) -> Tensor:
        """Standardise ``weight``, keeping its shape."""
        return standardize_weight(self.weight, self.ws, fused=self.fused)

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
        return standardize_weight(
            self.weight, self.ws, out_dim=1, groups=self.groups, fused=self.fused
        )

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
