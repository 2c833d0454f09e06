"""Weight-standardised layers for Keras 3, on TensorFlow, JAX or torch; imports no torch itself."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("keras") is None:
    raise ModuleNotFoundError(
        "normbench.keras needs Keras 3 and a backend for it: "
        "pip install 'keras>=3.8' tensorflow (or jax, or torch)",
        name="keras",
    )

from harness.norm.keras import (
    WSConv1D,
    WSConv1DTranspose,
    WSConv2D,
    WSConv2DTranspose,
    WSConv3D,
    WSConv3DTranspose,
    WSDense,
    WSDepthwiseConv2D,
    standardize_kernel,
)

__all__ = [
    "WSConv1D",
    "WSConv1DTranspose",
    "WSConv2D",
    "WSConv2DTranspose",
    "WSConv3D",
    "WSConv3DTranspose",
    "WSDense",
    "WSDepthwiseConv2D",
    "standardize_kernel",
]
