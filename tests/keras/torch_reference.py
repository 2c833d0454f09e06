"""Writes what PyTorch's half computes for the Keras cases, in Keras's layouts, to an .npz file.

python -m tests.keras.torch_reference reference.npz
"""

import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.norm.catalogue import WS_VARIANTS
from harness.norm.weight_standardization import standardize_weight
from tests.keras.cases import CASES, Case, inputs_of, kernel_of, upstream_of

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def to_torch(kernel: Tensor, layer: str) -> Tensor:
    """Return PyTorch's weight for Keras's ``kernel``."""
    if "Depthwise" in layer:  # (H, W, C, M) -> (C * M, 1, H, W)
        return kernel.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)
    # (..., A, B) -> (B, A, ...): a dense, plain or transposed kernel.
    return kernel.permute(-1, -2, *range(kernel.dim() - 2))


def from_torch(weight: Tensor, case: Case) -> Tensor:
    """Undo ``to_torch``."""
    if "Depthwise" in case.layer:
        return weight.reshape(*case.kernel[2:], *case.kernel[:2]).permute(2, 3, 0, 1)
    return weight.permute(*range(2, weight.dim()), 1, 0)


def forward(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    """Return the layer's output, channels last, for a standardised ``weight``."""
    if case.layer == "WSDense":
        return F.linear(x, weight)
    dims = len(case.kernel) - 2
    x = x.movedim(-1, 1)
    stride = case.kwargs.get("strides", 1)
    if "Transpose" in case.layer:
        return TRANSPOSED[dims](x, weight, stride=stride).movedim(1, -1)
    groups = case.kernel[2] if "Depthwise" in case.layer else case.kwargs.get("groups", 1)
    padding = case.kwargs.get("padding", "valid")
    dilation = case.kwargs.get("dilation_rate", 1)
    convolve = CONVOLUTIONS[dims]
    y = convolve(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return y.movedim(1, -1)


def main(path: str) -> None:
    found: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        out_dim = 1 if "Transpose" in case.layer else 0
        upstream = to_torch(torch.from_numpy(upstream_of(case)), case.layer)
        for variant in WS_VARIANTS:
            weight = to_torch(torch.from_numpy(kernel_of(case)), case.layer).contiguous()
            weight.requires_grad_()
            standardized = standardize_weight(weight, variant, out_dim=out_dim)
            standardized.backward(upstream)
            output = forward(case, torch.from_numpy(inputs_of(case)), standardized.detach())
            key = f"{name}/{variant}"
            found[f"{key}/kernel"] = from_torch(standardized.detach(), case).numpy()
            found[f"{key}/gradient"] = from_torch(weight.grad, case).numpy()
            found[f"{key}/output"] = output.numpy()
    np.savez(path, **found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
