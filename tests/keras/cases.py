"""Layers, kernels and inputs that the Keras half and PyTorch both compute; imports neither."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A Keras layer, channels last; shapes are Keras's."""

    layer: str
    args: tuple[Any, ...]
    kernel: tuple[int, ...]
    inputs: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: float | None = None
    """What every weight of the kernel is, or None for random ones."""

    @property
    def filter_axes(self) -> tuple[int, ...]:
        if "Depthwise" in self.layer:
            return (-2, -1)
        return (-2,) if "Transpose" in self.layer else (-1,)


CASES = {
    "conv1d": Case("WSConv1D", (4, 5), (5, 3, 4), (2, 9, 3), {"strides": 2}),
    "conv2d": Case("WSConv2D", (4, 3), (3, 3, 6, 4), (2, 6, 5, 6)),
    "conv2d_same": Case("WSConv2D", (4, 3), (3, 3, 6, 4), (2, 6, 5, 6), {"padding": "same"}),
    "conv2d_dilated": Case("WSConv2D", (4, 3), (3, 3, 6, 4), (2, 6, 5, 6), {"dilation_rate": 2}),
    "conv3d": Case("WSConv3D", (3, (3, 1, 2)), (3, 1, 2, 2, 3), (1, 4, 3, 3, 2)),
    "conv1d_grouped": Case("WSConv1D", (6, 3), (3, 2, 6), (2, 7, 4), {"groups": 2}),
    "conv2d_grouped": Case("WSConv2D", (8, 3), (3, 3, 2, 8), (2, 5, 5, 8), {"groups": 4}),
    "conv3d_grouped": Case("WSConv3D", (4, 2), (2, 2, 2, 2, 4), (1, 3, 3, 3, 4), {"groups": 2}),
    "fan_in_1": Case("WSConv2D", (5, 1), (1, 1, 1, 5), (1, 3, 3, 1)),
    "fan_in_2": Case("WSDense", (3,), (2, 3), (2, 2)),
    "constant": Case("WSConv2D", (4, 3), (3, 3, 6, 4), (1, 4, 4, 6), value=0.1),
    "constant_dense": Case("WSDense", (5,), (64, 5), (2, 64), value=-3.3),
    "dense": Case("WSDense", (5,), (7, 5), (2, 3, 7)),
    "depthwise": Case("WSDepthwiseConv2D", (3,), (3, 3, 4, 1), (2, 5, 5, 4)),
    "depthwise_multiplier": Case(
        "WSDepthwiseConv2D", (3,), (3, 3, 4, 2), (2, 6, 6, 4), {"depth_multiplier": 2, "strides": 2}
    ),
    "transpose1d": Case("WSConv1DTranspose", (6, 3), (3, 6, 4), (2, 5, 4), {"strides": 2}),
    "transpose2d": Case("WSConv2DTranspose", (6, 3), (3, 3, 6, 4), (2, 5, 4, 4), {"strides": 2}),
    "transpose3d": Case("WSConv3DTranspose", (2, 2), (2, 2, 2, 2, 3), (1, 3, 3, 3, 3)),
}


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def kernel_of(case: Case) -> np.ndarray:
    """Return the raw kernel."""
    if case.value is not None:
        return np.full(case.kernel, case.value, np.float32)
    return np.float32(0.05) * normal(0, case.kernel) + np.float32(0.3)


def upstream_of(case: Case) -> np.ndarray:
    """Return the gradient of the loss with respect to the standardised kernel."""
    return normal(1, case.kernel)


def inputs_of(case: Case) -> np.ndarray:
    return normal(2, case.inputs)
