"""What a researcher takes home: weight-standardised layers, and one line to convert a model.

Importing this imports no torch; the first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.norm.catalogue import NormInfo
    from harness.norm.fold import fold
    from harness.norm.surgery import convert
    from harness.norm.weight_standardization import (
        WSConv1d,
        WSConv2d,
        WSConv3d,
        WSConvTranspose1d,
        WSConvTranspose2d,
        WSConvTranspose3d,
        WSLinear,
        standardize_weight,
    )

__all__ = [
    "NormInfo",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvTranspose1d",
    "WSConvTranspose2d",
    "WSConvTranspose3d",
    "WSLinear",
    "convert",
    "fold",
    "standardize_weight",
]

_ELSEWHERE = {
    "NormInfo": "harness.norm.catalogue",
    "convert": "harness.norm.surgery",
    "fold": "harness.norm.fold",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_ELSEWHERE.get(name, "harness.norm.weight_standardization"))
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
